"""What attention must keep whatever its numbers are: laws that need no oracle and no tolerance."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from attnkit.problem import Dtype, Inputs, Problem
from attnkit.variant import Variant
from attnkit.variants import TABLE, variant

PROBLEM = Problem(b=2, hq=4, hkv=2, sq=45, skv=60, d=32, mask="causal")
ROWS = 25
SEEN = ROWS + PROBLEM.skv - PROBLEM.sq
"""Keys that the first ROWS queries see."""
GARBAGE = 1e4

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
    return way.attention(q, k, v, mask=problem.mask, scale=problem.scale)


def backward(way: Variant, problem: Problem, inputs: Inputs) -> tuple[torch.Tensor, ...]:
    q, k, v = (x.detach().requires_grad_() for x in inputs[:3])
    return torch.autograd.grad(way.attention(q, k, v, mask=problem.mask, scale=problem.scale), (q, k, v), inputs.dout)


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
