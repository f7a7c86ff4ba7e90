"""A clock times a call on a device and gives samples.

All that perfgate asks of hardware is `Clock`, of which one method is to be written. Here are those of the host and a
fake one for tests; the clock of a CUDA device is in `perfgate.cuda`. Nothing here imports torch or pytest.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from perfgate.kernels import Kernels
from perfgate.stats import median_half_width, quantile

__all__ = [
    "LEAST_SHARE",
    "Budget",
    "Clock",
    "FakeClock",
    "HostClock",
    "Inputs",
    "MeasureError",
    "Method",
    "Prepared",
    "Samples",
]

Inputs = Sequence[tuple[Any, ...]] | Callable[[int], tuple[Any, ...]]
"""Argument tuples for the call, each at addresses of its own; or a function that makes the i-th, for a clock to call as
often as it has use for another one."""

LEAST_SHARE = 0.1
"""Of a window's time the calls have at least this share, whatever it takes for itself."""
AGAIN = "looked slower than its baseline and was timed"
NO_INPUTS = "inputs is empty: expected at least one tuple of arguments, () for a call without any"


class MeasureError(RuntimeError):
    """A case could not be timed honestly: the message names the culprit and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How a case was timed. Durations are comparable only if they were taken by equal methods.

    Attributes:
        clock: ``"cuda-events"``, ``"host"`` or ``"fake"``.
        l2: The device's last cache before a call: ``"cold"``, ``"warm"``, or ``"any"`` where a clock has no say.
        launch: What removes launch gaps: ``"graph"`` (CUDA-graph replay), ``"queue"`` (work queued behind a blocking
            kernel), or ``"direct"`` (nothing does).
        version: Raised whenever a clock's durations change their meaning.
    """

    clock: str
    l2: str = "any"
    launch: str = "direct"
    version: int = 1

    def __str__(self) -> str:
        return f"{self.clock} v{self.version}, L2 {self.l2}, {self.launch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Durations of independent calls, in the order they ran.

    Attributes:
        seconds: One duration a call (the mean of a window where calls are batched). The order keeps drift visible;
            nothing is ever dropped.
        method: How they were taken.
        counters: What else was reported, in SI units: ``peak_bytes``, ``sm_hz``, ``watts``, ``celsius``,
            ``throttle_reasons`` (NVML's bits), ``calls_per_window``, ``input_sets``, ``window_seconds`` (what
            a window takes for itself), ``half_width`` (relative 95 % interval of the median).
        notes: What a reader must know, e.g. that the time bound was hit.
        kernels: What a call launches on the device, where the clock can tell.
    """

    seconds: tuple[float, ...]
    method: Method
    counters: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    kernels: Kernels | None = None

    def __post_init__(self) -> None:
        if not self.seconds:
            raise ValueError("samples are empty: at least one duration is needed")
        bad = [s for s in self.seconds if not (math.isfinite(s) and s > 0)]
        if bad:
            raise ValueError(f"durations must be positive and finite, got {bad[0]!r} among {len(self.seconds)}")

    @property
    def median(self) -> float:
        """Median duration in seconds."""
        return quantile(self.seconds, 0.5)

    def at_window(self, seconds: float) -> Samples:
        """These samples, had the clock known that a window takes `seconds` for itself: other than what it took off.

        Raises:
            KeyError: If the clock took nothing off windows.
        """
        was, calls = self.counters["window_seconds"], self.counters["calls_per_window"]
        windows = (min(s * calls + was, s * calls / LEAST_SHARE) for s in self.seconds)
        return replace(
            self,
            seconds=tuple(max(window - seconds, LEAST_SHARE * window) / calls for window in windows),
            counters={**self.counters, "window_seconds": seconds},
        )

    def followed_by(self, later: Samples) -> Samples:
        """These samples and those of a later visit to the same case, in one; counters are the later visit's.

        Raises:
            MeasureError: If they were taken by different methods.
        """
        if later.method != self.method:
            raise MeasureError(f"samples of one case were taken by different methods: {self.method} and {later.method}")
        visits = int(self.counters.get("visits", 1)) + 1
        seconds = (*self.seconds, *later.seconds)
        counters = {**later.counters, "visits": float(visits), "half_width": median_half_width(seconds)}
        reasons = [int(s.counters["throttle_reasons"]) for s in (self, later) if "throttle_reasons" in s.counters]
        if reasons:
            counters["throttle_reasons"] = float(reasons[0] | reasons[-1])
        notes = [note for note in (*self.notes, *later.notes) if not note.startswith(AGAIN)]
        return Samples(
            seconds=seconds,
            method=self.method,
            counters=counters,
            notes=(*dict.fromkeys(notes), f"{AGAIN} {visits} times"),
            kernels=later.kernels,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When a measurement has enough samples.

    Attributes:
        half_width: Relative half width of the median's 95 % interval at which to stop.
        max_seconds: Time bound for the samples of one case; hitting it is said in the samples' notes.
        min_samples: No stop for precision before this many. The time bound stops no earlier than `LEAST`, or these if
            they are fewer.
        max_samples: Never more than this many.
        warmup_seconds: Least time that the device works untimed before the first sample.
    """

    half_width: float = 0.003
    max_seconds: float = 0.5
    min_samples: int = 20
    max_samples: int = 1000
    warmup_seconds: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.half_width < 1:
            raise ValueError(f"half_width must lie between 0 and 1, got {self.half_width!r}")
        if not 1 <= self.min_samples <= self.max_samples:
            raise ValueError(f"expected 1 <= min_samples <= max_samples, got {self.min_samples} and {self.max_samples}")

    LEAST = 6
    """The fewest samples whose range covers the median with more than 95 % (1 - 2 / 2**6)."""

    def enough(self, seconds: Sequence[float], spent: float) -> tuple[bool, float, str | None]:
        """Return (stop?, relative half width reached, a note if the stop is not for precision)."""
        if len(seconds) < min(self.LEAST, self.min_samples):
            return False, math.inf, None
        width = median_half_width(seconds)
        if width <= self.half_width and len(seconds) >= self.min_samples:
            return True, width, None
        if spent >= self.max_seconds or len(seconds) >= self.max_samples:
            bound = f"{self.max_seconds:g} s" if spent >= self.max_seconds else f"{self.max_samples} samples"
            known = f"the median is known to ±{width:.1%}" if width < math.inf else "too few to know the median's error"
            return True, width, f"stopped at the bound of {bound}: {known}"
        return False, width, None


class Prepared(Protocol):
    """A call that is ready to be timed."""

    def time(self) -> Samples:
        """Time it, as often as this is called.

        Raises:
            MeasureError: If the durations would not be honest.
        """
        ...


class Clock(Protocol):
    """Times a callable on one device. All that perfgate asks of hardware: a clock inherits from this and prepares."""

    @abstractmethod
    def prepare(
        self, call: Callable[..., object], inputs: Inputs = ((),), *, l2: str = "cold"
    ) -> AbstractContextManager[Prepared]:
        """Make ``call(*inputs[i])`` ready to be timed; on exit whatever that took is given back.

        Args:
            call: What to time. Its result is ignored.
            inputs: Argument tuples, or what makes them; taken in turn.
            l2: ``"cold"`` or ``"warm"``: what the device's last cache holds before a call, where the clock has a say.
        """
        ...

    def measure(self, call: Callable[..., object], inputs: Inputs = ((),), *, l2: str = "cold") -> Samples:
        """Prepare a call and time it once; arguments and errors are those of `prepare` and `Prepared.time`."""
        with self.prepare(call, inputs, l2=l2) as prepared:
            return prepared.time()


class HostClock(Clock):
    """The host's monotonic clock, a call at a time: for work on the CPU.

    Args:
        budget: When to stop.
    """

    VERSION = 1

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget or Budget()

    @contextlib.contextmanager
    def prepare(
        self, call: Callable[..., object], inputs: Inputs = ((),), *, l2: str = "cold"
    ) -> Iterator[HostPrepared]:
        """Calls run one after the other; the caches are as the previous call left them, whatever ``l2`` asks for."""
        sets = [inputs(0)] if callable(inputs) else list(inputs)
        if not sets:
            raise ValueError(NO_INPUTS)
        yield HostPrepared(call, sets, self.budget, self.VERSION)


class HostPrepared:
    """A call that the host's clock is to time.

    Args:
        call: The call.
        sets: Its input sets.
        budget: When to stop.
        version: Of the method.
    """

    def __init__(
        self, call: Callable[..., object], sets: Sequence[tuple[Any, ...]], budget: Budget, version: int
    ) -> None:
        self._call, self._sets, self._budget, self._version = call, sets, budget, version

    def time(self) -> Samples:
        """Warm up, then time one call after the other."""
        call, turns = self._call, itertools.cycle(self._sets)
        start = time.perf_counter()
        while True:
            call(*next(turns))
            if time.perf_counter() - start >= self._budget.warmup_seconds:
                break
        seconds: list[float] = []
        start = time.perf_counter()
        while True:
            args = next(turns)
            begin = time.perf_counter()
            call(*args)
            end = time.perf_counter()
            seconds.append(end - begin)
            done, width, note = self._budget.enough(seconds, end - start)
            if done:
                return Samples(
                    seconds=tuple(seconds),
                    method=Method(clock="host", version=self._version),
                    counters={"half_width": width, "input_sets": float(len(self._sets))},
                    notes=(note,) if note else (),
                )


class FakeClock(Clock):
    """Calls once and invents the durations: for tests of suites, plugins and gates.

    Args:
        seconds: Duration of a call, or a function from the call's first result to it.
        noise: Relative standard deviation of the samples.
        process: Relative shift of all samples, as another process would show.
        seed: Makes the durations reproducible.
        n: Samples a measurement.
        kernels: What a call launches, or a function from the call's first result to it.
    """

    VERSION = 1

    def __init__(
        self,
        seconds: float | Callable[[object], float] = 1e-3,
        *,
        noise: float = 0.002,
        process: float = 0.0,
        seed: int = 0,
        n: int = 40,
        kernels: Kernels | Callable[[object], Kernels] | None = None,
    ) -> None:
        self._seconds, self._noise, self._process, self._n, self._kernels = seconds, noise, process, n, kernels
        self._random = random.Random(seed)

    @contextlib.contextmanager
    def prepare(
        self, call: Callable[..., object], inputs: Inputs = ((),), *, l2: str = "cold"
    ) -> Iterator[FakePrepared]:
        """Call once with the first input set, for normally distributed durations."""
        if not callable(inputs) and not inputs:
            raise ValueError(NO_INPUTS)
        result = call(*(inputs(0) if callable(inputs) else inputs[0]))
        centre = self._seconds(result) if callable(self._seconds) else self._seconds
        centre *= 1 + self._process
        kernels = self._kernels(result) if callable(self._kernels) else self._kernels

        def draw() -> Samples:
            return Samples(
                seconds=tuple(abs(centre * (1 + self._noise * self._random.gauss(0, 1))) for _ in range(self._n)),
                method=Method(clock="fake", l2=l2, version=self.VERSION),
                counters={"peak_bytes": 1024.0},
                kernels=kernels,
            )

        yield FakePrepared(draw)


@dataclass(frozen=True, slots=True)
class FakePrepared:
    """What gives a fake clock's durations."""

    time: Callable[[], Samples]
