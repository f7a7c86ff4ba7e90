"""Speed that was bought with memory or accuracy is said, and nothing else is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfgate import price
from perfgate.baseline import Baseline
from perfgate.clock import Method
from perfgate.gate import Exit, decide
from perfgate.record import Record
from perfgate.verdict import Noise, Quantity, Rule, State, Verdict
from tests.perfgate.simulate import H200, record

MIB = 2**20


def counted(*values: float, name: str = "x", counter: str = "peak_bytes") -> Record:
    """A case of the usual duration whose processes report this."""
    plain = record(name, [1e-3] * len(values))
    processes = tuple(replace(s, counters={counter: float(v)}) for s, v in zip(plain.processes, values, strict=True))
    return replace(plain, processes=processes)


def wrong(*values: float, name: str = "x", tensor: str = "out") -> Record:
    return counted(*values, name=name, counter=f"error.{tensor}")


def only(found: Sequence[Verdict]) -> Verdict:
    (verdict,) = found
    return verdict


def states(found: Sequence[Verdict]) -> dict[Quantity, State]:
    return {v.quantity: v.state for v in found}


@pytest.mark.parametrize(
    ("now", "then", "state"),
    [
        (100 * MIB, 100 * MIB, None),
        (2048, 512, None),  # four times as much, and nothing that a device would notice
        (1.5 * MIB, 0.6 * MIB, None),
        (2.0 * MIB, 0.6 * MIB, State.REGRESSED),
        (100.9 * MIB, 100 * MIB, None),
        (1008 * MIB, 1000 * MIB, None),  # 8 MiB, and below 1 %
        (1011 * MIB, 1000 * MIB, State.REGRESSED),
        (1000 * MIB, 1011 * MIB, State.IMPROVED),
        (2 * MIB, 0, State.REGRESSED),
        (0, 2 * MIB, State.IMPROVED),
    ],
)
def test_memory_counts_above_one_per_cent_and_one_mebibyte(now: float, then: float, state: State | None) -> None:
    found = price.judge(counted(now), counted(then))
    assert states(found) == ({} if state is None else {Quantity.MEMORY: state})


def test_a_verdict_of_memory_has_both_numbers() -> None:
    found = only(price.judge(counted(300 * MIB), counted(200 * MIB, 200 * MIB)))
    assert str(found) == (
        "x regressed in memory: peak memory 314,572,800 B now, 209,715,200 B in the baseline (+50.0 %)"
    )
    assert (found.ratio, found.low, found.high) == (1.5, 1.5, 1.5)


def test_a_count_that_came_out_too_small_in_one_process_decides_nothing() -> None:
    assert price.judge(counted(200 * MIB), counted(3 * MIB, 200 * MIB, 200 * MIB)) == []
    assert price.judge(counted(3 * MIB, 200 * MIB), counted(200 * MIB)) == []


@given(st.integers(0, 2**36), st.integers(0, 2**36))
def test_memory_mirrors(a: int, b: int) -> None:
    mirror = {State.REGRESSED: State.IMPROVED, State.IMPROVED: State.REGRESSED}
    there, back = (states(price.judge(counted(x), counted(y))) for x, y in ((a, b), (b, a)))
    assert back == {quantity: mirror[state] for quantity, state in there.items()}


@pytest.mark.parametrize(
    ("now", "then", "state"),
    [
        ([1.0], [1.0] * 5, None),
        ([1.04], [1.0] * 5, None),
        ([1.06], [1.0] * 5, State.REGRESSED),  # the processes agree to the last bit: 6 % is no noise
        ([1.06, 1.06], [1.0], State.REGRESSED),
        ([1.06], [1.0], State.UNRESOLVED),  # nobody knows how far processes differ
        ([1.04], [1.0], None),
        ([0.5], [1.0], None),
        ([0.9], [1.0] * 5, State.IMPROVED),
        ([1.06], [0.95, 1.05, 1.0, 0.97, 1.03], State.UNRESOLVED),
        ([1.5], [0.95, 1.05, 1.0, 0.97, 1.03], State.REGRESSED),
        ([1e-12], [0.0] * 5, State.REGRESSED),
        ([0.0], [0.0] * 5, None),
        ([1e-30], [1e-3] * 5, State.IMPROVED),
    ],
)
def test_accuracy_counts_beyond_five_per_cent_and_its_own_noise(
    now: list[float], then: list[float], state: State | None
) -> None:
    found = price.judge(wrong(*now), wrong(*then))
    assert states(found) == ({} if state is None else {Quantity.ACCURACY: state})


def test_a_case_has_one_verdict_of_accuracy_that_of_the_worst_tensor() -> None:
    def errors(out: float, dq: float, dk: float) -> Record:
        return price.with_errors(record("x", [1e-3] * 2), {"out": out, "dq": dq, "dk": dk})

    found = only(price.judge(errors(0.5, 1.2, 1.1), errors(1, 1, 1)))
    assert (found.state, found.ratio) == (State.REGRESSED, pytest.approx(1.2))
    assert found.reason == (
        "mean error of dq 1.2 now, 1 in the baseline (+20.0 %); mean error of out 0.5 now, 1 in the baseline "
        "(-50.0 %); mean error of dk 1.1 now, 1 in the baseline (+10.0 %)"
    )


@pytest.mark.parametrize(
    ("now", "then", "more"),
    [
        ([1.06], [1.0], True),
        ([1.06], [0.95, 1.05], True),
        ([1.06, 1.06], [1.0, 1.0], False),
        ([1.04], [1.0], False),
        ([1e-9], [0.0], False),
        ([], [1.0], False),
    ],
)
def test_more_checks_are_wanted_where_growth_could_be_chance(now: list[float], then: list[float], more: bool) -> None:
    new = wrong(*now) if now else record("x", [1e-3])
    assert price.doubtful(new, wrong(*then)) is more


def test_what_was_known_of_accuracy_and_is_not_any_more_is_missing() -> None:
    now, then = record("x", [1e-3]), wrong(1e-4)
    assert states(price.judge(now, then)) == {Quantity.ACCURACY: State.MISSING}
    assert states(price.judge(now, counted(2e9))) == {Quantity.MEMORY: State.MISSING}
    before = Baseline(environment=H200, records={"x": then})
    assert decide({"x": now}, before).exit is Exit.INCOMPLETE
    told = "x missing in accuracy: the mean error of out was 0.0001 in the baseline, and is not known now"
    assert told in decide({"x": now}, before).sentences


def test_records_without_errors_are_judged_as_before() -> None:
    old, new = record("x", [1e-3] * 5), price.with_errors(record("x", [1e-3]), {"out": 1.0})
    assert price.judge(new, old) == []
    assert states(price.assess(new, old, Rule(), Noise())).keys() == {Quantity.TIME}


def test_errors_travel_with_the_record() -> None:
    made = price.with_errors(record("x", [1e-3, 2e-3]), {"out": 1.5e-4, "dq": 2.5})
    assert price.errors(Record.from_json(made.to_json())) == {"out": [1.5e-4] * 2, "dq": [2.5] * 2}


def test_what_was_timed_by_another_method_is_refused_and_no_more_is_said() -> None:
    other = replace(record("x", [1e-3], method=Method(clock="host")))
    found = price.assess(price.with_errors(other, {"out": 9.0}), wrong(1.0), Rule(), Noise())
    assert states(found) == {Quantity.TIME: State.REFUSED}


@pytest.mark.parametrize("returned", [None, True, 3.0, "out"])
def test_a_check_need_not_return_errors(returned: object) -> None:
    assert price.checked(returned) == {}


@pytest.mark.parametrize("error", [float("nan"), float("inf"), -1.0, "much", None])
def test_an_error_is_a_finite_number_that_is_not_negative(error: object) -> None:
    with pytest.raises(ValueError, match="the error of out must be"):
        price.checked({"out": error})


@pytest.mark.parametrize("sd", [0.0, 0.005, 0.02, 0.1])
@pytest.mark.parametrize("processes", [2, 5])
def test_unchanged_accuracy_is_hardly_ever_called(sd: float, processes: int) -> None:
    # the interval leaves 0.05 % on each side, and the floor nothing where the sd is small beside it
    draw = random.Random(f"{sd} {processes}")
    called = 0
    for _ in range(4000):
        one, other = ([draw.gauss(1, sd) for _ in range(n)] for n in (1, processes))
        called += State.REGRESSED in states(price.judge(wrong(*one), wrong(*other))).values()
    assert called <= (0 if sd < 0.01 else 8)


@pytest.mark.parametrize(("sd", "growth", "share"), [(0.0, 1.06, 1.0), (0.005, 1.1, 0.95), (0.02, 1.5, 0.95)])
def test_growth_of_an_error_is_found(sd: float, growth: float, share: float) -> None:
    draw = random.Random(f"{sd} {growth}")
    found = 0
    for _ in range(500):
        now, then = wrong(growth * draw.gauss(1, sd)), wrong(*(draw.gauss(1, sd) for _ in range(5)))
        found += State.REGRESSED in states(price.judge(now, then)).values()
    assert found >= share * 500


@pytest.mark.parametrize(("now", "code"), [(wrong(1.5), Exit.REGRESSED), (wrong(0.5), Exit.OK), (wrong(1.0), Exit.OK)])
def test_a_case_that_got_less_accurate_fails_the_run_although_it_is_no_slower(now: Record, code: Exit) -> None:
    before = Baseline(environment=H200, records={"x": wrong(1.0, 1.0, 1.0)})
    outcome = decide({"x": now}, before)
    assert outcome.exit is code
    time = [v for v in outcome.verdicts if v.quantity is Quantity.TIME]
    assert [v.state for v in time] == [State.UNCHANGED]


def test_heat_excuses_no_memory() -> None:
    cool = counted(4e9)
    (samples,) = cool.processes
    hot = replace(cool, processes=(replace(samples, counters={**samples.counters, "throttle_reasons": 64.0}),))
    before = Baseline(environment=H200, records={"x": counted(2e9)})
    assert decide({"x": hot}, before).exit is Exit.REGRESSED
