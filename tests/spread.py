"""A pytest plugin that times cases by perfgate's clock and by a plain one: ``-p tests.spread --spread FILE``.

    perfgate   many sets of inputs at addresses of their own, several calls a window, and rests
    plain      one set of inputs, so that each call has a window of its own, and no rest

What comes of where memory came to lie, of single windows and of a power limit stays in by the plain one. Each test adds
a line to the file and is skipped; which clock is first is another one from case to case, and the same in all processes.
How far processes differ by either shows what the clock does about it; how far windows of one process differ, what is
left of where memory came to lie.
"""

from __future__ import annotations

import json
import statistics
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from perfgate.clock import Clock, Inputs, Samples
    from perfgate.plugin import GpuBenchmark


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--spread", metavar="FILE", type=Path, help="time by two clocks, and add the medians there")


def pytest_configure(config: pytest.Config) -> None:
    if (file := config.getoption("spread")) is None:
        return
    from perfgate.plugin import GpuBenchmark  # pytest has rewritten and loaded it by now, and warns if it was earlier

    ours = GpuBenchmark.__call__
    clocks: dict[str, Clock] = {}

    def twice(
        self: GpuBenchmark,
        call: Callable[..., Any],
        *,
        name: str,
        inputs: Inputs | None = None,
        l2: str = "cold",
        **rest: object,
    ) -> None:
        if not clocks:
            clocks["perfgate"] = config.hook.pytest_perf_clock(config=config)
            clocks["plain"] = without_rest(clocks["perfgate"])
        sets: Inputs = ((),) if inputs is None else inputs
        given = {"perfgate": sets, "plain": [sets(0) if callable(sets) else sets[0]]}
        order = sorted(clocks, reverse=bool(zlib.crc32(name.encode()) % 2))
        timed = {which: clocks[which].measure(call, given[which], l2=l2) for which in order}
        found = {which: samples.median for which, samples in timed.items()}
        line = {"case": name, "seconds": found, "windows": of_windows(timed["perfgate"])}
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        pytest.skip(", ".join(f"{seconds * 1e6:.2f} us by {which}" for which, seconds in found.items()))

    GpuBenchmark.__call__ = twice  # type: ignore[method-assign]
    config.add_cleanup(lambda: setattr(GpuBenchmark, "__call__", ours))


def of_windows(samples: Samples) -> list[tuple[float, float]]:
    """Two medians of each window, of every other of its samples: what these have in common is no noise.

    Windows are played in turn, each on sets of inputs of its own. Where they are too few samples for that, all count as
    one window.
    """
    counters, windows = samples.counters, 1
    if counters.get("windows_per_sample") == 1 and samples.method.l2 == "cold":
        windows = max(1, round(counters["input_sets"] / counters["calls_per_window"]))
    if len(samples.seconds) < 2 * windows:
        windows = 1
    seconds = [samples.seconds[i::windows] for i in range(windows)]
    return [(statistics.median(of[::2]), statistics.median(of[1::2])) for of in seconds]


def without_rest(clock: Clock) -> Clock:
    """The same clock of a GPU, always at work; any other as it is."""
    cuda = sys.modules.get("perfgate.cuda")  # there if the clock is its
    return cuda.CudaClock(clock.budget, duty=1.0) if cuda and isinstance(clock, cuda.CudaClock) else clock
