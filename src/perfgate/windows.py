"""Windows of device time: a plan of calls, and the two ways to play it.

`GraphRounds` captures all windows into CUDA graphs and replays them, so launch gaps are gone; `QueueRounds` queues a
window behind a kernel that blocks the device until the host has launched everything, for calls that cannot be captured.
Both read every window from a pair of CUDA events on the stream that does the work.
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

__all__ = ["GraphRounds", "Plan", "QueueRounds", "Rounds", "capture", "elapsed"]

LONG = 5e-3
"""A graph of more seconds than this runs alone: the host reads its events in a far shorter time."""
BLOCKING_HZ = 2.0e9
"""`torch.cuda._sleep` counts SM cycles; no SM runs faster than this, so the sleep is never too short."""
LONGEST_BLOCK = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """How calls are batched.

    Attributes:
        windows: Windows, each the argument tuples of its calls; all of one length.
        joined: How many windows make one sample (more than one where there are too few input sets for a long window).
        l2: ``"cold"``: the cache is flushed before each window; ``"warm"``: the window's first call runs once untimed.
        flush: Fills the cache with other data.
    """

    windows: tuple[tuple[tuple[Any, ...], ...], ...]
    joined: int
    l2: str
    flush: Callable[[], object]

    @property
    def calls(self) -> int:
        """Calls a window."""
        return len(self.windows[0])

    def samples(self, seconds: Sequence[float]) -> list[float]:
        """Seconds a call, from the seconds of windows."""
        n = self.joined
        return [math.fsum(seconds[i : i + n]) / (n * self.calls) for i in range(0, len(seconds), n)]

    def prepare(self, call: Callable[..., object], window: tuple[tuple[Any, ...], ...]) -> object:
        """Bring the cache into its state, untimed."""
        return self.flush() if self.l2 == "cold" else call(*window[0])


class Rounds(Protocol):
    """Plays a plan's windows over and over.

    Attributes:
        launch: What removes launch gaps, as in `perfgate.clock.Method`.
        late: Windows that began before all their work was queued.
    """

    launch: str
    late: int

    def run(self) -> list[float]:
        """Return further samples."""
        ...


class GraphRounds:
    """All windows of a plan in one CUDA graph; two of them, so that one runs while the other's events are read.

    Raises:
        RuntimeError: If the call cannot be captured.
    """

    def __init__(self, call: Callable[..., object], plan: Plan) -> None:
        self.launch, self.late = "graph", 0
        self._plan = plan
        self._graphs = [self._capture(call)]
        self._graphs[0].replay()
        if math.fsum(self._graphs[0].seconds()) < LONG:
            self._graphs.append(self._capture(call))
        self._next: Iterator[_Graph] = itertools.cycle(self._graphs)
        self._running: list[_Graph] = []

    def _capture(self, call: Callable[..., object]) -> _Graph:
        graph = torch.cuda.CUDAGraph()
        pairs = []
        with capture(graph):
            results = []  # kept until the end of the capture, so that every call writes to memory of its own
            for window in self._plan.windows:
                results.append(self._plan.prepare(call, window))
                begin, end = _event(external=True), _event(external=True)
                begin.record()
                results += [call(*args) for args in window]
                end.record()
                pairs.append((begin, end))
            del results
        return _Graph(graph, tuple(pairs), torch.cuda.Event())

    def run(self) -> list[float]:
        """See `Rounds`."""
        while len(self._running) < len(self._graphs):
            self._running.append(next(self._next))
            self._running[-1].replay()
        return self._plan.samples(self._running.pop(0).seconds())


@dataclass(frozen=True, slots=True)
class _Graph:
    graph: Any
    pairs: tuple[tuple[Any, Any], ...]
    done: Any

    def replay(self) -> None:
        self.graph.replay()
        self.done.record()  # the graph's own events show its last replay until this one reaches them

    def seconds(self) -> list[float]:
        self.done.synchronize()
        return [float(begin.elapsed_time(end)) / 1e3 for begin, end in self.pairs]


class QueueRounds:
    """One window after the other, each queued behind a kernel that blocks the device until the host is done."""

    def __init__(self, call: Callable[..., object], plan: Plan) -> None:
        self.launch, self.late = "queue", 0
        self._call, self._plan = call, plan
        self._windows = itertools.cycle(plan.windows)
        self._block = 1e-3
        trials = 5
        for _ in range(trials):
            self.run()
        if self.late == trials * plan.joined:
            self.launch = "direct"  # the call waits for the device, so its work cannot be queued
        self.late = 0

    def run(self) -> list[float]:
        """See `Rounds`."""
        return self._plan.samples([self._window(next(self._windows)) for _ in range(self._plan.joined)])

    def _window(self, window: tuple[tuple[Any, ...], ...]) -> float:
        begin, end = _event(), _event()
        self._plan.prepare(self._call, window)
        if self.launch == "queue":
            torch.cuda._sleep(int(self._block * BLOCKING_HZ))
        begin.record()
        start = time.perf_counter()
        results = [self._call(*args) for args in window]
        queued = time.perf_counter() - start
        late = begin.query()
        end.record()
        end.synchronize()
        del results
        if self.launch == "queue":
            self.late += late
            self._block = min(2 * self._block, LONGEST_BLOCK) if late else max(self._block, 2 * queued + 1e-4)
        return float(begin.elapsed_time(end)) / 1e3


@contextlib.contextmanager
def capture(graph: Any) -> Iterator[None]:
    """Capture into a graph on the current stream; a capture that fails leaves nothing behind.

    Raises:
        RuntimeError: If something in the body cannot be captured.
    """
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            yield
    except RuntimeError:
        torch.cuda.synchronize()
        # torch leaves the generator in the state of a capture, and every later random number would raise
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())
        raise


def elapsed(work: Callable[[], object]) -> float:
    """Device seconds of some work, launch gaps included."""
    begin, end = _event(), _event()
    begin.record()
    work()
    end.record()
    end.synchronize()
    return max(float(begin.elapsed_time(end)) / 1e3, 1e-7)


def _event(external: bool = False) -> Any:
    return torch.cuda.Event(enable_timing=True, external=external)
