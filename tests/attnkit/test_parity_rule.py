"""The rule of attnkit.parity tells right from wrong: what real kernels do wrong is red, what they do differently green.

A fused kernel is imitated in torch; then one thing at a time is planted in it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attnkit import parity as rule
from attnkit.parity import Comparison, Parity, compare, examine, parity
from attnkit.problem import DTYPES, TRAINED, Dtype, Inputs, Mask, Pass, Problem, dtype_of_out
from attnkit.variant import Attention, Variant
from attnkit.variants import naive, sdpa

Change = Callable[[torch.Tensor], torch.Tensor]
BLOCK = 16


class Fused(torch.autograd.Function):
    """FlashAttention-2 as torch operations: float32 inside, P again from the lse, rowsum(dO ∘ O) for rowsum(P ∘ dP).

    The part of each query head in dk and dv is rounded to the dtype before they are summed.
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, live: torch.Tensor, scale: float
    ) -> torch.Tensor:
        heads = k.shape[2]
        b_q, b_k, b_v = (x.float().transpose(1, 2).unflatten(1, (heads, -1)) for x in (q, k, v))
        scores = (b_q @ b_k.mT * scale).masked_fill(~live, -math.inf)
        lse = scores.logsumexp(-1, keepdim=True)
        weights = (scores - lse).exp().masked_fill(~live, 0.0)
        fp8 = v.dtype == torch.float8_e4m3fn
        sums = in_blocks(scores, b_v) if fp8 else weights.to(v.dtype).float() @ b_v
        out = sums.flatten(1, 2).transpose(1, 2).to(dtype_of_out(q.dtype))
        ctx.save_for_backward(q, k, v, out, lse, live)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse, live = ctx.saved_tensors
        heads = k.shape[2]
        b_q, b_k, b_v, b_out, b_dout = (
            x.float().transpose(1, 2).unflatten(1, (heads, -1)) for x in (q, k, v, out, dout)
        )
        weights = (b_q @ b_k.mT * ctx.scale - lse).exp().masked_fill(~live, 0.0)
        delta = (b_dout * b_out).sum(-1, keepdim=True)
        dscores = (weights * (b_dout @ b_v.mT - delta)).to(q.dtype).float()
        dq = (dscores @ b_k * ctx.scale).flatten(1, 2).transpose(1, 2).to(q.dtype)
        dk = (dscores.mT @ b_q * ctx.scale).to(k.dtype).sum(2).transpose(1, 2)
        dv = (weights.to(v.dtype).float().mT @ b_dout).to(v.dtype).sum(2).transpose(1, 2)
        return dq, dk, dv, None, None


def fused(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: Mask = "full",
    scale: float | None = None,
    shift: int = 0,
    hidden: tuple[slice, slice] | None = None,
) -> torch.Tensor:
    """Attention; with `shift` the diagonal lies elsewhere, `hidden` are rows and keys that do not meet."""
    sq, skv = q.shape[1], k.shape[1]
    live = torch.ones(sq, skv, dtype=torch.bool, device=q.device)
    if mask == "causal":
        live = live.tril(skv - sq + shift)
    if hidden:
        live[hidden] = False
    out: torch.Tensor = Fused.apply(q, k, v, live, q.shape[3] ** -0.5 if scale is None else scale)
    return out


class Altered(torch.autograd.Function):
    """What goes in comes out; the gradient is changed on its way back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, change: Change) -> torch.Tensor:
        ctx.change = change
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.change(gradient.clone()), None


def way(attention: Attention) -> Variant:
    return Variant("planted", "for this test", attention, lambda problem, device, pass_: None)


def forward_bug(change: Change) -> Attention:
    """Plant a change of out, which its gradients know nothing of."""

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        out = fused(q, k, v, **options)
        return out + (change(out.detach().clone()) - out.detach())

    return attention


def backward_bug(argument: int, change: Change) -> Attention:
    """Plant a change of dq, dk or dv."""

    def attention(*data: torch.Tensor, **options: Any) -> torch.Tensor:
        changed = list(data)
        changed[argument] = Altered.apply(data[argument], change)
        return fused(*changed, **options)

    return attention


def in_blocks(scores: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Weights rounded to e4m3 block by block, under the maximum so far."""
    largest, total = (scores.new_full((*scores.shape[:-1], 1), x) for x in (-1e30, 0.0))
    out = torch.zeros_like(scores[..., :1] * v[..., :1, :])
    for b_scores, b_v in zip(scores.split(BLOCK, -1), v.split(BLOCK, -2), strict=True):
        before, largest = largest, torch.maximum(largest, b_scores.amax(-1, keepdim=True))
        weights, kept = (b_scores - largest).exp() * 2**8, (before - largest).exp()
        total = total * kept + weights.sum(-1, keepdim=True)
        out = out * kept + weights.to(torch.float8_e4m3fn).float() @ b_v
    return out / total.clamp(min=1e-30)


def filled(where: tuple[slice | int, ...], value: float) -> Change:
    def change(x: torch.Tensor) -> torch.Tensor:
        x[where] = value
        return x

    return change


def unscaled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, mask: Mask, scale: float | None) -> torch.Tensor:
    """Two blocks of keys, of which the first keeps the maximum it had."""
    group, half = q.shape[2] // k.shape[2], k.shape[1] // 2
    b_q, b_k, b_v = (x.float().transpose(1, 2) for x in (q, k, v))
    b_k, b_v = (x.repeat_interleave(group, 1) for x in (b_k, b_v))
    scores = b_q @ b_k.mT * (q.shape[3] ** -0.5 if scale is None else scale)
    if mask == "causal":
        live = torch.ones_like(scores, dtype=torch.bool).tril(scores.shape[3] - scores.shape[2])
        scores = scores.masked_fill(~live, -1e30)
    first = scores[..., :half].amax(-1, keepdim=True)
    shift = torch.cat((first.expand_as(scores[..., :half]), scores.amax(-1, True).expand_as(scores[..., half:])), -1)
    weights = (scores - shift).exp()
    return (weights / weights.sum(-1, keepdim=True) @ b_v).transpose(1, 2).to(dtype_of_out(q.dtype))


def scaled_by_the_group(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    options["scale"] = (q.shape[3] * q.shape[2] // k.shape[2]) ** -0.5
    return fused(q, k, v, **options)


def wrong_key_head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    """Query head h reads key head h % hkv."""
    group = q.shape[2] // k.shape[2]
    return fused(q, k.repeat(1, 1, group, 1), v.repeat(1, 1, group, 1), **options)


def shifted(shift: int) -> Attention:
    return lambda q, k, v, **options: fused(q, k, v, shift=shift, **options)


FORWARD: dict[str, Attention] = {
    "the mask is one key too far": shifted(1),
    "the mask is one key too short": shifted(-1),
    "the accumulator is not rescaled": unscaled,
    "a tile of keys is left out": lambda q, k, v, **options: fused(
        q, k, v, hidden=(slice(-BLOCK, None), slice(-2 * BLOCK, -BLOCK)), **options
    ),
    "the scale has the group in it": scaled_by_the_group,
    "query heads read other key heads": wrong_key_head,
    "heads are swapped": forward_bug(lambda x: x.flip(2)),
    "batches are swapped": forward_bug(lambda x: x.flip(0)),
    "a tile is not written": forward_bug(filled((slice(-1, None), slice(-BLOCK, None), -1), 0.0)),
    "a row of the last tile is another's": forward_bug(lambda x: torch.cat((x[:, :-1], x[:, -2:-1]), 1)),
    "one number is nan": forward_bug(filled((-1, -1, -1, -1), math.nan)),
    "one number is infinite": forward_bug(filled((-1, -1, -1, -1), math.inf)),
}
BACKWARD: dict[str, Attention] = {
    "dq lacks the scale": backward_bug(0, lambda x: x * 8),
    "a tile of dq is not written": backward_bug(0, filled((slice(-1, None), slice(-BLOCK, None), -1), 0.0)),
    "a tile of dq is added twice": backward_bug(0, lambda x: torch.cat((x[:, :-BLOCK], 2 * x[:, -BLOCK:]), 1)),
    "dk is summed over other heads": backward_bug(1, lambda x: x.roll(1, 2)),
    "one query head is left out of dk": backward_bug(1, lambda x: x * 0.5),
    "a tile of dk is not written": backward_bug(1, filled((slice(-1, None), slice(BLOCK), -1), 0.0)),
    "dv is summed over other heads": backward_bug(2, lambda x: x.roll(1, 2)),
    "a tile of dv is not written": backward_bug(2, filled((slice(-1, None), slice(BLOCK), -1), 0.0)),
    "one number of dv is nan": backward_bug(2, filled((-1, -1, -1, -1), math.nan)),
}

PLANTED = Problem(b=2, hq=4, hkv=2, sq=80, skv=96, d=64, mask="causal")
SPREAD = [PLANTED, dataclasses.replace(PLANTED, magnitude=4.0)]

dtypes = pytest.mark.parametrize("dtype", TRAINED)
spreads = pytest.mark.parametrize("problem", SPREAD, ids=lambda problem: f"magnitude{problem.magnitude:g}")


@pytest.mark.parametrize("dtype", DTYPES)
@spreads
@pytest.mark.parametrize("bug", FORWARD)
def test_what_is_wrong_in_forward_is_red(bug: str, problem: Problem, dtype: Dtype) -> None:
    found = parity(way(FORWARD[bug]), dataclasses.replace(problem, dtype=dtype), "cpu", "fwd")
    assert not found.ok
    assert found.failures[0].startswith("out is ")


@dtypes
@spreads
@pytest.mark.parametrize("bug", BACKWARD)
def test_what_is_wrong_in_backward_is_red(bug: str, problem: Problem, dtype: Dtype) -> None:
    found = parity(way(BACKWARD[bug]), dataclasses.replace(problem, dtype=dtype), "cpu", "bwd")
    (name,) = {comparison.name for comparison in found.comparisons if comparison.failures}
    assert name in bug


RIGHT = [
    *SPREAD,
    # one key: the naive gradients of q and k are exactly 0
    Problem(b=2, hq=4, hkv=2, sq=17, skv=1, d=64),
    Problem(b=1, hq=1, sq=1, d=128),
    # scores so large that float32 knows their exp to 1e-5
    Problem(b=2, hq=2, sq=40, d=128, mask="causal", magnitude=4.0),
    Problem(b=1, hq=2, sq=33, skv=64, d=64, magnitude=6.0),
    # dk and dv are sums of the rounded parts of many heads
    Problem(b=1, hq=12, hkv=1, sq=65, skv=2, d=64),
    # no query sees a key but for the last
    Problem(b=1, hq=2, sq=40, skv=1, d=32, mask="causal"),
]


@dtypes
@pytest.mark.parametrize("problem", RIGHT, ids=lambda problem: problem.name)
@pytest.mark.parametrize("seed", range(3))
def test_a_fused_kernel_is_green(seed: int, problem: Problem, dtype: Dtype) -> None:
    found = parity(way(fused), dataclasses.replace(problem, dtype=dtype), "cpu", "bwd", seed=seed)
    assert found.ok, found.failures


@pytest.mark.parametrize("problem", RIGHT, ids=lambda problem: problem.name)
@pytest.mark.parametrize("seed", range(3))
def test_a_fused_kernel_in_fp8_is_green(seed: int, problem: Problem) -> None:
    found = parity(way(fused), dataclasses.replace(problem, dtype="fp8"), "cpu", "fwd", seed=seed)
    assert found.ok, found.failures


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.int8], ids=str)
def test_weights_with_a_digit_less_than_fp8_has_are_red(dtype: torch.dtype) -> None:
    def coarse(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, mask: Mask, scale: float | None) -> torch.Tensor:
        b_q, b_k, b_v = (x.float().transpose(1, 2) for x in (q, k, v))
        weights = (b_q @ b_k.mT * q.shape[3] ** -0.5).softmax(-1)
        return ((weights * 100).to(dtype).float() / 100 @ b_v).transpose(1, 2).bfloat16()

    found = parity(way(coarse), Problem(b=1, hq=4, sq=80, skv=96, d=64, dtype="fp8"), "cpu", "fwd")
    assert not found.ok
    assert not any("not finite" in failure for failure in found.failures)


@dtypes
@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("magnitude", [0.25, 4.0])
def test_a_fused_kernel_is_green_with_few_keys_too(magnitude: float, mask: Mask, dtype: Dtype) -> None:
    # the rounding of a few numbers of out decides all of dq, and the naive computation may have been lucky
    problem = Problem(b=1, hq=1, sq=2, d=16, dtype=dtype, mask=mask, magnitude=magnitude)
    for seed in range(20):
        found = parity(way(fused), problem, "cpu", "bwd", seed=seed)
        assert found.ok, (seed, found.failures)


@dtypes
def test_with_one_key_a_gradient_that_should_vanish_must(dtype: Dtype) -> None:
    problem = Problem(b=2, hq=4, hkv=2, sq=17, skv=1, d=64, dtype=dtype)
    found = parity(way(backward_bug(0, lambda x: x + 0.01)), problem, "cpu", "bwd")
    assert [failure[:2] for failure in found.failures] == ["dq", "dq"]


@dtypes
def test_of_a_large_problem_the_last_head_group_is_compared(dtype: Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule, "WHOLE", 0)
    problem = dataclasses.replace(PLANTED, dtype=dtype)
    assert len(parity(way(fused), problem, "cpu", "bwd").comparisons) in (4, 8)
    assert parity(way(fused), problem, "cpu", "bwd").ok
    for bug in ("a tile is not written", "one number is nan", "a tile of keys is left out"):
        assert not parity(way(FORWARD[bug]), problem, "cpu", "fwd").ok
    for bug in ("a tile of dq is not written", "dk is summed over other heads", "a tile of dv is not written"):
        assert not parity(way(BACKWARD[bug]), problem, "cpu", "bwd").ok


def test_a_tile_that_nobody_wrote_is_red_in_every_head(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(b=1, hq=40, sq=32, d=16)

    def unwritten(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        out = torch.empty_like(q)
        out[:] = fused(q, k, v, **options)
        out[:, -BLOCK:, 7] = torch.empty_like(out[:, -BLOCK:, 7])
        return out

    assert not parity(way(unwritten), problem, "cpu", "fwd").ok
    monkeypatch.setattr(rule, "WHOLE", 0)
    (failure,) = parity(way(unwritten), problem, "cpu", "fwd").failures
    assert failure == "out is not finite in 256 of 20480 places, in heads that were not compared"


@pytest.mark.parametrize("argument", [1, 2])
def test_numbers_that_are_small_beside_the_rounding_of_others_are_held_to_their_own(argument: int) -> None:
    # of 128 queries and 4096 keys most of dk and dv is below 0.002, and bf16 rounds 0.3 by as much as 0.001
    problem = Problem(b=1, hq=1, sq=128, skv=4096, d=64)
    lost = backward_bug(argument, lambda x: x.where(x.abs() > 0.001, 0.0))
    assert parity(way(fused), problem, "cpu", "bwd").ok
    assert not parity(way(lost), problem, "cpu", "bwd").ok


def test_another_shape_is_red() -> None:
    truth = torch.zeros(1, 2, 3, 4, dtype=torch.float64)
    found = compare("out", truth.mT.float(), truth, truth.float(), truth)
    assert found.failures == ("out has shape [1, 2, 4, 3], expected [1, 2, 3, 4]",)


def test_another_dtype_is_red_however_near_the_numbers_are() -> None:
    truth = torch.zeros(1, 2, 3, 4, dtype=torch.float64)
    found = compare("out", truth.bfloat16(), truth, truth.float(), truth)
    assert found.failures == ("out is torch.bfloat16, expected torch.float32",)


def test_where_the_truth_is_beyond_the_dtype_infinity_is_right() -> None:
    truth = torch.tensor([1e5, 1.0], dtype=torch.float64)
    rounded = truth.half()
    assert compare("dq", rounded, truth, rounded, torch.zeros_like(truth)).failures == ()
    (failure, *_) = compare("dq", rounded.flip(0), truth, rounded, torch.zeros_like(truth)).failures
    assert failure == "dq is not finite in 1 of 2 places where the truth is"


def test_the_rule_names_what_was_found_and_what_is_allowed() -> None:
    truth = torch.full((1, 4, 1, 2), 2.0, dtype=torch.float64)
    found = compare("out", (truth + 1).float(), truth, truth.float(), torch.full_like(truth, 0.25))
    assert found.failures == (
        "out is off by 1, allowed 0.25 (naive 0)",
        "out is off by 1 in the mean, allowed 0.25 (naive 0)",
    )
    assert (found.max_error, found.naive_max_error) == (1.0, 0.0)


def test_the_errors_of_a_tensor_are_averaged_over_the_heads_that_were_compared() -> None:
    def found(name: str, mean: float) -> Comparison:
        return Comparison(name, 1.0, mean, 0.0, 0.0, ())

    assert Parity((found("out", 1.0), found("dq", 5.0), found("out", 3.0))).errors == {"out": 2.0, "dq": 5.0}


@pytest.mark.parametrize("pass_", ["fwd", "fwd+bwd"])
def test_given_inputs_are_examined_as_they_lie_in_memory(pass_: Pass) -> None:
    problem = Problem(b=2, hq=4, hkv=2, sq=20, d=16, mask="causal", sink=True)
    q, k, v, dout = problem.inputs("cpu")
    far = torch.full((2, 20, 2, 2 * 16), math.nan, dtype=k.dtype)[..., ::2].copy_(k)
    seen: list[tuple[int, ...]] = []

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append(k.stride())
        return naive.VARIANT.attention(q, k, v, **options)

    inputs = Inputs(q, far, v, dout)
    found = examine(attention, inputs, problem.options("cpu"), pass_)
    assert found.ok
    assert seen == [far.stride()]
    assert [comparison.name for comparison in found.comparisons] == ["out", "dq", "dk", "dv", "dsink"][
        : 1 if pass_ == "fwd" else 5
    ]
    wrong = examine(
        lambda q, k, v, **options: attention(q, k.flip(1), v, **options), inputs, problem.options("cpu"), pass_
    )
    assert wrong.failures[0].startswith("out is off")
    assert not any(x.requires_grad for x in inputs)


@pytest.mark.parametrize(
    ("of_naive", "open_error", "ratio"),
    [(0.5, 0.1, 4.0), (0.1, 0.5, 4.0), (0.0, 0.5, 4.0), (0.0, 0.0, math.inf)],
)
def test_where_naive_is_better_than_a_rounding_that_is_the_yardstick_of_a_ratio(
    of_naive: float, open_error: float, ratio: float
) -> None:
    assert Comparison("out", 2.0, 1.0, of_naive, 0.0, (), open_error).ratio == ratio
    assert Comparison("out", 0.0, 0.0, 0.0, 0.0, ()).ratio == 0.0


def test_rounding_the_truth_once_has_a_ratio_of_at_most_one() -> None:
    truth = torch.randn(1, 33, 2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rounded, nothing = truth.bfloat16(), torch.zeros_like(truth)
    once = compare("out", rounded, truth, rounded, nothing)
    assert once.open_error == once.max_error > 0
    assert once.ratio == 1.0
    assert compare("out", rounded, truth, rounded, nothing + 1.0).ratio == once.max_error


def thrice_in_tf32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A product as CUTLASS makes one of float32: of the upper bits of each, and of these with the next of the other."""

    def upper(x: torch.Tensor) -> torch.Tensor:
        return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)

    a_rest, b_rest = upper(a - upper(a)), upper(b - upper(b))
    return upper(a) @ b_rest + a_rest @ upper(b) + upper(a) @ upper(b)


def test_products_in_three_parts_are_known_less_of_and_a_variant_may_say_so() -> None:
    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, mask: str, scale: float | None) -> torch.Tensor:
        scores = thrice_in_tf32(q.transpose(1, 2), k.permute(0, 2, 3, 1)) * q.shape[-1] ** -0.5
        return thrice_in_tf32(scores.softmax(-1), v.transpose(1, 2)).transpose(1, 2)

    way = Variant("thrice", "", attention, lambda *_: None, lacks={})
    problem = Problem(b=1, hq=1, sq=1, skv=2, d=128, dtype="fp32", magnitude=0.25)
    found = [
        [parity(some, problem, "cpu", "fwd", seed).ok for seed in range(40)]
        for some in (way, dataclasses.replace(way, blur=sdpa.THRICE_TF32))
    ]
    assert not all(found[0])
    assert all(found[1])
