"""Finished durations, handed to pytest-benchmark."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfgate.replay import ReplayClock, hand_over


class Recorder:
    """As pytest-benchmark's fixture does it: a timer read before and after each round."""

    def __init__(self, clock: ReplayClock, drop: int = 0) -> None:
        self.clock, self.drop = clock, drop
        self.stats: dict[str, list[float]] = {}

    def pedantic(self, target: Any, rounds: int, iterations: int, warmup_rounds: int) -> Any:
        assert (iterations, warmup_rounds) == (1, 0)
        data = []
        result = None
        for _ in range(rounds - self.drop):
            start = self.clock()
            result = target()
            data.append(self.clock() - start)
        self.stats["data"] = data
        return result


durations = st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=50)


@given(durations)
def test_what_is_recorded_is_what_was_measured_to_the_last_bit(seconds: list[float]) -> None:
    clock = ReplayClock()
    recorder = Recorder(clock)
    hand_over(recorder, clock, seconds, lambda: None)
    assert recorder.stats["data"] == seconds


@given(durations)
def test_the_call_runs_once_and_its_result_comes_back(seconds: list[float]) -> None:
    clock = ReplayClock()
    calls: list[int] = []

    def call() -> str:
        calls.append(1)
        return "result"

    assert hand_over(Recorder(clock), clock, seconds, call) == "result"
    assert len(calls) == 1


def test_a_release_that_records_something_else_is_an_error() -> None:
    clock = ReplayClock()
    with pytest.raises(RuntimeError, match="expected pytest-benchmark to record the 3 durations"):
        hand_over(Recorder(clock, drop=1), clock, [1.0, 2.0, 3.0], lambda: None)


def test_more_rounds_than_durations_are_an_error() -> None:
    clock = ReplayClock()
    clock.load([1.0])
    assert [clock(), clock(), clock()] == [0.0, 1.0, 0.0]
    with pytest.raises(RuntimeError, match="more rounds"):
        clock()


def test_loading_begins_anew_after_a_round_that_did_not_end() -> None:
    clock = ReplayClock()
    clock.load([1.0])
    clock()
    clock.load([2.0])
    assert [clock(), clock()] == [0.0, 2.0]
