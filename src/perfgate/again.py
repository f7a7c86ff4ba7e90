"""A second opinion: what looks slower than its baseline is timed again in a fresh process before it is called.

Where memory came to lie and how clocks settled is drawn once a process, so that timing again in the same one cannot
tell a slower kernel from an unlucky process. Nothing here imports pytest: it is run.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from perfgate import fresh, journal
from perfgate.journal import Contents, JournalError

__all__ = ["MOST", "NotTimed", "arguments", "process"]

MOST = 12
"""Cases that are timed again. Where more look slower it is hardly by chance, and each takes seconds a process."""
PATIENCE = 300.0
"""Seconds that a process may take to start, and to compile what it needs."""
PATIENCE_A_CASE = 60.0
VALUED = ("-k", "-m", "-p", "-o", "-c", "-W", "-r")
"""Short options of pytest that are followed by a value, which is then no path."""
DROPPED = (
    "--benchmark-json",
    "--benchmark-save",
    "--benchmark-histogram",
    "--benchmark-compare-fail",
    "--perf-journal",
    "--perf-receipt",
    "--basetemp",
    "--junitxml",
    "--junit-xml",
    "--maxfail",
)
"""Options of which a second process would write over the first one's files, or stop early. Each has a value."""
DROPPED_ALONE = ("--benchmark-autosave", "--benchmark-compare", "-x", "--exitfirst")
MAY_HAVE_VALUE = ("--benchmark-compare", "--benchmark-histogram")


class NotTimed(Exception):
    """A fresh process gave nothing to judge by; the message says why."""


def arguments(given: Sequence[str], paths: Sequence[str]) -> list[str]:
    """The arguments of a run, without its paths and without what it saves and compares with.

    Args:
        given: As the run got them.
        paths: Those of them that pytest took for paths.
    """
    kept: list[str] = []
    left = [*given]
    while left:
        argument = left.pop(0)
        name, equals, _ = argument.partition("=")
        if name in DROPPED or name in DROPPED_ALONE:
            takes = name in DROPPED or name in MAY_HAVE_VALUE
            optional = name in MAY_HAVE_VALUE
            if takes and not equals and left and not (optional and (left[0].startswith("-") or left[0] in paths)):
                left.pop(0)
            continue
        kept.append(argument)
    for path in paths:
        for i in reversed(range(len(kept))):
            if kept[i] == path and not (i > 0 and kept[i - 1] in VALUED):
                del kept[i]
                break
    return kept


def process(options: Sequence[str], nodes: Sequence[str], *, directory: Path, cwd: Path) -> Contents:
    """Time these tests in a fresh process and return its journal; nothing of it is left behind.

    Args:
        options: Of the run that wants to know (see `arguments`).
        nodes: The tests, as paths that pytest takes.
        directory: Where the process leaves its journal and its output meanwhile; kept if it fails.
        cwd: Where the run was started.

    Raises:
        NotTimed: If it did not end in time, or left no journal.
    """
    path, log = directory / "again.jsonl", directory / "again.log"
    ours = ["--benchmark-only", f"--perf-journal={path}", "--perf-again=0", "--perf-allow-busy", "--perf-fresh"]
    patience = PATIENCE + PATIENCE_A_CASE * len(nodes)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for left in (path, log):
            left.unlink(missing_ok=True)
        with fresh.start([*options, *ours, *nodes], log, cwd=cwd) as child:
            try:
                child.wait(patience)
            except BaseException:
                child.kill()
                raise
        contents = journal.read(path)
    except subprocess.TimeoutExpired:
        raise NotTimed(f"a fresh process did not end within {patience:.0f} s: see {log}") from None
    except (OSError, JournalError) as error:
        raise NotTimed(f"a fresh process timed nothing ({error}): see {log}") from error
    shutil.rmtree(directory, ignore_errors=True)
    return contents
