"""A case that looks slower than its baseline is timed again before it is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from perfgate.clock import MeasureError, Method, Samples
from tests.perfgate.conftest import Suite

FIRST_ONLY = """
    import pytest
    from perfgate import FakeClock

    class Restless:
        def __init__(self):
            self.calls, self.clock = 0, FakeClock(seconds=lambda result: result)

        def measure(self, call, inputs=((),), *, l2="cold"):
            self.calls += 1
            slow = 1.2 if self.calls <= SLOW else 1.0
            return self.clock.measure(lambda: slow * call(), inputs, l2=l2)

    @pytest.hookimpl(tryfirst=True)
    def pytest_perf_clock(config):
        return Restless()
"""


@pytest.mark.parametrize(("slow", "code"), [(1, 0), (9, 1)])
def test_a_moment_of_slowness_is_not_a_regression_and_a_lasting_one_is(
    suite: Suite, filed: Path, slow: int, code: int
) -> None:
    suite.write(restless=FIRST_ONLY.replace("SLOW", str(slow)))
    suite.pytester.syspathinsert()
    result = suite.run("-p", "restless", "test_speed.py::test_speed[a]", "--benchmark-compare")
    assert result.ret == code
    result.stdout.fnmatch_lines(["*looked slower than its baseline and was timed*times*"])


def test_a_case_that_is_not_slower_is_timed_once(suite: Suite, filed: Path) -> None:
    result = suite.run("--benchmark-compare")
    result.stdout.no_fnmatch_line("*was timed*")


def test_samples_of_two_visits_are_all_kept_in_order() -> None:
    method = Method(clock="fake")
    first, second = (Samples(seconds=(s,) * 10, method=method) for s in (2.0, 1.0))
    both = first.followed_by(second)
    assert both.seconds == (2.0,) * 10 + (1.0,) * 10
    assert both.counters["visits"] == 2
    assert both.followed_by(second).notes == ("looked slower than its baseline and was timed 3 times",)


def test_samples_of_different_methods_do_not_go_together() -> None:
    a, b = (Samples(seconds=(1.0,), method=Method(clock=name)) for name in ("fake", "host"))
    with pytest.raises(MeasureError, match="different methods"):
        a.followed_by(b)
