"""Base against head on one GPU: what was seen of two revisions that were visited in turn, and what it says.

block  = fresh processes of both sides; every case visited, A B B A or B A A B
visit  = one side times one case once
stage  = 1 screens all cases in one block or two; 2 confirms those that were suspicious in many fresh blocks

`perfgate.contrast` makes one log-ratio d of a block and case. Only stage 2 can call a case slower: its data are
independent of what stage 1 picked, so that Holm's adjustment over the picked cases holds.

    regressed    stage 2 rejects d <= 0 at alpha, adjusted over all cases picked, and exp(d) - 1 >= floor
    improved     the same, mirrored
    unchanged    neither, and the upper end of the interval is below the floor (non-inferior: Schuirmann 1987)
    unresolved   all else, and all of it if the machine was not fit

A picked case is not visited again if after some blocks of stage 2 it is surely below its floor, or if the blocks left
would hardly lead to a call (stochastic curtailment: Lan, Simon and Halperin 1982). That calls nothing, and it stays in
the family that Holm's adjustment counts.

The picked cases are those that stage 1 picked when it ended. To pick again in the end, with what became of stage 1's
cases since, could leave out some that were confirmed, and adjust the others for fewer than were asked.

Knows nothing of files, devices or exit codes. docs/deciding.md has the rates that were simulated, and their tests.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from perfgate import stats
from perfgate.contrast import Block, Contrast, Contrasts, Estimate, Shift, Side, Visit
from perfgate.verdict import State, Verdict

__all__ = ["Block", "ContestRule", "Findings", "Shift", "Side", "Visit", "judge", "suspects", "undecided", "unsettled"]

CONTROLS = 2
"""The fewest controls that tell a shift of all cases from a change of some. With two a quarter of all runs is beyond
the limits by chance, with eight one in two hundred."""


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
        settle_blocks: Blocks of stage 2 after which a case may be left as it is.
        settle_p: One-sided p-value of a change as large as its floor, or probability of a call, below which it is.
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
    confirm_blocks: int = 10
    settle_blocks: int = 3
    settle_p: float = 0.01
    most_suspects: int = 20
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
        for name in ("screen_p", "settle_p"):
            if not 0 < getattr(self, name) <= 0.5:
                raise ValueError(f"{name} must lie between 0 and 0.5, got {getattr(self, name)!r}")
        for name, least in (("screen_blocks", 1), ("confirm_blocks", 2), ("settle_blocks", 2), ("most_suspects", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)!r}")

    def band(self, seconds: float) -> float:
        """The floor of a case that takes this long."""
        return max(self.floor, self.floor_seconds / seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What is said of two revisions.

    Attributes:
        verdicts: One a case, by name.
        suspects: The cases that stage 1 picked, the most suspicious first.
        machine: Cases slower in time that are not so in SM cycles, and so say something of the machine.
        shifts: One a block, in order.
        unfit: Why the machine was not fit to judge anything, or None.
    """

    verdicts: tuple[Verdict, ...]
    suspects: tuple[str, ...]
    machine: tuple[str, ...]
    shifts: tuple[Shift, ...]
    unfit: str | None


def unsettled(blocks: Iterable[Block], rule: ContestRule, controls: Collection[str]) -> list[str]:
    """The cases that stage 1 finds suspicious or leaves unresolved: of which another block of it would tell more.

    Args:
        blocks: Those of stage 1 count.
        rule: The rule.
        controls: Names of the cases whose kernels are the same on both sides.
    """
    screen = _screen(blocks, rule, controls)
    suspicious = {*_picked(screen, rule)}
    states = {name: _screened(screen, name, False, rule).state for name in screen.seen}
    return [name for name, state in states.items() if name in suspicious or state is State.UNRESOLVED]


def suspects(blocks: Iterable[Block], rule: ContestRule, controls: Collection[str]) -> list[str]:
    """The cases that stage 1 picks for stage 2, slower or faster, the most suspicious first.

    A case is picked by its moderated t and the size of its change; a change of the case's floor is always enough, so
    that no lack of blocks can make this screen one that never fires. Of two blocks each case's variance is
    learnt from the blocks' difference, in which a change cancels; of one block, or of a second that visited only what
    the first had left unsettled, from what the first shows of the controls, or of all cases where they are few, by
    quantiles that some changed cases do not move.

    Args:
        blocks: Those of stage 1 count.
        rule: The rule.
        controls: Names of the cases whose kernels are the same on both sides.
    """
    return _picked(_screen(blocks, rule, controls), rule)[: rule.most_suspects]


def undecided(
    blocks: Iterable[Block], rule: ContestRule, controls: Collection[str], picked: Collection[str]
) -> list[str]:
    """The picked cases that stage 2 must visit again; the others are surely below their floors, or will not be called.

    Args:
        blocks: All blocks so far.
        rule: The rule.
        controls: Names of the cases whose kernels are the same on both sides.
        picked: What `suspects` gave when stage 1 ended.
    """
    blocks = list(blocks)
    if sum(block.stage == 2 for block in blocks) < rule.settle_blocks:
        return list(picked)
    suspicious = {*picked, *_picked(_screen(blocks, rule, controls), rule)}
    return _open(_confirmation(blocks, rule, controls, suspicious), picked, rule)


def judge(
    blocks: Sequence[Block], rule: ContestRule, controls: Collection[str], picked: Sequence[str] | None = None
) -> Findings:
    """Judge every case by the rule drawn above.

    Without any block of stage 1, all cases of stage 2 are judged together. Blocks that a run did not come to are only
    missed in width: what there is of stage 2 counts from two blocks on.

    Args:
        blocks: All blocks.
        rule: The rule.
        controls: Names of the cases whose kernels are the same on both sides. They are judged like all others.
        picked: What `suspects` gave when stage 1 ended; None if it did not come to that, or nobody knows.
    """
    screen = _screen(blocks, rule, controls)
    suspicious = _picked(screen, rule)
    confirm = _confirmation(blocks, rule, controls, {*suspicious, *(picked or ())})
    if picked is None:
        picked = suspicious[: rule.most_suspects] if screen.shifts else list(confirm.seen)
    family = [name for name in picked if name in confirm.seen and len(confirm.seen[name].time) > 1]
    lost = [1.0] * (len(picked) - len(family))  # what came to nothing in stage 2 was asked all the same
    slower = stats.holm([_p(confirm, name, 1) for name in family] + lost)[: len(family)]
    faster = stats.holm([_p(confirm, name, -1) for name in family] + lost)[: len(family)]
    unfit = _unfit(screen, rule) or (_unfit(confirm, rule) if picked else None)  # else stage 2 asks nothing of time
    # where a case that can be visited is open there were no more blocks, for any
    most = len(confirm.shifts) if set(family) & set(_open(confirm, picked, rule)) else rule.confirm_blocks
    verdicts: dict[str, Verdict] = {}
    machine: list[str] = []
    for name, up, down in zip(family, slower, faster, strict=True):
        called = _called(confirm, name, min(up, down), rule)
        excuse = _clock(confirm.seen[name], confirm.estimate(name), rule) if called else None
        if excuse and called is State.REGRESSED:
            machine.append(name)
        state = State.UNRESOLVED if excuse else called
        verdicts[name] = _confirmed(confirm, name, len(picked), most, rule, state, excuse)
    for name in screen.seen:
        if name not in verdicts:
            verdicts[name] = _screened(screen, name, name in (*picked, *suspicious), rule)
    if unfit:
        reason = f"the machine was not fit: {unfit}"
        verdicts = {
            name: replace(verdict, state=State.UNRESOLVED, reason=f"{verdict.reason}; {reason}")
            for name, verdict in verdicts.items()
        }
    for name, sides in _sides(blocks).items():
        if len(sides) == 1:
            state, there, gone = (State.NEW, "head", "base") if "head" in sides else (State.MISSING, "base", "head")
            verdicts[name] = Verdict(case=name, state=state, reason=f"is in {there} and not in {gone}")
        elif name not in verdicts:
            reason = "no block timed both sides"
            verdicts[name] = Verdict(case=name, state=State.UNRESOLVED, reason=reason)
    return Findings(
        verdicts=tuple(verdicts[name] for name in sorted(verdicts)),
        suspects=tuple(picked) if screen.shifts else (),
        machine=tuple(machine),
        shifts=(*screen.shifts, *confirm.shifts),
        unfit=unfit,
    )


def _stage(stage: int, blocks: Iterable[Block], controls: Collection[str]) -> list[Block]:
    """A stage's blocks; one cut short before it came to two controls tells nothing, if another came to more."""
    of_stage = [block for block in blocks if block.stage == stage]
    both = [sum(name in controls for name in block.differences) for block in of_stage]
    whole = [block for block, count in zip(of_stage, both, strict=True) if count >= CONTROLS]
    return whole or of_stage


def _screen(blocks: Iterable[Block], rule: ContestRule, controls: Collection[str]) -> Contrasts:
    """Stage 1's contrasts.

    A second block with fewer cases than the first is of what that left unsettled, or was broken off: it is taken for
    the former, which asks more.
    """
    of_stage = _stage(1, blocks, controls)
    suspicious: list[str] | None = None
    if len(of_stage) == 2 and len(of_stage[1].differences) < len(of_stage[0].differences):
        suspicious = _picked(Contrasts.of(of_stage[:1], controls, rule.band), rule)
    return Contrasts.of(of_stage, controls, rule.band, suspicious=suspicious)


def _confirmation(
    blocks: Iterable[Block], rule: ContestRule, controls: Collection[str], suspicious: Collection[str]
) -> Contrasts:
    """Stage 2's contrasts, whose controls are those that stage 1 found nothing about, if they are not too few."""
    blocks = list(blocks)
    seen = {name for block in blocks if block.stage == 2 for name in block.visits}
    others = set(controls) - set(suspicious)
    controls = others if len(others & seen) >= CONTROLS else controls
    return Contrasts.of(_stage(2, blocks, controls), controls, rule.band)


def _unfit(stage: Contrasts, rule: ContestRule) -> str | None:
    """Why nothing may be called, or None."""
    for number, shift in enumerate(stage.shifts, 1):
        where = f"block {number} of stage {shift.stage}"
        if shift.controls < CONTROLS:
            return f"a shift of all cases is seen in at least {CONTROLS} controls, and {where} has {shift.controls}"
        if abs(math.log(shift.ratio)) > math.log1p(rule.shift_limit):
            return f"in {where} the controls' head/base is {shift.ratio:.3f}, the limit is {rule.shift_limit:.1%}"
        if shift.least > rule.shift_limit:
            return f"in {where} the controls disagree by {shift.disagreement:.1%}, the limit is {rule.shift_limit:.1%}"
    if stage.least > rule.disagreement_limit:
        number = stage.shifts[0].stage
        return (
            f"the controls of stage {number} disagree by {stage.least:.2%}, the limit is {rule.disagreement_limit:.1%}"
        )
    return None


def _threshold(estimate: Estimate, band: float, rule: ContestRule) -> float:
    """The log-ratio from which stage 1 picks a case."""
    noise = stats.t_quantile(1 - rule.screen_p, estimate.df) * estimate.error
    return min(math.log1p(band), max(math.log1p(rule.screen_effect), noise))


def _picked(screen: Contrasts, rule: ContestRule) -> list[str]:
    """All that is suspicious: three slower cases, a faster one, and so on, until either ends."""
    slower: list[tuple[float, str]] = []
    faster: list[tuple[float, str]] = []
    for name, case in screen.seen.items():
        estimate = screen.estimate(name)
        if abs(estimate.d) >= _threshold(estimate, case.band, rule):
            (slower if estimate.d > 0 else faster).append((-abs(estimate.t), name))
    # the i-th slower one stands before the i // 3-th faster one
    order = [(i, 0, name) for i, (_, name) in enumerate(sorted(slower))]
    order += [(3 * i + 2, 1, name) for i, (_, name) in enumerate(sorted(faster))]
    return [name for *_, name in sorted(order)]


def _p(confirm: Contrasts, name: str, sign: int) -> float:
    """One-sided p-value of no change, slower for a positive sign: the larger of the moderated t's and of Student's.

    Student's holds whatever the variances of the cases have in common; the moderated one does not believe in luck. What
    is below its floor cannot be called, and counts as no change at all, however surely it is some.
    """
    if sign * confirm.estimate(name).d < math.log1p(confirm.seen[name].band):
        return 1.0
    return max(stats.t_cdf(-sign * e.t, e.df) for e in (confirm.estimate(name), confirm.alone(name)))


def _open(confirm: Contrasts, picked: Collection[str], rule: ContestRule) -> list[str]:
    """The picked cases that must be visited again: all but those that are settled.

    Holm's adjustment asks a case less strictly the more others are called, which only open ones can be.
    """
    left = list(picked)
    while True:
        alpha = rule.alpha / (len(picked) - len(left) + 1)
        still = [name for name in left if not _settled(confirm, name, alpha, rule)]
        if len(still) == len(left):
            return still
        left = still


def _settled(confirm: Contrasts, name: str, alpha: float, rule: ContestRule) -> bool:
    """Whether a case was visited often enough, and is surely below its floor or as good as surely not to be called.

    With n of N blocks seen, the mean of all N is expected to be d, with a standard error of error · sqrt(1 - n / N):
    that of the blocks to come, and what is not known of the truth. `alpha` is the least strict that it may be asked at.
    """
    if name not in confirm.seen or (n := len(confirm.seen[name].time)) < rule.settle_blocks:
        return False
    estimate, band = confirm.estimate(name), math.log1p(confirm.seen[name].band)
    margin = stats.t_quantile(1 - rule.settle_p, estimate.df) * estimate.error
    if abs(estimate.d) + margin < band:
        return True
    seen = min(1.0, n / rule.confirm_blocks)
    surely = stats.t_quantile(1 - alpha, rule.confirm_blocks - 1) * estimate.error * math.sqrt(seen)
    return abs(estimate.d) + margin * math.sqrt(1 - seen) < max(band, surely)


def _called(confirm: Contrasts, name: str, adjusted: float, rule: ContestRule) -> State | None:
    """Whether a case got slower or faster, given its adjusted p-value in the direction it went; None if neither."""
    d = confirm.estimate(name).d
    if adjusted > rule.alpha or abs(d) < math.log1p(confirm.seen[name].band):
        return None
    return State.REGRESSED if d > 0 else State.IMPROVED


def _confirmed(
    confirm: Contrasts, name: str, family: int, most: int, rule: ContestRule, called: State | None, excuse: str | None
) -> Verdict:
    """The verdict of stage 2 on one of `family` cases, visited in `most` blocks if it was not settled before."""
    both = (confirm.estimate(name), confirm.alone(name))
    n = len(confirm.seen[name].time)
    blocks = max(n, most)
    least = max(
        stats.t_quantile(1 - rule.alpha / family, e.df + blocks - n) * e.error * math.sqrt(n / blocks) for e in both
    )
    return _verdict(confirm.seen[name], both[0], least, rule, called, excuse or "")


def _screened(screen: Contrasts, name: str, picked: bool, rule: ContestRule) -> Verdict:
    """The verdict of stage 1, which calls nothing slower or faster.

    What was visited again for what it showed was not found unchanged at a first look, and is asked more at the second.
    """
    case, estimate = screen.seen[name], screen.estimate(name)
    n, blocks = len(case.time), rule.confirm_blocks
    if n > 1 and screen.chosen:
        rule = replace(rule, confidence=(1 + rule.confidence) / 2)
    crit = stats.t_quantile(1 - rule.alpha / rule.most_suspects, estimate.df + blocks - n)
    least = crit * estimate.error * math.sqrt(n / blocks)  # as stage 2 would have had it
    return _verdict(case, estimate, least, rule, why="suspicious, and not confirmed" if picked else "")


def _verdict(
    case: Contrast, estimate: Estimate, least: float, rule: ContestRule, called: State | None = None, why: str = ""
) -> Verdict:
    """What was called or, if nothing was, unchanged or unresolved; `least` is the smallest d that could be called."""
    margin = stats.t_quantile((1 + rule.confidence) / 2, estimate.df) * estimate.error
    low, high = math.exp(estimate.d - margin), math.exp(estimate.d + margin)
    same = high < 1 + case.band and estimate.d > -math.log1p(case.band)
    state = called or (State.UNCHANGED if same else State.UNRESOLVED)
    visible = max(case.band, math.expm1(least))
    n = len(case.time)
    reasons = [f"head/base in [{low:.3f}, {high:.3f}] of {n} block{'s' if n > 1 else ''}, floor {case.band:.1%}"]
    if state is State.UNRESOLVED:
        reasons += [f"slowdowns below {visible:.1%} could not be seen", why]
    return Verdict(
        case=case.name,
        state=state,
        ratio=math.exp(estimate.d),
        low=low,
        high=high,
        floor=case.band,
        visible=visible,
        reason="; ".join(filter(None, reasons)),
    )


def _clock(case: Contrast, estimate: Estimate, rule: ContestRule) -> str | None:
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


def _sides(blocks: Iterable[Block]) -> dict[str, set[Side]]:
    found: dict[str, set[Side]] = {}
    for block in blocks:
        for name, visits in block.visits.items():
            found.setdefault(name, set()).update(visit.side for visit in visits)
    return found


def _mean(xs: Sequence[float]) -> float:
    return math.fsum(xs) / len(xs)
