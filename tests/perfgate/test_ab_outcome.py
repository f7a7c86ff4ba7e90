"""From what was seen to verdicts and the exit code: the table of `perfgate.ab.outcome`, and what is never green."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest

from perfgate import Case, Record, Samples
from perfgate.ab.evidence import SCHEMA, Evidence
from perfgate.ab.outcome import BROKEN_OFF, conclude
from perfgate.clock import Method
from perfgate.contest import Block
from perfgate.gate import Exit
from perfgate.nvml import HEAT
from perfgate.verdict import State, Verdict

from .ab_stand_in import Findings

ORDER = ("base", "head", "head", "base")


def visit(side: str, name: str = "case", *, clock: str = "fake", **counters: float) -> dict[str, Any]:
    samples = Samples(seconds=(1e-3,) * 10, method=Method(clock=clock), counters=counters)
    return {"visit": Record(case=Case(name=name), processes=(samples,)).to_json(), "side": side}


def evidence(*entries: dict[str, Any], end: str | None = "complete", compared: bool = True) -> Evidence:
    """What a run of one case saw, unless `compared` is false, and these entries."""
    seen = Evidence({"ab": SCHEMA})
    usual = [visit(side, "usual") for side in ORDER] if compared else []
    for entry in ({"pairs": 2}, {"block": 0, "stage": 1}, *usual, *entries, *([{"end": end}] if end else [])):
        seen.take(entry)
    return seen


def judge(blocks: Sequence[Block], controls: Collection[str], state: State = State.UNCHANGED) -> Findings:
    names = sorted({name for block in blocks for name in block.visits})
    return Findings(tuple(Verdict(case=name, state=state, ratio=1.0, reason="so") for name in names))


def regressed(blocks: Sequence[Block], controls: Collection[str]) -> Findings:
    return judge(blocks, controls, State.REGRESSED)


def ended(how: str, side: str, case: str = "case") -> dict[str, str]:
    return {"ended": how, "reason": "why", "case": case, "side": side}


@pytest.mark.parametrize(
    ("base", "head", "state", "code"),
    [
        ("failed", None, State.NEW, Exit.OK),
        (None, "failed", State.MISSING, Exit.REGRESSED),
        ("failed", "failed", State.MISSING, Exit.REGRESSED),
        ("skipped", None, State.NEW, Exit.OK),
        (None, "skipped", State.MISSING, Exit.OK),
        ("skipped", "skipped", None, Exit.OK),
        ("out of memory", None, State.IMPROVED, Exit.OK),
        (None, "out of memory", State.REGRESSED, Exit.REGRESSED),
        ("out of memory", "out of memory", State.UNCHANGED, Exit.OK),
        ("skipped", "out of memory", State.NEW, Exit.OK),
        ("died", None, State.UNRESOLVED, Exit.INCOMPLETE),
        (None, "died", State.UNRESOLVED, Exit.INCOMPLETE),
    ],
)
def test_what_becomes_of_a_case_that_came_to_nothing(
    base: str | None, head: str | None, state: State | None, code: Exit
) -> None:
    found = evidence(*(ended(how, side) for how, side in ((base, "base"), (head, "head")) if how))
    outcome, exit_code = conclude(found, judge)
    assert {v.case: v.state for v in outcome.verdicts}.get("case") == state
    assert exit_code == outcome.exit == code


def test_a_test_that_fails_takes_its_visits_with_it() -> None:
    found = evidence(*(visit(side) for side in ORDER), ended("failed", "base"))
    assert found.compared == {"usual"}
    assert "case" not in found.records("head")


def test_a_case_not_visited_in_full_is_not_compared() -> None:
    found = evidence(*(visit(side) for side in ORDER[:3]))
    assert found.compared == {"usual"}
    found = evidence(*(visit(side) for side in ORDER[:3]), {"void": "case"}, *(visit(side) for side in ORDER))
    assert found.compared == {"usual", "case"}


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        (evidence(compared=False), Exit.INCOMPLETE, "nothing was compared"),
        (evidence(end=None), Exit.INCOMPLETE, "the run did not come to its end: 1 of 2 cases were compared"),
        (evidence(end="interrupted"), BROKEN_OFF, "interrupted: 1 of 2 cases were compared"),
        (evidence(end="workers ended"), Exit.INCOMPLETE, "workers ended: 1 of 2 cases were compared"),
        (evidence(ended("failed", "head", "canary/x"), {"canary": "canary/x"}), Exit.OK, "canary/x could not be timed"),
    ],
)
def test_a_run_that_is_not_whole_says_so(found: Evidence, code: int, said: str) -> None:
    outcome, exit_code = conclude(found, judge)
    assert exit_code == code
    assert any(said in sentence for sentence in outcome.sentences)


def test_what_is_slower_counts_though_the_run_was_not_whole() -> None:
    assert conclude(evidence(end="workers ended"), regressed)[1] == Exit.REGRESSED


def test_strict_fails_what_is_new() -> None:
    found = evidence({"only": "head", "case": "case"})
    assert conclude(found, judge)[1] == Exit.OK
    assert conclude(found, judge, strict=True)[1] == Exit.INCOMPLETE


def test_a_machine_that_is_not_fit_is_not_green() -> None:
    outcome, code = conclude(evidence(), lambda blocks, controls: Findings((), unfit="it is warm"))
    assert code == Exit.UNFIT
    assert "the machine was not fit: it is warm" in outcome.sentences
    assert [v.state for v in outcome.verdicts] == [State.UNRESOLVED]


def test_a_case_that_was_not_judged_is_not_green() -> None:
    assert conclude(evidence(), lambda blocks, controls: Findings(()))[1] == Exit.INCOMPLETE


def test_no_case_is_slower_for_heat() -> None:
    hot = [visit(side, throttle_reasons=float(HEAT & -HEAT)) for side in ORDER]
    outcome, code = conclude(evidence(*hot, compared=False), regressed)
    assert code == Exit.UNFIT
    assert [v.state for v in outcome.verdicts] == [State.UNRESOLVED]


def test_sides_that_were_timed_by_different_methods_are_refused() -> None:
    visits = [visit(side, clock="fake" if side == "base" else "host") for side in ORDER]
    outcome, code = conclude(evidence(*visits), judge)
    assert code == Exit.REFUSED
    assert {v.case: v.state for v in outcome.verdicts} == {"case": State.REFUSED, "usual": State.UNCHANGED}


def test_a_control_has_the_same_kernels_on_both_sides() -> None:
    same = [{**visit(side, "same"), "visit": visit(side, "same")["visit"] | {"kernels": "1f"}} for side in ORDER]
    other = [{**visit(side, "other"), "visit": visit(side, "other")["visit"] | {"kernels": side}} for side in ORDER]
    assert evidence({"canary": "canary/copy"}, *same, *other).controls == {"canary/copy", "same"}
