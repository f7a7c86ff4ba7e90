"""Base against head on one GPU: what was seen of two revisions that were visited in turn, and what it says.

block  = fresh processes of both sides; every case visited, A B B A or B A A B
visit  = one side times one case once
stage  = 1 screens all cases in few blocks; 2 confirms those that were suspicious in many fresh blocks

A block gives one log-ratio of a case: processes are the unit of replication, visits of one process are not.

    d = mean log median (head's visits) - mean log median (base's visits) - shift
    shift = median of the same over the controls, whose kernels are the same on both sides

What a case's d scatter by is shared between the cases (Smyth 2004) in units of the case's floor. Only stage 2 can call
a case slower: its data are independent of what stage 1 picked, so that Holm's adjustment over the picked cases holds.

    regressed    stage 2 rejects d <= 0 at alpha, adjusted over all cases of the stage, and exp(d) - 1 >= floor
    improved     the same, mirrored
    unchanged    neither, and the upper end of the interval is below the floor (non-inferior: Schuirmann 1987)
    unresolved   all else, and all of it if the machine was not fit

Knows nothing of files, devices or exit codes. docs/deciding.md has the rates that were simulated, and their tests.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from perfgate import stats
from perfgate.clock import Samples
from perfgate.verdict import State, Verdict

__all__ = ["Block", "ContestRule", "Findings", "Shift", "Side", "Visit", "judge", "suspects"]

Side = Literal["base", "head"]

ASSUMED = 2.0
"""Sd of a block's difference in floors where too few cases were seen to know it."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What one pair of fresh processes gave.

    Attributes:
        stage: 1 screens all cases, 2 confirms those that were suspicious.
        visits: In order of time, by the case's name.
    """

    stage: int
    visits: Mapping[str, tuple[Visit, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContestRule:
    """How much slower matters, how sure one must be, and how long one looks.

    Attributes:
        floor: Relative change that matters.
        floor_seconds: Absolute change that matters, in seconds.
        alpha: Probability that a run calls anything slower although nothing is; likewise, apart, for faster.
        confidence: Of the intervals, two-sided.
        screen_p: One-sided p-value below which stage 1 finds a case suspicious.
        screen_effect: Relative change below which it does not. From its floor on, a case is suspicious whatever its p.
        screen_blocks: Blocks of stage 1.
        confirm_blocks: Blocks of stage 2.
        most_suspects: Cases that stage 2 has time for.
        shift_limit: Common shift of a block, or disagreement of its controls, beyond which the machine is not fit.
        disagreement_limit: The same for the controls' disagreement over all blocks of a stage.
        clock_limit: Relative difference between the sides' SM clocks from which a change is asked for in cycles too.

    Raises:
        ValueError: For a number that would switch the gate off.
    """

    floor: float = 0.01
    floor_seconds: float = 0.2e-6
    alpha: float = 0.01
    confidence: float = 0.95
    screen_p: float = 0.10
    screen_effect: float = 0.004
    screen_blocks: int = 2
    confirm_blocks: int = 8
    most_suspects: int = 24
    shift_limit: float = 0.01
    disagreement_limit: float = 0.005
    clock_limit: float = 0.005

    def __post_init__(self) -> None:
        for name in ("floor", "floor_seconds", "screen_effect", "shift_limit", "disagreement_limit", "clock_limit"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and not negative, got {value!r}")
        if self.floor == 0:
            raise ValueError("floor must be positive, got 0: noise is counted in floors")
        if self.screen_effect > self.floor:
            raise ValueError(f"screen_effect must not exceed the floor of {self.floor!r}, got {self.screen_effect!r}")
        for name in ("alpha", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)!r}")
        if not 0 < self.screen_p <= 0.5:
            raise ValueError(f"screen_p must lie between 0 and 0.5, got {self.screen_p!r}")
        for name, least in (("screen_blocks", 1), ("confirm_blocks", 2), ("most_suspects", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)!r}")

    def band(self, seconds: float) -> float:
        """The floor of a case that takes this long."""
        return max(self.floor, self.floor_seconds / seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """What was common to a block's controls, and was taken off all of its cases.

    Attributes:
        stage: The block's stage.
        controls: How many controls it had.
        ratio: Median of head/base over them.
        disagreement: Median absolute deviation of them, relative; for one whose floor is larger, as much smaller.
    """

    stage: int
    controls: int
    ratio: float
    disagreement: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What is said of two revisions.

    Attributes:
        verdicts: One a case, by name.
        suspects: The cases that stage 1 picked, the most suspicious first.
        shifts: One a block, in order.
        unfit: Why the machine was not fit to judge anything, or None.
    """

    verdicts: tuple[Verdict, ...]
    suspects: tuple[str, ...]
    shifts: tuple[Shift, ...]
    unfit: str | None


def suspects(blocks: Iterable[Block], rule: ContestRule, controls: Collection[str]) -> list[str]:
    """The cases that stage 1 picks for stage 2, slower or faster, the most suspicious first.

    A case is picked by its moderated t and the size of its change; a change of the case's floor is always enough, so
    that no lack of blocks can make this screen one that never fires. Of two blocks each case's variance is
    learnt from the blocks' difference, in which a change cancels; of one block from the differences of the controls,
    or of all cases where they are few, by quantiles that some changed cases do not move.

    Args:
        blocks: Those of stage 1 count.
        rule: The rule.
        controls: Names of the cases whose kernels are the same on both sides.
    """
    return _picked(_Stage.of([b for b in blocks if b.stage == 1], rule, controls), rule)[: rule.most_suspects]


def judge(blocks: Sequence[Block], rule: ContestRule, controls: Collection[str]) -> Findings:
    """Judge every case by the rule drawn above.

    Without any block of stage 1, all cases of stage 2 are judged together. Blocks that a run did not come to are only
    missed in width: what there is of stage 2 counts from two blocks on.

    Args:
        blocks: All blocks.
        rule: The rule.
        controls: Names of the cases whose kernels are the same on both sides. They are judged like all others.
    """
    screen = _Stage.of([b for b in blocks if b.stage == 1], rule, controls)
    confirm = _Stage.of([b for b in blocks if b.stage == 2], rule, controls)
    picked = _picked(screen, rule)
    chosen = picked[: rule.most_suspects] if screen.shifts else list(confirm.seen)
    family = [name for name in chosen if name in confirm.seen and len(confirm.seen[name].time) > 1]
    estimates = [confirm.estimate(name) for name in family]
    slower = stats.holm([stats.t_cdf(-e.t, e.df) for e in estimates])
    faster = stats.holm([stats.t_cdf(e.t, e.df) for e in estimates])
    unfit = screen.unfit(rule) or confirm.unfit(rule)
    verdicts = {}
    for name, estimate, up, down in zip(family, estimates, slower, faster, strict=True):
        verdicts[name] = _confirmed(confirm.seen[name], estimate, min(up, down), len(family), rule)
    for name, seen in screen.seen.items():
        if name not in verdicts:
            verdicts[name] = _screened(seen, screen.estimate(name), name in picked, rule)
    if unfit:
        reason = f"the machine was not fit: {unfit}"
        verdicts = {name: _as(State.UNRESOLVED, v, f"{v.reason}; {reason}") for name, v in verdicts.items()}
    for name, sides in _sides(blocks).items():
        if len(sides) == 1:
            state, there, gone = (State.NEW, "head", "base") if "head" in sides else (State.MISSING, "base", "head")
            verdicts[name] = Verdict(case=name, state=state, reason=f"is in {there} and not in {gone}")
        elif name not in verdicts:
            reason = "no block timed both sides"
            verdicts[name] = Verdict(case=name, state=State.UNRESOLVED, reason=reason)
    return Findings(
        verdicts=tuple(verdicts[name] for name in sorted(verdicts)),
        suspects=tuple(picked[: rule.most_suspects]),
        shifts=(*screen.shifts, *confirm.shifts),
        unfit=unfit,
    )


@dataclass(slots=True, kw_only=True)
class _Seen:
    """A case, block by block, in logarithms.

    Attributes:
        name: The case.
        base: Log medians of base.
        time: Head over base, without the shift.
        cycles: The same in SM cycles; empty where a visit or the controls had no clock.
        clock: Head's SM clock over base's.
        band: The case's floor.
    """

    name: str
    base: list[float] = field(default_factory=list)
    time: list[float] = field(default_factory=list)
    cycles: list[float] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)
    band: float = 0.0


@dataclass(frozen=True, slots=True)
class _Estimate:
    """A mean log-ratio, its standard error and its degrees of freedom."""

    d: float
    error: float
    df: float

    @property
    def t(self) -> float:
        return self.d / self.error if self.error else math.copysign(math.inf, self.d) if self.d else 0.0

    def margin(self, confidence: float) -> float:
        return stats.t_quantile((1 + confidence) / 2, self.df) * self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """All blocks of a stage: the cases, what was common to them, and what they scatter by in units of their floors."""

    seen: Mapping[str, _Seen]
    shifts: tuple[Shift, ...]
    apart: float
    prior: stats.Prior

    @classmethod
    def of(cls, blocks: Sequence[Block], rule: ContestRule, controls: Collection[str]) -> _Stage:
        raw = [{name: found for name, visits in b.visits.items() if (found := _difference(visits))} for b in blocks]
        seen: dict[str, _Seen] = {}
        for name in dict.fromkeys(name for block in raw for name in block):
            case = seen[name] = _Seen(name=name)
            case.base = [block[name][0] for block in raw if name in block]
            case.band = rule.band(math.exp(_mean(case.base)))
        shifts, apart = [], []
        for block, differences in zip(blocks, raw, strict=True):
            known = [name for name in differences if name in controls]
            common = stats.quantile([differences[name][1] for name in known], 0.5) if known else 0.0
            clocks = [differences[name][2] for name in known]
            cycles = [
                differences[name][1] + clock for name, clock in zip(known, clocks, strict=True) if clock is not None
            ]
            common_cycles = stats.quantile(cycles, 0.5) if cycles else None
            scaled = [(differences[name][1] - common) * rule.floor / seen[name].band for name in known]
            apart += scaled
            shifts.append(
                Shift(
                    stage=block.stage,
                    controls=len(known),
                    ratio=math.exp(common),
                    disagreement=stats.mad(scaled) if scaled else 0.0,
                )
            )
            for name, (_, d, clock) in differences.items():
                seen[name].time.append(d - common)
                if clock is not None and common_cycles is not None:
                    seen[name].clock.append(clock)
                    seen[name].cycles.append(d + clock - common_cycles)
        prior = _shared(seen.values(), controls)
        return cls(seen=seen, shifts=tuple(shifts), apart=stats.mad(apart) if apart else 0.0, prior=prior)

    def estimate(self, name: str) -> _Estimate:
        """A case's mean log-ratio with its moderated error."""
        case = self.seen[name]
        return _moderated(case.time, case.band, self.prior)

    def unfit(self, rule: ContestRule) -> str | None:
        """Why nothing may be called, or None."""
        for number, shift in enumerate(self.shifts, 1):
            where = f"block {number} of stage {shift.stage}"
            if shift.controls < 2:
                return f"{where} has {shift.controls} controls, and a shift of all cases is seen in no fewer than 2"
            if abs(math.log(shift.ratio)) > math.log1p(rule.shift_limit):
                return f"in {where} the controls' head/base is {shift.ratio:.3f}, the limit {rule.shift_limit:.1%}"
            if shift.disagreement > rule.shift_limit:
                return (
                    f"in {where} the controls disagree by {shift.disagreement:.1%}, the limit is {rule.shift_limit:.1%}"
                )
        if self.apart > rule.disagreement_limit:
            limit = f"the limit is {rule.disagreement_limit:.1%}"
            return f"the controls of stage {self.shifts[0].stage} disagree by {self.apart:.2%}, {limit}"
        return None


def _difference(visits: Sequence[Visit]) -> tuple[float, float, float | None] | None:
    """Of one case in one block: base's log median, head's above it, head's log SM clock above base's."""
    logs: dict[str, list[float]] = {"base": [], "head": []}
    clocks: dict[str, list[float]] = {"base": [], "head": []}
    for visit in visits:
        logs[visit.side].append(math.log(visit.samples.median))
        hz = visit.samples.counters.get("sm_hz", 0.0)
        if hz > 0:
            clocks[visit.side].append(math.log(hz))
    if not (logs["base"] and logs["head"]):
        return None
    complete = all(len(clocks[side]) == len(logs[side]) for side in logs)
    base = _mean(logs["base"])
    return base, _mean(logs["head"]) - base, _mean(clocks["head"]) - _mean(clocks["base"]) if complete else None


def _shared(seen: Collection[_Seen], controls: Collection[str]) -> stats.Prior:
    """The variance of a block's difference, in squared floors, as all cases together show it."""
    several = [case for case in seen if len(case.time) > 1]
    if any(len(case.time) > 2 for case in several):
        variances = [stats.variance(case.time) / case.band**2 for case in several]
        return stats.fit_prior(variances, [len(case.time) - 1.0 for case in several])
    # fit_prior's logarithms are too uneven at one degree of freedom
    draws = [(case.time[0] - case.time[1]) / math.sqrt(2) / case.band for case in several]
    if not draws:
        same = [case for case in seen if case.name in controls]
        draws = [case.time[0] / case.band for case in (same if len(same) >= 5 * FEWEST else seen)]
    return stats.fit_spread(draws) if len(draws) >= FEWEST else stats.Prior(ASSUMED**2, math.inf)


def _moderated(ds: Sequence[float], band: float, prior: stats.Prior) -> _Estimate:
    df = len(ds) - 1.0
    own = stats.variance(ds) / band**2 if df else 0.0
    if df + prior.df <= 0:
        return _Estimate(_mean(ds), math.inf, 1.0)
    shared, total = stats.moderate(own, df, prior)
    return _Estimate(_mean(ds), band * math.sqrt(shared / len(ds)), total)


def _threshold(estimate: _Estimate, band: float, rule: ContestRule) -> float:
    """The log-ratio from which stage 1 picks a case."""
    noise = stats.t_quantile(1 - rule.screen_p, estimate.df) * estimate.error
    return min(math.log1p(band), max(math.log1p(rule.screen_effect), noise))


def _picked(screen: _Stage, rule: ContestRule) -> list[str]:
    found = []
    for name, case in screen.seen.items():
        estimate = screen.estimate(name)
        if abs(estimate.d) >= _threshold(estimate, case.band, rule):
            found.append((-abs(estimate.t), name))
    return [name for _, name in sorted(found)]


def _confirmed(case: _Seen, estimate: _Estimate, adjusted: float, family: int, rule: ContestRule) -> Verdict:
    """The verdict of stage 2 on one of `family` cases, given its adjusted p-value in the direction it went."""
    least = max(math.log1p(case.band), stats.t_quantile(1 - rule.alpha / family, estimate.df) * estimate.error)
    verdict = _bare(case, estimate, least, rule)
    if adjusted <= rule.alpha and abs(estimate.d) >= math.log1p(case.band):
        called = State.REGRESSED if estimate.d > 0 else State.IMPROVED
        excuse = _clock(case, estimate, rule)
        return _as(State.UNRESOLVED, verdict, f"{verdict.reason}; {excuse}") if excuse else _as(called, verdict)
    return verdict


def _screened(case: _Seen, estimate: _Estimate, picked: bool, rule: ContestRule) -> Verdict:
    """The verdict of stage 1, which calls nothing slower or faster."""
    blocks = rule.confirm_blocks
    later = estimate.error * math.sqrt(len(case.time) / blocks)  # as stage 2 would have had it
    crit = stats.t_quantile(1 - rule.alpha / rule.most_suspects, estimate.df + blocks - len(case.time))
    verdict = _bare(case, estimate, max(math.log1p(case.band), crit * later), rule)
    if picked:
        return _as(State.UNRESOLVED, verdict, f"{verdict.reason}; suspicious, and not confirmed")
    return verdict


def _bare(case: _Seen, estimate: _Estimate, least: float, rule: ContestRule) -> Verdict:
    """Unchanged or unresolved."""
    margin = estimate.margin(rule.confidence)
    low, high = (math.exp(min(estimate.d + side * margin, 700.0)) for side in (-1, 1))
    same = high < 1 + case.band and estimate.d > -math.log1p(case.band)
    visible = math.expm1(min(least, 700.0))
    number = f"{len(case.time)} block{'s' if len(case.time) > 1 else ''}"
    reason = f"head/base in [{low:.3f}, {high:.3f}] of {number}, floor {case.band:.1%}"
    return Verdict(
        case=case.name,
        state=State.UNCHANGED if same else State.UNRESOLVED,
        ratio=math.exp(estimate.d),
        low=low,
        high=high,
        floor=case.band,
        visible=visible,
        reason=reason if same else f"{reason}; slowdowns below {visible:.1%} could not be seen",
    )


def _clock(case: _Seen, estimate: _Estimate, rule: ContestRule) -> str | None:
    """Why a change in time is the machine's: the clocks differed, and in SM cycles there is none. None if it is not."""
    if len(case.cycles) < len(case.time) or abs(_mean(case.clock)) <= math.log1p(rule.clock_limit):
        return None
    cycles = math.copysign(1, estimate.d) * _mean(case.cycles)
    if cycles >= math.log1p(case.band):
        return None
    moved = math.expm1(_mean(case.clock))
    return (
        f"the machine's: head's SM clock was {moved:+.1%} of base's, and in cycles head/base is "
        f"{math.exp(_mean(case.cycles)):.3f}"
    )


def _as(state: State, verdict: Verdict, reason: str | None = None) -> Verdict:
    return replace(verdict, state=state, reason=reason or verdict.reason)


def _sides(blocks: Iterable[Block]) -> dict[str, set[Side]]:
    found: dict[str, set[Side]] = {}
    for block in blocks:
        for name, visits in block.visits.items():
            found.setdefault(name, set()).update(visit.side for visit in visits)
    return found


def _mean(xs: Sequence[float]) -> float:
    return math.fsum(xs) / len(xs)
