"""The files that the device code of libraries comes from, as one digest.

    torch, cuBLAS, cuDNN ...   every library in their directories: cuDNN loads its own piece by piece, and the digest
                               must not depend on which cases ran before
    extensions                 what this process has loaded, with contents where they are small or not installed

A file that was installed is known by its path below ``site-packages`` and its size, any other by its name and contents,
so that two checkouts of one project have one digest.
"""

from __future__ import annotations

import functools
import hashlib
import mmap
import re
from collections.abc import Iterable
from pathlib import Path

from perfgate.binaries import DIGITS, sections

__all__ = ["digest", "mapped"]

INSTALLED = ("site-packages", "dist-packages")
TOOLKIT = re.compile(r"lib(torch|c10|cu|nv)[^/]*\.so[.\d]*$")
"""Libraries of torch and of CUDA; what stands beside an installed one is of the same release."""
DRIVER = re.compile(r"lib(cuda|nvidia-.*|nvcuvid)\.so[.\d]*$")
"""Libraries of the driver, whose version the environment has."""
LIBRARY = re.compile(r"\.so[.\d]*$")
DEVICE_CODE = (".nv_fatbin", "__nv_relfatbin")
"""Sections that hold it."""
SMALL = 2**26
"""Bytes up to which an installed extension is known by its contents."""


def digest(maps: Path = Path("/proc/self/maps")) -> str:
    """The digest of all that could have brought a kernel into this process; empty where nothing is found.

    Args:
        maps: What the process has mapped, as Linux tells it.
    """
    try:
        paths = mapped(maps)
    except OSError:
        return ""
    return _digest(frozenset(paths))


def mapped(maps: Path) -> set[Path]:
    """The libraries that a process has mapped and that are still there."""
    found = set()
    for line in maps.read_text(encoding="utf-8", errors="replace").splitlines():
        path = line[line.find("/") :] if "/" in line else ""
        if LIBRARY.search(path):
            found.add(Path(path))
    return found


@functools.lru_cache(maxsize=64)
def _digest(paths: frozenset[Path]) -> str:
    lines = {line for path in paths if not DRIVER.match(path.name) for line in _lines(path)}
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:DIGITS] if lines else ""


def _lines(path: Path) -> Iterable[str]:
    """What is known of a library, and of those that belong to it."""
    place = _installed(path)
    if place and TOOLKIT.match(path.name):
        return _beside(path.parent)
    if not _holds_device_code(path):
        return ()
    size = path.stat().st_size
    if place and size > SMALL:
        return (f"{place} {size}",)
    return (f"{place or path.name} {size} {_contents(path)}",)


@functools.cache
def _beside(directory: Path) -> tuple[str, ...]:
    libraries = (path for path in directory.iterdir() if LIBRARY.search(path.name) and path.is_file())
    return tuple(f"{_installed(path)} {path.stat().st_size}" for path in libraries)


def _installed(path: Path) -> str:
    """The path below the directory that packages are installed in; empty for a file elsewhere."""
    at = max((i for i, part in enumerate(path.parts) if part in INSTALLED), default=None)
    return "" if at is None else "/".join(path.parts[at + 1 :])


@functools.cache
def _holds_device_code(path: Path) -> bool:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
            return any(name.startswith(DEVICE_CODE) for name, _, _ in sections(image))
    except (OSError, ValueError):
        return False  # it is gone, or no library


@functools.cache
def _contents(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]
