"""Plans and rests; what plays a plan on a device is tested in test_cuda."""

from __future__ import annotations

import pytest

from perfgate.windows import Pace, Plan


class Time:
    """Passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr("perfgate.windows.time", time)
    return time


def test_the_device_rests_for_as_long_as_its_share_of_work_asks(time: Time) -> None:
    pace = Pace(0.25)
    for work in (1.0, 2.0):
        with pace.piece():
            time.now += work
    with pace.piece():
        pass
    assert time.slept == [3.0, 6.0]
    assert pace.worked == 3.0


def test_time_that_passes_between_two_pieces_is_rest(time: Time) -> None:
    pace = Pace(0.5)
    with pace.piece():
        time.now += 1.0
    time.now += 0.75
    with pace.piece():
        pass
    assert time.slept == [0.25]
    time.now += 10.0
    with pace.piece():
        pass
    assert time.slept == [0.25]


def test_who_works_all_the_time_never_rests(time: Time) -> None:
    pace = Pace(1.0)
    for _ in range(3):
        with pace.piece():
            time.now += 1.0
    assert time.slept == []


@pytest.mark.parametrize("duty", [0.0, -1.0, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(duty: float) -> None:
    with pytest.raises(ValueError, match=r"duty must be above 0 and at most 1, got"):
        Pace(duty)


def test_windows_are_joined_to_samples_and_their_calls_share_them() -> None:
    windows = tuple(((i,), (i + 1,)) for i in range(4))
    plan = Plan(windows, joined=2, l2="cold", flush=lambda: None, seconds=1e-6)
    assert plan.calls == 2
    assert plan.samples([4.0, 8.0, 2.0, 2.0]) == [3.0, 1.0]


def test_what_a_window_takes_for_itself_is_taken_off_each() -> None:
    windows = tuple(((i,), (i + 1,)) for i in range(4))
    plan = Plan(windows, joined=2, l2="cold", flush=lambda: None, seconds=1e-6, excess=1.0)
    assert plan.samples([4.0, 8.0, 2.0, 2.0]) == [2.5, 0.5]


def test_never_all_of_a_window_is_taken_off() -> None:
    plan = Plan((((),),), joined=1, l2="cold", flush=lambda: None, seconds=1e-6, excess=9.0)
    assert plan.samples([4.0, 20.0]) == [0.4, 11.0]
