"""perfgate: speed as a test.

A pytest plugin that times work on the device, hands the durations to pytest-benchmark, and holds them against
committed baselines. It knows nothing of what it times.
"""

from perfgate.case import Case, Work
from perfgate.clock import Budget, Clock, FakeClock, HostClock, MeasureError, Method, Samples
from perfgate.environment import Environment
from perfgate.record import Record

__all__ = [
    "Budget",
    "Case",
    "Clock",
    "Environment",
    "FakeClock",
    "HostClock",
    "MeasureError",
    "Method",
    "Record",
    "Samples",
    "Work",
]
