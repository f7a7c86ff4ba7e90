"""The files that a case's kernels of libraries can come from, as one digest.

    torch, cuBLAS, cuDNN ...   every library in their directories: cuDNN loads its own piece by piece, and the digest
                               must not depend on which cases ran before
    extensions                 what this process has loaded, with contents where they are small or not installed

An extension is left out where all kernels have names that torch, cuBLAS and cuDNN give, and it has none of these names:
a file brings its kernels' names along as plain text, for CUDA's runtime asks for them. So an extension that was built
anew changes its own kernels, and those of torch's templates that it has instances of, and no others.

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

from perfgate.binaries import DIGITS, MANGLED, OURS, sections

__all__ = ["digest", "mapped"]

INSTALLED = ("site-packages", "dist-packages")
TOOLKIT = re.compile(r"lib(torch|c10|cublas|cudnn|cudart|cufft|cupti|curand|cusolver|cusparse|nv)[^/]*\.so[.\d]*$")
"""Libraries of torch and of CUDA, wherever they lie."""
RELEASED = ("nvidia/", "torch/lib/")
"""Where packages have them; what stands beside one there is of the same release."""
DRIVER = re.compile(r"lib(cuda|nvidia-.*|nvcuvid)\.so[.\d]*$")
"""Libraries of the driver, whose version the environment has."""
LIBRARY = re.compile(r"\.so[.\d]*$")
DEVICE_CODE = (".nv_fatbin", "__nv_relfatbin")
"""Sections that hold it."""
SMALL = 2**26
"""Bytes up to which an installed extension is known by its contents, and any by the names in it."""


def digest(names: Iterable[str], maps: Path = Path("/proc/self/maps")) -> str:
    """The digest of all that could have brought these kernels into this process; empty where nothing is found.

    Args:
        names: The kernels' full names.
        maps: What the process has mapped, as Linux tells it.
    """
    try:
        paths = mapped(maps)
    except OSError:
        return ""
    return _digest(frozenset(paths), frozenset(names))


def mapped(maps: Path) -> set[Path]:
    """The libraries that a process has mapped and that are still there."""
    found = set()
    for line in maps.read_text(encoding="utf-8", errors="replace").splitlines():
        path = line[line.find("/") :] if "/" in line else ""
        if LIBRARY.search(path):
            found.add(Path(path))
    return found


@functools.lru_cache(maxsize=1024)
def _digest(paths: frozenset[Path], names: frozenset[str]) -> str:
    lines = {line for path in paths if _may_give(path, names) for line in _lines(path)}
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:DIGITS] if lines else ""


def _may_give(path: Path, names: frozenset[str]) -> bool:
    """Whether one of these kernels can be of this library."""
    if not names or DRIVER.match(path.name):
        return False
    if TOOLKIT.match(path.name) or not all(name.startswith(OURS) for name in names):
        return True
    return _holds_device_code(path) and any(_has_text(path, _text(name)) for name in names)


def _text(name: str) -> str:
    """What a library has in it that gives this kernel: its name, or how all such begin that cuBLAS and cuDNN find.

    These have kernels that no plain text names, and may be linked into an extension.
    """
    return name if name.startswith(MANGLED) else next(start for start in OURS if name.startswith(start))


def _lines(path: Path) -> Iterable[str]:
    """What is known of a library, and of those that belong to it."""
    place = _installed(path)
    if place.startswith(RELEASED) and TOOLKIT.match(path.name):
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
def _has_text(path: Path, text: str) -> bool:
    """Whether a text is in a file; one that is gone or large counts as if it were."""
    try:
        if path.stat().st_size > SMALL:
            return True
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
            return image.find(text.encode()) >= 0
    except (OSError, ValueError):
        return True


@functools.cache
def _contents(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]
