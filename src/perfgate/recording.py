"""A baseline's processes: the same suite in fresh processes, each into a file of its own, one at a time on a device.

The unit of replication is the process, so a baseline needs several; what a process leaves is merged elsewhere
(`perfgate.baseline`). Nothing here imports pytest: it is run.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from perfgate import fresh, journal
from perfgate.journal import JournalError

__all__ = ["ProcessFailed", "measure"]


class ProcessFailed(Exception):
    """A process of the suite failed; `code` is its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def measure(
    arguments: Sequence[str],
    *,
    processes: int,
    directory: Path,
    devices: Sequence[str] = (),
    say: Callable[[str], object] = print,
) -> list[Path]:
    """Run pytest with these arguments in fresh processes, and return the path of each one's JSON.

    Args:
        arguments: What pytest gets besides the options that make it time and save.
        processes: How many processes.
        directory: Where each leaves ``process-<i>.json``, its journal and its output.
        devices: CUDA devices, as CUDA_VISIBLE_DEVICES names them, that take the processes in turn, side by side; none:
            one process after the other where CUDA puts them.
        say: Gets a line of progress.

    Raises:
        ProcessFailed: If one does not end with exit code 0, or times nothing.
    """
    directory.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    paths = [directory / f"process-{i}.json" for i in range(1, processes + 1)]
    together = len(devices) or 1
    for done in range(0, processes, together):
        some = paths[done : done + together]
        last = f" to {done + len(some)}" if len(some) > 1 else ""
        say(f"process {done + 1}{last} of {processes}{_remaining(time.monotonic() - start, done, processes, together)}")
        _run(arguments, some, devices)
    say(f"{processes} process{'es' if processes > 1 else ''} in {time.monotonic() - start:.0f} s")
    return paths


def _remaining(elapsed: float, done: int, processes: int, together: int) -> str:
    if not done:
        return ""
    rounds = math.ceil((processes - done) / together)
    return f": {elapsed:.0f} s so far, about {elapsed / (done / together) * rounds:.0f} s to go"


def _run(arguments: Sequence[str], paths: Sequence[Path], devices: Sequence[str]) -> None:
    """A process for each path, at the same time; all have ended when this returns or raises."""
    # a device that is not there is an error, and not a reason to time the CPU
    arguments = [*(["--perf-device=cuda"] if devices else []), *arguments]
    commands = [_command(arguments, path) for path in paths]
    with contextlib.ExitStack() as stack:
        children = []
        for command, path, device in itertools.zip_longest(commands, paths, devices[: len(paths)]):
            environment = None if device is None else {**os.environ, "CUDA_VISIBLE_DEVICES": device}
            children.append(stack.enter_context(fresh.start(command, path.with_suffix(".log"), env=environment)))
        try:
            codes = [child.wait() for child in children]
        except KeyboardInterrupt:
            for child in children:
                child.wait()  # the terminal interrupted it too: let it close its journal
            raise
    for command, path, code in zip(commands, paths, codes, strict=True):
        if what := f"ended with exit code {code}" if code else _unfinished(path, path.with_suffix(".jsonl")):
            log = path.with_suffix(".log")
            raise ProcessFailed(f"pytest {' '.join(command)}\n{what}; the end of {log}:\n{fresh.tail(log)}", code)


def _command(arguments: Sequence[str], path: Path) -> list[str]:
    written = path.with_suffix(".jsonl")
    # what an earlier run left would pass for this process's if this one timed nothing
    for left in (path, written, path.with_suffix(".log")):
        left.unlink(missing_ok=True)
    return ["--benchmark-only", f"--benchmark-json={path}", f"--perf-journal={written}", *arguments]


def _unfinished(path: Path, written: Path) -> str | None:
    """What a process that ended with exit code 0 did not do, by its JSON and its journal; None if it did all."""
    if not written.exists():
        return "timed nothing"
    try:
        ended = journal.read(written).ended
    except JournalError as error:
        return f"left no whole journal ({error})"
    if not ended or not path.exists():
        return "ended with exit code 0 before it came to its end: something called os._exit"
    return None
