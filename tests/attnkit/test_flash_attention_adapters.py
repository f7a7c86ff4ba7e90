"""What the adapters of FlashAttention-3 and 4 hand on is the problem: without a GPU, to stand-ins that are right.

That of FlashAttention-3 is an operator with the schema of the library's own, so that names and kinds of arguments are
checked by torch. Where their libraries are looked for, and what they do not take, needs none.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from attnkit import oracle
from attnkit.mask import Mask, Window
from attnkit.problem import Cache, Inputs, Pass, Problem, Varlen
from attnkit.variants import flash_attn, flash_attn_3, flash_attn_4, naive

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
NAMESPACE = "flash_attn_3_stand_in"
PACKED = Varlen((5, 0, 13, 22), (0, 4, 9, 30))
WINDOWS: tuple[Mask, ...] = ("full", "causal", Window(6, 2), Window(6, 0), Window(None, 3), Window(2, None))

# hopper/flash_api_stable.cpp of github.com/Dao-AILab/flash-attention
FWD = (
    "fwd(Tensor q, Tensor k, Tensor v, Tensor(k_new!)? k_new = None, Tensor(v_new!)? v_new = None, Tensor? q_v = None, "
    "Tensor(out!)? out = None, Tensor? cu_seqlens_q = None, Tensor? cu_seqlens_k = None, "
    "Tensor? cu_seqlens_k_new = None, Tensor? seqused_q = None, Tensor? seqused_k = None, int? max_seqlen_q = None, "
    "int? max_seqlen_k = None, Tensor? page_table = None, Tensor? kv_batch_idx = None, Tensor? leftpad_k = None, "
    "Tensor? rotary_cos = None, Tensor? rotary_sin = None, Tensor? seqlens_rotary = None, Tensor? q_descale = None, "
    "Tensor? k_descale = None, Tensor? v_descale = None, float? softmax_scale = None, bool is_causal = False, "
    "int window_size_left = -1, int window_size_right = -1, int attention_chunk = 0, float softcap = 0.0, "
    "bool is_rotary_interleaved = False, Tensor? scheduler_metadata = None, int num_splits = 0, "
    "bool? pack_gqa = None, int sm_margin = 0) -> (Tensor(out!), Tensor, Tensor, Tensor)"
)
BWD = (
    "bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse, Tensor(dq!)? dq = None, "
    "Tensor(dk!)? dk = None, Tensor(dv!)? dv = None, Tensor? cu_seqlens_q = None, Tensor? cu_seqlens_k = None, "
    "Tensor? seqused_q = None, Tensor? seqused_k = None, int? max_seqlen_q = None, int? max_seqlen_k = None, "
    "float? softmax_scale = None, bool is_causal = False, int window_size_left = -1, int window_size_right = -1, "
    "float softcap = 0.0, bool deterministic = False, int sm_margin = 0) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
SPLITS: list[int] = []
"""What the last calls of fwd were told."""


def named(schema: str, given: tuple[Any, ...], by_name: dict[str, Any]) -> dict[str, Any]:
    """Return what an operator was called with by name; what is None is left out."""
    every = dict(zip((x.name for x in torch._C.parse_schema(schema).arguments), given, strict=False)) | by_name
    return {name: value for name, value in every.items() if value is not None}


def seen(causal: bool, left: int, right: int) -> Mask:
    """Return the mask that FlashAttention's arguments say."""
    bounds = [None if side == -1 else side for side in (left, 0 if causal else right)]
    return "full" if bounds == [None, None] else "causal" if bounds == [None, 0] else Window(*bounds)


def parts(q: torch.Tensor, k: torch.Tensor, asked: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Give where each sequence's queries and keys lie, as indices, by what the operators are told of lengths."""
    if "cu_seqlens_q" in asked:
        starts_q, starts_k = asked["cu_seqlens_q"], asked["cu_seqlens_k"]
        assert starts_q.dtype == starts_k.dtype == torch.int32
        assert asked["max_seqlen_q"] == int(starts_q.diff().max())
        assert asked["max_seqlen_k"] == int(starts_k.diff().max())
        for i, end, j, stop in zip(starts_q, starts_q[1:], starts_k, starts_k[1:], strict=False):
            yield slice(int(i), int(end)), slice(int(j), int(stop))
    elif "page_table" in asked:
        page = k.shape[1]
        for n, (row, used) in enumerate(zip(asked["page_table"], asked["seqused_k"].tolist(), strict=True)):
            keys = torch.arange(used)
            yield n, (row[keys // page].long(), keys % page)
    else:
        yield from ((n, n) for n in range(q.shape[0]))


def there(q: torch.Tensor, k: torch.Tensor, asked: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Give those of them that have queries and keys."""
    return ((i, j) for i, j in parts(q, k, asked) if q[i].numel() and k[j].numel())


def addressable(x: torch.Tensor) -> bool:
    *strides, last = x.stride()
    return last == 1 and all(step > 0 and step % 8 == 0 for step in strides)


def options(asked: dict[str, Any]) -> dict[str, Any]:
    left, right = (asked.get(f"window_size_{side}", -1) for side in ("left", "right"))
    return {"mask": seen(asked.get("is_causal", False), left, right), "scale": asked.get("softmax_scale")}


def fwd(*given: Any, **by_name: Any) -> tuple[torch.Tensor, ...]:
    asked = named(FWD, given, by_name)
    q, k, v = asked["q"], asked["k"], asked["v"]
    assert all(addressable(x) for x in (q, k, v))
    SPLITS.append(asked.get("num_splits", 0))
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    packed = "cu_seqlens_q" in asked
    lse = q.new_full((q.shape[1], q.shape[0]) if packed else (q.shape[0], q.shape[2], q.shape[1]), -torch.inf)
    for i, j in there(q, k, asked):
        found, statistics = oracle.forward(q[i][None], k[j][None], v[j][None], **options(asked))
        out[i] = found[0].float()
        lse[(slice(None), i) if packed else i] = statistics[0].float()
    return out, lse, q.new_empty(0), q.new_empty(0)


def bwd(*given: Any, **by_name: Any) -> tuple[torch.Tensor, ...]:
    asked = named(BWD, given, by_name)
    dout, q, k, v, out, lse = (asked[name] for name in ("dout", "q", "k", "v", "out", "softmax_lse"))
    results = [asked[name] for name in ("dq", "dk", "dv")]
    assert all(addressable(x) for x in (dout, q, k, v, out, *results))
    for x in results:
        x.zero_()
    for i, j in there(q, k, asked):
        alone = Inputs(q[i][None], k[j][None], v[j][None], dout[i][None])
        expected = oracle.forward(*alone[:3], **options(asked))
        left = out[i], lse[(slice(None), i) if "cu_seqlens_q" in asked else i]
        assert all(torch.equal(x, y[0].float()) for x, y in zip(left, expected, strict=True))
        for x, at, found in zip(results, (i, j, j), oracle.gradients(*alone, **options(asked)), strict=True):
            x[at] = found[0].float()
    return tuple(q.new_empty(0) for _ in range(5))


@pytest.fixture(scope="module")
def registered() -> Iterator[Any]:
    with torch.library._scoped_library(NAMESPACE, "DEF") as library:
        for schema, function in ((FWD, fwd), (BWD, bwd)):
            library.define(schema)
            library.impl(function.__name__, function, "CPU")
        yield getattr(torch.ops, NAMESPACE)


@pytest.fixture
def operators(registered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_attn_3, "operators", lambda: registered)


def of_cute(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int | None, int | None] = (None, None),
    learnable_sink: torch.Tensor | None = None,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, None]:
    """FlashAttention-4's function: its keywords, and what they default to."""
    mask = seen(causal, *(-1 if side is None else side for side in window_size))
    modifiers: dict[str, Any] = {} if learnable_sink is None else {"sink": learnable_sink}
    modifiers |= {"softcap": softcap} if softcap else {}
    return naive.attention(q, k, v, mask=mask, scale=softmax_scale, **modifiers), None


def of_cute_packed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **asked: Any) -> tuple[torch.Tensor, None]:
    lengths = {name: asked.pop(name) for name in ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")}
    alone = (of_cute(q[i][None], k[j][None], v[j][None], **asked)[0][0] for i, j in parts(q, k, lengths))
    return torch.cat(list(alone)), None


@pytest.fixture
def cute(monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = types.ModuleType("flash_attn"), types.ModuleType("flash_attn.cute")
    module.flash_attn_func = of_cute  # type: ignore[attr-defined]
    module.flash_attn_varlen_func = of_cute_packed  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.cute", module)


def agrees(attention: Any, problem: Problem) -> None:
    """Hold out and gradients against the plain computation; what is cached has no gradient."""
    trained = problem.cache is None
    q, k, v, dout = problem.inputs(CPU, requires_grad=trained)
    given = problem.options(CPU, requires_grad=trained)
    leaves = [q, k, v, *([given["sink"]] if problem.sink else [])]
    results = []
    for function in (attention, naive.attention):
        out = function(q, k, v, **given)
        results.append([out, *(torch.autograd.grad(out, leaves, dout) if trained else [])])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


SIZES: dict[str, Any] = {"hq": 4, "hkv": 2, "d": 16, "dtype": "fp32"}


@pytest.mark.parametrize("varlen", [None, PACKED], ids=["equal", "packed"])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("mask", WINDOWS, ids=str)
def test_what_flash_attention_3_is_handed_is_the_problem(
    operators: None, mask: Mask, scale: float | None, varlen: Varlen | None
) -> None:
    b = 1 if varlen else 2
    agrees(flash_attn_3.attention, Problem(b=b, sq=40, skv=43, mask=mask, scale=scale, varlen=varlen, **SIZES))


@pytest.mark.parametrize("layout", ["bhsd", "packed", "padded", "broadcast"])
def test_flash_attention_3_is_handed_what_its_copy_engine_can_address(operators: None, layout: Any) -> None:
    agrees(flash_attn_3.attention, Problem(b=2, sq=20, layout=layout, **SIZES))


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x[..., ::2],
        lambda x: x[..., 1:17],
        lambda x: x.flatten()[1:],
        lambda x: torch.nn.functional.pad(x, (0, 1))[..., :-1],
        lambda x: x[:1].expand_as(x),
    ],
)
def test_what_the_copy_engine_cannot_address_is_copied(move: Any) -> None:
    x = torch.randn(2, 9, 4, 32)
    moved = move(x)
    found = flash_attn_3.reachable(moved)
    assert torch.equal(found, moved)
    assert found.is_contiguous()
    assert found.data_ptr() % 16 == 0
    assert flash_attn_3.reachable(x) is x
    assert flash_attn_3.reachable(x.transpose(1, 2)).data_ptr() == x.data_ptr()


def test_a_gradient_of_stride_zero_comes_back_to_flash_attention_3(operators: None) -> None:
    q, k, v, _ = Problem(b=2, sq=20, **SIZES).inputs(CPU, requires_grad=True)
    found = [
        torch.autograd.grad(function(q, k, v).sum(), (q, k, v))
        for function in (flash_attn_3.attention, naive.attention)
    ]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", ["full", "causal", Window(9, 0)], ids=str)
def test_flash_attention_3_finds_the_pages_of_a_cache(operators: None, mask: Mask) -> None:
    cache = Cache((70, 0, 33), page=16)
    agrees(flash_attn_3.attention, Problem(b=3, sq=3, skv=70, mask=mask, cache=cache, **SIZES))


@pytest.mark.parametrize(("sq", "splits"), [(1, 0), (8, 0), (9, 1)])
def test_keys_are_split_as_the_library_likes_for_a_few_queries_alone(operators: None, sq: int, splits: int) -> None:
    SPLITS.clear()
    agrees(flash_attn_3.attention, Problem(b=1, sq=sq, skv=30, mask="causal", **SIZES))
    assert SPLITS[0] == splits


@pytest.mark.parametrize("varlen", [None, PACKED], ids=["equal", "packed"])
@pytest.mark.parametrize("modifier", [{}, {"scale": 0.3}, {"softcap": 2.0}, {"sink": True}], ids=str)
@pytest.mark.parametrize("mask", WINDOWS, ids=str)
def test_what_flash_attention_4_is_handed_is_the_problem(
    cute: None, mask: Mask, modifier: dict[str, Any], varlen: Varlen | None
) -> None:
    b = 1 if varlen else 2
    agrees(flash_attn_4.attention, Problem(b=b, sq=40, skv=43, mask=mask, varlen=varlen, **modifier, **SIZES))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that packages are found in before any other, where nothing of this machine's is told from outside."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    monkeypatch.delenv(flash_attn_3.NAMED, raising=False)
    return tmp_path


def file(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


REFUSES = "raise RuntimeError('imported')"


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("four", [False, True])
def test_one_package_of_two_libraries_is_either_both_or_none(site: Path, two: bool, four: bool) -> None:
    if two:
        file(site / "flash_attn" / "__init__.py", REFUSES)
    if four:
        file(site / "flash_attn" / "cute" / "interface.py", REFUSES)
        file(site / "cutlass" / "__init__.py", REFUSES)
    if two or four:  # else what this machine has is found
        assert (flash_attn.absent() is None) == two
        assert (flash_attn_4.absent() is None) == four


def test_flash_attention_4_without_its_compiler_says_so(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file(site / "flash_attn" / "cute" / "interface.py")
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "cutlass" else found(name))
    assert flash_attn_4.absent() == "flash_attn.cute is there, nvidia-cutlass-dsl is not: pip install flash-attn-4"


@pytest.mark.parametrize("built", ["flash_attn_3/_C.abi3.so", "xformers/flash_attn_3/_C.so"])
def test_the_library_is_found_in_the_packages_that_bring_it(site: Path, built: str) -> None:
    file(site / built.partition("/")[0] / "__init__.py", REFUSES)
    expected = file(site / built)
    assert flash_attn_3.library() == expected
    assert flash_attn_3.absent() is None


def test_the_file_that_is_named_comes_before_what_is_installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file(site / "flash_attn_3" / "_C.abi3.so")
    expected = file(site / "elsewhere.so")
    monkeypatch.setenv(flash_attn_3.NAMED, str(expected))
    assert flash_attn_3.library() == expected
    monkeypatch.setenv(flash_attn_3.NAMED, str(site / "nowhere.so"))
    assert flash_attn_3.absent() == f"ATTNKIT_FLASH_ATTN_3 names no file: {site / 'nowhere.so'}"


def test_a_library_that_cannot_be_loaded_says_what_to_do(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(flash_attn_3.NAMED, str(file(site / "_C.so", "no library")))
    with pytest.raises(
        OSError,
        match=r"_C\.so cannot be loaded \(.*(invalid ELF|too short).*\): put the CUDA run time .* on LD_LIBRARY_PATH",
    ):
        flash_attn_3.operators.__wrapped__()


@pytest.mark.parametrize(
    ("name", "changes", "pass_", "said"),
    [
        ("3", {}, "fwd+bwd", None),
        ("3", {"d": 192, "dv": 128}, "fwd+bwd", None),
        ("3", {"d": 64, "dv": 512}, "fwd", None),
        ("3", {"d": 64, "dv": 512}, "fwd+bwd", "dv must be at most 256 for gradients, got 512"),
        ("3", {"d": 128, "dv": 64}, "fwd", "d other than dv must be"),
        ("3", {"d": 264}, "fwd", "d must be at most 256, got 264"),
        ("3", {"d": 20}, "fwd", "d and dv must be multiples of 8"),
        ("3", {"dtype": "fp32"}, "fwd", "takes fp16 and bf16, got fp32"),
        ("3", {"scale": -0.2}, "fwd", "scale must be positive"),
        ("3", {"softcap": 2.0}, "fwd", "softcap: a build may leave it out"),
        ("3", {"cache": Cache((9,))}, "fwd", "cache: it adds 0 times what is behind a length"),
        ("3", {"cache": Cache((9,), page=16)}, "fwd", None),
        ("3", {"cache": Cache((9,), page=64)}, "fwd", "pages of 64 keys may be loaded whole"),
        ("3", {"cache": Cache((9,), page=64), "sq": 16}, "fwd", None),
        (
            "3",
            {"cache": Cache((9,), page=16), "d": 24, "dv": 40},
            "fwd",
            "of pages it gathers values no wider than keys",
        ),
        ("3", {"cache": Cache((9,), page=16), "d": 40, "dv": 24}, "fwd", None),
        ("3", {"d": 24, "dv": 40}, "fwd", None),
        ("4", {}, "fwd+bwd", None),
        ("4", {"d": 40}, "fwd", None),
        ("4", {"d": 56}, "fwd+bwd", "its gradients are wrong on Hopper for d below 64, got d=56 and dv=56"),
        ("4", {"d": 192, "dv": 128, "sink": True, "softcap": 2.0, "mask": Window(3, None)}, "fwd", None),
        ("4", {"d": 192, "dv": 128, "hkv": 8}, "fwd+bwd", None),
        ("4", {"d": 192, "dv": 128}, "fwd+bwd", "gradients of grouped heads need d to equal dv, got d=192 and dv=128"),
        ("4", {"d": 128, "dv": 64, "hkv": 8}, "fwd", None),
        ("4", {"d": 128, "dv": 64, "hkv": 8}, "fwd+bwd", "its gradients are wrong on Hopper where d is 128 and dv 64"),
        ("4", {"d": 64, "dv": 128}, "fwd", "d other than dv is known to work for (192, 128) and (128, 64)"),
        ("4", {"d": 264}, "fwd", "d must be a multiple of 8 and at most 256, got 264"),
        ("4", {"dtype": "fp32"}, "fwd", "takes fp16 and bf16, got fp32"),
        ("4", {"scale": 0.0}, "fwd", "scale must be positive"),
        ("4", {"alibi": True}, "fwd", "alibi: FlashAttention-4 takes it as a function in CuTe DSL"),
        ("4", {"cache": Cache((9,), page=16)}, "fwd", "paged: it adds 0 times what is behind a length"),
    ],
)
def test_what_is_not_taken_has_its_reason(
    name: str, changes: dict[str, Any], pass_: Pass, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = {"3": flash_attn_3, "4": flash_attn_4}[name].VARIANT
    problem = Problem(**{"b": 1, "hq": 8, "hkv": 2, "sq": 40, "d": 64, "dtype": "bf16"} | changes)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    found = way.rejects(problem, CUDA, pass_)
    assert found is None if said is None else (found or "").startswith(said)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
    assert "compute capability 9.0, got 8.0" in (way.rejects(problem, CUDA, pass_) or "9.0") or said is not None
    assert way.rejects(problem, CPU, pass_) is not None
