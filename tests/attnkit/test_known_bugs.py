"""Bugs that attention libraries shipped: a test a kind, which finds it in any variant. docs/known_bugs.md lists them.

The issues are in tests/known_bugs/table.py, with what laws elsewhere would have found too. Problems are as small as the
bug allows; those that need gigabytes run on a GPU, with nothing beside them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnkit.cache import Cache
from attnkit.mask import Boolean, Documents, Mask, Prefix, Window
from attnkit.mask import name as mask_name
from attnkit.parity import examine, parity
from attnkit.problem import Dtype, Inputs, Options, Pass, Problem
from attnkit.variant import Variant
from attnkit.variants import TABLE, variant
from attnkit.varlen import Varlen
from tests.attnkit.test_parity import COMPILED
from tests.known_bugs.table import KNOWN, OURS

OF_TORCH = ("sdpa_math", "sdpa_efficient", "sdpa_flash", "sdpa_cudnn", "flex", "naive_compiled", "torch_varlen")
"""Variants that promise the same bits for the same inputs where torch is told to be deterministic."""
GPU = torch.cuda.is_available()
FAR = 2**31
"""Elements, and bytes, that a 32-bit offset does not reach."""
BOTH: Pass = "fwd+bwd"
ALIGNED = ("sdpa_efficient", "sdpa_flash", "sdpa_cudnn", "flash_attn")

names = pytest.mark.parametrize("name", [way.name for way in TABLE])
large = [
    pytest.mark.skipif(not GPU, reason="needs a GPU: tens of gigabytes"),
    pytest.mark.times_gpu,  # as what is timed, it runs where nothing else uses the GPU
]


@pytest.fixture(autouse=True)
def lost() -> Iterator[None]:
    """A kernel that read what is not there takes the GPU from its process: among others, another goes on behind."""
    yield
    if GPU and "PYTEST_XDIST_WORKER" in os.environ:
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(1)


@pytest.fixture(autouse=True)
def known(request: pytest.FixtureRequest) -> None:
    """What an installed library is known to do wrong is expected, with its issue."""
    called = getattr(request.node, "callspec", None)
    found = called and KNOWN.get((request.node.originalname, called.params.get("name")))
    if found and (GPU or not found.needs_gpu) and found.has(f"-{called.id}-"):
        request.applymarker(pytest.mark.xfail(reason=found.reason, strict=found.strict, raises=found.raises))


def able(name: str, problem: Problem, device: torch.device, pass_: Pass) -> Variant:
    """The variant of that name; a test of one that cannot do the problem is skipped, with its reason."""
    way = variant(name)
    if device.type == "cpu" and name in COMPILED:
        pytest.skip("compiles for each size, which takes seconds: on a GPU alone")
    if reason := way.why_not(problem, device, pass_):
        pytest.skip(reason)
    return way


def agree(
    name: str,
    problem: Problem,
    device: torch.device,
    pass_: Pass = BOTH,
    inputs: Inputs | None = None,
    options: Options | None = None,
) -> None:
    """Hold a variant to the oracle; one without a backward forward alone, unless only backward is asked for.

    A test of what gradients alone can have asks `able` before, so that such a variant is not called right.
    `inputs` replace the problem's, of the same sizes; `options` its options.
    """
    if pass_ == BOTH and variant(name).rejects(problem, device, BOTH):
        pass_ = "fwd"
    way = able(name, problem, device, pass_)
    inputs = problem.inputs(device) if inputs is None else inputs
    options = problem.options(device) if options is None else options
    found = examine(way.attention, inputs, options, pass_, way.blur)
    assert found.ok, f"{name} at {problem.name}: {'; '.join(found.failures)}"


def held(name: str, problem: Problem, device: torch.device, pass_: Pass = BOTH) -> None:
    """Hold a variant to the oracle where sequences differ, which is not said by inputs alone."""
    found = parity(able(name, problem, device, pass_), problem, device, pass_)
    assert found.ok, f"{name} at {problem.name}: {'; '.join(found.failures)}"


def inside(x: torch.Tensor, dim: int, begin: int = 8, end: int = 8) -> torch.Tensor:
    """Return the same numbers as a slice of a larger tensor, which is NaN elsewhere."""
    sizes = list(x.shape)
    sizes[dim] += begin + end
    return torch.full(sizes, math.nan, dtype=x.dtype, device=x.device).narrow(dim, begin, x.shape[dim]).copy_(x)


def every_second(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the same numbers as every second of a larger tensor, which is NaN between."""
    index = (slice(None),) * dim + (slice(None, None, 2),)
    sizes = list(x.shape)
    sizes[dim] *= 2
    return torch.full(sizes, math.nan, dtype=x.dtype, device=x.device)[index].copy_(x)


# --- numbers --------------------


@names
@pytest.mark.parametrize(
    ("sq", "skv", "mask"), [(64, 64, Boolean(1.0)), (64, 64, Prefix(1)), (192, 192, "causal"), (1, 128, "full")]
)
def test_scores_far_below_zero_have_finite_gradients(
    name: str, sq: int, skv: int, mask: Mask, device: torch.device
) -> None:
    problem = Problem(b=1, hq=1, sq=sq, skv=skv, d=32, dtype="bf16", mask=mask, magnitude=0.1)
    able(name, problem, device, BOTH)
    inputs = problem.inputs(device)
    # a log-sum-exp below -88.7, so that exp of what is hidden less it is infinite in float32
    inputs.q[..., 0], inputs.k[..., 0] = 1.0, -120 * math.sqrt(problem.d)
    agree(name, problem, device, inputs=inputs)


@names
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("mask", ["full", "causal", Window(5, 0)], ids=mask_name)
def test_large_equal_inputs_are_not_a_number_nowhere(name: str, mask: Mask, dtype: Dtype, device: torch.device) -> None:
    problem = Problem(b=1, hq=2, sq=40, d=16, dtype=dtype, mask=mask)
    inputs = problem.inputs(device)
    agree(name, problem, device, inputs=Inputs(*(torch.full_like(x, 60.0) for x in inputs[:3]), inputs.dout))


@names
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("order", [1, -1], ids=["rising", "falling"])
def test_scores_that_grow_from_tile_to_tile_overflow_nothing(
    name: str, order: int, dtype: Dtype, device: torch.device
) -> None:
    growing(name, order, dtype, device)


@names
@pytest.mark.parametrize("order", [1, -1], ids=["rising", "falling"])
def test_scores_that_grow_from_tile_to_tile_saturate_nothing_in_fp8(
    name: str, order: int, device: torch.device
) -> None:
    growing(name, order, "fp8", device)


def growing(name: str, order: int, dtype: Dtype, device: torch.device) -> None:
    problem = Problem(b=1, hq=1, sq=20, skv=300, d=16, dtype=dtype, magnitude=0.1, scale=1.0)
    inputs = problem.inputs(device)
    # from one tile of 64 keys to the next a score grows by 12, and exp of that is more than fp16 has left
    inputs.q[..., 0], inputs.k[0, :, 0, 0] = 1.0, order * torch.linspace(-28, 28, 300)
    agree(name, problem, device, inputs=inputs)


@names
@pytest.mark.parametrize(("sq", "skv"), [(130, 45), (5, 1), (70, 64)])
def test_queries_before_the_first_key_have_no_gradient(name: str, sq: int, skv: int, device: torch.device) -> None:
    problem = Problem(b=1, hq=2, hkv=1, sq=sq, skv=skv, d=16, mask="causal")
    agree(name, problem, device)
    way = able(name, problem, device, BOTH)
    inputs = problem.inputs(device, requires_grad=True)
    out = way.attention(*inputs[:3], **problem.options(device))
    (dq,) = torch.autograd.grad(out, inputs.q, inputs.dout)
    assert not out[:, : sq - skv].any()
    assert not dq[:, : sq - skv].any()
    assert out[:, sq - skv].any()


# --- memory --------------------


@names
@pytest.mark.parametrize("skv", [33, 65])
@pytest.mark.parametrize("over", ["batch", "heads"])
@pytest.mark.parametrize("mask", [Boolean(0.5), Window(9, 3)], ids=mask_name)
def test_keys_that_are_broadcast_and_one_more_than_a_tile(
    name: str, over: str, skv: int, mask: Mask, device: torch.device
) -> None:
    layout = "broadcast" if over == "batch" else "bshd"
    problem = Problem(b=2, hq=2, sq=20, skv=skv, d=32, mask=mask, layout=layout)
    q, k, v, dout = problem.inputs(device)
    if over == "heads":
        k, v = (x[:, :, :1].expand_as(x) for x in (k, v))
    agree(name, problem, device, inputs=Inputs(q, k, v, dout))


@names
@pytest.mark.parametrize("tail", [1, 140])
@pytest.mark.parametrize(("sq", "skv", "mask"), [(33, 33, "full"), (20, 65, "causal"), (65, 20, Window(9, 3))])
def test_what_lies_behind_the_last_key_and_query_does_not_matter(
    name: str, sq: int, skv: int, mask: Mask, tail: int, device: torch.device
) -> None:
    problem = Problem(b=2, hq=2, sq=sq, skv=skv, d=16, mask=mask)
    inputs = Inputs(*(inside(x, 1, begin=0, end=tail) for x in problem.inputs(device)))
    agree(name, problem, device, inputs=inputs)


@names
@pytest.mark.parametrize("dim", [1, 2, 3], ids=["s", "h", "d"])
@pytest.mark.parametrize("cut", [inside, every_second])
def test_keys_that_are_a_slice_have_their_own_gradient(
    name: str, cut: Callable[[torch.Tensor, int], torch.Tensor], dim: int, device: torch.device
) -> None:
    if (
        cut is every_second
        and dim == 3
        and (name.startswith("sdpa") or name in (*COMPILED, "flash_attn", "transformer_engine"))
    ):
        pytest.skip("takes inputs whose last dimension is contiguous, as is documented")
    problem = Problem(b=2, hq=4, hkv=2, sq=20, skv=40, d=16, mask="causal")
    able(name, problem, device, BOTH)
    q, k, v, dout = problem.inputs(device)
    agree(name, problem, device, inputs=Inputs(q, cut(k, dim), cut(v, dim), dout))


def transposed(x: torch.Tensor) -> torch.Tensor:
    """Return the same numbers, with heads before queries in memory."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


@names
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(transposed, id="transposed"),
        pytest.param(lambda x: every_second(x, 1), id="every second"),
        pytest.param(lambda x: inside(x, 2), id="slice"),
        pytest.param(lambda x: x.mT.contiguous().mT, id="last dimension"),
        pytest.param(lambda x: x[:, :1, :1].expand_as(x), id="stride 0"),
        pytest.param(lambda x: torch.ones((), dtype=x.dtype, device=x.device).expand_as(x), id="of a sum"),
    ],
)
def test_a_gradient_that_comes_back_may_lie_as_it_likes(
    name: str, change: Callable[[torch.Tensor], torch.Tensor], device: torch.device
) -> None:
    problem = Problem(b=2, hq=4, hkv=2, sq=33, d=16, mask="causal", layout="packed")
    able(name, problem, device, BOTH)
    inputs = problem.inputs(device)
    agree(name, problem, device, inputs=inputs._replace(dout=change(inputs.dout)))


@names
def test_a_gradient_of_stride_zero_reaches_all_keys_of_a_single_query(name: str, device: torch.device) -> None:
    problem = Problem(b=1, hq=2, sq=1, skv=2**16 if GPU else 400, d=16)
    able(name, problem, device, BOTH)
    inputs = problem.inputs(device)
    one = torch.ones((), dtype=inputs.dout.dtype, device=device)
    agree(name, problem, device, inputs=inputs._replace(dout=one.expand_as(inputs.dout)))


@names
@pytest.mark.parametrize("what", [0, 1, 2, 3], ids=["q", "k", "v", "dout"])
@pytest.mark.parametrize("dim", [0, 1, 2], ids=["b", "s", "h"])
def test_what_lies_farther_apart_than_int32_reaches_is_found(
    name: str, dim: int, what: int, device: torch.device
) -> None:
    problem = Problem(b=2, hq=2, sq=3, d=16, dtype="fp16")
    if what == 3:
        able(name, problem, device, BOTH)
    inputs = list(problem.inputs(device))
    near = inputs[what]
    strides = list(near.stride())
    strides[dim] = FAR // (near.shape[dim] - 1)
    # memory that is never touched is never taken
    memory = torch.empty(FAR + 16 * near.numel(), dtype=near.dtype, device=device)
    inputs[what] = memory.as_strided(near.shape, strides).copy_(near)
    agree(name, problem, device, inputs=Inputs(*inputs))


LARGE = {
    "batches": Problem(b=8320, hq=16, sq=128, d=128, mask="causal"),
    "keys": Problem(b=1, hq=1, sq=16, skv=2**22 + 3, d=128),
    "queries": Problem(b=1, hq=1, sq=2**22 + 3, skv=16, d=128),
    "heads": Problem(b=1, hq=8, hkv=1, sq=2**16 + 1, skv=40, d=128),
}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=large) for kind in LARGE])
@names
def test_more_than_int32_counts_is_computed(name: str, kind: str, device: torch.device) -> None:
    problem = LARGE[kind]
    pass_: Pass = "fwd" if variant(name).rejects(problem, device, BOTH) else BOTH
    way = able(name, problem, device, pass_)
    if name not in OURS and "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("may take the GPU from its process: `python -m tests.known_bugs run` has one for it")
    try:
        if problem.b > 1:
            found = parity(way, problem, device, pass_, poison=False)
        else:  # without what parity keeps for the next variant
            inputs = problem.inputs(device)
            # one query of 1024 has a gradient: all four million of them, added up in one accumulator of a tensor core,
            # are off by more than the rule allows, which says nothing of offsets
            if problem.sq > 2**20:
                inputs.dout[:, torch.arange(problem.sq, device=device) % 1024 != 0] = 0
            found = examine(way.attention, inputs, problem.options(device), pass_, way.blur)
    except torch.cuda.OutOfMemoryError:
        pytest.skip("out of memory")
    finally:
        torch.cuda.empty_cache()
    assert found.ok, f"{name} at {problem.name}: {'; '.join(found.failures)}"


# --- sizes --------------------


@names
@pytest.mark.parametrize(("b", "sq", "skv"), [(0, 5, 5), (2, 0, 5), (2, 5, 0), (2, 0, 0)])
@pytest.mark.parametrize("mask", ["full", "causal"])
def test_where_there_is_nothing_there_is_nothing_to_compute(
    name: str, b: int, sq: int, skv: int, mask: Mask, device: torch.device
) -> None:
    some = Problem(b=2, hq=4, hkv=2, sq=5, d=16, mask=mask)
    pass_: Pass = "fwd" if variant(name).rejects(some, device, BOTH) else BOTH
    way = able(name, some, device, pass_)
    q, k, v, dout = some.inputs(device)
    q, dout, k, v = q[:b, :sq].clone(), dout[:b, :sq].clone(), k[:b, :skv].clone(), v[:b, :skv].clone()
    leaves = [x.requires_grad_(pass_ != "fwd") for x in (q, k, v)]
    out = way.attention(q, k, v, **some.options(device))
    assert out.shape == dout.shape
    assert not out.any()
    if pass_ != "fwd":
        for x, gradient in zip(leaves, torch.autograd.grad(out, leaves, dout), strict=True):
            assert gradient.shape == x.shape
            assert not gradient.any()


@names
@pytest.mark.parametrize("mask", ["full", "causal"])
def test_packed_sequences_of_which_some_have_more_queries_than_keys_or_none(
    name: str, mask: Mask, device: torch.device
) -> None:
    sequences = Varlen((0, 5, 40, 3, 7), (4, 0, 17, 30, 7))
    held(name, Problem(b=1, hq=2, hkv=1, sq=55, skv=58, d=16, mask=mask, varlen=sequences), device)


@names
@pytest.mark.parametrize("hkv", [1, 4])
@pytest.mark.parametrize("skv", [1, 40])
def test_a_token_is_generated_with_few_key_heads(name: str, skv: int, hkv: int, device: torch.device) -> None:
    agree(name, Problem(b=1, hq=8, hkv=hkv, sq=1, skv=skv, d=16, mask="causal"), device)


@names
@pytest.mark.parametrize("skv", [17, 129, 257])
@pytest.mark.parametrize("mask", ["causal", Window(40, 0)], ids=mask_name)
def test_one_query_on_keys_that_fill_no_block(name: str, mask: Mask, skv: int, device: torch.device) -> None:
    agree(name, Problem(b=1, hq=2, hkv=1, sq=1, skv=skv, d=16, mask=mask), device)


@names
@pytest.mark.parametrize("mask", ["causal", Window(5, 2), Documents((7, 13)), Boolean(0.3)], ids=mask_name)
def test_less_than_a_block_of_a_mask_is_trained(name: str, mask: Mask, device: torch.device) -> None:
    problem = Problem(b=1, hq=2, sq=20, d=16, mask=mask)
    able(name, problem, device, BOTH)
    agree(name, problem, device)


@names
@pytest.mark.parametrize("modifiers", [{"softcap": 2.0}, {"alibi": True}], ids=str)
@pytest.mark.parametrize("mask", ["causal", Window(100, 0)], ids=mask_name)
def test_one_row_more_than_two_blocks_with_a_mask_and_a_modifier(
    name: str, mask: Mask, modifiers: dict[str, Any], device: torch.device
) -> None:
    problem = Problem(b=1, hq=1, sq=257, d=16, dtype="bf16", mask=mask, **modifiers)
    able(name, problem, device, BOTH)
    agree(name, problem, device)


@names
@pytest.mark.parametrize(("sq", "skv"), [(257, 257), (150, 300)])
def test_the_softmax_goes_on_from_one_causal_block_to_the_next(
    name: str, sq: int, skv: int, device: torch.device
) -> None:
    agree(name, Problem(b=1, hq=1, sq=sq, skv=skv, d=16, mask="causal"), device)


@names
@pytest.mark.parametrize(
    ("sq", "skv", "mask"),
    [
        (20, 150, Boolean(0.0)),
        (150, 20, Boolean(0.01, 1)),
        (20, 150, "causal-top-left"),
        (150, 20, Window(0, 0)),
        (150, 150, Window(None, 1)),
    ],
)
def test_tiles_in_which_nothing_is_seen(name: str, sq: int, skv: int, mask: Mask, device: torch.device) -> None:
    agree(name, Problem(b=2, hq=2, hkv=1, sq=sq, skv=skv, d=16, mask=mask), device)


@names
@pytest.mark.parametrize("group", [2, 3])
def test_a_single_query_of_every_head_of_a_group_is_trained(name: str, group: int, device: torch.device) -> None:
    # backward makes the weights again from the log-sum-exp: where forward did not write it, they are wrong
    problem = Problem(b=1, hq=2 * group, hkv=2, sq=1, skv=40, d=16, mask="causal")
    able(name, problem, device, BOTH)
    agree(name, problem, device)


@names
@pytest.mark.parametrize("sq", [20, 70])
def test_a_window_without_keys_behind_the_diagonal_is_causal(name: str, sq: int, device: torch.device) -> None:
    for left in (70, 71, 200):
        agree(name, Problem(b=1, hq=2, sq=sq, skv=70, d=16, mask=Window(left, 0)), device)


@names
@pytest.mark.parametrize(("d", "dv"), [(24, 24), (40, 72), (72, 40)])
@pytest.mark.parametrize("group", [3, 5])
def test_padded_head_dims_of_few_queries_of_a_group(
    name: str, group: int, d: int, dv: int, device: torch.device
) -> None:
    agree(name, Problem(b=1, hq=group, hkv=1, sq=3, skv=40, d=d, dv=dv, mask="causal"), device)


@names
def test_padding_has_no_gradient_and_changes_nothing(name: str, device: torch.device) -> None:
    problem = Problem(b=1, hq=2, hkv=1, sq=70, d=16, mask=Documents((40, 30), causal=False))
    way = able(name, problem, device, BOTH)
    inputs = problem.inputs(device, requires_grad=True)
    inputs.dout[:, 40:] = 0
    out = way.attention(*inputs[:3], **problem.options(device))
    for gradient in torch.autograd.grad(out, inputs[:3], inputs.dout):
        assert not gradient[:, 40:].any()
        assert gradient[:, 39].any()
    agree(name, problem, device, inputs=inputs)


# --- one call after the other --------------------


@names
@pytest.mark.parametrize("mask", [Documents((40, 1, 29)), "causal"], ids=mask_name)
def test_what_was_computed_before_does_not_matter(name: str, mask: Mask, device: torch.device) -> None:
    problem = Problem(b=1, hq=2, hkv=1, sq=70, d=16, mask=mask)
    able(name, problem, device, BOTH)
    other = Problem(b=2, hq=2, hkv=1, sq=130, d=16, mask=Documents((100, 30)) if mask != "causal" else mask)
    for each in (problem, other, problem):
        agree(name, each, device)


@names
def test_packed_sequences_that_were_computed_before_do_not_matter(name: str, device: torch.device) -> None:
    for lengths in ((1,) * 9 + (30,), (90, 3, 80), (1,) * 9 + (30,)):
        total = sum(lengths)
        held(name, Problem(b=1, hq=2, sq=total, d=16, mask="causal", varlen=Varlen(lengths, lengths)), device)


@names
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([{"softcap": 2.0}, {"softcap": 30.0}, {}], id="softcap"),
        pytest.param([{"scale": 1.0}, {"scale": -0.2}, {}], id="scale"),
        pytest.param([{"mask": "causal"}, {"mask": Window(4, 0)}, {"mask": Window(9, 0)}, {}], id="mask"),
        pytest.param([{"mask": Documents((4, 13))}, {"mask": Documents((9, 8))}], id="documents"),
        pytest.param([{"mask": Boolean(0.5, 0)}, {"mask": Boolean(0.5, 1)}], id="boolean"),
        pytest.param([{"dtype": "fp16"}, {"dtype": "bf16"}, {"dtype": "fp32"}], id="dtype"),
        pytest.param([{"layout": layout} for layout in ("broadcast", "bshd", "bhsd", "padded", "packed")], id="layout"),
    ],
)
def test_the_same_sizes_with_something_else_are_computed_anew(
    name: str, changes: list[dict[str, Any]], device: torch.device
) -> None:
    done, reasons = 0, []
    for change in changes:
        problem = Problem(**{"b": 2, "hq": 2, "hkv": 1, "sq": 17, "d": 16} | change)
        if reason := variant(name).why_not(problem, device, "fwd"):
            reasons.append(reason)
            continue
        agree(name, problem, device)
        done += 1
    if done < 2:
        pytest.skip(reasons[0])


@names
@pytest.mark.parametrize("what", [0, 1, 2, 3], ids=["q", "k", "v", "dout"])
def test_inputs_that_are_not_aligned_follow_those_that_are(name: str, what: int, device: torch.device) -> None:
    problem = Problem(b=1, hq=2, sq=33, d=16, mask="causal")
    if GPU and name in ALIGNED:
        # an address that is not takes the GPU from the whole process
        pytest.skip("loads 16 bytes at once, which is documented nowhere")
    if what == 3:
        able(name, problem, device, BOTH)
    inputs = problem.inputs(device)
    agree(name, problem, device, inputs=inputs)
    x = inputs[what]
    behind = torch.cat((x.new_full((1,), math.nan), x.flatten()))[1:].view_as(x)
    assert behind.data_ptr() % 16
    changed = list(inputs)
    changed[what] = behind
    agree(name, problem, device, inputs=Inputs(*changed))


SIZE, HEADS = (512, 8) if GPU else (20, 2)
races = pytest.mark.skipif(not GPU, reason="needs a GPU: on the host nothing overtakes")


def again_and_again(name: str, problem: Problem, device: torch.device) -> None:
    """Hold many results of one problem to the oracle, in memory that is poisoned each time; ours have the same bits."""
    pass_: Pass = "fwd" if variant(name).rejects(problem, device, BOTH) else BOTH
    way = able(name, problem, device, pass_)
    for _ in range(20 if GPU else 1):
        found = parity(way, problem, device, pass_)
        assert found.ok, f"{name} at {problem.name}: {'; '.join(found.failures)}"
    if name in OURS:  # what adds up in any order promises no bits
        same_bits(way, problem, device, pass_)


def same_bits(way: Variant, problem: Problem, device: torch.device, pass_: Pass) -> None:
    """Hold many results of one problem to the bits of the first."""

    def computed() -> list[torch.Tensor]:
        q, k, v, dout = problem.inputs(device, requires_grad=pass_ != "fwd")
        out = way.attention(q, k, v, **problem.options(device))
        return [out.detach(), *(torch.autograd.grad(out, (q, k, v), dout) if pass_ != "fwd" else ())]

    first = computed()
    for _ in range(50 if GPU else 1):
        assert all(torch.equal(one, other) for one, other in zip(first, computed(), strict=True))


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Tell torch to be deterministic; a test of what it then refuses is skipped, with its reason."""
    before = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # which backends of SDPA are not taken, and why
            yield
    except RuntimeError as error:
        refused = re.search("deterministic implementation|Deterministic behavior|No available kernel", str(error))
        if refused is None:
            raise
        pytest.skip(f"torch, told to be deterministic: {str(error).splitlines()[0]}")
    finally:
        torch.set_deterministic_debug_mode(before)


def raced(d: int, skv: int = SIZE, mask: Mask = "full") -> Problem:
    """Return a problem that keeps a GPU busy, with a key head for each query head."""
    return Problem(b=1, hq=HEADS, sq=SIZE, skv=skv, d=d, mask=mask)


@races
@names
@pytest.mark.parametrize("mask", ["full", "causal"])
def test_tensor_cores_wait_for_their_operands(name: str, mask: Mask, device: torch.device) -> None:
    again_and_again(name, raced(128, mask=mask), device)


@races
@names
@pytest.mark.parametrize("mask", [Window(SIZE // 4, 0), Boolean(0.02)], ids=mask_name)
def test_a_sparse_mask_waits_for_the_kernel_before(name: str, mask: Mask, device: torch.device) -> None:
    again_and_again(name, raced(64, mask=mask), device)


@races
@names
@pytest.mark.parametrize("d", [64, 128])
def test_a_window_to_the_right_alone_is_written_before_memory_is_used_again(
    name: str, d: int, device: torch.device
) -> None:
    again_and_again(name, raced(d, mask=Window(None, SIZE // 8)), device)


@races
@names
def test_gradients_that_are_added_up_in_memory_are_all_there(name: str, device: torch.device) -> None:
    problem = raced(64, skv=4 * SIZE)
    able(name, problem, device, BOTH)
    again_and_again(name, problem, device)


@names
def test_gradients_of_a_group_are_summed_in_one_order(name: str, device: torch.device) -> None:
    problem = Problem(b=1, hq=HEADS, hkv=HEADS // 2, sq=SIZE, d=64 if GPU else 16, mask="causal")
    way = able(name, problem, device, BOTH)
    if name in OURS:
        same_bits(way, problem, device, BOTH)
        return
    if name not in OF_TORCH:
        pytest.skip("promises no bits to who does not ask for them by an option of its own")
    with deterministic():
        same_bits(way, problem, device, BOTH)


@names
@pytest.mark.parametrize("mask", ["causal", Window(9, 0)], ids=mask_name)
def test_decoding_token_by_token_is_prefill(name: str, mask: Mask, device: torch.device) -> None:
    problem = Problem(b=1, hq=3, hkv=1, sq=36, d=16, mask=mask)
    q, k, v, dout = problem.inputs(device)
    for token in (0, 8, 32, 35):
        one = dataclasses.replace(problem, sq=1, skv=token + 1)
        now = slice(token, token + 1)
        agree(name, one, device, inputs=Inputs(q[:, now], k[:, : token + 1], v[:, : token + 1], dout[:, now]))
    if variant(name).rejects(problem, device, "fwd") is None:
        agree(name, problem, device, "fwd", inputs=Inputs(q, k, v, dout))


# --- caches --------------------


@names
@pytest.mark.parametrize("page", [None, 16])
@pytest.mark.parametrize("sq", [1, 3])
def test_what_lies_behind_a_length_in_a_cache_does_not_matter(
    name: str, sq: int, page: int | None, device: torch.device
) -> None:
    # behind a length there is what is not a number, and so is the page that a table names there
    cache = Cache((1, 47, 16, 70), page)
    held(name, Problem(b=4, hq=4, hkv=2, sq=sq, skv=70, d=16, mask="causal", cache=cache), device, "fwd")


@pytest.mark.parametrize("name", ["triton_splitkv"])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("length", [1, 16, 47])
def test_entries_of_a_table_behind_the_last_page_are_not_used(
    name: str, length: int, splits: int, device: torch.device
) -> None:
    triton_splitkv = pytest.importorskip("attnkit.variants.triton_splitkv")
    problem = Problem(b=2, hq=4, hkv=2, sq=1, skv=length, d=16)
    able(name, problem, device, "fwd")
    page, pages = 16, -(-length // 16)
    lengths = torch.full((2,), length, dtype=torch.int32, device=device)

    def paged(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, mask: Mask, scale: float | None) -> torch.Tensor:
        memory = [x.new_full((2 * pages + 1, page, *x.shape[2:]), math.nan) for x in (k, v)]
        # behind what there is, a page of NaN and numbers of pages that do not exist
        table = torch.full((2, pages + 2), -1, dtype=torch.int32)
        table[:, pages] = 2 * pages
        for batch in range(2):
            for i in range(pages):
                table[batch, i] = batch * pages + i
                for x, held in zip((k, v), memory, strict=True):
                    rows = x[batch, i * page : (i + 1) * page]
                    held[batch * pages + i, : len(rows)] = rows
        return triton_splitkv.attend(q, *memory, lengths, table=table.to(device), mask=mask, scale=scale, splits=splits)

    found = examine(paged, problem.inputs(device), problem.options(device), "fwd")
    assert found.ok, found.failures


# --- torch's own functions: variants do not ask for what is known to be wrong --------------------

BACKENDS = {
    "sdpa_math": SDPBackend.MATH,
    "sdpa_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
}


def trained(name: str, inputs: tuple[torch.Tensor, ...], **options: Any) -> list[torch.Tensor]:
    """Out and gradients of a backend of torch's SDPA, heads first; a test of one that does not take it is skipped."""
    q, k, v = (x.detach().requires_grad_() for x in inputs)
    if not GPU and name in ("sdpa_efficient", "sdpa_cudnn"):
        pytest.skip("runs on a CUDA device, got cpu")
    try:
        with sdpa_kernel([BACKENDS[name]]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            out = F.scaled_dot_product_attention(q, k, v, **options)
    except RuntimeError as error:
        if "No available kernel" not in str(error):
            raise
        pytest.skip("the backend does not take a mask in memory here")
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))]


backends = pytest.mark.parametrize("name", BACKENDS)


@backends
def test_torch_takes_a_gradient_that_lies_otherwise_than_the_one_before(name: str, device: torch.device) -> None:
    if not GPU and name in ("sdpa_efficient", "sdpa_cudnn"):
        pytest.skip("runs on a CUDA device, got cpu")
    problem = Problem(b=2, hq=4, sq=39, d=16)
    drawn = problem.inputs(device)
    q, k, v, dout = (x.transpose(1, 2).detach().requires_grad_(i < 3) for i, x in enumerate(drawn))
    with sdpa_kernel([BACKENDS[name]]):
        out = F.scaled_dot_product_attention(q, k, v)
    found = [torch.autograd.grad(out, (q, k, v), x, retain_graph=True) for x in (dout, dout.contiguous())]
    for one, other in zip(*found, strict=True):
        # each number is rounded to 2^-8 of itself, in both
        assert (one - other).double().norm() <= 2**-7 * one.double().norm()


MANY = """
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

generator = torch.Generator("cuda").manual_seed(0)
q, k, v, dout = (
    torch.randn(8320, 16, 2, 128, dtype=torch.bfloat16, device="cuda", generator=generator) for _ in range(4)
)
with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
    def trained(*inputs):
        leaves = [x.detach().requires_grad_() for x in inputs[:3]]
        return torch.autograd.grad(F.scaled_dot_product_attention(*leaves), leaves, inputs[3])

    last = trained(*(x[-8:] for x in (q, k, v, dout)))
    for one, other in zip(trained(q, k, v, dout), last):
        assert (one[-8:] - other).double().norm() <= 2**-7 * other.double().norm()
"""


@pytest.mark.skipif(not GPU, reason="needs a GPU: ten gigabytes")
@pytest.mark.parametrize("name", ["sdpa_flash"])
def test_torch_trains_more_sequences_than_int32_counts(name: str) -> None:
    # an address that is not there takes the GPU from the whole process
    done = subprocess.run([sys.executable, "-c", MANY], capture_output=True, text=True)
    assert not done.returncode, f"{name}: {done.stderr[-1000:]}"


@backends
@pytest.mark.parametrize("length", [64, 192, 704])
def test_torch_has_finite_gradients_of_scores_far_below_zero_under_a_mask(
    name: str, length: int, device: torch.device
) -> None:
    drawn = Problem(b=1, hq=1, sq=length, d=64, magnitude=0.1).inputs(device)
    q, k, v, _ = (x.transpose(1, 2).clone() for x in drawn)
    q[..., 0], k[..., 0] = 1.0, -120 * math.sqrt(64)
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    for x in trained(name, (q, k, v), attn_mask=mask):
        assert x.isfinite().all()


@backends
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_torch_has_finite_gradients_under_the_lowest_number(
    name: str, dtype: torch.dtype, device: torch.device
) -> None:
    generator = torch.Generator(device).manual_seed(0)
    inputs = tuple(torch.randn(2, 2, 20, 16, device=device, generator=generator).to(dtype) for _ in range(3))
    mask = torch.zeros(2, 1, 20, 20, dtype=dtype, device=device)
    mask[0, :, :, 10:] = torch.finfo(dtype).min
    mask[1, :, 3] = torch.finfo(dtype).min  # a whole row: every key has the same score
    for x in trained(name, inputs, attn_mask=mask):
        assert x.isfinite().all()


@backends
@pytest.mark.parametrize("skv", [33, 65])
def test_torch_takes_keys_that_are_broadcast_under_a_mask(name: str, skv: int, device: torch.device) -> None:
    problem = Problem(b=1, hq=4, sq=skv, d=128)
    q, k, v, _ = (x.transpose(1, 2) for x in problem.inputs(device))
    k, v = (x[:, :1].expand_as(x) for x in (k, v))
    mask = torch.ones(skv, skv, dtype=torch.bool, device=device).tril()[None, None]
    shared = trained(name, (q, k, v), attn_mask=mask)
    for one, other in zip(shared, trained(name, (q, k.contiguous(), v.contiguous()), attn_mask=mask), strict=True):
        # each number is rounded to 2^-8 of itself, in both
        assert (one - other).double().norm() <= 2**-7 * other.double().norm()
