"""From verdicts to an exit code, and to the sentences that must be said.

Knows nothing of pytest or of files. Whatever cannot be vouched for is not green.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from enum import IntEnum

from perfgate import accept, nvml, price
from perfgate.accept import Acceptance
from perfgate.baseline import Baseline
from perfgate.record import Record
from perfgate.verdict import Noise, Quantity, Rule, State, Verdict

__all__ = ["Exit", "Outcome", "code", "decide", "without_heat"]


class Exit(IntEnum):
    """Exit codes; 0, 1 and 4 are pytest's own, and pytest's 2, 3 and 5 keep their meaning."""

    OK = 0
    REGRESSED = 1
    """At least one case is slower than its baseline (or a test failed)."""
    USAGE = 4
    """Wrong options."""
    REFUSED = 10
    """The baseline cannot be read, is incomplete or of another device, or cases were timed by another method."""
    INCOMPLETE = 11
    """Nothing could be compared, or not all that was to be; or cases are missing, or new and that was asked to fail."""
    UNFIT = 12
    """The device is busy, slowed down for heat or at different clocks, or the processes of a baseline disagree."""
    LOST = 13
    """What was measured could not be kept, e.g. because the disk is full."""
    UNRESOLVED = 14
    """It cannot be said of every case whether it got slower, and that was asked to fail."""


WORST_FIRST = (
    State.REGRESSED,
    State.REFUSED,
    State.MISSING,
    State.ACCEPTED,
    State.UNRESOLVED,
    State.NEW,
    State.IMPROVED,
    State.UNCHANGED,
)
UNCOMPARED = {State.NEW, State.MISSING}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run comes to.

    Attributes:
        verdicts: Worst first; the slowest ratio first within a state.
        exit: The exit code.
        sentences: What must be said, a line each.
        notes: What must be said of slowdowns that somebody accepted, beside the verdicts.
    """

    verdicts: tuple[Verdict, ...]
    exit: Exit
    sentences: tuple[str, ...]
    notes: tuple[str, ...] = ()


def decide(
    new: Mapping[str, Record],
    baseline: Baseline | None,
    *,
    selected: Collection[str] | None = None,
    out_of_memory: Mapping[str, str] | None = None,
    strict: bool = False,
    rule: Rule | None = None,
    accepted: Sequence[Acceptance] = (),
) -> Outcome:
    """Judge every case and give the run its exit code.

    The worst thing found gives the code: a regression (it is certain, and whoever reads this can act on it), of time,
    memory or accuracy alike, then a refusal, then heat, then a comparison with nothing in it, then cases missing and,
    if `strict`, new ones, then, if `strict`, cases unresolved. A run that was to be compared and shares no case with
    its baseline is `Exit.INCOMPLETE`, as one that lacks some: a gate that did not look is not green. Without a baseline
    nothing is compared, every case is new, and only `strict` makes that fail. A regression that was accepted fails
    nothing.

    Args:
        new: Records by case name.
        baseline: What to compare with, already found comparable; None if there is none.
        selected: The cases this run was meant to measure, None for all of the baseline's. What is not among them is
            deselected, not missing.
        out_of_memory: Reasons by name of the cases that did not fit. What fitted in the baseline has regressed.
        strict: Whether cases new or unresolved fail the run.
        rule: Floor, confidence and session; the default rule if None.
        accepted: Slowdowns that somebody accepted, of whatever baseline.
    """
    rule, lost = rule or Rule(), out_of_memory or {}
    before = baseline.records if baseline else {}
    known = {**before, **baseline.out_of_memory} if baseline else {}
    noise = Noise.of(before.values())
    verdicts: list[Verdict] = []
    for name, record in new.items():
        if name not in lost:
            known_case = name in before
            verdicts += price.assess(record, before[name], rule, noise) if known_case else [_first_time(name, baseline)]
    slowed = {name for name, record in new.items() if any(nvml.hot(s.counters) for s in record.processes)}
    verdicts, hot = without_heat(verdicts, slowed)
    verdicts += [_did_not_fit(name, reason, baseline) for name, reason in lost.items()]
    verdicts += [
        Verdict(case=name, state=State.MISSING, reason="is in the baseline and was not measured now")
        for name in known
        if name not in new and name not in lost and (selected is None or name in selected)
    ]
    verdicts, notes = accept.settle(verdicts, accepted, baseline.path.name if baseline and baseline.path else None)
    verdicts.sort(key=lambda v: (WORST_FIRST.index(v.state), -(v.ratio or 0.0), v.case))
    states = {v.state for v in verdicts}
    return Outcome(
        verdicts=tuple(verdicts),
        exit=code(states, unfit=bool(hot), incomplete=bool(baseline) and states <= UNCOMPARED, strict=strict),
        sentences=tuple(_sentences(verdicts, baseline, hot)),
        notes=tuple(notes),
    )


def without_heat(verdicts: Iterable[Verdict], slowed: Collection[str]) -> tuple[list[Verdict], list[str]]:
    """Call no case slower that the GPU slowed down for heat; return the verdicts, and the cases this was done to.

    Args:
        verdicts: Of all quantities; of memory and accuracy heat excuses nothing.
        slowed: The cases in whose timing the GPU slowed down.
    """
    kept, hot = [], []
    for verdict in verdicts:
        if verdict.state is State.REGRESSED and verdict.quantity is Quantity.TIME and verdict.case in slowed:
            reason = f"{verdict.reason}, but the GPU slowed down for heat while it was timed"
            verdict = replace(verdict, state=State.UNRESOLVED, reason=reason)
            hot.append(verdict.case)
        kept.append(verdict)
    return kept, hot


def _first_time(name: str, baseline: Baseline | None) -> Verdict:
    if baseline and name in baseline.out_of_memory:
        return Verdict(case=name, state=State.IMPROVED, reason="fits into memory now, did not in the baseline")
    reason = "is not in the baseline" if baseline else "there is no baseline"
    return Verdict(case=name, state=State.NEW, reason=reason)


def _did_not_fit(name: str, reason: str, baseline: Baseline | None) -> Verdict:
    if baseline and name in baseline.records:
        return Verdict(case=name, state=State.REGRESSED, reason=f"out of memory, but not in the baseline: {reason}")
    if baseline and name in baseline.out_of_memory:
        return Verdict(case=name, state=State.UNCHANGED, reason=f"out of memory, as in the baseline: {reason}")
    return Verdict(case=name, state=State.NEW, reason=f"out of memory: {reason}")


def code(states: Set[State], *, unfit: bool, incomplete: bool, strict: bool) -> Exit:
    """The exit code of the worst that was found.

    Args:
        states: Of all verdicts, whatever they are about.
        unfit: Whether the machine was not fit to judge all of it.
        incomplete: Whether less was compared than was to be.
        strict: Whether cases new or unresolved fail the run.
    """
    if State.REGRESSED in states:
        return Exit.REGRESSED
    if State.REFUSED in states:
        return Exit.REFUSED
    if unfit:
        return Exit.UNFIT
    if incomplete or State.MISSING in states or (strict and State.NEW in states):
        return Exit.INCOMPLETE
    return Exit.UNRESOLVED if strict and State.UNRESOLVED in states else Exit.OK


def _sentences(verdicts: list[Verdict], baseline: Baseline | None, hot: list[str]) -> list[str]:
    said = [str(v) for v in verdicts if v.state in (State.REGRESSED, State.REFUSED, State.ACCEPTED)]
    untold = (State.MISSING, State.UNRESOLVED)
    said += [str(v) for v in verdicts if v.state in untold and v.quantity is not Quantity.TIME]
    if not baseline:
        return [*said, f"no baseline: {_cases(len(verdicts))} measured, none compared"]
    if all(v.state in (State.NEW, State.MISSING) for v in verdicts):
        said.append(f"nothing was compared: no case measured now is in {baseline.path or 'the baseline'}")
    for state, what in ((State.MISSING, "in the baseline, not measured now"), (State.NEW, "not in the baseline")):
        names = [v.case for v in verdicts if v.state is state and v.quantity is Quantity.TIME]
        if names:
            said.append(f"{_cases(len(names))} {what}: {', '.join(names)}")
    open_ = [v for v in verdicts if v.state is State.UNRESOLVED and v.quantity is Quantity.TIME]
    if open_:
        worst = max((v.visible for v in open_ if v.visible is not None), default=None)
        least = f"; slowdowns up to {worst:.1%} may hide there" if worst is not None else ""
        said.append(f"{_cases(len(open_))} unresolved{least}")
    if hot:
        said.append(f"{_cases(len(hot))} not judged, for the GPU slowed down for heat: see to its cooling, time again")
    return said


def _cases(n: int) -> str:
    return f"{n} case{'' if n == 1 else 's'}"
