"""What a share of the long fuzz computes: problems from the strategy of the laws, drawn once, and who tries them.

A kernel is compiled for a dtype and a head dim, so a process has few pairs of them; all else is as the laws have it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from attnkit import testing
from attnkit.problem import TRAINED, Dtype, Pass, Problem
from attnkit.variants import TABLE

__all__ = ["COMPILED", "KERNELS", "Share", "Trial", "drawn", "trials"]

COMPILED = ("flex", "naive_compiled", "flash_attn_4", "flashinfer")
"""Variants that take seconds for each new problem: they get one in COMPILED_EVERY."""
COMPILED_EVERY = 40
KERNELS = (*COMPILED, *(way.name for way in TABLE if way.name.startswith("triton_")))
"""Variants whose kernels are compiled when they are first called for."""
PASSES: tuple[Pass, ...] = ("fwd+bwd", "fwd")
SEEDS = 2**16
CELLS = 16
"""Pairs of a trained dtype and a head dim that all shares have together, at least."""
FP8_EVERY = 4
"""A share has a problem in fp8, which few variants take and forward alone, for so many others of a pair."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one process is to do.

    Attributes:
        seed: Of the whole run.
        index: Which of the processes.
        processes: How many there are.
        problems: How many are to be computed, each by one variant in one pass.
        longest: Bound of sq and skv.
        head_dims: Those that the run draws from.
        variants: Names; all unless some were chosen.
    """

    seed: int
    index: int
    processes: int
    problems: int
    longest: int
    head_dims: tuple[int, ...]
    variants: tuple[str, ...]

    @property
    def cells(self) -> list[tuple[Dtype, int]]:
        """The pairs of a trained dtype and a head dim of this process; another seed begins elsewhere."""
        each = -(-CELLS // self.processes)
        first = self.seed * CELLS + self.index * each
        # neighbours differ in both, and as 3 and 10 have no common factor all 30 come before one comes again
        return [
            (TRAINED[n % len(TRAINED)], self.head_dims[n % len(self.head_dims)]) for n in range(first, first + each)
        ]


@dataclass(frozen=True, slots=True)
class Trial:
    """One pass of one problem by one variant."""

    variant: str
    pass_: Pass
    problem: Problem
    seed: int


def drawn(seed: str, count: int, **bounds: Any) -> list[tuple[Problem, int]]:
    """Return different problems, each with the seed of its inputs: the same for the same arguments.

    Args:
        seed: Another one gives other problems.
        count: How many; fewer where the bounds leave fewer.
        bounds: Of `attnkit.testing.problems`.
    """
    found: dict[Problem, int] = {}
    for again in range(8):  # hypothesis likes to draw a problem that it knows once more

        @hypothesis.seed(f"{seed} {again}")
        @settings(
            max_examples=count,
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(problem=testing.problems(**bounds), inputs=st.integers(0, SEEDS - 1))
        def keep(problem: Problem, inputs: int) -> None:
            found.setdefault(problem, inputs)

        keep()
        if len(found) >= count:
            break
    problems = list(found.items())
    random.Random(seed).shuffle(problems)  # the first that hypothesis draws are the smallest
    return problems[:count]


def trials(share: Share, device: torch.device) -> Iterator[Trial]:
    """Yield what a process tries, in order: each problem by all variants that take it, which share its truth.

    The order is the same each time, so a process that died is followed by one that goes on behind.
    """
    # a problem is tried about ten times, and by some variants hardly ever
    each = -(-share.problems // (3 * len(share.cells)))
    fp8: tuple[Dtype, int] = ("fp8", share.cells[0][1])
    ways = [way for way in TABLE if way.name in share.variants and way.absent() is None]
    counts = [*((cell, each) for cell in share.cells), (fp8, -(-each // FP8_EVERY))]
    *trained, in_fp8 = (
        drawn(f"{share.seed} {share.index} {n}", count, dtypes=(dtype,), head_dims=(d,), longest=share.longest)
        for n, ((dtype, d), count) in enumerate(counts)
    )
    # spread over the others, so that of a run that is cut short it has no larger share
    spread = itertools.chain.from_iterable((found, *[None] * (FP8_EVERY - 1)) for found in in_fp8)
    rows = itertools.zip_longest(*trained, spread)
    for number, found in enumerate(problem for row in rows for problem in row if problem is not None):
        problem, seed = found
        for pass_ in PASSES:
            for way in ways:
                seldom = way.name in COMPILED and number % COMPILED_EVERY != share.index % COMPILED_EVERY
                if not seldom and way.rejects(problem, device, pass_) is None:
                    yield Trial(way.name, pass_, problem, seed)
