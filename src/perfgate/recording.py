"""A baseline's processes: the same suite in fresh processes, one after the other, each into a file of its own.

The unit of replication is the process, so a baseline needs several; what a process leaves is merged elsewhere
(`perfgate.baseline`). Nothing here imports pytest: it is run.
"""

from __future__ import annotations

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
    arguments: Sequence[str], *, processes: int, directory: Path, say: Callable[[str], object] = print
) -> list[Path]:
    """Run pytest with these arguments in fresh processes, and return the path of each one's JSON.

    Args:
        arguments: What pytest gets besides the options that make it time and save.
        processes: How many processes.
        directory: Where each leaves ``process-<i>.json``, its journal and its output.
        say: Gets a line of progress.

    Raises:
        ProcessFailed: If one does not end with exit code 0, or times nothing.
    """
    directory.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    made = []
    for i in range(1, processes + 1):
        say(f"process {i} of {processes}{_remaining(time.monotonic() - start, i - 1, processes)}")
        made.append(_process(arguments, directory / f"process-{i}.json"))
    say(f"{processes} process{'es' if processes > 1 else ''} in {time.monotonic() - start:.0f} s")
    return made


def _remaining(elapsed: float, done: int, processes: int) -> str:
    return f": {elapsed:.0f} s so far, about {elapsed / done * (processes - done):.0f} s to go" if done else ""


def _process(arguments: Sequence[str], path: Path) -> Path:
    written, log = path.with_suffix(".jsonl"), path.with_suffix(".log")
    # what an earlier run left would pass for this process's if this one timed nothing
    for left in (path, written, log):
        left.unlink(missing_ok=True)
    options = ["--benchmark-only", f"--benchmark-json={path}", f"--perf-journal={written}"]
    command = [*options, *arguments]
    with fresh.start(command, log) as child:
        try:
            code = child.wait()
        except KeyboardInterrupt:
            child.wait()  # the terminal interrupted it too: let it close its journal
            raise
    if what := f"ended with exit code {code}" if code else _unfinished(path, written):
        raise ProcessFailed(f"pytest {' '.join(command)}\n{what}; the end of {log}:\n{fresh.tail(log)}", code)
    return path


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
