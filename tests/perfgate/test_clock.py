"""Clocks call what they are given, keep every duration in order, and stop when they know enough."""

from __future__ import annotations

import itertools
import math
import time

import pytest

from perfgate.clock import Budget, Clock, FakeClock, HostClock, Method, Samples
from perfgate.stats import median_half_width

SHORT = Budget(max_seconds=0.05, warmup_seconds=0.01, min_samples=6, max_samples=50)


@pytest.mark.parametrize("seconds", [(), (0.0,), (-1.0,), (1.0, math.nan), (math.inf,)])
def test_samples_are_positive_durations(seconds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"samples are empty|positive and finite"):
        Samples(seconds=seconds, method=Method(clock="fake"))


def test_a_methods_name_says_all_that_must_match() -> None:
    assert str(Method(clock="cuda-events", l2="cold", launch="graph", version=2)) == "cuda-events v2, L2 cold, graph"


@pytest.mark.parametrize(
    "kind", [{"half_width": 0.0}, {"half_width": math.nan}, {"min_samples": 0}, {"max_samples": 3}]
)
def test_an_impossible_budget_is_an_error(kind: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        Budget(**kind)  # type: ignore[arg-type]


def test_a_steady_measurement_stops_for_precision_without_a_note() -> None:
    assert Budget().enough([1e-3] * 20, spent=0.0) == (True, 0.0, None)


def test_a_measurement_goes_on_until_its_median_is_known() -> None:
    wild = [1e-3, 2e-3] * 15
    done, width, _ = Budget().enough(wild, spent=0.1)
    assert not done
    assert width > Budget().half_width


@pytest.mark.parametrize(
    ("budget", "spent", "said"),
    [(Budget(max_seconds=0.5), 0.6, "0.5 s"), (Budget(max_samples=30), 0.1, "30 samples")],
)
def test_a_bound_that_is_hit_is_said_with_what_is_known(budget: Budget, spent: float, said: str) -> None:
    wild = [1e-3, 2e-3] * 15
    done, width, note = budget.enough(wild, spent)
    assert done
    assert note == f"stopped at the bound of {said}: the median is known to ±{width:.1%}"


def test_few_samples_can_be_enough_where_that_is_asked_for() -> None:
    budget = Budget(min_samples=4, max_seconds=0.05)
    assert not budget.enough([1.0] * 3, spent=1e9)[0]
    done, width, note = budget.enough([1.0] * 4, spent=0.06)
    assert (done, width) == (True, math.inf)
    assert note == "stopped at the bound of 0.05 s: too few to know the median's error"
    assert not budget.enough([1.0] * 5, spent=0.0)[0]
    assert budget.enough([1.0] * 6, spent=0.0) == (True, 0.0, None)


def test_the_time_bound_leaves_enough_samples_to_know_a_median() -> None:
    for n in range(1, 10):
        done, width, _ = Budget().enough([1.0, 2.0] * n, spent=1e9)
        assert done == math.isfinite(width)


def test_the_host_clock_times_calls_on_input_sets_in_turn() -> None:
    seen: list[int] = []

    def call(i: int) -> None:
        seen.append(i)
        time.sleep(1e-3)

    found = HostClock(SHORT).measure(call, [(0,), (1,), (2,)])
    assert min(found.seconds) >= 1e-3
    assert all(b == (a + 1) % 3 for a, b in itertools.pairwise(seen))
    assert len(seen) > len(found.seconds)
    assert found.method.clock == "host"
    assert found.counters["input_sets"] == 3
    assert found.counters["half_width"] == median_half_width(found.seconds)


def test_the_host_clock_says_when_it_ran_out_of_time() -> None:
    waits = iter([1e-3, 9e-3] * 100)
    found = HostClock(SHORT).measure(lambda: time.sleep(next(waits)))
    assert "stopped at the bound of" in found.notes[0]


@pytest.mark.parametrize("clock", [HostClock(SHORT), FakeClock()], ids=["host", "fake"])
def test_a_clock_needs_inputs(clock: Clock) -> None:
    with pytest.raises(ValueError, match="inputs is empty"):
        clock.measure(lambda: None, [])


def test_an_error_of_the_call_is_the_callers() -> None:
    def call() -> None:
        raise RuntimeError("mine")

    for clock in (HostClock(SHORT), FakeClock()):
        with pytest.raises(RuntimeError, match="mine"):
            clock.measure(call)


def test_the_fake_clock_calls_once_and_is_reproducible() -> None:
    calls: list[int] = []
    one, two = (FakeClock(1e-3, seed=3).measure(lambda: calls.append(1)) for _ in range(2))
    assert len(calls) == 2
    assert one == two
    assert one.median == pytest.approx(1e-3, rel=0.002)
    assert FakeClock(1e-3, seed=4).measure(lambda: None) != one


def test_the_fake_clock_takes_a_process_shift_and_durations_from_results() -> None:
    shifted = FakeClock(lambda result: float(str(result)), noise=0.0, process=0.05)
    assert shifted.measure(lambda x: x, [(2e-3,)]).median == pytest.approx(2.1e-3)
