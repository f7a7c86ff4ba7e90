"""What can be found out before anything is timed: is there room for the results, and what will they be compared with.

Functions of paths that return a sentence, or None if all is well; they decide nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pytest_benchmark import utils

__all__ = ["compared", "machine_id", "room", "storage_path", "target", "unknown"]

ROOM = 16 * 2**20
"""Bytes: 300 cases with all their durations take 3.3 MB of JSON, which may be written twice, and the journal less."""


def room(paths: Iterable[Path]) -> str | None:
    """Whether there is space on the disks where these files will be."""
    for path in paths:
        place = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
        free = shutil.disk_usage(place).free
        if free < ROOM:
            return f"{free / 2**20:.1f} MiB are free at {place}, results need {ROOM / 2**20:.0f}: free some space"
    return None


def target(path: Path) -> str | None:
    """Whether a file can be written here at the end of the run."""
    if path.is_dir():
        return f"{path} is a directory: expected the path of a file"
    if not path.parent.is_dir():
        return f"{path} cannot be written: there is no directory {path.parent}, create it"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return f"{path} cannot be written: permission denied"
    return None


def storage_path(uri: str) -> Path:
    """The directory of pytest-benchmark's ``--benchmark-storage``."""
    return Path(uri.removeprefix("file://"))


def machine_id(measured: Mapping[str, Any] | None = None) -> str:
    """pytest-benchmark's name of the directory for this operating system and Python.

    Args:
        measured: What pytest-benchmark saved of another machine, to have the name of that one.
    """
    make: Callable[[], str] = utils.get_machine_id  # it has no types
    here = make()
    if measured is None or not {"system", "python_implementation", "python_version"} <= measured.keys():
        return here
    version = ".".join(measured["python_version"].split(".")[:2])
    return f"{measured['system']}-{measured['python_implementation']}-{version}-{here.rpartition('-')[2]}"


def unknown(wanted: str) -> bool:
    """Whether this is the path of no file, and too long for what pytest-benchmark looks for: it would crash."""
    return len(Path(wanted).parts) > 2 and not Path(wanted).is_file()


def compared(storage: Path, machine: str, wanted: str | bool) -> list[Path]:
    """The files that ``--benchmark-compare`` takes: the newest (True), a path, or all whose names begin so."""
    if isinstance(wanted, str) and Path(wanted).is_file():
        return [Path(wanted)]
    if isinstance(wanted, str) and unknown(wanted):
        return []
    begin = "[0-9][0-9][0-9][0-9]_" if isinstance(wanted, bool) else wanted.rstrip("*")
    if "/" in begin:
        machine, _, begin = begin.rpartition("/")
    found = [*storage.glob(f"{machine}/{begin}*.json"), *storage.glob(f"{begin}*.json")]
    found.sort(key=lambda path: (path.name, path.parent))
    return found[-1:] if isinstance(wanted, bool) else found
