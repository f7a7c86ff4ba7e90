"""A pytest plugin that slows cases where they run: ``-p tests.planted --planted '^forward/triton_flash/:10'``.

It shows that the gate sees a slowdown, and only that one: the work is real, a kernel that keeps the device waiting
for a share of what the call took before (on the CPU the host waits). A kernel takes a microsecond by its launch
alone, so of a short call it follows only on every so many sets of inputs: always the same, however many calls went
before. How much slower that made a case is therefore measured apart, with ``--planted-measure``: with and without in
turn, in a process of its own.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from perfgate.clock import Clock, Inputs
    from perfgate.plugin import GpuBenchmark


LAUNCH = 1e-6
"""Seconds that a kernel takes which does nothing, in a graph, roughly."""
LEAST, SELDOM = 2e-6, 4
"""The shortest work that is planted in seconds, and the fewest: after calls of each fourth set of inputs."""
ORDER = (False, True, True, False) * 3
"""With (true) and without, as the size is measured apart."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--planted", metavar="REGEX:PERCENT", type=_share, action="append", help="slow the cases whose name this finds"
    )
    parser.addoption("--planted-in", metavar="DIR", type=Path, help="only if this plugin is that tree's")
    parser.addoption("--planted-measure", metavar="FILE", type=Path, help="time nothing but true sizes; add them there")


def pytest_configure(config: pytest.Config) -> None:
    shares, tree, file = (config.getoption(f"planted{end}") for end in ("", "_in", "_measure"))
    if not shares or (tree is not None and tree.resolve() != Path(__file__).resolve().parents[1]):
        return
    from perfgate.plugin import GpuBenchmark  # pytest has rewritten and loaded it by now, and warns if it was earlier

    plain = GpuBenchmark.__call__

    def planted(self: GpuBenchmark, call: Callable[..., Any], *, name: str = "", **options: Any) -> Any:
        share = next((share for pattern, share in shares if re.search(pattern, name)), None)
        if file is not None:
            _measure(config, call, share, name, file, options)
        if share is not None:
            call, options["inputs"] = slowed(call, share, options.get("inputs"))
        return plain(self, call, name=name, **options)

    GpuBenchmark.__call__ = planted  # type: ignore[method-assign]
    config.add_cleanup(lambda: setattr(GpuBenchmark, "__call__", plain))


def slowed(call: Callable[..., Any], share: float, inputs: Inputs | None) -> tuple[Callable[..., Any], Inputs]:
    """Return a call that takes longer by a share of its own time, known from its first arguments, and its inputs.

    A set of inputs has its number as its first argument, so the same ones are slowed however often each is made.
    """
    given: Inputs = ((),) if inputs is None else inputs
    work: list[Callable[[], object]] = []
    every = 1

    def slow(i: int, *args: Any) -> Any:
        nonlocal every
        if not work:
            extra = share * seconds(lambda: call(*args))
            several = callable(given) or len(given) >= SELDOM
            every = min(SELDOM, math.ceil(LEAST / extra)) if several and torch.cuda.is_available() else 1
            work.append(waiting(every * extra))
        result = call(*args)
        if i % every == 0:
            work[0]()
        return result

    if callable(given):
        return slow, lambda i: (i, *given(i))
    return slow, [(i, *args) for i, args in enumerate(given)]


def waiting(duration: float) -> Callable[[], object]:
    """Work that takes this long: on the device if there is one, else the host's."""
    if not torch.cuda.is_available():

        def wait() -> None:
            end = time.perf_counter() + duration
            while time.perf_counter() < end:
                pass

        return wait
    cycles = int(max(0.0, duration - LAUNCH) * 10**6 / seconds(lambda: torch.cuda._sleep(10**6)))
    return lambda: torch.cuda._sleep(cycles)


def seconds(call: Callable[[], object], repeats: int = 20) -> float:
    """Seconds of a call, back to back."""
    call()
    if not torch.cuda.is_available():
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats
    ahead = 10**7
    while True:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(ahead)
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        late = begin.query()  # the device began before all calls were queued: the host's time is in theirs
        end.synchronize()
        if not late:
            return float(begin.elapsed_time(end)) / 1e3 / repeats
        ahead *= 2


def size(clock: Clock, call: Callable[..., Any], share: float, inputs: Inputs | None, l2: str) -> float:
    """How much slower the planted share makes a call, relative, as this clock sees it: with and without in turn."""
    logs: dict[bool, list[float]] = {False: [], True: []}
    for slow in ORDER:
        timed = slowed(call, share, inputs) if slow else (call, ((),) if inputs is None else inputs)
        logs[slow].append(math.log(clock.measure(*timed, l2=l2).median))
    without, with_ = (math.fsum(logs[slow]) / len(logs[slow]) for slow in (False, True))
    return math.expm1(with_ - without)


def _measure(
    config: pytest.Config, call: Callable[..., Any], share: float | None, name: str, file: Path, options: dict[str, Any]
) -> None:
    if share is None:
        pytest.skip("nothing is planted in it")
    clock = config.hook.pytest_perf_clock(config=config)
    true = size(clock, call, share, options.get("inputs"), options.get("l2", "cold"))
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps({"case": name, "asked": share, "true": true}) + "\n")
    pytest.skip(f"{share:.1%} was planted, and made it slower by {true:.2%}")


def _share(text: str) -> tuple[str, float]:
    pattern, _, percent = text.rpartition(":")
    return pattern, float(percent) / 100
