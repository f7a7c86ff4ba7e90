"""What does not fit together no kernel of ours is launched with, and what is no mask no variant of ours takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from attnkit.problem import Documents, Inputs, Mask, Prefix, Problem, Varlen
from attnkit.variants import TABLE, variant

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KERNELS = ("triton_unfused", "triton_flash", "triton_fa1", "triton_splitkv")
TORCHS = ("naive", "naive_compiled", "sdpa_math", "sdpa_efficient", "sdpa_flash", "sdpa_cudnn", "flex")

Change = Callable[[Inputs], dict[str, Any]]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {"k": x.k[:1], "v": x.v[:1]}, r"got \[2, 8, 3, 16\], \[1, 8, 3, 16\]|one batch, got 2 and 1"),
        (lambda x: {"q": x.q[..., :8]}, r"k \[b, skv, hkv, d\] and v .* got \[2, 8, 3, 8\]"),
        (lambda x: {"v": x.v[:, :4]}, r"v \[b, skv, hkv, dv\], got .* and \[2, 4, 3, 16\]"),
        (lambda x: {"v": x.v[:, :, :1]}, r"v \[b, skv, hkv, dv\], got .* and \[2, 8, 1, 16\]"),
        (lambda x: {"q": x.q[0]}, r"q must be \[b, sq, hq, d\], .* got \[8, 3, 16\]"),
        (lambda x: {"k": x.k[:, :, :2], "v": x.v[:, :, :2]}, "hkv must divide hq, got hq=3 and hkv=2"),
        (lambda x: {"k": x.k.half()}, "one dtype, got torch.float32, torch.float16 and torch.float32"),
        (lambda x: {"v": x.v.to("meta")}, "one device, got .* and meta"),
        (lambda x: {"softcap": 0.0}, "softcap must be positive, or None for none, got 0.0"),
        (lambda x: {"alibi": x.q.new_ones(2)}, r"alibi must be \[3\], float32 on .*, got \[2\]"),
        (lambda x: {"alibi": x.q.new_ones(3).double()}, r"alibi must be \[3\], float32 .*, got \[3\], torch.float64"),
        (lambda x: {"sink": x.q.new_ones(1)}, r"sink must be \[3\], float32 on .*, got \[1\]"),
        (lambda x: {"sink": x.q.new_ones(3, device="meta")}, r"sink must be \[3\], float32 on .* on meta"),
    ],
    ids=["batch", "d", "skv", "hkv", "ndim", "group", "dtype", "device", "softcap", "slopes", "slopes' dtype", "sinks",
         "sinks' device"],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(name: str, change: Change, message: str) -> None:
    inputs = Problem(b=2, hq=3, sq=8, d=16, dtype="fp32").inputs(DEVICE)
    with pytest.raises(ValueError, match=message):
        variant(name).attention(**{"q": inputs.q, "k": inputs.k, "v": inputs.v} | change(inputs))


@pytest.mark.parametrize("name", [*TORCHS, *KERNELS])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("casual", "mask must be one of full, causal, causal-top-left, or a Window, .* got 'casual'"),
        (None, "mask must be one of full, .* got None"),
        (Prefix(9), "a prefix must not be longer than skv, got 9 and skv=8"),
        (Documents((3, 4)), "lengths of documents must sum to sq = skv, got 7, sq=8, skv=8"),
    ],
    ids=str,
)
def test_what_is_no_mask_or_does_not_fit_is_refused(name: str, mask: Mask, message: str) -> None:
    q, k, v, _ = Problem(b=1, hq=2, sq=8, d=16, dtype="fp32").inputs(DEVICE)
    with pytest.raises(ValueError, match=message):
        variant(name).attention(q, k, v, mask=mask)


@pytest.mark.parametrize("name", ["naive", "flex", "triton_flash", "triton_fa1"])
@pytest.mark.parametrize("mask", ["casual", "causal-top-left", Documents((8,))], ids=str)
def test_packed_sequences_have_few_masks(name: str, mask: Mask) -> None:
    q, k, v, _ = Problem(b=1, hq=2, sq=8, d=16, dtype="fp32").inputs(DEVICE)
    with pytest.raises(ValueError, match="the mask of sequences must be full, causal, a Window or a Prefix, got "):
        variant(name).attention(q, k, v, mask=mask, varlen=Varlen((3, 5), (3, 5)))


@pytest.mark.parametrize("name", ["naive", "triton_splitkv"])
def test_sequences_in_a_cache_have_few_masks(name: str) -> None:
    q, k, v, _ = Problem(b=1, hq=2, sq=2, skv=8, d=16, dtype="fp32").inputs(DEVICE)
    lengths = torch.tensor([5], dtype=torch.int32, device=DEVICE)
    with pytest.raises(ValueError, match="the mask of sequences must be full, causal, a Window or a Prefix, got "):
        variant(name).attention(q, k, v, mask="casual", lengths=lengths)


TRAINED = ("triton_unfused", "triton_flash", "triton_fa1")


@pytest.mark.parametrize("name", KERNELS)
def test_heads_that_are_too_wide_are_refused(name: str) -> None:
    q, k, v, _ = Problem(b=1, hq=2, sq=2, skv=8, d=264, dtype="fp32").inputs(DEVICE)
    with pytest.raises(ValueError, match=r"d (and dv )?must be at most 256, got 264"):
        variant(name).attention(q, k, v)


@pytest.mark.parametrize("name", TRAINED)
def test_a_second_derivative_is_refused(name: str) -> None:
    q, k, v, _ = Problem(b=1, hq=2, sq=8, d=16, dtype="fp32").inputs(DEVICE, requires_grad=True)
    out = variant(name).attention(q, k, v)
    with pytest.raises(RuntimeError, match=f"{name} has no second derivative, got create_graph=True: take naive"):
        torch.autograd.grad(out.sum(), q, create_graph=True)


@pytest.mark.parametrize("name", TRAINED)
def test_a_derivative_in_forward_mode_is_refused(name: str) -> None:
    q, k, v, _ = Problem(b=1, hq=2, sq=8, d=16, dtype="fp32").inputs(DEVICE)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(q, torch.ones_like(q))
        with pytest.raises(NotImplementedError, match="jvp"):
            variant(name).attention(dual, k, v)


@pytest.mark.parametrize("name", ["triton_flash", "triton_fa1"])
def test_slopes_that_were_changed_before_backward_are_refused(name: str) -> None:
    q, k, v, dout = Problem(b=1, hq=2, sq=8, d=16, dtype="fp32").inputs(DEVICE, requires_grad=True)
    alibi = q.new_ones(2)
    out = variant(name).attention(q, k, v, alibi=alibi)
    alibi.mul_(4)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(out, q, dout)


def test_no_variant_of_ours_is_forgotten() -> None:
    ours = {way.name: way.attention for way in TABLE if way.name.startswith(("naive", "sdpa", "flex", "triton"))}
    assert ours.pop("triton_paged") is ours["triton_splitkv"]
    assert set(ours) == {*TORCHS, *KERNELS}
