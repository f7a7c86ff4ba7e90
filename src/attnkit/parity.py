"""Does a variant agree with the oracle? The rule, and how it is put to a problem of any size.

A tolerance is the error that the same inputs give the textbook computation in the same dtype (`variants.naive`), and
what rounding alone may cost:

    max  |x - truth|  <=  2 (gradients: 3) · max  |naive - truth|  +  max  u  +  w · max  |x0 - truth|  +  2 · max r
    mean |x - truth|  <=               1.5 · mean |naive - truth|  +  mean u  +  (1 + w) · mean |x0 - truth|

    r   |((x0 + 0.3) - 0.3) - x0|, a round trip in the dtype (after the tests of FlashAttention-3, Shah et al., 2024)
    u   `oracle.uncertainty`, what sums in float32 leave open
    x0  the truth rounded to the dtype
    w   √(g - 1) for dk and dv of g query heads, else 0: the heads' parts may be rounded each before they are summed

r and u carry the rule where the naive computation happens to be exact. With one key dP - rowsum(P ∘ dP) is a number
less itself, 0 to the last bit, where FlashAttention subtracts two sums of the same numbers. And a score of size 50 in
float32 is known to 6e-6, which is the relative error of an exp of it; a softmax has it in numerator and denominator,
while a backward that makes P again, of other sums than the log-sum-exp is of, has it twice. In 16 bits u is small
beside the rest. A library that makes a product in float32 of three in TF32 knows less of it: `Variant.blur` times u
counts.

FlashAttention's backward also inherits the rounding of out, and with few keys that may be worse than anything the naive
computation does: for dq, dk and dsink the larger of naive's and the oracle's `inherited` counts, in the maximum and in
the mean.

In fp8 nearly all of the error of out is that of P, rounded to e4m3, and a kernel that had a smaller maximum when it met
a key rounded another number than naive. Over many rows their errors are alike, but in a few naive may be lucky: for out
the larger of naive's and √(P² V²) · eps / 2 · 1 / √rows counts (`oracle.of_rounded_weights`). r is that of bfloat16,
the dtype of out.

The mean catches a corrupt tile that the maximum over everything would forgive. It has no round trip: r is the rounding
of 0.3, which in bf16 may be 0.001, and over thousands of keys most of dk and dv is smaller than that. What carries the
mean is the rounding of the truth, once. What is not finite where the truth is fails.

Heads and batches do not depend on each other, so of a large problem the last head group of the last batch and one
other are compared, and that is exact. The variant itself always computes the whole problem, and all of it must be
finite where what was compared is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from attnkit import oracle
from attnkit.problem import FP8, Inputs, Options, Pass, Problem
from attnkit.variant import Attention, Variant
from attnkit.variants import naive

__all__ = ["Comparison", "Parity", "compare", "examine", "parity"]

WHOLE = 2**22
"""Scores of one head group that are still compared in every batch and head."""
MAX_FACTOR = {"out": 2.0, "dq": 3.0, "dk": 3.0, "dv": 3.0, "dsink": 3.0}
MEAN_FACTOR = 1.5
SUMMED_OVER_A_GROUP = ("dk", "dv")
SUMMED_OVER_BATCHES = ("dsink",)
"""No batch has it for itself: of a large problem it is not compared, but must be finite."""
ROUND_TRIPS = 2.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """One tensor held against the truth.

    Attributes:
        name: ``out``, ``dq``, ``dk``, ``dv`` or ``dsink``.
        max_error: Largest absolute error.
        mean_error: Mean absolute error.
        naive_max_error: The naive computation's largest error, or the inherited one where that is larger.
        naive_mean_error: The same in the mean.
        failures: A sentence for each part of the rule that is broken.
        open_error: Largest error that rounding the truth once makes, or that sums in float32 leave open to the variant.
    """

    name: str
    max_error: float
    mean_error: float
    naive_max_error: float
    naive_mean_error: float
    failures: tuple[str, ...]
    open_error: float = 0.0

    @property
    def ratio(self) -> float:
        """The largest error over naive's, or over what is open anyway where naive happens to be better than that."""
        yardstick = max(self.naive_max_error, self.open_error)
        return self.max_error / yardstick if yardstick else math.inf if self.max_error else 0.0


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

    @property
    def errors(self) -> dict[str, float]:
        """Mean absolute error of each tensor, over all the heads that were compared; they are of one size."""
        means: dict[str, list[float]] = {}
        for comparison in self.comparisons:
            means.setdefault(comparison.name, []).append(comparison.mean_error)
        return {name: math.fsum(found) / len(found) for name, found in means.items()}


def compare(
    name: str,
    got: torch.Tensor,
    truth: torch.Tensor,
    yardstick: torch.Tensor,
    uncertainty: torch.Tensor,
    heads: int = 1,
    inherited: torch.Tensor | None = None,
) -> Comparison:
    """Hold one tensor against the truth by the rule above.

    Args:
        name: ``out``, ``dq``, ``dk``, ``dv`` or ``dsink``; gradients are allowed a larger maximum.
        got: What the variant computed.
        truth: The oracle's, in float64, of the same shape.
        yardstick: What the naive computation made of the same inputs, in the dtype that `got` must have.
        uncertainty: What float32 leaves open of the truth (`oracle.uncertainty`).
        heads: Of how many heads' parts this is the sum.
        inherited: The error that a backward inherits from a rounded out (`oracle.inherited`), or an out from weights
            in fp8, where there is one.
    """
    if got.shape != truth.shape:
        sentence = f"{name} has shape {list(got.shape)}, expected {list(truth.shape)}"
        return Comparison(name, math.inf, math.inf, 0.0, 0.0, (sentence,))
    if got.dtype != yardstick.dtype:
        sentence = f"{name} is {got.dtype}, expected {yardstick.dtype}"
        return Comparison(name, math.inf, math.inf, 0.0, 0.0, (sentence,))
    rounded = truth.to(got.dtype)
    inside = rounded.isfinite()  # elsewhere the truth is too large for the dtype
    lost = int((inside & ~got.isfinite()).sum())

    def distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x.double() - y.double()).abs().where(inside, 0.0)

    error, naive_error = distance(got, truth), distance(yardstick, truth)
    naive_error = naive_error[naive_error.isfinite()]  # where the naive computation overflows it is no yardstick
    trip, rounding = distance((rounded + 0.3) - 0.3, rounded), distance(rounded, truth)
    largest, mean = (float(x) for x in (error.max(), error.mean()))
    errors = [naive_error, *([] if inherited is None else [inherited.where(inside, 0.0)])]
    naive_largest = max(float(e.max()) if e.numel() else 0.0 for e in errors)
    naive_mean = max(float(e.mean()) if e.numel() else 0.0 for e in errors)
    parts = math.sqrt(heads - 1)
    may_be = float(ROUND_TRIPS * trip.max() + uncertainty.max() + parts * rounding.max())
    may_be_in_the_mean = float(uncertainty.mean() + (1 + parts) * rounding.mean())
    failures = []
    if lost:
        failures.append(f"{name} is not finite in {lost} of {truth.numel()} places where the truth is")
    else:
        allowed = MAX_FACTOR[name] * naive_largest + may_be
        if not largest <= allowed:
            failures.append(f"{name} is off by {largest:.3g}, allowed {allowed:.3g} (naive {naive_largest:.3g})")
        allowed = MEAN_FACTOR * naive_mean + may_be_in_the_mean
        if not mean <= allowed:
            failures.append(f"{name} is off by {mean:.3g} in the mean, allowed {allowed:.3g} (naive {naive_mean:.3g})")
    open_error = max(float(rounding.max()), float(uncertainty.max()))
    return Comparison(name, largest, mean, naive_largest, naive_mean, tuple(failures), open_error)


def parity(
    variant: Variant, problem: Problem, device: torch.device | str, pass_: Pass, seed: int = 0, *, poison: bool = True
) -> Parity:
    """Compute a problem by a variant and hold the result against the oracle: out, and but for ``fwd`` gradients.

    Args:
        variant: What is on trial; it must not reject the problem.
        problem: The problem; its inputs are drawn with `seed`.
        device: Where everything is computed, the oracle too.
        pass_: ``fwd`` compares out alone, the others the gradients as well.
        seed: Of the inputs, and of which head groups of a large problem are compared.
        poison: Let memory that the variant gets for its results be full of NaN.
    """
    device = torch.device(device)
    inputs = problem.inputs(device, seed=seed, requires_grad=pass_ != "fwd")
    options = problem.options(device, seed=seed, requires_grad=pass_ != "fwd")
    with _poisoned(inputs) if poison else contextlib.nullcontext():
        got = _compute(variant.attention, inputs, options, pass_)
    # what is expected of a cache is attention of the same sequences, packed
    shape, asked = inputs.dout.shape, problem
    problem, _ = problem.packed(inputs)
    if asked.cache is not None and got["out"].shape == shape:
        got["out"] = got["out"].flatten(0, 1)[None]
    del inputs
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what is kept below must not pin the blocks that the next case will want whole
    blur = variant.blur if problem.dtype == "fp32" else 1.0
    whole = problem.b * problem.hkv == 1 or problem.b * problem.hq * problem.sq * problem.skv <= WHOLE
    if whole:
        return Parity(_comparisons(got, _expected(asked, None, device, pass_, seed), blur))
    corners = {(problem.b - 1, problem.hkv - 1)}
    choice = random.Random(f"{seed} {problem.name}")
    corners.add((choice.randrange(problem.b), choice.randrange(problem.hkv)))
    group = problem.group
    comparisons: list[Comparison] = []
    for batch, head in sorted(corners):
        queries, keys = slice(head * group, (head + 1) * group), slice(head, head + 1)
        got_part = {
            name: x[batch : batch + 1, :, queries if name in ("out", "dq") else keys]
            for name, x in got.items()
            if name not in SUMMED_OVER_BATCHES
        }
        comparisons += _comparisons(got_part, _expected(asked, (batch, head), device, pass_, seed), blur)
    found = {c.name: c for c in comparisons}
    for name, x in got.items():
        # of a tile that nobody wrote the poison is left, wherever it is
        kept = found.get(name) or Comparison(name, 0.0, 0.0, 0.0, 0.0, ())
        lost = int((~x.isfinite()).sum()) if math.isfinite(kept.max_error) else 0
        if lost:
            sentence = f"{name} is not finite in {lost} of {x.numel()} places, in heads that were not compared"
            comparisons.append(dataclasses.replace(kept, failures=(sentence,)))
    return Parity(tuple(comparisons))


def examine(attention: Attention, inputs: Inputs, options: Options, pass_: Pass, blur: float = 1.0) -> Parity:
    """Compute attention of given inputs, which lie in memory as they like, and hold all of the result to the oracle.

    Args:
        attention: What is on trial.
        inputs: Small ones. They are not written to.
        options: What attention is called with beside them; a sink is trained unless the pass is ``fwd``.
        pass_: As for `parity`.
        blur: That of the variant (`Variant.blur`).
    """
    trained, blur = pass_ != "fwd", blur if inputs.q.dtype == torch.float32 else 1.0
    q, k, v = (x.detach().requires_grad_(trained) for x in inputs[:3])
    if "sink" in options:
        options = options.copy()
        options["sink"] = options["sink"].detach().requires_grad_(trained)
    with _poisoned(inputs):
        got = _compute(attention, Inputs(q, k, v, inputs.dout), options, pass_)
    return Parity(_comparisons(got, _true(Inputs(*(x.detach().clone() for x in inputs)), options, pass_), blur))


@dataclass(frozen=True, slots=True)
class _Expected:
    """What a result is held against, by name: see `compare`."""

    truth: dict[str, torch.Tensor]
    yardstick: dict[str, torch.Tensor]
    uncertainty: dict[str, torch.Tensor]
    inherited: dict[str, torch.Tensor]
    heads: dict[str, int]


@functools.lru_cache(maxsize=8)
def _expected(
    problem: Problem, part: tuple[int, int] | None, device: torch.device, pass_: Pass, seed: int
) -> _Expected:
    """Of a problem, or of one batch and key head of it; kept, since variants are tried on one problem in turn."""
    problem, inputs = problem.packed(problem.inputs(device, seed=seed))
    options = problem.options(device, seed, pass_ != "fwd", None if part is None else part[1])
    if part is not None:
        inputs = Inputs(*(x.clone() for x in inputs.slice(*part)))
    return _true(inputs, options, pass_, sink=part is None)


def _true(inputs: Inputs, options: Options, pass_: Pass, sink: bool = True) -> _Expected:
    """What these inputs give; of one head group of many, sinks have no gradient that could be compared."""
    q, k, v, dout = inputs
    truth = {"out": oracle.forward(q, k, v, **options)[0]}
    unknown = oracle.uncertainty(q, k, v, dout, **options)._asdict()
    inherited = {}
    if q.dtype == FP8:
        inherited["out"] = _by_chance(oracle.of_rounded_weights(q, k, v, q.dtype, **options))
    if pass_ != "fwd":
        truth |= oracle.gradients(q, k, v, dout, **options)._asdict()
        errors = oracle.inherited(q, k, v, dout, **options)
        inherited = dict(zip(("dq", "dk"), errors, strict=True))
        if sink and "sink" in options:
            truth["dsink"], unknown["dsink"] = oracle.sink_gradient(q, k, v, dout, **options)
            inherited["dsink"] = oracle.inherited_by_sink(q, k, v, dout, **options)
        q, k, v = (x.requires_grad_() for x in (q, k, v))
    yardstick = _compute(naive.VARIANT.attention, Inputs(q, k, v, dout), options, pass_)
    group = q.shape[2] // k.shape[2]
    heads = {name: group if name in SUMMED_OVER_A_GROUP else 1 for name in truth}
    return _Expected(truth, yardstick, unknown, inherited, heads)


def _by_chance(errors: torch.Tensor) -> torch.Tensor:
    """What is left of errors [.., d] where they are chance, over √ of how many rows have them, by their weight."""
    rows = errors.sum(-1).clamp(min=torch.finfo(errors.dtype).tiny ** 0.5)
    return errors * rows.square().sum().sqrt() / rows.sum()


def _comparisons(got: dict[str, torch.Tensor], expected: _Expected, blur: float = 1.0) -> tuple[Comparison, ...]:
    return tuple(
        compare(
            name,
            got[name],
            expected.truth[name],
            expected.yardstick[name],
            blur * expected.uncertainty[name],
            expected.heads[name],
            expected.inherited.get(name),
        )
        for name in expected.truth
    )


def _compute(attention: Attention, inputs: Inputs, options: Options, pass_: Pass) -> dict[str, torch.Tensor]:
    out = attention(inputs.q, inputs.k, inputs.v, **options)
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"attention must return a tensor, out [b, sq, hq, dv], got {type(out).__name__}")
    found = {"out": out.detach()}
    if pass_ != "fwd":
        leaves = {"dq": inputs.q, "dk": inputs.k, "dv": inputs.v}
        if "sink" in options:
            leaves["dsink"] = options["sink"]
        gradients = torch.autograd.grad(out, tuple(leaves.values()), inputs.dout)
        found |= dict(zip(leaves, gradients, strict=True))
    return found


@contextlib.contextmanager
def _poisoned(inputs: Inputs) -> Iterator[None]:
    """Let memory that is handed out inside be full of NaN.

    On a CUDA device torch's allocator hands out what was freed before. On the CPU torch fills what it allocates while
    it is told to be deterministic; on a GPU that would choose other kernels than those on trial.
    """
    if inputs.q.is_cuda:
        blocks = [torch.full_like(x, math.nan, memory_format=torch.contiguous_format) for x in inputs for _ in range(2)]
        blocks += [torch.full(x.shape[:3], math.nan, device=x.device) for x in inputs]  # statistics of rows, in float32
        del blocks
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
