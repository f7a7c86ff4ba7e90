"""From what was seen and what was decided to verdicts, sentences and the exit code.

The decision on durations is another's (`perfgate.contest`), and so is that on memory and accuracy (`perfgate.price`):
those are counted, so that whether the machine was fit is nothing to them. Here is what else becomes of a case:

    on the          base        head
    only            missing     new
    failed          new         missing, and the run fails
    skipped         new         missing
    out of memory   improved    regressed            on both: unchanged
    died            unresolved  unresolved

Green is only a run that came to its end, compared something, and lost nothing on the way, no case either.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from perfgate import gate, nvml, price
from perfgate.ab.blocks import DIED
from perfgate.ab.channel import FAILED, OUT_OF_MEMORY, SKIPPED
from perfgate.ab.evidence import COMPLETE, INTERRUPTED, SIDES, Evidence
from perfgate.contest import Block
from perfgate.gate import WORST_FIRST, Exit, Outcome
from perfgate.verdict import State, Verdict, explained

__all__ = ["BROKEN_OFF", "Decision", "Judge", "Rules", "conclude", "doubted"]

BROKEN_OFF = 2
"""pytest's exit code of a run that was interrupted."""


class Decision(Protocol):
    """What was decided of the cases that were compared."""

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """A verdict a case."""

    @property
    def unfit(self) -> str | None:
        """Why the machine was not fit to judge anything, or None."""

    @property
    def machine(self) -> tuple[str, ...]:
        """The cases whose slowdown is the machine's."""


Unsettled = Callable[[Sequence[Block], Collection[str]], Sequence[str]]
"""Of which cases another block of the first stage would tell more, given the blocks so far and the controls' names."""
Suspects = Callable[[Sequence[Block], Collection[str]], Sequence[str]]
"""Which cases are confirmed, given the blocks so far and the names of the controls."""
Undecided = Callable[[Sequence[Block], Collection[str], Sequence[str]], Sequence[str]]
"""Which of them are visited again, given the same and what was picked."""
Judge = Callable[[Sequence[Block], Collection[str], Sequence[str] | None], Decision]
"""What is said of each case in the end, given the same; nothing was picked where it did not come to that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What decides, from the blocks alone."""

    unsettled: Unsettled
    suspects: Suspects
    undecided: Undecided
    judge: Judge


def conclude(evidence: Evidence, judge: Judge, *, strict: bool = False) -> tuple[Outcome, int]:
    """Judge what was seen.

    Args:
        evidence: All of it.
        judge: Decides on the blocks.
        strict: Whether new and unresolved cases fail, with the gate's codes.

    Returns:
        Verdicts and sentences, and the exit code, which is none of `Exit` for a run that was interrupted.
    """
    blocks, compared = evidence.blocks, evidence.compared
    said: list[str] = []
    verdicts: list[Verdict] = []
    unfit: str | None = None
    machine: list[str] = []
    if compared:
        decision = judge(blocks, evidence.controls, evidence.suspects)
        unfit, machine = decision.unfit, [case for case in decision.machine if case in compared]
        verdicts += [verdict for verdict in decision.verdicts if verdict.case in compared]
    slowed = _slowed_by_heat(blocks)
    verdicts, hot = gate.without_heat(verdicts, slowed)
    hot += [v.case for v in verdicts if v.state is State.UNRESOLVED and v.case in slowed and v.case not in hot]
    verdicts += _not_compared(evidence)
    known = {verdict.case for verdict in verdicts}
    unjudged = sorted(compared - known)
    verdicts += [Verdict(case=c, state=State.UNRESOLVED, reason="was visited, and not judged") for c in unjudged]
    base, head = (evidence.records(side) for side in SIDES)
    verdicts = [explained(v, head[v.case], base[v.case]) if v.case in compared else v for v in verdicts]
    for case in compared:
        verdicts += price.judge(head[case], base[case], where="the base")
    verdicts.sort(key=lambda v: (WORST_FIRST.index(v.state), -(v.ratio or 0.0), v.case))
    failed = [
        case
        for (side, case), (how, _) in evidence.ended.items()
        if (side, how) == ("head", FAILED) and case not in evidence.canaries
    ]
    if failed:
        said.append(f"{len(failed)} of the head's tests failed")
    said += [
        f"{case} could not be timed on the {side}: {why}"
        for (side, case), (_, why) in evidence.ended.items()
        if case in evidence.canaries
    ]
    if unfit:
        said.append(f"the machine was not fit: {unfit}")
    if hot:
        said.append(f"{len(hot)} not judged, for the GPU slowed down for heat: see to its cooling, time again")
    if machine:
        said.append(
            f"{len(machine)} slower in time and not in SM cycles: the machine's, not judged. See to it that nothing "
            "else lowers the clock, time again"
        )
    if not compared:
        said.append("nothing was compared")
    else:
        said.append(_controls(evidence))
    if evidence.end != COMPLETE:
        why = evidence.end or "the run did not come to its end"
        said.append(f"{why}: {len(compared)} of {evidence.pairs} cases were compared")
    states = {verdict.state for verdict in verdicts}
    died = bool(evidence.dropped) or any(how == DIED for how, _ in evidence.ended.values())
    if evidence.end == INTERRUPTED:
        code = BROKEN_OFF
    elif evidence.exit == Exit.REFUSED:
        code = Exit.REFUSED  # whatever it seemed to be, it was not base against head
    elif failed:
        code = Exit.REGRESSED
    else:
        spoilt = bool(hot or machine or unfit or evidence.exit == Exit.UNFIT)
        lost = not compared or evidence.end != COMPLETE or died or bool(unjudged)
        code = gate.code(states, unfit=spoilt, incomplete=lost, strict=strict)
    kind = code if isinstance(code, Exit) else Exit.INCOMPLETE
    return Outcome(verdicts=tuple(verdicts), exit=kind, sentences=tuple(said)), int(code)


def _controls(evidence: Evidence) -> str:
    """What stood for the machine."""
    suite, canaries = len(evidence.controls - evidence.canaries), len(evidence.controls & evidence.canaries)
    return (
        f"{suite + canaries} control{'' if suite + canaries == 1 else 's'}: "
        f"{suite} case{'' if suite == 1 else 's'} with the same kernels on both sides, "
        f"{canaries} canar{'y' if canaries == 1 else 'ies'}"
    )


def doubted(evidence: Evidence) -> set[str]:
    """The compared cases of which more checks could tell whether they got less accurate."""
    base, head = (evidence.records(side) for side in SIDES)
    return {case for case in evidence.compared if price.doubtful(head[case], base[case])}


def _slowed_by_heat(blocks: Sequence[Block]) -> set[str]:
    """The cases in whose visits, on either side, the GPU slowed down for heat."""
    seen = ((name, visit) for block in blocks for name, visits in block.visits.items() for visit in visits)
    return {name for name, visit in seen if nvml.hot(visit.samples.counters)}


def _not_compared(evidence: Evidence) -> Iterator[Verdict]:
    for case in evidence.differently:
        methods = evidence.methods(case)
        reason = f"timed by another method: {methods.get('head')} in the head, {methods.get('base')} in the base"
        yield Verdict(case=case, state=State.REFUSED, reason=reason)
    for case, side in evidence.only.items():
        if side == "head":
            yield Verdict(case=case, state=State.NEW, reason="is not in the base")
        else:
            yield Verdict(case=case, state=State.MISSING, reason="is in the base and not in the head")
    cases = {case for _, case in evidence.ended} - evidence.canaries - evidence.only.keys()
    for case in sorted(cases):
        base, head = (evidence.ended.get((side, case)) for side in SIDES)
        if verdict := _ended(case, base, head):
            yield verdict


def _ended(case: str, base: tuple[str, str] | None, head: tuple[str, str] | None) -> Verdict | None:
    """The verdict on a case that came to nothing on one side or both; None if it was skipped on both."""
    hows = [side[0] if side else None for side in (base, head)]
    why = head or base or ("", "")
    if DIED in hows:
        return Verdict(case=case, state=State.UNRESOLVED, reason=f"could not be compared: {why[1]}")
    if hows == [SKIPPED, SKIPPED]:
        return None
    if head and head[0] in (FAILED, SKIPPED):
        return Verdict(case=case, state=State.MISSING, reason=f"its test {_how(head)} in the head: {head[1]}")
    if base and base[0] in (FAILED, SKIPPED):
        return Verdict(case=case, state=State.NEW, reason=f"its test {_how(base)} in the base: {base[1]}")
    if hows == [OUT_OF_MEMORY, OUT_OF_MEMORY]:
        return Verdict(case=case, state=State.UNCHANGED, reason=f"out of memory, as in the base: {why[1]}")
    if head:
        return Verdict(case=case, state=State.REGRESSED, reason=f"out of memory, but not in the base: {head[1]}")
    return Verdict(case=case, state=State.IMPROVED, reason="fits into memory now, did not in the base")


def _how(ended: tuple[str, str]) -> str:
    return "failed" if ended[0] == FAILED else "was skipped"
