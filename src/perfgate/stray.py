"""Work of a call that the current stream does not wait for: it would not be timed, and nobody would notice.

    current stream   | call ... call | end of what is timed
    another stream             |--------------------|        `after` the end the device is still at work

A call may use streams of its own if they wait for the current one before their work and the current one waits for them
after it. Where they do not, some of it shows in the errors of a capture (`of_capture`), and the rest when calls run as
they are (`of_call`), once for each case before anything is timed. What is shorter than a launch is not seen.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator

import torch

__all__ = ["of_call", "of_capture"]

SLACK, SHARE = 50e-6, 0.01
"""Seconds, and share of the calls' time, that it may take longer than after a kernel of their length to find the device
idle; the larger counts."""
ENOUGH, MOST = 1e-3, 50
"""Seconds of work that are looked at, and calls at most: work elsewhere adds up if it takes longer than its launch."""
TRIES, CLEAN = 8, 2
"""How often it is tried, and how often it must find none: a delay between the calls gives work elsewhere the time to
end."""
PAIRS = 25
"""Calls and a kernel in turn, whose median difference decides where the tries found work: a host that is slow nearly
always may be quick after one of many kernels and after none of fewer calls."""
SM_HZ = 1.7e9
"""Roughly what an SM runs at."""
UNJOINED = "capturing stream has unjoined work"
UNCAPTURED = "dependency created on uncaptured work in another stream"
REMEDY = (
    "let the other stream wait for the current one before its work, and the current one for it after "
    "(torch.cuda.Stream.wait_stream)"
)


def of_call(call: Callable[[], object], seconds: float) -> str | None:
    """What is wrong with a call that leaves work behind on another stream; None if it leaves none.

    Args:
        call: What is to be timed.
        seconds: Roughly what it takes.
    """
    calls = max(1, min(MOST, round(ENOUGH / seconds)))
    without, clean = math.inf, 0
    for _ in range(TRIES):
        within, found = _until_idle(call, calls)
        # asked twice, for one delay of the host would hide work
        without = min(without, _after_a_kernel(within), _after_a_kernel(within))
        clean += found - without <= max(SLACK, SHARE * within)
        if clean == CLEAN:
            return None
    differences = []
    for _ in range(PAIRS):
        within, found = _until_idle(call, calls)
        differences.append(found - _after_a_kernel(within))
    after = statistics.median(differences)
    if after <= max(SLACK, SHARE * within):
        return None
    return (
        f"the call leaves work behind on another stream: {calls} calls took {within * 1e6:.0f} us, and the device was "
        f"at work for {after * 1e6:.0f} us after them, which would not be timed; {REMEDY}"
    )


def of_capture(error: BaseException) -> str | None:
    """The same of a call whose capture failed so; None if it failed for something else."""
    for said in map(str, _chain(error)):
        if UNJOINED in said:
            return f"the call leaves work behind on another stream, which would not be timed; {REMEDY}"
        if UNCAPTURED in said:
            return f"the call waits for work on another stream that began before it and is not timed; {REMEDY}"
    return None


def _after_a_kernel(seconds: float) -> float:
    """Seconds until the device is found idle after a kernel of this length: a host that waited long may need longer."""
    return _until_idle(functools.partial(torch.cuda._sleep, int(seconds * SM_HZ)), 1)[1]


def _until_idle(call: Callable[[], object], calls: int) -> tuple[float, float]:
    """Seconds of these calls, and seconds on the host from their end until the device is found idle."""
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    done = time.perf_counter()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1e3, time.perf_counter() - done


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came of: the end of a capture that failed fails too, and says less."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
