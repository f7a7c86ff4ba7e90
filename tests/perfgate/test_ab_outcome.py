"""From what was seen to verdicts and the exit code: the table of `perfgate.ab.outcome`, and what is never green."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest

from perfgate import Case, Record, Samples
from perfgate.ab.evidence import SCHEMA, Evidence
from perfgate.ab.outcome import BROKEN_OFF, Judge, conclude, doubted
from perfgate.clock import Method
from perfgate.contest import Block
from perfgate.gate import Exit
from perfgate.kernels import Kernel, Kernels
from perfgate.nvml import HEAT
from perfgate.verdict import Quantity, State, Verdict

from .ab_stand_in import Findings

ORDER = ("base", "head", "head", "base")


GIB = 2.0**30


def visit(side: str, name: str = "case", *, clock: str = "fake", code: str = "", **counters: float) -> dict[str, Any]:
    kernels = Kernels.of([Kernel(name="flash", grid=(1, 1, 1), code=code)]) if code else None
    samples = Samples(seconds=(1e-3,) * 10, method=Method(clock=clock), counters=counters, kernels=kernels)
    return {"visit": Record(case=Case(name=name), processes=(samples,)).to_json(), "side": side}


def evidence(*entries: dict[str, Any], end: str | None = "complete", compared: bool = True) -> Evidence:
    """What a run of one case saw, unless `compared` is false, and these entries."""
    seen = Evidence({"ab": SCHEMA})
    usual = [visit(side, "usual") for side in ORDER] if compared else []
    for entry in ({"pairs": 2}, {"block": 0, "stage": 1}, *usual, *entries, *([{"end": end}] if end else [])):
        seen.take(entry)
    return seen


def judge(
    blocks: Sequence[Block],
    controls: Collection[str],
    picked: Sequence[str] | None = None,
    *,
    state: State = State.UNCHANGED,
) -> Findings:
    names = sorted({name for block in blocks for name in block.visits})
    return Findings(tuple(Verdict(case=name, state=state, ratio=1.0, reason="so") for name in names))


def regressed(blocks: Sequence[Block], controls: Collection[str], picked: object) -> Findings:
    return judge(blocks, controls, state=State.REGRESSED)


def ended(how: str, side: str, case: str = "case") -> dict[str, str]:
    return {"ended": how, "reason": "why", "case": case, "side": side}


@pytest.mark.parametrize(
    ("base", "head", "state", "code"),
    [
        ("failed", None, State.NEW, Exit.OK),
        (None, "failed", State.MISSING, Exit.REGRESSED),
        ("failed", "failed", State.MISSING, Exit.REGRESSED),
        ("skipped", None, State.NEW, Exit.OK),
        (None, "skipped", State.MISSING, Exit.INCOMPLETE),
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


@pytest.mark.parametrize("how", ["failed", "skipped", "out of memory"])
def test_a_case_that_came_to_nothing_after_it_was_visited_is_not_green(how: str) -> None:
    found = evidence(*(visit(side) for side in ORDER), ended(how, "base"))
    assert conclude(found, judge)[1] == Exit.INCOMPLETE


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


def test_strict_fails_what_is_unresolved_with_a_code_of_its_own() -> None:
    def unresolved(blocks: Sequence[Block], controls: Collection[str], picked: object) -> Findings:
        return judge(blocks, controls, state=State.UNRESOLVED)

    assert conclude(evidence(), unresolved)[1] == Exit.OK
    assert conclude(evidence(), unresolved, strict=True)[1] == Exit.UNRESOLVED
    assert conclude(evidence({"only": "head", "case": "case"}), unresolved, strict=True)[1] == Exit.INCOMPLETE


def sides(base: dict[str, float], head: dict[str, float], name: str = "case") -> list[dict[str, Any]]:
    """A block's visits to a case whose sides report this."""
    return [visit(side, name, **(base if side == "base" else head)) for side in ORDER]


def priced(found: Evidence, judge: Judge = judge, *, strict: bool = False) -> tuple[list[str], int]:
    """What is said of memory and accuracy, and the exit code."""
    outcome, code = conclude(found, judge, strict=strict)
    return [str(v) for v in outcome.verdicts if v.quantity is not Quantity.TIME], code


def memory(base: float, head: float) -> list[dict[str, Any]]:
    return sides({"peak_bytes": base}, {"peak_bytes": head})


def accuracy(base: float, head: float) -> list[dict[str, Any]]:
    return sides({"error.out": base}, {"error.out": head})


@pytest.mark.parametrize(
    ("visits", "said", "code"),
    [
        (memory(2 * GIB, 2 * GIB), None, Exit.OK),
        (
            memory(2 * GIB, 3 * GIB),
            "case regressed in memory: peak memory 3,221,225,472 B now, 2,147,483,648 B in the base (+50.0 %)",
            Exit.REGRESSED,
        ),
        (
            memory(2 * GIB, GIB),
            "case improved in memory: peak memory 1,073,741,824 B now, 2,147,483,648 B in the base (-50.0 %)",
            Exit.OK,
        ),
        (accuracy(1e-3, 1.04e-3), None, Exit.OK),
        (
            [*accuracy(1e-3, 1.2e-3), {"block": 1, "stage": 1}, *accuracy(1e-3, 1.2e-3)],
            "case regressed in accuracy: mean error of out 0.0012 now, 0.001 in the base (+20.0 %)",
            Exit.REGRESSED,
        ),
        (
            accuracy(0.0, 1e-9),
            "case regressed in accuracy: the mean error of out is 1e-09 now, and was 0 in the base",
            Exit.REGRESSED,
        ),
        (
            sides({"error.out": 1e-3}, {}),
            "case missing in accuracy: the mean error of out was 0.001 in the base, and is not known now",
            Exit.INCOMPLETE,
        ),
        (
            sides({"peak_bytes": GIB}, {}),
            "case missing in memory: 1,073,741,824 B in the base, not counted now",
            Exit.INCOMPLETE,
        ),
        (sides({}, {"error.out": 1e-3, "peak_bytes": GIB}), None, Exit.OK),
    ],
)
def test_speed_is_not_bought_with_memory_or_accuracy(
    visits: list[dict[str, Any]], said: str | None, code: Exit
) -> None:
    found = evidence(*visits)
    assert priced(found) == ([said] if said else [], code)
    time = [v for v in conclude(found, judge)[0].verdicts if v.quantity is Quantity.TIME]
    assert {v.case: v.state for v in time} == {"case": State.UNCHANGED, "usual": State.UNCHANGED}


@pytest.mark.parametrize(
    "visits",
    [
        memory(2 * GIB, 3 * GIB),
        [*accuracy(1e-3, 1.2e-3), {"block": 1, "stage": 1}, *accuracy(1e-3, 1.2e-3)],
    ],
)
def test_neither_is_excused_by_a_machine_that_is_not_fit(visits: list[dict[str, Any]]) -> None:
    def unfit(blocks: Sequence[Block], controls: Collection[str], picked: object) -> Findings:
        return Findings(judge(blocks, controls, state=State.UNRESOLVED).verdicts, unfit="it is warm")

    (said,), code = priced(evidence(*visits), unfit)
    assert said.startswith("case regressed in ")
    assert code == Exit.REGRESSED


def test_neither_is_excused_by_heat() -> None:
    hot = {"throttle_reasons": float(HEAT & -HEAT)}
    found = evidence(*sides({"peak_bytes": GIB, **hot}, {"peak_bytes": 2 * GIB, **hot}), compared=False)
    outcome, code = conclude(found, regressed)
    assert {v.quantity: v.state for v in outcome.verdicts} == {
        Quantity.TIME: State.UNRESOLVED,
        Quantity.MEMORY: State.REGRESSED,
    }
    assert code == Exit.REGRESSED


def test_growth_of_an_error_that_one_block_alone_knows_is_doubted_until_another_agrees() -> None:
    known = accuracy(1e-3, 1.2e-3)
    later = ({"block": 1, "stage": 2}, *sides({}, {}))
    found = evidence(*known, *later)
    assert doubted(found) == {"case"}
    (said,), code = priced(found)
    assert said.startswith(
        "case unresolved in accuracy: mean error of out 0.0012 now, 0.001 in the base (+20.0 %), which"
    )
    assert code == Exit.OK
    found = evidence(*known, *later, {"block": 2, "stage": 2}, *known)
    assert doubted(found) == set()
    (said,), code = priced(found)
    assert said.startswith("case regressed in accuracy")
    assert code == Exit.REGRESSED


def test_an_error_that_blocks_disagree_about_is_unresolved() -> None:
    blocks = [(0.95e-3, 1.06e-3), (1.05e-3, 1.1e-3)]
    first, second = (accuracy(*errors) for errors in blocks)
    found = evidence(*first, {"block": 1, "stage": 1}, *second)
    (said,), code = priced(found)
    assert said.startswith("case unresolved in accuracy")
    assert code == Exit.OK
    assert priced(found, strict=True)[1] == Exit.UNRESOLVED


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        (memory(GIB, 2 * GIB)[:3], Exit.OK),
        ([*memory(GIB, 2 * GIB), ended("skipped", "base")], Exit.INCOMPLETE),
        ([{"canary": "case"}, *memory(GIB, 2 * GIB)], Exit.OK),
    ],
    ids=["not in full", "skipped", "a canary"],
)
def test_memory_of_what_was_not_compared_is_not_judged(entries: list[dict[str, Any]], code: Exit) -> None:
    assert priced(evidence(*entries)) == ([], code)


def test_a_machine_that_is_not_fit_is_not_green() -> None:
    outcome, code = conclude(evidence(), lambda blocks, controls, picked: Findings((), unfit="it is warm"))
    assert code == Exit.UNFIT
    assert "the machine was not fit: it is warm" in outcome.sentences
    assert [v.state for v in outcome.verdicts] == [State.UNRESOLVED]


def test_a_case_that_was_not_judged_is_not_green() -> None:
    assert conclude(evidence(), lambda blocks, controls, picked: Findings(()))[1] == Exit.INCOMPLETE


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
    same = [visit(side, "same", code="1f") for side in ORDER]
    other = [visit(side, "other", code={"base": "1f", "head": "2e"}[side]) for side in ORDER]
    assert evidence(*same, *other).controls == {"same"}


def test_a_canary_is_a_control_if_it_sang() -> None:
    sung = [visit(side, "canary/copy") for side in ORDER]
    mute = [visit("base", "canary/gemm"), ended("out of memory", "head", "canary/gemm")]
    names = [{"canary": "canary/copy"}, {"canary": "canary/gemm"}, {"canary": "canary/never"}]
    found = evidence(*names, *sung, *mute)
    assert found.controls == {"canary/copy"}
    assert "1 control: 0 cases with the same kernels on both sides, 1 canary" in conclude(found, judge)[0].sentences


@pytest.mark.parametrize(
    ("head", "said"), [("1f", "same kernels on both sides"), ("2e", "flash: code changed"), ("", None)]
)
def test_of_a_slower_case_it_is_said_what_became_of_its_kernels(head: str, said: str | None) -> None:
    visits = [visit(side, code="1f" if side == "base" else head) for side in ORDER]
    (verdict,) = conclude(evidence(*visits, compared=False), regressed)[0].verdicts
    assert verdict.why == ((said,) if said else ())
    (unchanged,) = conclude(evidence(*visits, compared=False), judge)[0].verdicts
    assert unchanged.why == ()


def test_a_slowdown_that_is_the_machines_is_not_green() -> None:
    def slower_for_the_clock(blocks: Sequence[Block], controls: Collection[str], picked: object) -> Findings:
        return Findings(judge(blocks, controls, state=State.UNRESOLVED).verdicts, machine=("usual", "canary/x"))

    outcome, code = conclude(evidence(), slower_for_the_clock)
    assert code == outcome.exit == Exit.UNFIT
    assert any(said.startswith("1 slower in time and not in SM cycles: the machine's") for said in outcome.sentences)


def test_the_machine_excuses_no_case_that_regressed() -> None:
    def both(blocks: Sequence[Block], controls: Collection[str], picked: object) -> Findings:
        return Findings(judge(blocks, controls, state=State.REGRESSED).verdicts, machine=("usual",))

    assert conclude(evidence(), both)[1] == Exit.REGRESSED


def test_heat_that_leaves_a_case_unresolved_is_not_green() -> None:
    def unresolved(blocks: Sequence[Block], controls: Collection[str], picked: object) -> Findings:
        return judge(blocks, controls, state=State.UNRESOLVED)

    later = [{"block": 1, "stage": 2}, *(visit(side, "usual", throttle_reasons=float(HEAT & -HEAT)) for side in ORDER)]
    assert conclude(evidence(*later), unresolved)[1] == Exit.UNFIT
    assert conclude(evidence(), unresolved)[1] == Exit.OK
    assert conclude(evidence(*later), judge)[1] == Exit.OK  # it was steady enough all the same


@pytest.mark.parametrize(
    ("exit", "rule", "code"),
    [
        (Exit.UNFIT, judge, Exit.UNFIT),
        (Exit.UNFIT, regressed, Exit.REGRESSED),
        (Exit.REFUSED, judge, Exit.REFUSED),
        (Exit.REFUSED, regressed, Exit.REFUSED),
        (Exit.INCOMPLETE, judge, Exit.INCOMPLETE),
    ],
)
def test_what_ended_a_run_after_some_of_it_has_its_own_exit_code(exit: Exit, rule: Judge, code: Exit) -> None:
    found = evidence({"end": "so", "exit": int(exit)}, end=None)
    outcome, exit_code = conclude(found, rule)
    assert exit_code == outcome.exit == code
    assert "so: 1 of 2 cases were compared" in outcome.sentences


def test_the_judge_is_told_what_was_picked() -> None:
    told: list[object] = []

    def asked(blocks: Sequence[Block], controls: Collection[str], picked: object) -> Findings:
        told.append(picked)
        return judge(blocks, controls)

    conclude(evidence({"suspects": ["usual"]}), asked)
    conclude(evidence(), asked)
    assert told == [("usual",), None]
