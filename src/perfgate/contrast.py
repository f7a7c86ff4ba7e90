"""Blocks of base against head to one log-ratio a block and case, with what all cases have in common taken off.

    d = mean log median (head's visits) - mean log median (base's visits) - shift
    shift = median of the same over the block's controls, whose kernels are the same on both sides; of a control itself
            over the others, so that it cannot hide in the shift

Processes are the unit of replication and a block has one of each side, so a block gives one d of a case, however often
it was visited. What a case's d scatter by is shared between the cases (Smyth 2004) in units of the case's floor.

Knows nothing of rules and verdicts.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from perfgate import stats
from perfgate.clock import Samples

__all__ = ["Block", "Contrast", "Contrasts", "Estimate", "Shift", "Side", "Visit"]

Side = Literal["base", "head"]

ASSUMED = 2.0
"""Sd of a block's difference in floors where too few cases were seen to know it."""

AGREEMENT = 0.98
"""Confidence with which controls are more apart than a limit, two-sided: of few that scatter, many are by chance."""

FEWEST = 8
"""Cases from whose single differences a spread is learnt; a quantile of 90 % of fewer is their largest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One side timed one case once.

    Attributes:
        side: Which revision.
        samples: What it gave.
    """

    side: Side
    samples: Samples


@dataclass(frozen=True, slots=True)
class Difference:
    """One case in one block, in logarithms.

    Attributes:
        base: Base's median.
        time: Head's above it.
        clock: Head's SM clock above base's; None where a visit had none.
    """

    base: float
    time: float
    clock: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What one pair of fresh processes gave.

    Attributes:
        stage: 1 screens all cases, 2 confirms those that were suspicious.
        visits: In order of time, by the case's name.
        differences: What they say of the cases that both sides were visited in; a run asks for it after each block.
    """

    stage: int
    visits: Mapping[str, tuple[Visit, ...]]
    differences: Mapping[str, Difference] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        found = {name: d for name, visits in self.visits.items() if (d := _difference(visits))}
        object.__setattr__(self, "differences", found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """What was common to a block's controls, and was taken off all of its cases.

    Attributes:
        stage: The block's stage.
        controls: How many controls it had.
        ratio: Median of head/base over them.
        disagreement: Median of how far they are from it (Hampel 1974), relative; of one whose floor is larger than
            that of a long case, as much less.
        least: What that median surely is, whatever of it is chance; zero if they are too few to say.
    """

    stage: int
    controls: int
    ratio: float
    disagreement: float
    least: float


@dataclass(slots=True, kw_only=True)
class Contrast:
    """A case, block by block, in logarithms.

    Attributes:
        name: The case.
        band: Its floor, relative.
        time: Head over base, without the shift.
        cycles: The same in SM cycles; empty where a visit or the controls had no clock.
        clock: Head's SM clock over base's.
    """

    name: str
    band: float
    time: list[float] = field(default_factory=list)
    cycles: list[float] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is known of a case.

    Attributes:
        d: Mean log-ratio of its blocks.
        error: Standard error, moderated.
        df: Degrees of freedom of the error.
    """

    d: float
    error: float
    df: float

    @property
    def t(self) -> float:
        """Student's t of no change."""
        if self.error == 0:
            return math.copysign(math.inf, self.d) if self.d else 0.0
        return self.d / self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrasts:
    """All blocks of a stage.

    Attributes:
        seen: The cases that a block saw on both sides.
        shifts: What was common to all cases, block by block.
        least: What the controls of all blocks surely disagree by (see `Shift.least`).
        prior: What all cases say of the variance of one block's d, in squared floors.
        chosen: Whether the blocks but the first visited cases for what that had shown of them.
    """

    seen: Mapping[str, Contrast]
    shifts: tuple[Shift, ...]
    least: float
    prior: stats.Prior
    chosen: bool

    @classmethod
    def of(
        cls,
        blocks: Sequence[Block],
        controls: Collection[str],
        band: Callable[[float], float],
        *,
        suspicious: Collection[str] | None = None,
    ) -> Contrasts:
        """Take the blocks' differences and what is common off them.

        Args:
            blocks: Of one stage.
            controls: Names of the cases whose kernels are the same on both sides.
            band: The floor of a case by its seconds.
            suspicious: If the blocks but the first visited cases for what that had shown of them: those that it showed
                to be slower or faster, which are no controls there if there are others. What cases scatter by is then
                learnt from the first block.
        """
        raw = [block.differences for block in blocks]
        seen: dict[str, Contrast] = {}
        for name in dict.fromkeys(name for block in raw for name in block):
            base = [block[name].base for block in raw if name in block]
            seen[name] = Contrast(name=name, band=band(math.exp(_mean(base))))
        shifts: list[Shift] = []
        apart: list[float] = []
        for i, (block, differences) in enumerate(zip(blocks, raw, strict=True)):
            known = {name: found for name, found in differences.items() if name in controls}
            if i and suspicious is not None:
                others = {name: found for name, found in known.items() if name not in suspicious}
                known = others if len(others) > 1 else known
            common = stats.quantile([found.time for found in known.values()], 0.5) if known else 0.0
            away = [abs(f.time - common) * band(math.inf) / seen[name].band for name, f in known.items()]
            apart += away
            shifts.append(
                Shift(
                    stage=block.stage,
                    controls=len(known),
                    ratio=math.exp(common),
                    disagreement=stats.quantile(away, 0.5) if away else 0.0,
                    least=_least(away),
                )
            )
            in_time = {name: found.time for name, found in known.items()}
            in_cycles = {name: found.time + found.clock for name, found in known.items() if found.clock is not None}
            common_cycles = stats.quantile([*in_cycles.values()], 0.5) if in_cycles else 0.0
            without, without_cycles = _others(in_time), _others(in_cycles)
            for name, found in differences.items():
                case = seen[name]
                case.time.append(found.time - without.get(name, common))
                if found.clock is not None and in_cycles:
                    case.clock.append(found.clock)
                    case.cycles.append(found.time + found.clock - without_cycles.get(name, common_cycles))
        chosen = suspicious is not None
        prior = _shared(seen.values(), controls, first=chosen)
        return cls(seen=seen, shifts=tuple(shifts), least=_least(apart), prior=prior, chosen=chosen)

    def estimate(self, name: str) -> Estimate:
        """A case's mean log-ratio, its variance drawn towards the others'."""
        case = self.seen[name]
        n = len(case.time)
        if n == 1 and self.prior.df == 0:
            return self.alone(name)
        own = stats.variance(case.time) / case.band**2 if n > 1 else 0.0
        shared, df = stats.moderate(own, n - 1.0, self.prior)
        return Estimate(_mean(case.time), case.band * math.sqrt(shared / n), df)

    def alone(self, name: str) -> Estimate:
        """The same with the variance of its own blocks alone; of one block nothing is known."""
        case = self.seen[name]
        n = len(case.time)
        if n == 1:
            return Estimate(case.time[0], math.inf, 1.0)
        return Estimate(_mean(case.time), math.sqrt(stats.variance(case.time) / n), n - 1.0)


def _difference(visits: Sequence[Visit]) -> Difference | None:
    """None unless both sides were visited; no clock unless all visits have one."""
    sides = [[v.samples for v in visits if v.side == side] for side in ("base", "head")]
    if not all(sides):
        return None
    base, head = (_mean([math.log(samples.median) for samples in side]) for side in sides)
    if any(samples.counters.get("sm_hz", 0.0) <= 0 for side in sides for samples in side):
        return Difference(base, head - base, None)
    base_clock, head_clock = (_mean([math.log(samples.counters["sm_hz"]) for samples in side]) for side in sides)
    return Difference(base, head - base, head_clock - base_clock)


def _others(controls: Mapping[str, float]) -> dict[str, float]:
    """For each of the controls the others' median, or its own if it is the only one."""
    if len(controls) < 2:
        return dict(controls)
    ordered = sorted(controls.values())
    middle, odd = divmod(len(ordered) - 1, 2)

    def left(rank: int, i: int) -> float:
        """Which one has place i when that of this rank is gone."""
        return ordered[i] if i < rank else ordered[i + 1]

    found = {}
    for name, d in controls.items():
        rank = bisect.bisect_left(ordered, d)
        low = left(rank, middle if odd else middle - 1)
        found[name] = low + (left(rank, middle) - low) / 2
    return found


def _least(away: Sequence[float]) -> float:
    return max(0.0, stats.median_low(away, AGREEMENT))


def _shared(seen: Collection[Contrast], controls: Collection[str], *, first: bool) -> stats.Prior:
    """The variance of a block's difference, in squared floors, as all cases together show it, or do in the first."""
    several = [case for case in seen if len(case.time) > 1 and not first]
    if any(len(case.time) > 2 for case in several):
        variances = [stats.variance(case.time) / case.band**2 for case in several]
        return stats.fit_prior(variances, [len(case.time) - 1.0 for case in several])
    # fit_prior's logarithms are too uneven at one degree of freedom
    draws = [(case.time[0] - case.time[1]) / math.sqrt(2) / case.band for case in several]
    if not draws:
        same = [case for case in seen if case.name in controls]
        draws = [case.time[0] / case.band for case in (same if len(same) >= 5 * FEWEST else seen)]
    return stats.fit_spread(draws) if len(draws) >= FEWEST else stats.Prior(ASSUMED**2, math.inf)


def _mean(xs: Sequence[float]) -> float:
    return math.fsum(xs) / len(xs)
