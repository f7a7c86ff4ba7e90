"""What the adapters of FlashInfer and Transformer Engine hand on is the problem: without a GPU, to stand-ins.

The stand-ins are right, take what the packages take by the names they have there, and refuse what these refuse.
"""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from attnkit.mask import Mask, Window
from attnkit.problem import Cache, Pass, Problem, Varlen
from attnkit.variants import flashinfer, naive, transformer_engine

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
PACKED = Varlen((5, 1, 13, 22), (9, 4, 13, 30))
SIZES: dict[str, Any] = {"hq": 4, "hkv": 2, "d": 16, "dtype": "fp32"}
BACK: tuple[Mask, ...] = ("full", "causal", Window(6, 0))
PLANS: list[str] = []
"""The kinds of plans that were made."""


def starts(x: torch.Tensor) -> list[int]:
    assert x.dtype == torch.int32
    return [int(n) for n in x.tolist()]


class Wrapper:
    """What FlashInfer's wrappers for prompts have in common: a plan, and then runs of it."""

    def __init__(self, float_workspace_buffer: torch.Tensor, kv_layout: str = "NHD") -> None:
        assert float_workspace_buffer.dtype == torch.uint8
        assert float_workspace_buffer.numel() >= 2**20
        assert kv_layout == "NHD"

    def planned(
        self,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        head_dim_vo: int | None = None,
        *,
        causal: bool = False,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        sm_scale: float | None = None,
        q_data_type: torch.dtype = torch.float16,
    ) -> None:
        PLANS.append(type(self).__name__)
        self.heads = num_qo_heads, num_kv_heads
        self.dims = head_dim_qk, head_dim_qk if head_dim_vo is None else head_dim_vo
        self.dtype = q_data_type
        right = 0 if causal else None
        window: Mask = Window(window_left, right) if window_left >= 0 else "causal" if causal else "full"
        self.options: dict[str, Any] = {"mask": window, "scale": sm_scale}
        self.options |= {"softcap": logits_soft_cap} if logits_soft_cap else {}

    def found(self, q: torch.Tensor, keys: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        assert q.shape[1:] == (self.heads[0], self.dims[0])
        assert q.shape[0] == self.begins[-1]
        out = []
        for i, end, (k, v) in zip(self.begins, self.begins[1:], keys, strict=False):
            assert k.shape[1:] == (self.heads[1], self.dims[0])
            assert v.shape[1:] == (self.heads[1], self.dims[1])
            assert q.dtype == k.dtype == v.dtype == self.dtype
            out.append(naive.attention(q[None, i:end], k[None], v[None], **self.options)[0])
        return torch.cat(out)


class Ragged(Wrapper):
    """BatchPrefillWithRaggedKVCacheWrapper."""

    def plan(self, qo_indptr: torch.Tensor, kv_indptr: torch.Tensor, *sizes: int, **options: Any) -> None:
        self.begins, self.ends = starts(qo_indptr), starts(kv_indptr)
        self.planned(*sizes, **options)

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        assert k.shape[0] == v.shape[0] == self.ends[-1]
        return self.found(q, [(k[j:end], v[j:end]) for j, end in pairwise(self.ends)])


class Paged(Wrapper):
    """BatchPrefillWithPagedKVCacheWrapper."""

    def plan(
        self,
        qo_indptr: torch.Tensor,
        paged_kv_indptr: torch.Tensor,
        paged_kv_indices: torch.Tensor,
        paged_kv_last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        head_dim_vo: int | None = None,
        **options: Any,
    ) -> None:
        self.begins, self.page = starts(qo_indptr), page_size
        begins, indices, last = starts(paged_kv_indptr), starts(paged_kv_indices), starts(paged_kv_last_page_len)
        assert all(0 < n <= page_size for n in last)
        self.pages = [(indices[i:end], n) for i, end, n in zip(begins, begins[1:], last, strict=False)]
        self.planned(num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo, **options)

    def run(self, q: torch.Tensor, paged_kv_cache: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        assert all(x.shape[1] == self.page for x in paged_kv_cache)
        keys = []
        for pages, last in self.pages:
            length = (len(pages) - 1) * self.page + last
            k, v = (x[pages].flatten(0, 1)[:length] for x in paged_kv_cache)
            keys.append((k, v))
        return self.found(q, keys)


class DotProductAttention:
    """Transformer Engine's module: of what it takes what is handed to it, with its defaults."""

    def __init__(
        self,
        num_attention_heads: int,
        kv_channels: int | tuple[int, int],
        num_gqa_groups: int | None = None,
        attention_dropout: float = 0.0,
        qkv_format: str = "sbhd",
        attn_mask_type: str = "causal",
        window_size: tuple[int, int] | None = None,
        attention_type: str = "self",
        softmax_scale: float | None = None,
    ) -> None:
        assert not attention_dropout
        self.heads = num_attention_heads, num_gqa_groups or num_attention_heads
        self.dims = kv_channels if isinstance(kv_channels, tuple) else (kv_channels, kv_channels)
        self.packed = {"bshd": False, "thd": True}[qkv_format]
        self.kind = attn_mask_type.removeprefix("padding_" if self.packed else "").replace("padding", "no_mask")
        assert attn_mask_type.startswith("padding") == self.packed
        self.window, self.of_itself = window_size, attention_type == "self"
        self.scale = softmax_scale
        if window_size is not None:  # as check_set_window_size there
            assert window_size[0] >= 0
            assert window_size[1] == 0 if "causal" in self.kind else window_size[1] >= 0

    def mask(self, sq: int, skv: int) -> Mask:
        assert sq == skv or not self.of_itself
        if self.window is not None:
            assert self.kind != "causal" or sq == skv  # its diagonal would be the top-left one
            return Window(*self.window)
        return {"no_mask": "full", "causal": "causal-top-left", "causal_bottom_right": "causal"}[self.kind]  # type: ignore[return-value]

    def __call__(
        self,
        query_layer: torch.Tensor,
        key_layer: torch.Tensor,
        value_layer: torch.Tensor,
        cu_seqlens_q: torch.Tensor | None = None,
        cu_seqlens_kv: torch.Tensor | None = None,
        max_seqlen_q: int | None = None,
        max_seqlen_kv: int | None = None,
        pad_between_seqs: bool | None = None,
    ) -> torch.Tensor:
        q, k, v = query_layer, key_layer, value_layer
        assert (q.shape[-2], k.shape[-2], v.shape[-2]) == (self.heads[0], self.heads[1], self.heads[1])
        assert (q.shape[-1], k.shape[-1], v.shape[-1]) == (self.dims[0], *self.dims)
        if not self.packed:
            assert cu_seqlens_q is None
            mask = self.mask(q.shape[1], k.shape[1])
            return naive.attention(q, k, v, mask=mask, scale=self.scale).flatten(2)
        assert pad_between_seqs is False
        assert cu_seqlens_q is not None
        assert cu_seqlens_kv is not None
        begins, ends = starts(cu_seqlens_q), starts(cu_seqlens_kv)
        assert max_seqlen_q == max(end - i for i, end in pairwise(begins))
        assert max_seqlen_kv == max(end - i for i, end in pairwise(ends))
        out = [
            naive.attention(
                q[None, i:end], k[None, j:stop], v[None, j:stop], mask=self.mask(end - i, stop - j), scale=self.scale
            )
            for i, end, j, stop in zip(begins, begins[1:], ends, ends[1:], strict=False)
        ]
        return torch.cat(out, 1)[0].flatten(1)


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    package, engine = types.ModuleType("flashinfer"), types.ModuleType("transformer_engine")
    module = types.ModuleType("transformer_engine.pytorch")
    package.BatchPrefillWithRaggedKVCacheWrapper = Ragged  # type: ignore[attr-defined]
    package.BatchPrefillWithPagedKVCacheWrapper = Paged  # type: ignore[attr-defined]
    module.DotProductAttention = DotProductAttention  # type: ignore[attr-defined]
    for name, stand_in in (("flashinfer", package), ("transformer_engine", engine)):
        monkeypatch.setitem(sys.modules, name, stand_in)
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", module)
    kept = flashinfer.packed, flashinfer.workspace, transformer_engine.module
    PLANS.clear()
    yield
    for cache in kept:
        cache.cache_clear()
    flashinfer.CACHED.clear()


def agrees(attention: Any, problem: Problem, trained: bool = False) -> None:
    """Hold out, and gradients where there are some, against the plain computation."""
    q, k, v, dout = problem.inputs(CPU, requires_grad=trained)
    given = problem.options(CPU)
    results = []
    for function in (attention, naive.attention):
        out = function(q, k, v, **given)
        results.append([out, *(torch.autograd.grad(out, (q, k, v), dout) if trained else [])])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("varlen", [None, PACKED], ids=["equal", "packed"])
@pytest.mark.parametrize("modifier", [{}, {"scale": 0.3}, {"softcap": 2.0}], ids=str)
@pytest.mark.parametrize("mask", BACK, ids=str)
def test_what_flashinfer_is_handed_is_the_problem(mask: Mask, modifier: dict[str, Any], varlen: Varlen | None) -> None:
    sizes = SIZES | modifier
    sq, skv = (41, 56) if varlen else (20, 23)
    agrees(flashinfer.attention, Problem(b=1 if varlen else 2, sq=sq, skv=skv, mask=mask, varlen=varlen, **sizes))
    assert PLANS == ["Ragged"]


@pytest.mark.parametrize("layout", ["bhsd", "packed", "padded", "broadcast"])
def test_flashinfer_finds_batches_as_they_lie(layout: Any) -> None:
    agrees(flashinfer.attention, Problem(b=2, sq=20, layout=layout, mask="causal", **SIZES))


def test_flashinfer_takes_values_of_another_width() -> None:
    agrees(flashinfer.attention, Problem(b=2, sq=20, dv=24, **SIZES))


@pytest.mark.parametrize("page", [None, 16])
@pytest.mark.parametrize("layout", ["bshd", "bhsd", "padded"])
@pytest.mark.parametrize("mask", [*BACK, Window(17, 0)], ids=str)
def test_flashinfer_finds_the_keys_of_a_cache(mask: Mask, layout: Any, page: int | None) -> None:
    problem = Problem(b=4, sq=3, skv=70, mask=mask, layout=layout, cache=Cache((70, 3, 32, 33), page=page), **SIZES)
    agrees(flashinfer.attention, problem)
    assert PLANS == ["Paged"]


def test_flashinfer_plans_packed_sequences_once() -> None:
    for seed in range(3):
        problem = Problem(b=2, sq=20, **SIZES)
        flashinfer.attention(*problem.inputs(CPU, seed=seed)[:3])
    assert len(PLANS) == 1
    flashinfer.attention(*problem.inputs(CPU)[:3], scale=0.5)
    assert len(PLANS) == 2


@pytest.mark.parametrize("what", ["lengths", "table"])
def test_flashinfer_plans_again_for_what_changed_on_a_cache(what: str) -> None:
    problem = Problem(b=2, sq=1, skv=48, cache=Cache((48, 20), page=16), **SIZES)
    q, k, v, _ = problem.inputs(CPU)
    given = problem.options(CPU)
    k, v = (torch.nan_to_num(x, 0.5) for x in (k, v))
    for _ in range(3):
        flashinfer.attention(q, k, v, **given)
    assert len(PLANS) == 1
    if what == "lengths":
        given["lengths"].sub_(5)
    else:
        given["table"].copy_(given["table"].roll(1, 1))
    torch.testing.assert_close(flashinfer.attention(q, k, v, **given), naive.attention(q, k, v, **given))
    assert len(PLANS) == 2
    given["table"] = given["table"].flip(1)
    torch.testing.assert_close(flashinfer.attention(q, k, v, **given), naive.attention(q, k, v, **given))
    flashinfer.attention(q, k, v, **given, softcap=3.0)
    assert len(PLANS) == 4


def test_a_plan_of_flashinfer_on_a_cache_lives_as_long_as_its_lengths() -> None:
    problem = Problem(b=2, sq=1, skv=48, cache=Cache((48, 20)), **SIZES)
    given = problem.options(CPU)
    flashinfer.attention(*problem.inputs(CPU)[:3], **given)
    assert len(flashinfer.CACHED) == 1
    del given
    gc.collect()
    assert len(flashinfer.CACHED) == 0


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("varlen", [None, PACKED, Varlen((13, 28), (13, 28))], ids=["equal", "packed", "of-itself"])
@pytest.mark.parametrize("mask", [*BACK, Window(6, 2)], ids=str)
def test_what_transformer_engine_is_handed_is_the_problem(mask: Mask, varlen: Varlen | None, scale: Any) -> None:
    sq, skv = (sum(varlen.queries), sum(varlen.keys)) if varlen else (20, 23)
    problem = Problem(b=1 if varlen else 2, sq=sq, skv=skv, mask=mask, scale=scale, varlen=varlen, **SIZES)
    agrees(transformer_engine.attention, problem, trained=True)


@pytest.mark.parametrize("mask", [*BACK, "causal-top-left"], ids=str)
def test_transformer_engine_is_told_that_queries_are_as_many_as_keys(mask: Mask) -> None:
    agrees(transformer_engine.attention, Problem(b=2, sq=20, dv=24, mask=mask, **SIZES), trained=True)


@pytest.mark.parametrize(("sq", "skv"), [(20, 30), (30, 20)])
def test_transformer_engine_has_the_diagonal_of_the_top_left(sq: int, skv: int) -> None:
    agrees(transformer_engine.attention, Problem(b=2, sq=sq, skv=skv, mask="causal-top-left", **SIZES), trained=True)


def test_transformer_engine_is_told_that_lengths_differ_where_they_sum_to_the_same() -> None:
    varlen = Varlen((13, 28), (28, 13))
    agrees(transformer_engine.attention, Problem(b=1, sq=41, varlen=varlen, **SIZES), trained=True)


@pytest.mark.parametrize("packed", [False, True])
def test_transformer_engine_is_asked_for_the_plain_causal_mask_where_it_is_ours(packed: bool) -> None:
    """More of its backends have that one, for more sizes."""
    expected = "padding_causal" if packed else "causal"
    assert transformer_engine.mask_type("causal", alike=True, packed=packed) == expected
    assert transformer_engine.mask_type("causal", alike=False, packed=packed) == f"{expected}_bottom_right"


REFUSES = "raise RuntimeError('imported')"


@pytest.mark.parametrize("place", ["transformer_engine/wheel_lib", "transformer_engine", "."])
def test_transformer_engine_is_here_with_its_part_for_torch(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "transformer_engine")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "transformer_engine").mkdir()
    (tmp_path / "transformer_engine" / "__init__.py").write_text(REFUSES)
    assert (transformer_engine.absent() or "").endswith("transformer-engine[pytorch]")
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "transformer_engine_torch.cpython-312-x86_64-linux-gnu.so").touch()
    assert transformer_engine.absent() is None


def test_flashinfer_is_looked_for_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "flashinfer")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "flashinfer").mkdir()
    (tmp_path / "flashinfer" / "__init__.py").write_text(REFUSES)
    assert flashinfer.absent() is None


FEWER = "its tests have neither sequences without queries or keys, nor fewer keys"


@pytest.mark.parametrize(
    ("name", "changes", "pass_", "said"),
    [
        ("flashinfer", {}, "fwd", None),
        ("flashinfer", {}, "fwd+bwd", "made for inference: it has no backward"),
        ("flashinfer", {"d": 192, "dv": 128, "softcap": 2.0, "mask": Window(3, 0)}, "fwd", None),
        ("flashinfer", {"d": 192, "dv": 128, "cache": Cache((40,), page=16)}, "fwd", "d and dv must be one of"),
        ("flashinfer", {"d": 96}, "fwd", "d and dv must be one of (64, 64), (128, 128), (256, 256), (192, 128), got"),
        ("flashinfer", {"mask": Window(3, None)}, "fwd", "a window must end at the diagonal (right=0), got"),
        ("flashinfer", {"mask": Window(3, 2)}, "fwd", "a window must end at the diagonal (right=0), got"),
        ("flashinfer", {"mask": "causal", "skv": 39}, "fwd", FEWER),
        ("flashinfer", {"mask": Window(90, 0), "skv": 39}, "fwd", FEWER),
        ("flashinfer", {"skv": 39}, "fwd", None),
        ("flashinfer", {"skv": 9, "varlen": Varlen((20, 20), (9, 0))}, "fwd", FEWER),
        ("flashinfer", {"varlen": Varlen((40, 0), (39, 1))}, "fwd", FEWER),
        ("flashinfer", {"sq": 3, "skv": 9, "mask": "causal", "cache": Cache((2,), page=16)}, "fwd", FEWER),
        ("flashinfer", {"sq": 3, "skv": 9, "mask": "causal", "cache": Cache((3,))}, "fwd", None),
        ("flashinfer", {"dtype": "fp32"}, "fwd", "takes fp16 and bf16, got fp32"),
        ("flashinfer", {"dtype": "fp8"}, "fwd", "fp8: not built into this variant"),
        ("flashinfer", {"alibi": True}, "fwd", "alibi: FlashInfer computes slopes itself and takes none"),
        ("flashinfer", {"scale": -0.1}, "fwd", "scale must be positive"),
        ("transformer_engine", {"mask": "causal-top-left", "skv": 9}, "fwd+bwd", None),
        ("transformer_engine", {"mask": Window(3, 2), "skv": 50, "d": 192, "dv": 128}, "fwd+bwd", None),
        ("transformer_engine", {"mask": Window(3, None)}, "fwd", "a window must have both bounds, got"),
        ("transformer_engine", {"mask": Window(None, 3)}, "fwd", "a window must have both bounds, got"),
        ("transformer_engine", {"mask": "causal", "skv": 39}, "fwd", "rows that see no key are not known to be"),
        ("transformer_engine", {"mask": Window(3, 2), "skv": 39}, "fwd", "rows that see no key are not known to be"),
        ("transformer_engine", {"skv": 39}, "fwd", None),
        ("transformer_engine", {"varlen": Varlen((40, 0), (39, 1))}, "fwd", "sequences without queries or keys"),
        ("transformer_engine", {"skv": 9, "varlen": Varlen((20, 20), (9, 0))}, "fwd", "sequences without queries"),
        ("transformer_engine", {"d": 20}, "fwd", "d and dv must be multiples of 8 and at most 256, got d=20"),
        ("transformer_engine", {"d": 64, "dv": 264}, "fwd", "d and dv must be multiples of 8 and at most 256, got"),
        ("transformer_engine", {"dtype": "fp32"}, "fwd", "takes fp16 and bf16, got fp32"),
        ("transformer_engine", {"scale": 0.0}, "fwd", "scale must be positive"),
        ("transformer_engine", {"softcap": 2.0}, "fwd", "softcap: not built into this variant"),
        ("transformer_engine", {"cache": Cache((9,), page=16)}, "fwd", "paged: not built into this variant"),
    ],
)
def test_what_is_not_taken_has_its_reason(
    name: str, changes: dict[str, Any], pass_: Pass, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = {"flashinfer": flashinfer, "transformer_engine": transformer_engine}[name].VARIANT
    problem = Problem(**{"b": 1, "hq": 8, "hkv": 2, "sq": 40, "d": 64, "dtype": "bf16"} | changes)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    found = way.rejects(problem, CUDA, pass_)
    assert found is None if said is None else (found or "").startswith(said)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    assert said is not None or (way.rejects(problem, CUDA, pass_) or "").endswith("8.0 or later, got 7.5")
