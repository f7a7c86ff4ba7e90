"""Plans and rests; what plays a plan on a device is tested in test_cuda."""

from __future__ import annotations

import time

import pytest

from perfgate.windows import Pace, Plan


def test_the_device_rests_for_as_long_as_its_share_of_work_asks() -> None:
    pace = Pace(0.25)
    with pace.piece():
        time.sleep(0.01)
    done = time.perf_counter()
    with pace.piece():
        rested = time.perf_counter() - done
    assert rested >= 0.029
    assert 0.01 <= pace.worked < 0.03


def test_time_that_passes_between_two_pieces_is_rest() -> None:
    pace = Pace(0.5)
    with pace.piece():
        time.sleep(0.01)
    time.sleep(0.02)
    asked = time.perf_counter()
    with pace.piece():
        assert time.perf_counter() - asked < 0.005


@pytest.mark.parametrize("duty", [0.0, -1.0, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(duty: float) -> None:
    with pytest.raises(ValueError, match=r"duty must be above 0 and at most 1, got"):
        Pace(duty)


def test_windows_are_joined_to_samples_and_their_calls_share_them() -> None:
    windows = tuple(((i,), (i + 1,)) for i in range(4))
    plan = Plan(windows, joined=2, l2="cold", flush=lambda: None, seconds=1e-6)
    assert plan.calls == 2
    assert plan.samples([4.0, 8.0, 2.0, 2.0]) == [3.0, 1.0]
