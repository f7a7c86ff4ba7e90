"""Whatever cannot be vouched for is not green."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfgate.baseline import Baseline
from perfgate.clock import Method
from perfgate.gate import Exit, Outcome, decide
from perfgate.record import Record
from perfgate.verdict import Rule, State
from tests.perfgate.simulate import H200, record

STEADY = (1.000e-3, 1.001e-3, 0.999e-3, 1.0005e-3, 0.9995e-3)
NAMES = [f"c{i}" for i in range(8)]


def baseline(*names: str, out_of_memory: Mapping[str, str] | None = None) -> Baseline:
    records = {name: record(name, STEADY) for name in names}
    return Baseline(environment=H200, records=records, out_of_memory=out_of_memory or {}, processes=5)


def run(*names: str, **slower: float) -> dict[str, Record]:
    return {name: record(name, [1e-3 * slower.get(name, 1.0)]) for name in names}


def states(outcome: Outcome) -> dict[str, State]:
    return {v.case: v.state for v in outcome.verdicts}


def test_unchanged_code_is_green_and_silent() -> None:
    outcome = decide(run(*NAMES), baseline(*NAMES), strict=True)
    assert outcome.exit is Exit.OK
    assert set(states(outcome).values()) == {State.UNCHANGED}
    assert outcome.sentences == ()


def test_a_regression_fails_the_run_and_names_exactly_the_slowed_cases() -> None:
    outcome = decide(run(*NAMES, c3=1.1, c5=1.2), baseline(*NAMES))
    assert outcome.exit is Exit.REGRESSED == 1
    assert [s.split()[0] for s in outcome.sentences] == ["c5", "c3"]
    assert outcome.sentences[0] == f"c5 regressed: {outcome.verdicts[0].reason}"


def test_an_improvement_is_green() -> None:
    outcome = decide(run("a", a=0.8), baseline("a"))
    assert (outcome.exit, states(outcome)) == (Exit.OK, {"a": State.IMPROVED})


def test_the_worst_comes_first() -> None:
    new = run("same", "fast", "slow", "slower", "new", "open", fast=0.8, slow=1.1, slower=1.3, open=1.04)
    new["other"] = record("other", STEADY, method=Method(clock="host"))
    outcome = decide(new, baseline("same", "fast", "slow", "slower", "open", "gone", "other"))
    assert list(states(outcome)) == ["slower", "slow", "other", "gone", "open", "new", "fast", "same"]


def test_missing_cases_are_said_and_fail() -> None:
    outcome = decide(run("a", "b"), baseline("a", "b", "gone"))
    assert outcome.exit is Exit.INCOMPLETE
    assert states(outcome)["gone"] is State.MISSING
    assert outcome.sentences == ("1 case in the baseline, not measured now: gone",)


@pytest.mark.parametrize(("strict", "code"), [(False, Exit.OK), (True, Exit.INCOMPLETE)])
def test_new_cases_are_said_and_fail_if_strict(strict: bool, code: Exit) -> None:
    outcome = decide(run("a", "b", "new"), baseline("a", "b"), strict=strict)
    assert outcome.exit is code
    assert states(outcome)["new"] is State.NEW
    assert outcome.sentences == ("1 case not in the baseline: new",)


def test_what_was_deselected_is_not_missing() -> None:
    outcome = decide(run("a"), baseline("a", "b", "c"), selected={"a", "b"}, strict=True)
    assert states(outcome) == {"a": State.UNCHANGED, "b": State.MISSING}


@pytest.mark.parametrize("new", [[], ["unknown"]])
def test_a_gate_that_compared_nothing_is_not_green(new: list[str]) -> None:
    outcome = decide(run(*new), baseline("a"))
    assert outcome.exit is Exit.INCOMPLETE
    assert outcome.sentences[0] == "nothing was compared: no case measured now is in the baseline"


@pytest.mark.parametrize(("strict", "code"), [(False, Exit.OK), (True, Exit.INCOMPLETE)])
def test_without_a_baseline_all_is_new(strict: bool, code: Exit) -> None:
    outcome = decide(run("a", "b"), None, out_of_memory={"big": "needs 200 GiB"}, strict=strict)
    assert outcome.exit is code
    assert set(states(outcome).values()) == {State.NEW}
    assert outcome.sentences == ("no baseline: 3 cases measured, none compared",)


def test_another_method_is_refused() -> None:
    new = run("a", "b") | {"b": record("b", STEADY, method=Method(clock="host"))}
    outcome = decide(new, baseline("a", "b"))
    assert outcome.exit is Exit.REFUSED
    assert outcome.sentences[0].startswith("b refused: timed by another method: host")


def test_a_regression_outranks_a_refusal_which_outranks_incompleteness() -> None:
    new = run("a", "b", a=1.2) | {"b": record("b", STEADY, method=Method(clock="host"))}
    assert decide(new, baseline("a", "b", "gone"), strict=True).exit is Exit.REGRESSED
    new["a"] = record("a", [1e-3])
    assert decide(new, baseline("a", "b", "gone"), strict=True).exit is Exit.REFUSED


def test_a_case_that_no_longer_fits_into_memory_has_regressed() -> None:
    outcome = decide(run("a"), baseline("a", "big"), out_of_memory={"big": "needs 200 GiB"})
    assert outcome.exit is Exit.REGRESSED
    assert outcome.sentences == ("big regressed: out of memory, but not in the baseline: needs 200 GiB",)


def test_a_case_that_never_fitted_is_unchanged_and_one_that_fits_now_improved() -> None:
    before = baseline("a", out_of_memory={"big": "needs 200 GiB", "huge": "needs 2 TiB"})
    outcome = decide(run("a", "big"), before, out_of_memory={"huge": "needs 2 TiB"}, strict=True)
    assert states(outcome) == {"a": State.UNCHANGED, "big": State.IMPROVED, "huge": State.UNCHANGED}
    assert outcome.exit is Exit.OK


def test_a_case_that_never_fitted_is_missing_if_not_even_tried() -> None:
    outcome = decide(run("a"), baseline("a", out_of_memory={"big": "needs 200 GiB"}), strict=True)
    assert states(outcome)["big"] is State.MISSING
    assert outcome.exit is Exit.INCOMPLETE


def test_unresolved_cases_say_what_may_hide_there() -> None:
    outcome = decide(run("a", "b", b=1.04), baseline("a", "b"))
    assert outcome.exit is Exit.OK
    visible = next(v.visible for v in outcome.verdicts if v.case == "b")
    assert outcome.sentences == (f"1 case unresolved; slowdowns up to {visible:.1%} may hide there",)


def test_the_rule_is_the_callers() -> None:
    wide = Rule(floor=0.5)
    assert decide(run("a", a=1.2), baseline("a"), rule=wide).exit is Exit.OK
    assert decide(run("a", a=1.2), baseline("a")).exit is Exit.REGRESSED


def test_what_the_gpu_slowed_down_for_in_heat_is_not_called_and_not_green() -> None:
    new = run("a", "b", b=1.2)
    (cool,) = new["b"].processes
    hot = replace(cool, counters={"throttle_reasons": 64.0})
    outcome = decide({**new, "b": replace(new["b"], processes=(hot,))}, baseline("a", "b"))
    assert states(outcome)["b"] is State.UNRESOLVED
    assert outcome.exit is Exit.UNFIT
    assert outcome.sentences[-1].startswith("1 case not judged, for the GPU slowed down for heat")
    assert decide(new, baseline("a", "b")).exit is Exit.REGRESSED


subsets = st.sets(st.sampled_from(NAMES))


@given(subsets, subsets, subsets)
def test_every_case_has_one_verdict_and_nothing_missing_is_green_when_strict(
    before: set[str], now: set[str], lost: set[str]
) -> None:
    outcome = decide(run(*now), baseline(*before), out_of_memory=dict.fromkeys(lost, "too large"), strict=True)
    assert sorted(v.case for v in outcome.verdicts) == sorted(before | now | lost)
    assert (outcome.exit is Exit.OK) == (bool(before) and before == now and not lost)


def test_a_strict_run_fails_of_what_is_unresolved_after_all_that_is_worse() -> None:
    new = run("a", "open", open=1.04)
    assert decide(new, baseline("a", "open"), strict=True).exit is Exit.UNRESOLVED == 14
    assert decide(new, baseline("a", "open", "gone"), strict=True).exit is Exit.INCOMPLETE
    assert decide(new, baseline("a", "open")).exit is Exit.OK
