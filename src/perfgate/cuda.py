"""The clock of a CUDA device: events around calls that one CUDA graph replays.

    graph:   | flush L2 | event | call(set 0) call(set 1) ... call(set k-1) | event |  next window ...
                          `------------- one window, at least 100 us -------'
    sample = (event - event) / k

- A window holds k calls on k input sets, so every call finds the L2 cold although the flush is not timed: each set is
  touched once after a flush. Measured against CUPTI this is true; the difference between graphs with and without the
  flush is not (the flush hides part of the next kernel's launch), and a window for each call puts its events in each.
- The first call after a flush also finds instructions and address translations gone. `CALLS` and `COMPANY` see to it
  that most calls have company.
- Graph replay removes launch gaps. A call that cannot be captured is queued behind a blocking kernel instead; one that
  synchronises with the host is timed as it is. `Method.launch` tells which.
- The device rests for as long as it works, so that it stays below its power limit and at its full clock (`Pace`), but
  for calls of tens of milliseconds, within which it reaches the limit.
- What a window takes for itself (its events, the start of its first call) is not the same on all machines. Each process
  measures it (`CudaClock.window`) and takes it off; `Samples.at_window` has it another way.
- All work goes to one stream, the one of `gpu.use_one_stream`; `CudaClock.shortest` notices what went elsewhere.

This module, `constant`, `gpu`, `stray` and `windows` are all of perfgate that import torch, and only where a CUDA
device is wanted.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from perfgate import constant, garbage, gpu, launches, nvml, stray
from perfgate.clock import Budget, Clock, Inputs, MeasureError, Method, Samples
from perfgate.guard import Guard
from perfgate.kernels import Kernels
from perfgate.windows import GraphRounds, Pace, Plan, QueueRounds, Rounds, capture, elapsed

__all__ = ["CudaClock"]

WINDOW = 100e-6
"""Least length of a timed window in seconds."""
CALLS = 4
"""Calls a window at least, as long as fewer are shorter than `COMPANY`."""
COMPANY = 200e-6
LADDER = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Numbers of calls a window, so far apart that processes which differ a little in their estimates take the same."""
LONG = 5e-3
"""A call of more seconds is tried once where a shorter one is tried three times, four in a row."""
MAX_SETS = 128
MIN_SETS, MANY_SETS = 4, 16
"""Input sets at least, and of small sets: how fast a call is depends on where its tensors came to lie."""
SMALL_SHARE = 0.02
"""Share of the device's memory that many sets may fill."""
SETS_SHARE = 0.1
"""Share of the device's memory that input sets and results may fill."""
STEADY = 0.005
"""Warm-up goes on while the median still moves by more than this share from one block of windows to the next."""
WARMUP_BOUND, WARMUP_TIMES = 1.0, 10
"""Seconds of work after which warm-up ends, steady or not, and times as long as was asked for; the smaller counts."""
DUTY = 0.5
"""Share of the time in which the device works: what it draws in the mean stays far below its power limit."""
PROBES, QUEUED_PROBES = 5, 20
"""Graphs of the shortest kernels that are played to know what they take, and windows where they are queued."""
SLOWER_STARTS = 1.1
"""Times as long as at first that the shortest kernel may take before it is said."""


class CudaClock(Clock):
    """Times calls on the current CUDA device; see the module's description.

    Args:
        budget: When to stop.
        duty: Share of the time in which the device works; the rest of it, it rests.
    """

    VERSION = 5

    def __init__(self, budget: Budget | None = None, *, duty: float = DUTY) -> None:
        self.budget, self._pace = budget or Budget(), Pace(duty)
        self._stream = gpu.stream(torch.cuda.current_device())
        l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self._flush_source = torch.ones(max(2 * l2, 2**20) // 4, device="cuda")
        self._flush_sink = torch.empty((), device="cuda")
        self._first_start = 0.0

    @contextlib.contextmanager
    def prepare(
        self, call: Callable[..., object], inputs: Inputs = ((),), *, l2: str = "cold"
    ) -> Iterator[CudaPrepared]:
        """Make ``call(*inputs[i])`` ready; it runs on a stream of the clock's, several times before the first sample.

        Raises:
            MeasureError: If the inputs hold one number each, the call does nothing on the device, or it leaves work
                behind on another stream.
            ValueError: If ``l2`` is neither ``"cold"`` nor ``"warm"``, or there is no input set.
            torch.OutOfMemoryError: If the device's memory does not suffice.
        """
        if l2 not in ("cold", "warm"):
            raise ValueError(f"l2 must be 'cold' or 'warm', got {l2!r}")
        if not callable(inputs) and not inputs:
            raise ValueError("inputs must hold at least one tuple of arguments, got none")
        gpu.give_back()  # cached blocks that small tensors pin would else make a large case seem not to fit
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream):
                prepared = self._prepare(call, inputs, l2)
                try:
                    yield prepared
                finally:
                    prepared.close()
        finally:
            torch.cuda.synchronize()
            gpu.give_back()  # a graph's private pool would else stay and squeeze the next case

    def _prepare(self, call: Callable[..., object], inputs: Inputs, l2: str) -> CudaPrepared:
        _ = self._probe, self.window  # captured before anything is cached: a capture gives the cache back
        first = _first_set(inputs)
        if wrong := constant.of_inputs(first.args):
            raise MeasureError(wrong)
        peak, result_bytes = self._peak(call, first.args)
        trial = self._trial(call, first.args)
        windows, joined = self._windows(trial.seconds, first, inputs, l2, result_bytes)
        excess = self.window if trial.captured else self.queued_window
        plan = Plan(windows, joined, l2, self.flush, trial.seconds, excess)
        for args in itertools.chain.from_iterable(windows):
            call(*args)  # whatever is done once for an input set is done here
        torch.cuda.synchronize()
        gpu.give_back()  # as before every capture
        rounds: Rounds = GraphRounds(call, plan, self._pace) if trial.captured else QueueRounds(call, plan, self._pace)
        notes = trial.notes
        if joined > 1 and plan.calls == 1 and l2 == "cold":
            notes += ("one input set only: each call has a window of its own, which may take longer for itself",)
        counters = {
            "peak_bytes": float(peak),
            "calls_per_window": float(plan.calls),
            "windows_per_sample": float(joined),
            "input_sets": float(len({id(args) for window in windows for args in window})),
            "window_seconds": excess,
        }
        method = Method(clock="cuda-events", l2=l2, launch=rounds.launch, version=self.VERSION)
        return CudaPrepared(
            self, rounds, method, counters, notes, getattr(call, "__qualname__", repr(call)), trial.kernels
        )

    @functools.cached_property
    def _probe(self) -> GraphRounds:
        x = torch.zeros(1, device="cuda")
        return GraphRounds(lambda: x.add_(1), Plan((((),) * 64,), 1, "warm", self.flush, 1e-6), self._pace)

    @functools.cached_property
    def window(self) -> float:
        """Seconds that a window takes for itself in a graph: one of a single short call, less what a further call adds.

        The call reads and writes a megabyte, so that what it costs to find memory anew after a flush is in it.
        """
        return self._window(GraphRounds, PROBES)

    @functools.cached_property
    def queued_window(self) -> float:
        """The same of a window that is queued."""
        return self._window(QueueRounds, QUEUED_PROBES)

    def _window(self, rounds: type[GraphRounds | QueueRounds], plays: int) -> float:
        sets = tuple((torch.zeros(2**19, dtype=torch.bfloat16, device="cuda"),) for _ in range(8))
        single, eight = (
            rounds(lambda x: x + 1, Plan(windows, 1, "cold", self.flush, 1e-6), self._pace)
            for windows in (tuple((args,) for args in sets) * 8, (sets,) * 64)
        )
        one, all_ = (
            statistics.median(itertools.chain.from_iterable(played.run() for _ in range(plays))) * calls
            for played, calls in ((single, 1), (eight, len(sets)))
        )
        return one - (all_ - one) / (len(sets) - 1)

    def shortest(self) -> tuple[float, tuple[str, ...]]:
        """Seconds of a kernel that does next to nothing, and what must be said if it took fewer at first."""
        seconds = min(self._probe.run()[0] for _ in range(PROBES))
        self._first_start = self._first_start or seconds
        if seconds <= SLOWER_STARTS * self._first_start:
            return seconds, ()
        now, first = (f"{s * 1e6:.2f} us" for s in (seconds, self._first_start))
        return seconds, (
            f"kernels start later than when this process began to time (the shortest took {first}, takes {now}): "
            "work on another stream may do that",
        )

    def flush(self) -> None:
        """Fill the L2 with other data by reading twice its size: nothing is left to be written back."""
        torch.amax(self._flush_source, dim=0, out=self._flush_sink)

    def _peak(self, call: Callable[..., object], args: tuple[Any, ...]) -> tuple[int, int]:
        """Bytes that a call needs at its peak beyond what was there, and bytes that its result keeps."""
        call(*args)
        torch.cuda.synchronize()
        with garbage.kept():  # what a collection freed meanwhile would be missing from what is counted
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            result = call(*args)
            torch.cuda.synchronize()
            peak, kept = torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
            del result
        return peak, max(kept, 0)

    def _windows(
        self, seconds: float, first: _FirstSet, inputs: Inputs, l2: str, result_bytes: int
    ) -> tuple[tuple[tuple[tuple[Any, ...], ...], ...], int]:
        """The argument tuples of each window, and how many windows make one sample, for a call that takes `seconds`."""
        needed = max(math.ceil(WINDOW / seconds), min(CALLS, math.ceil(COMPANY / seconds)))
        needed = next((n for n in LADDER if n >= needed), needed)
        if callable(inputs):
            memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
            bytes_a_set = first.held + result_bytes
            room = max(1, int(SETS_SHARE * memory) // max(bytes_a_set, 1))
            least = MANY_SETS if MANY_SETS * bytes_a_set <= SMALL_SHARE * memory else MIN_SETS
            wanted = needed * math.ceil(least / needed) if l2 == "cold" else MIN_SETS
            more = min(wanted, MAX_SETS, room) - 1
            sets: Sequence[tuple[Any, ...]] = [first.args, *_more_sets(first, inputs, more)]
        else:
            sets = list(inputs)
        if l2 == "warm":
            return tuple((args,) * needed for args in sets[:MIN_SETS]), 1
        calls = min(needed, len(sets))
        joined = math.ceil(needed / calls)
        windows = [tuple(sets[i : i + calls]) for i in range(0, len(sets) - calls + 1, calls)]
        turns = itertools.cycle(windows)
        return tuple(next(turns) for _ in range(math.ceil(len(windows) / joined) * joined)), joined

    def _trial(self, call: Callable[..., object], args: tuple[Any, ...]) -> _Trial:
        """Find out what must be known of a call before it is timed.

        Raises:
            MeasureError: If the call does nothing on the device, or leaves work behind on another stream.
        """
        once = elapsed(lambda: call(*args))
        if wrong := stray.of_call(lambda: call(*args), once):
            raise MeasureError(wrong)
        repeats, tries = (1, 1) if once > LONG else (4, 3)

        def several() -> list[object]:
            return [call(*args) for _ in range(repeats)]

        torch.cuda.synchronize()
        gpu.give_back()  # a capture takes memory of its own, and cannot make the allocator give any back
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                with capture(graph):
                    results = several()
                graph.instantiate()
            except gpu.OUT_OF_MEMORY:
                raise
            except RuntimeError as error:  # what cannot be captured says so in many words, all of this type
                if wrong := stray.of_capture(error):
                    raise MeasureError(wrong) from error
                why = (str(error).strip() or type(error).__name__).partition("\n")[0]
                seconds = min(elapsed(several) for _ in range(tries)) / repeats
                return _Trial(seconds, False, None, (f"not replayed from a graph: {why}",))
        if any("Graph is empty" in str(warning.message) for warning in said):
            raise MeasureError(
                "the call did nothing on the clock's CUDA stream: are its tensors on the CPU, or does it use a stream "
                "of its own? Time work on the CPU with --perf-device cpu"
            )
        kernels, unread = _kernels(graph, repeats)
        graph.replay()
        seconds = min(elapsed(graph.replay) for _ in range(tries)) / repeats
        del results
        return _Trial(seconds, True, kernels, unread)


@dataclass(frozen=True, slots=True)
class _FirstSet:
    """The input set that a call is tried with.

    Attributes:
        args: The call's arguments.
        held: Bytes of them that the clock had made.
        making: Bytes that were needed beyond while they were made.
    """

    args: tuple[Any, ...]
    held: int
    making: int


@dataclass(frozen=True, slots=True)
class _Trial:
    """What a first capture of a call told.

    Attributes:
        seconds: Roughly what it takes, without launch gaps.
        captured: Whether it can be captured at all.
        kernels: What it launches, where that is known.
        notes: What must be said.
    """

    seconds: float
    captured: bool
    kernels: Kernels | None
    notes: tuple[str, ...]


class CudaPrepared:
    """A call that is ready to be timed, as often as is wanted, until it is closed.

    Args:
        clock: Whose budget and pace hold.
        rounds: What plays the call.
        method: How it is timed.
        counters: What is known of the call already.
        notes: What must be said of it.
        culprit: Its name.
        kernels: What it launches, where that is known.
    """

    def __init__(
        self,
        clock: CudaClock,
        rounds: Rounds,
        method: Method,
        counters: dict[str, float],
        notes: tuple[str, ...],
        culprit: str,
        kernels: Kernels | None,
    ) -> None:
        self._clock, self._budget = clock, clock.budget
        self._rounds: Rounds | None = rounds
        self._method, self._counters, self._notes, self._culprit = method, counters, notes, culprit
        self._kernels = kernels

    @property
    def plan(self) -> dict[str, float]:
        """How its windows are made up; two processes' samples are only as alike as their plans."""
        return {name: self._counters[name] for name in ("calls_per_window", "windows_per_sample", "input_sets")}

    def time(self) -> Samples:
        """Warm up until steady, then take samples.

        Raises:
            MeasureError: If the call compiles, tunes or takes device memory from the driver inside a timed window.
        """
        if self._rounds is None:
            raise MeasureError(f"{self._culprit} was closed and can be timed no more: prepare it again")
        unsteady = self._warm_up(self._rounds)
        shortest, slower = self._clock.shortest()
        with Guard(self._culprit, torch):
            seconds, counters, said = self._sample(self._rounds)
        return Samples(
            seconds=tuple(seconds),
            method=self._method,
            counters={**counters, **self._counters, "shortest_kernel_seconds": shortest},
            notes=(*self._notes, *unsteady, *slower, *said),
            kernels=self._kernels,
        )

    def close(self) -> None:
        """Let go of the graphs, and with them of the memory that they hold."""
        self._rounds = None

    def _warm_up(self, rounds: Rounds) -> tuple[str, ...]:
        """Keep the device busy until its speed is steady; return what must be said of it."""
        start, previous = rounds.pace.worked, None
        bound = min(WARMUP_BOUND, WARMUP_TIMES * self._budget.warmup_seconds)
        while True:
            block: list[float] = []
            begin = rounds.pace.worked
            while rounds.pace.worked - begin < self._budget.warmup_seconds / 3:
                block += rounds.run()
            median = statistics.median(block)
            before, previous = previous, median
            worked = rounds.pace.worked - start
            if before is None or worked < self._budget.warmup_seconds:
                continue
            moved = abs(median / before - 1)
            if moved <= STEADY:
                return ()
            if worked >= bound:
                return (f"not steady after {bound:g} s of warm-up: the median still moved by {moved:.1%}",)

    def _sample(self, rounds: Rounds) -> tuple[list[float], dict[str, float], tuple[str, ...]]:
        """Samples until the budget has enough, counters, and what must be said of them."""
        before = _reading(rounds)
        rounds.late = 0
        seconds: list[float] = []
        start = time.perf_counter()
        while True:
            seconds += rounds.run()
            done, width, bound = self._budget.enough(seconds, time.perf_counter() - start)
            if done:
                break
        late = rounds.late
        after = _reading(rounds)
        counters = {"half_width": width}
        for name in before.keys() & after.keys():
            counters[name] = (before[name] + after[name]) / 2
        if "throttle_reasons" in counters:
            counters["throttle_reasons"] = float(int(before["throttle_reasons"]) | int(after["throttle_reasons"]))
        notes = [bound] if bound else []
        if nvml.capped(counters):
            notes.append("the GPU was at its power limit while this was timed, and below its full clock")
        if late:
            notes.append(f"{late} windows began before their work was queued: the host's launches are in them")
        return seconds, counters, tuple(notes)


def _first_set(inputs: Inputs) -> _FirstSet:
    """What a call is tried with."""
    if not callable(inputs):
        return _FirstSet(inputs[0], 0, 0)
    with garbage.kept():  # what a collection freed meanwhile would be missing from what is counted
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        args = inputs(0)
        held, peak = torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before
    return _FirstSet(args, max(held, 0), max(peak - held, 0))


def _more_sets(first: _FirstSet, inputs: Callable[[int], tuple[Any, ...]], more: int) -> list[tuple[Any, ...]]:
    """Further sets, one behind the other in a stretch of memory that is taken at once.

    Of two processes that make sets at the same time each would else get its memory by turns, differently each time, and
    how fast a call is that is bound by memory depends on where it lies. Small tensors, of which torch keeps many in a
    block of their own, lie where they did, and a set may lie beside the first. What making the sets needs beyond stays
    as long as they do: where it is more than all of them, each takes its own.
    """
    if first.making <= more * first.held:
        gpu.give_back()  # what is left of calls would be taken first
        with contextlib.suppress(*gpu.OUT_OF_MEMORY):  # piece by piece it may do
            torch.empty(more * first.held + first.making, dtype=torch.uint8, device="cuda")
    return [inputs(i) for i in range(1, 1 + more)]


def _kernels(graph: torch.cuda.CUDAGraph, calls: int) -> tuple[Kernels | None, tuple[str, ...]]:
    """What each of the calls in a graph launches, and what must be said if that cannot be known."""
    try:
        return launches.read(graph.raw_cuda_graph(), calls=calls), ()
    except launches.Unreadable as error:
        return None, (f"its kernels are not known, so no report can say what changed in them: {error}",)


def _reading(rounds: Rounds) -> dict[str, float]:
    """The driver's telemetry while the device works."""
    reading: dict[str, float] = {}
    rounds.run(lambda: reading.update(nvml.telemetry(gpu.uuid())))
    return reading
