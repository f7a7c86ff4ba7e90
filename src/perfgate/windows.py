"""Windows of device time: a plan of calls, and the two ways to play it.

`GraphRounds` captures windows into CUDA graphs and replays them, so launch gaps are gone; `QueueRounds` queues a window
behind a kernel that blocks the device until the host has launched everything, for calls that cannot be captured. Both
read every window from a pair of CUDA events on the stream that does the work, and both rest as `Pace` tells them.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from perfgate import garbage
from perfgate.clock import LEAST_SHARE

__all__ = ["GraphRounds", "Pace", "Plan", "QueueRounds", "Rounds", "capture", "elapsed"]

PIECE = 5e-3
"""Seconds of work between two rests, more only where one sample takes more."""
BLOCKING_HZ = 2.0e9
"""`torch.cuda._sleep` counts SM cycles; no SM runs faster than this, so the sleep is never too short."""
LONGEST_BLOCK = 0.2
FIRST_BLOCK = 1e-3


class Pace:
    """Rests after each piece of work, so that the device works for no more than a share of the time.

    At work all the time, a GPU whose kernels draw more power than its limit lowers its clock, overshoots, and hunts for
    the right one for seconds: the same kernel then takes longer, now more, now less. With rests of a few milliseconds
    the mean stays below the limit, and every piece runs at the full clock.

    Args:
        duty: That share, above 0 and at most 1, which is no rest.
    """

    def __init__(self, duty: float) -> None:
        if not 0 < duty <= 1:
            raise ValueError(f"duty must be above 0 and at most 1, got {duty!r}")
        self._duty, self._until = duty, 0.0
        self.worked = 0.0  # seconds of work so far, launches included

    @contextlib.contextmanager
    def piece(self) -> Iterator[None]:
        """Rest for as long as the last piece asks for; the body works, and waits until the device has done it."""
        if (rest := self._until - time.perf_counter()) > 0:
            time.sleep(rest)
        begin = time.perf_counter()
        yield
        took = time.perf_counter() - begin
        self.worked += took
        self._until = begin + took / self._duty


@dataclass(frozen=True, slots=True)
class Plan:
    """How calls are batched.

    Attributes:
        windows: Windows, each the argument tuples of its calls; all of one length.
        joined: How many windows make one sample (more than one where there are too few input sets for a long window).
        l2: ``"cold"``: the cache is flushed before each window; ``"warm"``: the window's first call runs once untimed.
        flush: Fills the cache with other data.
        seconds: Roughly what a call takes.
        excess: Seconds that a window takes for itself.
    """

    windows: tuple[tuple[tuple[Any, ...], ...], ...]
    joined: int
    l2: str
    flush: Callable[[], object]
    seconds: float
    excess: float = 0.0

    @property
    def calls(self) -> int:
        """Calls a window."""
        return len(self.windows[0])

    def samples(self, seconds: Sequence[float]) -> list[float]:
        """Seconds a call, from the seconds of windows."""
        n = self.joined
        seconds = [max(s - self.excess, LEAST_SHARE * s) for s in seconds]
        return [math.fsum(seconds[i : i + n]) / (n * self.calls) for i in range(0, len(seconds), n)]

    def prepare(self, call: Callable[..., object], window: tuple[tuple[Any, ...], ...]) -> object:
        """Bring the cache into its state, untimed."""
        return self.flush() if self.l2 == "cold" else call(*window[0])


class Rounds(Protocol):
    """Plays a plan's windows over and over.

    Attributes:
        launch: What removes launch gaps, as in `perfgate.clock.Method`.
        late: Windows that began before all their work was queued.
        pace: When to rest.
    """

    launch: str
    late: int
    pace: Pace

    def run(self, meanwhile: Callable[[], object] = lambda: None) -> list[float]:
        """Return further samples; `meanwhile` is called once, while the device works."""
        ...


class GraphRounds:
    """The windows of a plan in CUDA graphs, each a piece of work.

    Raises:
        RuntimeError: If the call cannot be captured.
    """

    def __init__(self, call: Callable[..., object], plan: Plan, pace: Pace) -> None:
        self.launch, self.late, self.pace = "graph", 0, pace
        self._plan = plan
        self._call = call  # what it closes over is what the graphs read and write
        self._pool = torch.cuda.graph_pool_handle()  # of all graphs, since they never run at the same time
        n = plan.joined * max(1, int(PIECE / (plan.joined * plan.calls * plan.seconds)))
        self._graphs = itertools.cycle([self._capture(plan.windows[i : i + n]) for i in range(0, len(plan.windows), n)])

    def _capture(self, windows: Sequence[tuple[tuple[Any, ...], ...]]) -> _Graph:
        graph = torch.cuda.CUDAGraph()
        pairs = []
        with capture(graph, self._pool):
            for window in windows:
                self._plan.prepare(self._call, window)
                begin, end = _event(external=True), _event(external=True)
                begin.record()
                results = [self._call(*args) for args in window]  # kept, so that every call writes to memory of its own
                end.record()
                del results
                pairs.append((begin, end))
        return _Graph(graph, tuple(pairs), torch.cuda.Event())

    def run(self, meanwhile: Callable[[], object] = lambda: None) -> list[float]:
        """See `Rounds`."""
        graph = next(self._graphs)
        with self.pace.piece():
            graph.replay()
            meanwhile()
            seconds = graph.seconds()
        return self._plan.samples(seconds)


@dataclass(frozen=True, slots=True)
class _Graph:
    graph: Any
    pairs: tuple[tuple[Any, Any], ...]
    done: Any

    def replay(self) -> None:
        self.graph.replay()
        self.done.record()  # the graph's own events show its last replay until this one reaches them

    def seconds(self) -> list[float]:
        """Of each window, once the device is there."""
        self.done.synchronize()
        return [float(begin.elapsed_time(end)) / 1e3 for begin, end in self.pairs]


class QueueRounds:
    """One window after the other, each queued behind a kernel that blocks the device until the host is done."""

    def __init__(self, call: Callable[..., object], plan: Plan, pace: Pace) -> None:
        self.launch, self.late, self.pace = "queue", 0, pace
        self._call, self._plan = call, plan
        self._windows = itertools.cycle(plan.windows)
        self._block = FIRST_BLOCK
        while True:
            late, block = self.late, self._block
            self.run()
            if self.late == late:
                break
            if block >= LONGEST_BLOCK:
                self.launch = "direct"  # the call waits for the device, so its work cannot be queued
                break
        self.late = 0

    def run(self, meanwhile: Callable[[], object] = lambda: None) -> list[float]:
        """See `Rounds`."""
        seconds = []
        for i in range(self._plan.joined):
            with self.pace.piece():
                seconds.append(self._window(next(self._windows), meanwhile if i == 0 else lambda: None))
        return self._plan.samples(seconds)

    def _window(self, window: tuple[tuple[Any, ...], ...], meanwhile: Callable[[], object]) -> float:
        begin, end = _event(), _event()
        self._plan.prepare(self._call, window)
        if self.launch == "queue":
            _block(self._block)
        begin.record()
        start = time.perf_counter()
        results = [self._call(*args) for args in window]
        queued = time.perf_counter() - start
        late = begin.query()
        end.record()
        meanwhile()
        end.synchronize()
        del results
        if self.launch == "queue":
            self.pace.worked -= self._block
            self.late += late
            self._block = min(2 * max(self._block, queued), LONGEST_BLOCK) if late else max(self._block, 2 * queued)
        return float(begin.elapsed_time(end)) / 1e3


@contextlib.contextmanager
def capture(graph: Any, pool: Any = None) -> Iterator[None]:
    """Capture into a graph on the current stream; a capture that fails leaves nothing behind.

    Python collects no garbage meanwhile: a graph that is let go during a capture breaks it.

    Args:
        graph: The graph.
        pool: Memory that it shares with other graphs; None for its own.

    Raises:
        RuntimeError: If something in the body cannot be captured.
    """
    pool = pool or torch.cuda.graph_pool_handle()
    refused: RuntimeError | None = None
    with garbage.kept():
        try:
            with torch.cuda.graph(graph, pool=pool, stream=torch.cuda.current_stream()):
                try:
                    yield
                except RuntimeError as error:
                    refused = error
                    raise
        except RuntimeError as error:
            torch.cuda.synchronize()
            if error is not refused:  # it is torch's own: it could not end the capture that the body broke
                _heal(pool)
            raise
        finally:
            refused = None  # a cycle else: the error's frames hold the capture's memory, this frame the error


def _heal(pool: Any) -> None:
    """Undo what torch leaves of a capture that it could not end; what it has undone itself it refuses to undo here.

    Its allocator would go on believing in a capture, and give no cached memory back to the driver for the rest of the
    process; its generator would refuse every later random number. Of a capture that it could end nothing is left but
    the graph, which gives the pool back when it goes: once more, and the process would be aborted.
    """
    device = torch.cuda.current_device()
    with contextlib.suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
    generator = torch.cuda.default_generators[device]
    generator.graphsafe_set_state(generator.clone_state())


def elapsed(work: Callable[[], object]) -> float:
    """Device seconds of some work that is queued behind a kernel which blocks the device meanwhile."""
    begin, end = _event(), _event()
    _block(FIRST_BLOCK)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return max(float(begin.elapsed_time(end)) / 1e3, 1e-7)


def _block(seconds: float) -> None:
    torch.cuda._sleep(int(seconds * BLOCKING_HZ))


def _event(external: bool = False) -> Any:
    return torch.cuda.Event(enable_timing=True, external=external)
