"""Latencies of requests, with a clock that tells what it is told to tell."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfgate.latency import HostTime, Latency, isolated, open_loop, poisson


class Told:
    """Time that passes when somebody waits, or when a request is served."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def wait_until(self, moment: float) -> None:
        self.time = max(self.time, moment)

    def serve(self, services: Sequence[float]) -> Callable[[], None]:
        left = iter(services)

        def call() -> None:
            self.time += next(left)

        return call


def test_alone_a_request_takes_what_it_takes() -> None:
    clock = Told()
    assert isolated(clock.serve([1, 5, 2]), 3, clock) == (1, 5, 2)


def test_under_load_a_request_waits_for_those_before_it() -> None:
    clock = Told()
    #         sent 0, served until 3; sent 1, until 4; sent 2, until 9; sent 20, until 21
    assert open_loop(clock.serve([3, 1, 5, 1]), [0, 1, 2, 20], clock) == (3, 3, 7, 1)


@pytest.mark.parametrize("collecting", [True, False])
def test_no_garbage_is_collected_while_requests_are_timed(collecting: bool) -> None:
    seen: list[bool] = []

    def call() -> None:
        seen.append(gc.isenabled())
        if len(seen) == 3:
            raise RuntimeError("this request fails")

    try:
        if not collecting:
            gc.disable()
        isolated(call, 1, Told())
        open_loop(call, [0.0], Told())
        with pytest.raises(RuntimeError, match="this request fails"):
            isolated(call, 1, Told())
        assert gc.isenabled() is collecting
    finally:
        gc.enable()
    assert seen == [False] * 3


services = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=40)


@given(services)
def test_a_queue_is_what_lindley_says(drawn: list[tuple[int, int]]) -> None:
    moments, served = sorted(gap for gap, _ in drawn), [service for _, service in drawn]
    clock, wait, expected = Told(), 0, []
    for i, service in enumerate(served):
        if i:
            wait = max(0, wait + served[i - 1] - (moments[i] - moments[i - 1]))
        expected.append(wait + service)
    assert open_loop(clock.serve(served), moments, clock) == pytest.approx(expected)


@given(services)
def test_load_never_makes_a_request_faster(drawn: list[tuple[int, int]]) -> None:
    moments, served = sorted(gap for gap, _ in drawn), [service for _, service in drawn]
    clock = Told()
    assert all(got >= alone for got, alone in zip(open_loop(clock.serve(served), moments, clock), served, strict=True))


def test_the_mean_wait_is_what_pollaczek_and_khinchin_say() -> None:
    # constant service at load 0.7: the mean wait is 0.7 / (2 (1 - 0.7)) services
    clock, n = Told(), 200_000
    waits = [got - 1 for got in open_loop(clock.serve([1.0] * n), poisson(0.7, n), clock)]
    assert sum(waits) / n == pytest.approx(0.7 / 0.6, rel=0.05)


def test_arrivals_have_the_rate_and_are_reproducible() -> None:
    moments = poisson(50.0, 20_000, seed=3)
    assert moments[-1] == pytest.approx(20_000 / 50, rel=0.03)
    assert moments == poisson(50.0, 20_000, seed=3) != poisson(50.0, 20_000, seed=4)
    assert poisson(100.0, 10) == pytest.approx([moment / 2 for moment in poisson(50.0, 10)])
    for rate in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="rate must be positive and finite"):
            poisson(rate, 3)


def test_figures_are_those_of_the_sample() -> None:
    seconds = [i / 1000 for i in range(1, 1002)]
    random.Random(0).shuffle(seconds)
    found = Latency.of(seconds)
    assert (found.median, found.p95, found.p99) == pytest.approx((0.501, 0.951, 0.991))
    assert found.requests == 1001
    half = Latency.of([s / 2 for s in seconds])
    assert half.reduction(found) == pytest.approx({"median": 0.5, "p95": 0.5, "p99": 0.5})
    assert found.reduction(half)["p95"] == pytest.approx(-1)


def test_too_few_requests_or_impossible_latencies_are_refused() -> None:
    with pytest.raises(ValueError, match="a P99 needs at least 100 requests, got 99"):
        Latency.of([1.0] * 99)
    with pytest.raises(ValueError, match="positive and finite, got 0"):
        Latency.of([1.0] * 99 + [0.0])
    with pytest.raises(ValueError, match="moments must be in order"):
        open_loop(lambda: None, [1.0, 0.5], Told())


def test_the_hosts_time_waits() -> None:
    clock = HostTime()
    for seconds in (0.0, 0.0005, 0.004):
        moment = clock.now() + seconds
        clock.wait_until(moment)
        assert clock.now() >= moment
