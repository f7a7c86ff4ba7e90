"""The journal: each finished case is on disk before the next begins.

    {"journal": 1, "started": ..., "argv": [...], "environment": {...}}
    {"case": {...record...}, "node": "perf/test_forward.py::test_forward[naive]"}      one line a finished case
    {"void": "perf/test_forward.py::test_forward[naive]", "reason": "failed"}          it was not to be kept after all
    {"out_of_memory": "forward/naive/16k", "reason": ...}   {"ceilings": {...}}
    {"end": {"exitstatus": 0, "complete": true}}                                       absent if the process died

Lines are appended and synced one by one. A line that does not fit on the disk is cut off again, so a journal holds
whole lines, except for the last one of a process that was killed in the middle of it. A journal is never a baseline.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from perfgate.environment import Environment
from perfgate.record import Record

__all__ = ["Contents", "Journal", "JournalError", "Lines", "read", "read_lines"]

SCHEMA = 1
T = TypeVar("T")


class JournalError(Exception):
    """A journal cannot be written or read: the message names it and the remedy."""


class Lines:
    """A new file of JSON objects, one a line, each on disk before the next begins.

    Args:
        path: The file; its directory is made if need be.
        remedy: What to do if it cannot be there.

    Raises:
        JournalError: If it exists already or cannot be made.
    """

    def __init__(self, path: Path, remedy: str) -> None:
        self.path, self._remedy, self._size = path, remedy, 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise JournalError(f"cannot create journal {path}: {error.strerror}; {remedy}") from error

    def write(self, line: Mapping[str, object]) -> None:
        """Append a line and wait until it is on disk, or leave the file as it was.

        Raises:
            JournalError: If it could not be written.
        """
        text = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        try:
            written = 0
            while written < len(text):
                written += os.write(self._descriptor, text[written:])
            os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise JournalError(
                f"cannot write journal {self.path}: {error.strerror}; the cases before are kept in it. "
                f"Free some space; {self._remedy}"
            ) from error
        self._size += len(text)

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Journal:
    """An open journal; made by `Journal.open`."""

    def __init__(self, lines: Lines) -> None:
        self.path = lines.path
        self._lines = lines
        self._write = lines.write

    @classmethod
    def open(cls, path: Path, environment: Environment, argv: Sequence[str] = ()) -> Journal:
        """Create the file, its directory if need be, and write the header.

        Raises:
            JournalError: If it exists already or cannot be written.
        """
        journal = cls(Lines(path, "--perf-journal puts it elsewhere"))
        header = {"journal": SCHEMA, "started": datetime.now(UTC).isoformat(), "argv": list(argv)}
        try:
            journal._write(header | {"environment": environment.to_json()})
        except JournalError:
            journal.abandon()
            path.unlink(missing_ok=True)
            raise
        return journal

    def add(self, record: Record, nodeid: str) -> None:
        """Write a finished case."""
        self._write({"case": record.to_json(), "node": nodeid})

    def void(self, nodeid: str, reason: str) -> None:
        """Take back what this test added."""
        self._write({"void": nodeid, "reason": reason})

    def add_out_of_memory(self, case: str, reason: str) -> None:
        """Write that the device had no memory for this case."""
        self._write({"out_of_memory": case, "reason": reason})

    def add_ceilings(self, ceilings: Mapping[str, float]) -> None:
        """Write what the machine can do at best."""
        self._write({"ceilings": dict(ceilings)})

    def close(self, *, exitstatus: int, complete: bool) -> None:
        """Write the last line and close the file."""
        try:
            self._write({"end": {"exitstatus": exitstatus, "complete": complete}})
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the file without a last line; may be called twice."""
        self._lines.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a journal holds.

    Attributes:
        environment: Where it was measured.
        started: When, ISO 8601.
        argv: The command's arguments.
        records: Finished cases by name.
        ceilings: What the machine did at best.
        out_of_memory: Cases that the device had no memory for, with the reason.
        ended: Whether the run came to its end.
        complete: Whether it did, and every case of it is here.
    """

    environment: Environment
    started: str
    argv: tuple[str, ...]
    records: Mapping[str, Record] = field(default_factory=dict)
    ceilings: Mapping[str, float] = field(default_factory=dict)
    out_of_memory: Mapping[str, str] = field(default_factory=dict)
    ended: bool = False
    complete: bool = False


def read(path: Path) -> Contents:
    """Read a journal, also that of a process that was killed: a torn last line is left out.

    Raises:
        JournalError: If it is not a journal, or is damaged elsewhere than at its end.
    """
    return read_lines(path, "journal", _contents)


def read_lines(path: Path, kind: str, understand: Callable[[dict[str, Any], list[dict[str, Any]]], T]) -> T:
    """Read what `Lines` wrote: the first has its schema under the name of its kind.

    Args:
        path: The file.
        kind: What it should be.
        understand: Makes sense of the header and the entries.

    Raises:
        JournalError: If it is nothing of the kind, or is damaged elsewhere than at its end.
    """
    try:
        *lines, torn = path.read_bytes().split(b"\n")
    except OSError as error:
        raise JournalError(f"cannot read journal {path}: {error.strerror}") from error
    # a last line that lacks its end is what a killed process leaves, and is not looked at
    try:
        header, *entries = [json.loads(line) for line in lines]
        if header[kind] != SCHEMA:
            raise JournalError(f"{path} is a journal of schema {header[kind]!r}, expected {SCHEMA}: measure anew")
        return understand(header, entries)
    except (KeyError, TypeError, ValueError) as error:
        told = f"{type(error).__name__}: {error}" if lines else f"{len(torn)} bytes and no whole line"
        raise JournalError(f"{path} is not a whole journal ({told}): measure anew") from error


def _contents(header: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> Contents:
    nodes: dict[str, Record] = {}
    ceilings: dict[str, float] = {}
    out_of_memory: dict[str, str] = {}
    ended = complete = False
    for entry in entries:
        if "case" in entry:
            nodes[entry["node"]] = Record.from_json(entry["case"])
        elif "void" in entry:
            nodes.pop(entry["void"], None)
        elif "out_of_memory" in entry:
            out_of_memory[entry["out_of_memory"]] = entry["reason"]
        elif "ceilings" in entry:
            ceilings.update(entry["ceilings"])
        else:
            ended, complete = True, bool(entry["end"]["complete"])
    return Contents(
        environment=Environment.from_json(header["environment"]),
        started=header["started"],
        argv=tuple(header["argv"]),
        records={record.case.name: record for record in nodes.values()},
        ceilings=ceilings,
        out_of_memory=out_of_memory,
        ended=ended,
        complete=complete,
    )
