"""The shares of a long fuzz side by side, a process each; where one dies another goes on behind."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.draw import Share
from tests.fuzz.trial import DONE, LOST

__all__ = ["BEGAN", "left", "run"]

BEGAN = "run.json"
"""What a run was asked for and where, in the folder of its shares."""

GRACE = 120.0
"""Seconds that a process has for its last trial when its time has come: the slowest compilation takes a fraction."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
MOST_DEATHS = 20
COMMAND = (sys.executable, "-m", "tests.fuzz.trial")


def run(shares: Sequence[Share], seconds: float, folder: Path, *, resume: bool = False) -> list[dict[str, Any]]:
    """Do the shares and return a record a trial, in no order; what processes say besides is left in the folder.

    To resume is to go on behind what an earlier run of the same shares left there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    until = time.time() + seconds
    with ThreadPoolExecutor(len(shares)) as pool:
        found = pool.map(lambda share: finished(share, until, folder, resume), shares)
        return [record for records in found for record in records]


def left(folder: Path, processes: int) -> list[dict[str, Any]]:
    """Read what so many processes left in their run's folder, also of one that was killed; more are another run's."""
    files = [folder / f"share{index}.jsonl" for index in range(processes)]
    return [record for file in files if file.exists() for record in records(file)]


def finished(share: Share, until: float, folder: Path, resume: bool) -> list[dict[str, Any]]:
    """Do one share to its end, or as long as there is time."""
    file, log = folder / f"share{share.index}.jsonl", folder / f"share{share.index}.log"
    for left in (file, log):
        if not (resume and left.exists()):
            left.write_text("")
    drop_unanswered(file)
    for _ in range(MOST_DEATHS):
        found = records(file)
        first = found[-1]["number"] + 1 if found else 0
        with log.open("a") as output:
            process = subprocess.Popen(
                [*COMMAND, json.dumps(dataclasses.asdict(share)), str(first), str(len(found)), str(until), str(file)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **ONE_THREAD, "TRITON_INTERPRET": "0" if torch.cuda.is_available() else "1"},
            )
            try:
                code = process.wait(max(0.0, until + GRACE - time.time()))
                end = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            except subprocess.TimeoutExpired:
                process.kill()
                code, end = process.wait(), f"no end {GRACE:.0f} s after the time was over"
        if code == DONE:
            return records(file)
        after = records(file)
        if len(after) == len(found):
            raise RuntimeError(f"a process of the fuzz died before its first trial ({end}): see {log}")
        if code != LOST:
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"failures": [f"ended its process: {end}"], "ratios": {}}) + "\n")
        if time.time() > until:
            break
    return records(file)


def drop_unanswered(file: Path) -> None:
    """Take off a last trial, or a piece of a line, that an earlier run did not come to the end of."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    while lines and (not lines[-1].endswith("\n") or "number" in json.loads(lines[-1])):
        lines.pop()
    file.write_text("".join(lines), encoding="utf-8")


def records(file: Path) -> list[dict[str, Any]]:
    """Read trials, each of a line before and one behind; the last may have the first alone, or a piece of a line."""
    found: list[dict[str, Any]] = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        read = json.loads(line)
        if "number" in read:
            found.append(read)
        else:
            found[-1] |= read
    return found
