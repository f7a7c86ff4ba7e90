"""Does a variant agree with the oracle? The rule, and how it is put to a problem of any size.

A tolerance is the error that the same inputs give the textbook computation in the same dtype (`variants.naive`):

    max  |x - truth|  <=  2 (gradients: 3) · max  |naive - truth|  +  2 · max  r
    mean |x - truth|  <=               1.5 · mean |naive - truth|  +  2 · mean r          r = |((truth + 0.3) - 0.3) - truth|

where the round trip r, computed in the dtype, is what rounding alone may cost (after the tests of FlashAttention-3, Shah
et al., 2024); it carries the rule where the naive computation happens to be exact. The mean catches a corrupt tile that
the maximum over everything would forgive. What is not finite where the truth is fails.

Heads and batches do not depend on each other, so of a large problem the last head group of the last batch and one other
are compared, and that is exact. The variant itself always computes the whole problem.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch

from attnkit import oracle
from attnkit.problem import Inputs, Pass, Problem
from attnkit.variant import Attention, Variant
from attnkit.variants import naive

__all__ = ["Comparison", "Parity", "compare", "parity"]

WHOLE = 2**22
"""Scores of one head group that are still compared in every batch and head."""
MAX_FACTOR = {"out": 2.0, "dq": 3.0, "dk": 3.0, "dv": 3.0}
MEAN_FACTOR = 1.5
ROUND_TRIPS = 2.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """One tensor held against the truth.

    Attributes:
        name: ``out``, ``dq``, ``dk`` or ``dv``.
        max_error: Largest absolute error.
        mean_error: Mean absolute error.
        naive_max_error: The naive computation's largest error.
        naive_mean_error: The naive computation's mean error.
        failures: A sentence for each part of the rule that is broken.
    """

    name: str
    max_error: float
    mean_error: float
    naive_max_error: float
    naive_mean_error: float
    failures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Parity:
    """Whether a variant agrees with the oracle on a problem, with the evidence."""

    comparisons: tuple[Comparison, ...]

    @property
    def failures(self) -> list[str]:
        """What is wrong, a sentence each."""
        return [failure for comparison in self.comparisons for failure in comparison.failures]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.failures


def compare(name: str, got: torch.Tensor, truth: torch.Tensor, yardstick: torch.Tensor) -> Comparison:
    """Hold one tensor against the truth by the rule above.

    Args:
        name: ``out``, ``dq``, ``dk`` or ``dv``; gradients are allowed a larger maximum.
        got: What the variant computed.
        truth: The oracle's, in float64, of the same shape.
        yardstick: What the naive computation made of the same inputs, in the dtype of `got`.
    """
    if got.shape != truth.shape:
        sentence = f"{name} has shape {list(got.shape)}, expected {list(truth.shape)}"
        return Comparison(name, math.inf, math.inf, 0.0, 0.0, (sentence,))
    lost = int((truth.isfinite() & ~got.isfinite()).sum())
    error, naive_error = (got.double() - truth).abs(), (yardstick.double() - truth).abs()
    naive_error = naive_error[naive_error.isfinite()]  # where the naive computation overflows it is no yardstick
    rounded = truth.to(got.dtype)
    trip = (((rounded + 0.3) - 0.3).double() - rounded.double()).abs()
    largest, mean = (float(x) for x in (error.max(), error.mean()))
    naive_largest = float(naive_error.max()) if naive_error.numel() else 0.0
    naive_mean = float(naive_error.mean()) if naive_error.numel() else 0.0
    failures = []
    if lost:
        failures.append(f"{name} is not finite in {lost} of {truth.numel()} places where the truth is")
    else:
        allowed = MAX_FACTOR[name] * naive_largest + ROUND_TRIPS * float(trip.max())
        if not largest <= allowed:
            failures.append(f"{name} is off by {largest:.3g}, allowed {allowed:.3g} (naive {naive_largest:.3g})")
        allowed = MEAN_FACTOR * naive_mean + ROUND_TRIPS * float(trip.mean())
        if not mean <= allowed:
            failures.append(f"{name} is off by {mean:.3g} in the mean, allowed {allowed:.3g} (naive {naive_mean:.3g})")
    return Comparison(name, largest, mean, naive_largest, naive_mean, tuple(failures))


def parity(
    variant: Variant, problem: Problem, device: torch.device | str, pass_: Pass, seed: int = 0, *, poison: bool = True
) -> Parity:
    """Compute a problem by a variant and hold the result against the oracle: out, and but for ``fwd`` dq, dk and dv.

    Args:
        variant: What is on trial; it must not reject the problem.
        problem: The problem; its inputs are drawn with `seed`.
        device: Where everything is computed, the oracle too.
        pass_: ``fwd`` compares out alone, the others the gradients as well.
        seed: Of the inputs, and of which head groups of a large problem are compared.
        poison: Leave NaN behind in memory that the variant will get for its results (on a CUDA device).
    """
    device = torch.device(device)
    inputs = problem.inputs(device, seed=seed, requires_grad=pass_ != "fwd")
    if poison and device.type == "cuda":
        _poison(inputs)
    got = _compute(variant.attention, problem, inputs, pass_)
    whole = problem.b * problem.hkv == 1 or problem.b * problem.hq * problem.sq * problem.skv <= WHOLE
    if whole:
        return Parity(_comparisons(got, problem, inputs, pass_))
    corners = {(problem.b - 1, problem.hkv - 1)}
    choice = random.Random(f"{seed} {problem.name}")
    corners.add((choice.randrange(problem.b), choice.randrange(problem.hkv)))
    group = problem.group
    comparisons: list[Comparison] = []
    for batch, head in sorted(corners):
        part, part_inputs = problem.slice(batch, head), inputs.slice(batch, head)
        queries, keys = slice(head * group, (head + 1) * group), slice(head, head + 1)
        got_part = {
            name: x[batch : batch + 1, :, queries if name in ("out", "dq") else keys] for name, x in got.items()
        }
        comparisons += _comparisons(got_part, part, part_inputs, pass_)
    return Parity(tuple(comparisons))


def _comparisons(got: dict[str, torch.Tensor], problem: Problem, inputs: Inputs, pass_: Pass) -> tuple[Comparison, ...]:
    q, k, v, dout = (x.detach() for x in inputs)
    truth = {"out": oracle.forward(q, k, v, mask=problem.mask, scale=problem.scale)[0]}
    if pass_ != "fwd":
        gradients = oracle.gradients(q, k, v, dout, mask=problem.mask, scale=problem.scale)
        truth |= dict(zip(("dq", "dk", "dv"), gradients, strict=True))
    if pass_ != "fwd":
        q, k, v = (x.requires_grad_() for x in (q, k, v))
    yardstick = _compute(naive.VARIANT.attention, problem, Inputs(q, k, v, dout), pass_)
    return tuple(compare(name, got[name], truth[name], yardstick[name]) for name in truth)


def _compute(attention: Attention, problem: Problem, inputs: Inputs, pass_: Pass) -> dict[str, torch.Tensor]:
    out = attention(inputs.q, inputs.k, inputs.v, mask=problem.mask, scale=problem.scale)
    found = {"out": out.detach()}
    if pass_ != "fwd":
        gradients = torch.autograd.grad(out, inputs[:3], inputs.dout)
        found |= dict(zip(("dq", "dk", "dv"), gradients, strict=True))
    return found


def _poison(inputs: Inputs) -> None:
    """Fill and free blocks of the sizes of the results, which torch's allocator then hands to the variant."""
    blocks = [torch.full_like(x, math.nan, memory_format=torch.contiguous_format) for x in inputs for _ in range(2)]
    blocks += [torch.full(x.shape[:3], math.nan, device=x.device) for x in inputs]  # statistics of rows, in float32
    del blocks
