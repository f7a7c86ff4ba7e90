"""Adapters of functions for packed sequences hand on what these take: without a GPU, to a stand-in that is right."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attnkit.mask import Mask, Window
from attnkit.problem import Problem, Varlen
from attnkit.variants import flash_attn, naive, torch_varlen

PACKED = Varlen((5, 0, 13, 22), (0, 4, 9, 30))
WINDOWS: tuple[Mask, ...] = ("full", "causal", Window(6, 2), Window(6, 0), Window(None, 3), Window(2, None))
CPU = torch.device("cpu")


def stand_in(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts_q: torch.Tensor,
    starts_k: torch.Tensor,
    longest_q: int,
    longest_k: int,
    mask: Mask,
    scale: float | None,
) -> torch.Tensor:
    """FlashAttention's function for packed sequences, q [all queries, hq, d], from its offsets alone."""
    assert starts_q.dtype == starts_k.dtype == torch.int32
    lengths = (starts_q.diff().tolist(), starts_k.diff().tolist())
    assert (max(lengths[0]), max(lengths[1])) == (longest_q, longest_k)
    alone = [
        naive.attention(q[None, i:end], k[None, j:stop], v[None, j:stop], mask=mask, scale=scale)[0]
        for i, end, j, stop in zip(starts_q, starts_q[1:], starts_k, starts_k[1:], strict=False)
    ]
    return torch.cat(alone)


def of_flash_attn(*tensors: Any, softmax_scale: float | None, causal: bool) -> torch.Tensor:
    return stand_in(*tensors, "causal" if causal else "full", softmax_scale)


def of_torch(
    *tensors: Any, scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False
) -> torch.Tensor:
    left, right = (None if side == -1 else side for side in window_size)
    mask: Mask = Window(left, right) if left is not None or right else "full" if right is None else "causal"
    assert enable_gqa == (tensors[0].shape[1] != tensors[1].shape[1])
    return stand_in(*tensors, mask, scale)


@pytest.fixture
def functions(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[..., torch.Tensor]]:
    package = types.ModuleType("flash_attn")
    package.flash_attn_func = None  # type: ignore[attr-defined]
    package.flash_attn_varlen_func = of_flash_attn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    taken = frozenset({"scale", "window_size", "enable_gqa"})
    monkeypatch.setattr(torch_varlen, "function", lambda: (of_torch, taken))
    return {"flash_attn": flash_attn.attention, "torch_varlen": torch_varlen.attention}


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize(
    ("name", "mask"),
    [
        *(("flash_attn", mask) for mask in ("full", "causal")),
        *(("torch_varlen", mask) for mask in WINDOWS),
    ],
    ids=str,
)
def test_what_an_adapter_hands_on_is_the_problem(
    functions: dict[str, Callable[..., torch.Tensor]], name: str, mask: Mask, scale: float | None
) -> None:
    problem = Problem(b=1, hq=4, hkv=2, sq=40, skv=43, d=16, dtype="fp32", mask=mask, scale=scale, varlen=PACKED)
    q, k, v, _ = problem.inputs(CPU)
    options = problem.options(CPU)
    expected = naive.attention(q, k, v, **options)
    torch.testing.assert_close(functions[name](q, k, v, **options), expected)


def test_what_is_not_packed_is_not_for_varlen_attn() -> None:
    said = torch_varlen.VARIANT.rejects(Problem(b=1, hq=1, sq=8, d=16), torch.device("cuda"), "fwd")
    assert said == "made for packed sequences alone: for others torch has scaled_dot_product_attention"


@pytest.mark.parametrize("name", ["flash_attn", "torch_varlen"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"d": 256}, None),
        ({"d": 264}, "d must be .*at most 256, got 264"),
        ({"d": 20}, "d must be a multiple of 8 .*got 20"),
        ({"dv": 32}, "d must equal dv, got d=64 and dv=32"),
        ({"dtype": "fp32"}, "takes fp16 and bf16, got fp32"),
        ({"scale": -0.1}, "scale must be positive"),
        ({"scale": 0.0}, "scale must be positive"),
    ],
    ids=str,
)
def test_what_is_not_taken_has_its_reason(
    name: str, changes: dict[str, Any], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rejects, gpu = {"flash_attn": flash_attn, "torch_varlen": torch_varlen}[name].VARIANT.rejects, torch.device("cuda")
    problem = Problem(
        **{"b": 1, "hq": 2, "hkv": 2, "sq": 40, "skv": 43, "d": 64, "dtype": "bf16", "varlen": PACKED} | changes
    )
    for capability, too_old in (((8, 0), None), ((7, 5), "needs compute capability 8.0 or later, got 7.5")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        expected, found = said or too_old, rejects(problem, gpu, "fwd+bwd")
        assert found is None if expected is None else re.match(expected, found or "")
    assert rejects(problem, CPU, "fwd") == "runs on a CUDA device, got cpu"


def test_grouped_heads_are_for_a_varlen_attn_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_varlen, "function", lambda: (of_torch, frozenset({"scale", "window_size"})))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for hkv, said in ((2, None), (1, "has no grouped heads here, got hq=2 and hkv=1")):
        problem = Problem(b=1, hq=2, hkv=hkv, sq=40, skv=43, d=16, varlen=PACKED)
        found = torch_varlen.VARIANT.rejects(problem, torch.device("cuda"), "fwd")
        assert found is None if said is None else (found or "").endswith(said)


@pytest.mark.parametrize("mask", [Window(2, None), Window(None, 130), Window(3, 3)], ids=str)
def test_a_window_over_more_queries_than_keys_is_not_for_varlen_attn(
    mask: Mask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong on a GPU: what is longer than the longest keys is taken for no bound, which counts from the diagonal."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    gpu, said = torch.device("cuda"), "needs sq <= skv"
    more, as_many = Varlen((20, 40), (20, 39)), Varlen((20, 40), (20, 40))
    for varlen, asked, expected in ((more, mask, True), (as_many, mask, False), (more, "causal", False)):
        problem = Problem(b=1, hq=1, sq=60, skv=sum(varlen.keys), d=16, mask=asked, varlen=varlen)
        found = torch_varlen.VARIANT.rejects(problem, gpu, "fwd")
        assert (found is not None and said in found) is expected


@pytest.mark.parametrize("takes", [frozenset({"window_size"}), frozenset({"scale", "is_causal"})])
def test_an_earlier_torch_is_named_with_the_remedy(takes: frozenset[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_varlen, "function", lambda: (of_torch, takes))
    assert (torch_varlen.absent() or "").endswith("install torch 2.11 or later")
