"""What attention must keep whatever its numbers are: laws that need no oracle and no tolerance."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from attnkit.mask import Boolean, Documents, Mask, Prefix, Window
from attnkit.mask import name as mask_name
from attnkit.problem import Dtype, Inputs, Pass, Problem, Varlen
from attnkit.variant import Variant
from attnkit.variants import TABLE, variant
from tests.attnkit import by_hand

PROBLEM = Problem(b=2, hq=4, hkv=2, sq=45, skv=60, d=32, mask="causal")
ROWS = 25
SEEN = ROWS + PROBLEM.skv - PROBLEM.sq
"""Keys that the first ROWS queries see."""
GARBAGE = 1e4
MASKS: tuple[Mask, ...] = (
    "causal",
    "causal-top-left",
    Window(9, 0),
    Window(3, 5),
    Window(None, 7),
    Prefix(6),
    Documents((13, 1, 26)),
    Documents((30, 10), causal=False),
    Boolean(0.2),
)
COMPILED = ("flex",)
"""Variants without a backward on the CPU."""
LEAKS = dict.fromkeys(
    ("sdpa_math", "sdpa_efficient"),
    "the mask is added to scores, and not a number less infinity is not a number (pytorch#101967)",
)
"""Where what is not a number in a hidden key may reach the output."""

names = pytest.mark.parametrize("name", [way.name for way in TABLE])
dtypes = pytest.mark.parametrize("dtype", ["bf16", "fp32"])


@pytest.fixture
def problem(dtype: Dtype) -> Problem:
    return dataclasses.replace(PROBLEM, dtype=dtype)


@pytest.fixture
def way(name: str, problem: Problem, device: torch.device) -> Variant:
    """The variant; a test of one that cannot do the problem is skipped, with its reason."""
    found = variant(name)
    if reason := found.why_not(problem, device, "fwd"):
        pytest.skip(reason)
    return found


@pytest.fixture
def trainable(way: Variant, problem: Problem, device: torch.device) -> Variant:
    if reason := way.rejects(problem, device, "fwd+bwd"):
        pytest.skip(reason)
    return way


def forward(way: Variant, problem: Problem, inputs: Inputs) -> torch.Tensor:
    q, k, v, _ = inputs
    return way.attention(q, k, v, **problem.options(q.device))


def backward(way: Variant, problem: Problem, inputs: Inputs) -> tuple[torch.Tensor, ...]:
    q, k, v = (x.detach().requires_grad_() for x in inputs[:3])
    return torch.autograd.grad(forward(way, problem, Inputs(q, k, v, inputs.dout)), (q, k, v), inputs.dout)


@names
@dtypes
def test_keys_behind_the_mask_do_not_matter(way: Variant, problem: Problem, device: torch.device) -> None:
    inputs = problem.inputs(device)
    before = forward(way, problem, inputs)
    inputs.k[:, SEEN:], inputs.v[:, SEEN:] = GARBAGE, -GARBAGE
    after = forward(way, problem, inputs)
    assert torch.equal(before[:, :ROWS], after[:, :ROWS])
    # the first query behind sees the first key that was changed
    assert not torch.equal(before[:, ROWS], after[:, ROWS])


@names
@dtypes
def test_a_key_that_no_gradient_reaches_has_none(trainable: Variant, problem: Problem, device: torch.device) -> None:
    inputs = problem.inputs(device)
    inputs.dout[:, ROWS:] = 0
    dq, dk, dv = backward(trainable, problem, inputs)
    for gradient, begin in ((dq, ROWS), (dk, SEEN), (dv, SEEN)):
        assert not gradient[:, begin:].any()
        assert gradient[:, begin - 1].any()


def asked(name: str, problem: Problem, device: torch.device, pass_: Pass = "fwd") -> Variant:
    """The variant of that name; a test of one that cannot do the problem is skipped, with its reason."""
    way = variant(name)
    if reason := way.why_not(problem, device, pass_):
        pytest.skip(reason)
    return way


def most(name: str, problem: Problem, device: torch.device) -> Pass:
    """Both passes, or forward alone where a variant has no more here."""
    if name in COMPILED and device.type == "cpu":
        return "fwd"
    return "fwd" if variant(name).rejects(problem, device, "fwd+bwd") else "fwd+bwd"


@names
@pytest.mark.parametrize("mask", MASKS, ids=mask_name)
def test_a_hidden_key_changes_no_bit_of_what_does_not_see_it(name: str, mask: Mask, device: torch.device) -> None:
    problem = Problem(b=1, hq=2, sq=40, d=16, dtype="fp32", mask=mask, alibi=True)
    if "alibi" in variant(name).lacks:
        problem = dataclasses.replace(problem, alibi=False)
    way = asked(name, problem, device)
    seen = torch.tensor(by_hand.seen(problem))
    inputs = problem.inputs(device)
    before = forward(way, problem, inputs)
    # the key that most queries do not see
    key = int(seen.sum(0).argmin())
    inputs.k[:, key], inputs.v[:, key] = GARBAGE, -GARBAGE
    same = (before == forward(way, problem, inputs)).all(-1).all(-1)[0].cpu()
    assert same[~seen[:, key]].all()
    assert not same[seen[:, key]].any()


@names
def test_not_a_number_in_a_key_that_nobody_sees_goes_nowhere(
    name: str, device: torch.device, request: pytest.FixtureRequest
) -> None:
    problem = Problem(b=1, hq=2, sq=20, skv=50, d=16, dtype="fp32", mask=Window(10, 0))
    way = asked(name, problem, device)
    if name in LEAKS:
        request.applymarker(pytest.mark.xfail(reason=LEAKS[name], strict=name == "sdpa_math", raises=AssertionError))
    inputs = problem.inputs(device)
    before = forward(way, problem, inputs)
    inputs.k[:, :20] = math.nan
    assert torch.equal(before, forward(way, problem, inputs))


@names
@pytest.mark.parametrize("causal", [True, False])
def test_a_packed_document_is_attention_of_that_document_alone(name: str, causal: bool, device: torch.device) -> None:
    packed = Problem(b=1, hq=2, sq=40, d=16, dtype="fp32", mask=Documents((13, 1, 26), causal))
    pass_ = most(name, packed, device)
    way = asked(name, packed, device, pass_)
    inputs = packed.inputs(device)
    begin = 0
    for length in (13, 1, 26):
        alone = dataclasses.replace(packed, sq=length, skv=length, mask="causal" if causal else "full")
        part = Inputs(*(x[:, begin : begin + length] for x in inputs))
        reference = variant("naive")
        pairs = [(forward(way, packed, inputs), forward(reference, alone, part))]
        if pass_ != "fwd":
            pairs += zip(backward(way, packed, inputs), backward(reference, alone, part), strict=True)
        for whole, own in pairs:
            torch.testing.assert_close(whole[:, begin : begin + length], own)
        begin += length


PACKED = Varlen((5, 0, 13, 22), (0, 4, 9, 30))
PACKING = ("naive", "triton_flash", "triton_fa1")
"""Ours that take packed sequences."""


@names
@pytest.mark.parametrize("mask", ["full", "causal", Window(6, 2), Prefix(7)], ids=mask_name)
def test_a_packed_sequence_is_attention_of_that_sequence_alone(name: str, mask: Mask, device: torch.device) -> None:
    packed = Problem(b=1, hq=4, hkv=2, sq=40, skv=43, d=16, dtype="fp32", mask=mask, alibi=True, varlen=PACKED)
    if "alibi" in variant(name).lacks:
        packed = dataclasses.replace(packed, alibi=False)
    pass_ = most(name, packed, device)
    way = asked(name, packed, device, pass_)
    inputs = packed.inputs(device)
    out = forward(way, packed, inputs)
    gradients = backward(way, packed, inputs) if pass_ != "fwd" else ()
    for (sq, skv), (i, j) in zip(PACKED, PACKED.slices(), strict=True):
        if not (sq and skv):
            assert not out[:, i].any(), "a query without keys has out 0"
            for gradient, own in zip(gradients, (i, j, j), strict=False):
                assert not gradient[:, own].any()
            continue
        alone = dataclasses.replace(packed, sq=sq, skv=skv, varlen=None)
        part = Inputs(inputs.q[:, i], inputs.k[:, j], inputs.v[:, j], inputs.dout[:, i])
        reference = variant("naive")
        torch.testing.assert_close(out[:, i], forward(reference, alone, part))
        if gradients:
            for gradient, own, expected in zip(gradients, (i, j, j), backward(reference, alone, part), strict=True):
                torch.testing.assert_close(gradient[:, own], expected)


@pytest.mark.parametrize("name", PACKING)
def test_not_a_number_in_another_sequence_goes_nowhere(name: str, device: torch.device) -> None:
    problem = Problem(b=1, hq=2, sq=40, skv=43, d=16, dtype="fp32", mask="causal", varlen=PACKED)
    pass_ = most(name, problem, device)
    way = asked(name, problem, device, pass_)

    def computed() -> tuple[torch.Tensor, ...]:
        gradients = backward(way, problem, inputs) if pass_ != "fwd" else ()
        return (forward(way, problem, inputs), *gradients)

    inputs = problem.inputs(device)
    before = computed()
    (_, _, _, last), (_, _, _, keys) = zip(*PACKED.slices(), strict=True)
    for x, rows in zip(inputs, (last, keys, keys, last), strict=True):
        x[:, rows] = math.nan
    for x, y, rows in zip(before, computed(), (last, last, keys, keys), strict=False):
        assert torch.equal(x[:, : rows.start], y[:, : rows.start])
        assert y[:, rows].isnan().any()


@pytest.mark.parametrize("name", PACKING)
def test_the_order_of_packed_sequences_does_not_matter(name: str, device: torch.device) -> None:
    problem = Problem(b=1, hq=2, sq=40, skv=43, d=16, dtype="fp32", mask="causal", alibi=True, varlen=PACKED)
    way = asked(name, problem, device)
    inputs, order = problem.inputs(device), (3, 1, 0, 2)
    slices = [[*PACKED.slices()][n] for n in order]
    queries, keys = (torch.cat([torch.arange(40 + 43)[part] for part in parts]) for parts in zip(*slices, strict=True))
    moved = Inputs(inputs.q[:, queries], inputs.k[:, keys], inputs.v[:, keys], inputs.dout[:, queries])
    lengths = (tuple(of[n] for n in order) for of in (PACKED.queries, PACKED.keys))
    other = dataclasses.replace(problem, varlen=Varlen(*lengths))
    assert torch.equal(forward(way, other, moved), forward(way, problem, inputs)[:, queries])


@names
def test_a_sink_that_nothing_drowns_takes_its_share_and_one_far_below_none(name: str, device: torch.device) -> None:
    problem = Problem(b=1, hq=2, sq=20, d=16, dtype="fp32", mask="causal", sink=True)
    way = asked(name, problem, device)
    q, k, v, _ = problem.inputs(device)
    without = way.attention(q, k, v, mask="causal", scale=0.0)
    # every score is 0: a sink of log n weighs as n keys
    sinks = torch.tensor([-1e4, math.log(3.0)], device=device)
    out = way.attention(q, k, v, mask="causal", scale=0.0, sink=sinks)
    keys = torch.arange(1, 21, device=device)[:, None]
    torch.testing.assert_close(out[:, :, 0], without[:, :, 0])
    torch.testing.assert_close(out[:, :, 1], without[:, :, 1] * keys / (keys + 3))


@names
@dtypes
def test_the_order_of_batches_and_heads_does_not_matter(way: Variant, problem: Problem, device: torch.device) -> None:
    inputs = problem.inputs(device)
    # heads move with the key head that they read, and within its group
    batches, queries, keys = [1, 0], [3, 2, 0, 1], [1, 0]

    def moved(x: torch.Tensor) -> torch.Tensor:
        return x[batches][:, :, queries if x.shape[2] == problem.hq else keys]

    out = forward(way, problem, inputs)
    assert torch.equal(forward(way, problem, Inputs(*map(moved, inputs))), moved(out))
