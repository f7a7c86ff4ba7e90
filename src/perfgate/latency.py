"""How long single requests take, as who sends them sees it: alone, and under a load that does not wait for answers.

    isolated     the next request is sent when the last one has been answered
    open loop    requests are sent at times drawn in advance, whether or not the last one has been answered

The second is what users of a service feel: a request that comes while another is being served waits for it, and its
latency counts from when it was sent (Schroeder, Wierman, Harchol-Balter, 2006). One server, first come, first served.
A request must have its answer when the call returns: on a GPU the call waits for the device. As in timeit, Python
collects no garbage meanwhile: what it finds was left by all that ran before, and whoever is timed then pays for it.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from perfgate import garbage
from perfgate.stats import quantile

__all__ = ["HostTime", "Latency", "Time", "isolated", "open_loop", "poisson"]

SPIN_SECONDS = 0.001
LEAST = 100


class Time(Protocol):
    """What tells the time and lets it pass."""

    def now(self) -> float:
        """Seconds since some moment, never going back."""
        ...

    def wait_until(self, moment: float) -> None:
        """Return when `now` is at least ``moment``."""
        ...


class HostTime:
    """The host's monotonic clock. It sleeps up to the last millisecond, and spins through that."""

    def now(self) -> float:
        """See `Time`."""
        return time.perf_counter()

    def wait_until(self, moment: float) -> None:
        """See `Time`."""
        if (left := moment - self.now()) > SPIN_SECONDS:
            time.sleep(left - SPIN_SECONDS)
        while self.now() < moment:
            pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """What requests took, in seconds.

    Attributes:
        median: Half of them took less.
        p95: 95 in 100 took less.
        p99: 99 in 100 took less.
        requests: How many there were.
    """

    median: float
    p95: float
    p99: float
    requests: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Sum up latencies.

        Raises:
            ValueError: If there are too few for a P99, or one is not positive and finite.
        """
        if len(seconds) < LEAST:
            raise ValueError(f"a P99 needs at least {LEAST} requests, got {len(seconds)}")
        bad = [s for s in seconds if not (math.isfinite(s) and s > 0)]
        if bad:
            raise ValueError(f"latencies must be positive and finite, got {bad[0]!r}")
        median, p95, p99 = (quantile(seconds, q) for q in (0.5, 0.95, 0.99))
        return cls(median=median, p95=p95, p99=p99, requests=len(seconds))

    def reduction(self, reference: Latency) -> dict[str, float]:
        """By what share each figure is lower than the reference's: 0.5 is half as long, below zero is longer."""
        return {name: 1 - getattr(self, name) / getattr(reference, name) for name in ("median", "p95", "p99")}


def poisson(rate: float, requests: int, seed: int = 0) -> tuple[float, ...]:
    """Moments at which independent users send requests, in seconds from the start.

    Args:
        rate: Requests a second, in the mean.
        requests: How many.
        seed: Same seed, same moments; those of another rate are the same ones, stretched.

    Raises:
        ValueError: If the rate is not positive and finite.
    """
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"rate must be positive and finite, got {rate!r}")
    draw, moment, moments = random.Random(seed), 0.0, []
    for _ in range(requests):
        moment += draw.expovariate(1.0)
        moments.append(moment / rate)
    return tuple(moments)


def isolated(call: Callable[[], object], requests: int, clock: Time | None = None) -> tuple[float, ...]:
    """Latencies of requests of which each is sent when the one before has been answered, in seconds."""
    clock = clock or HostTime()
    seconds = []
    with garbage.kept():
        for _ in range(requests):
            sent = clock.now()
            call()
            seconds.append(clock.now() - sent)
    return tuple(seconds)


def open_loop(call: Callable[[], object], moments: Sequence[float], clock: Time | None = None) -> tuple[float, ...]:
    """Latencies of requests that are sent at given moments, answered one at a time in their order, in seconds.

    Args:
        call: Answers a request.
        moments: When requests are sent, in seconds from the start, in order.
        clock: The host's if None.

    Raises:
        ValueError: If moments are not in order.
    """
    if any(later < earlier for earlier, later in itertools.pairwise(moments)):
        raise ValueError("moments must be in order: sort them")
    clock = clock or HostTime()
    seconds = []
    with garbage.kept():
        start = clock.now()
        for moment in moments:
            clock.wait_until(start + moment)
            call()
            seconds.append(clock.now() - start - moment)
    return tuple(seconds)
