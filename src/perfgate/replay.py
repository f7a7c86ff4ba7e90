"""Finished durations into pytest-benchmark, through its documented API alone.

    round 1   timer -> 0.0, target() does nothing, timer -> seconds[0]
    round 2   timer -> 0.0, target() does nothing, timer -> seconds[1]
    ...
    round n   timer -> 0.0, target() is the call,  timer -> seconds[n-1]

pytest-benchmark subtracts the timer's two readings, so it records exactly the floats that were measured. The timer gets
there by the marker ``benchmark(timer=...)``, the rounds by ``benchmark.pedantic``. No private name is touched, and
nothing here imports pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

__all__ = ["ReplayClock", "hand_over"]

T = TypeVar("T")


class ReplayClock:
    """A timer that reads zero when a round starts and the round's recorded duration when it ends."""

    __name__ = "replay"  # pytest-benchmark stores a timer by its name

    def __init__(self) -> None:
        self._durations: Iterator[float] = iter(())
        self._running = False

    def load(self, seconds: Sequence[float]) -> None:
        """Take the durations of the rounds to come."""
        self._durations, self._running = iter(seconds), False

    def __call__(self) -> float:
        """The next reading in seconds.

        Raises:
            RuntimeError: If more rounds are run than durations were loaded.
        """
        self._running = not self._running
        if self._running:
            return 0.0
        for duration in self._durations:
            return duration
        raise RuntimeError("pytest-benchmark ran more rounds than were measured")


def hand_over(benchmark: Any, clock: ReplayClock, seconds: Sequence[float], call: Callable[[], T]) -> T:
    """Let pytest-benchmark record these durations, and return what the call returns.

    The call runs once, in the last round, and again where pytest-benchmark asks for more (``--benchmark-cprofile``).

    Args:
        benchmark: pytest-benchmark's fixture, its timer being `clock`.
        clock: The timer of the test's ``benchmark`` marker.
        seconds: One duration a round.
        call: What was timed.

    Raises:
        RuntimeError: If pytest-benchmark recorded something else.
    """
    clock.load(seconds)
    left = len(seconds)

    def target() -> T | None:
        nonlocal left
        left -= 1
        return None if left > 0 else call()

    result: T = benchmark.pedantic(target, rounds=len(seconds), iterations=1, warmup_rounds=0)
    recorded = list(benchmark.stats["data"])
    if recorded != list(seconds):
        raise RuntimeError(
            f"expected pytest-benchmark to record the {len(seconds)} durations that were measured, got {len(recorded)} "
            "others: use a release of pytest-benchmark that perfgate was tested with"
        )
    return result
