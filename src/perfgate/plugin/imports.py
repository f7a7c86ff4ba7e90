"""Where the modules of a process were loaded from. Two revisions that load the same file are one, compared with itself.

src/kernels.py in the tree          site-packages/kernels.py         which was loaded?
of another tree below a path        `loaded_from`                    never right
not of the tree that provides it    `astray`                         nor is this
installed from the tree             `installed_from`                 nor this, for both sides find the one copy

What torch.compile wrote is no revision's, though its cache may lie in a tree: it is named by what it was compiled from.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.metadata
import json
import os
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["astray", "installed_from", "loaded_from"]

INSTALLED = {"site-packages", "dist-packages"}
ENDS = ("/__init__.py", *importlib.machinery.all_suffixes())
"""What follows the path of a module in the name of its file."""
CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""The variable that says where torch.compile keeps its files: ``fr/cfrvetwq....py``, by two letters of a digest."""


def loaded_from(root: Path) -> list[str]:
    """Files of modules that were loaded from a tree; an environment with packages in it is none of the tree's."""
    return sorted({str(file) for _, file in _modules() if _within(file, root) and not _compiled(file)})


def astray(root: Path, places: Collection[Path], ours: Path) -> dict[str, str]:
    """Modules that a tree provides and that were loaded from elsewhere, with their files.

    Args:
        root: The top of the tree.
        places: Where in it Python looks for modules.
        ours: Where the measuring code lies; what is loaded from there is meant to be.
    """
    return {
        name: str(file)
        for name, file in _modules()
        if not _within(file, root) and not file.is_relative_to(ours) and _provided(name, places)
    }


def installed_from(root: Path) -> dict[str, str]:
    """Modules of packages that were installed, not editable, from a directory in a tree; with their files."""
    copies = {file for distribution in _installed(root) for file in _files(distribution)}
    return {name: str(file) for name, file in _modules() if file in copies}


def _modules() -> Iterator[tuple[str, Path]]:
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and name != "__main__" and name.partition(".")[0] not in sys.stdlib_module_names:
            yield name, _resolved(file)


@functools.cache  # all of torch is asked for several times
def _resolved(file: str) -> Path:
    path = _directory(os.path.dirname(file)) / os.path.basename(file)
    return path.resolve() if path.is_symlink() else path


@functools.cache
def _directory(path: str) -> Path:
    return Path(path).resolve()


def _within(file: Path, root: Path) -> bool:
    return file.is_relative_to(root) and not INSTALLED & set(file.relative_to(root).parts)


def _compiled(file: Path) -> bool:
    cache = os.environ.get(CACHE)
    return bool(cache) and file.parent.parent == Path(str(cache)).resolve() and file.name[1:3] == file.parent.name


def _provided(name: str, places: Collection[Path]) -> bool:
    path = name.replace(".", "/")
    return any((place / f"{path}{end}").is_file() for place in places for end in ENDS)


def _installed(root: Path) -> Iterator[importlib.metadata.Distribution]:
    for distribution in importlib.metadata.distributions():
        # PEP 610: where pip had it from, absent for what came from an index
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        directory = origin.get("dir_info")
        if directory is None or directory.get("editable"):
            continue
        if Path(unquote(urlsplit(origin["url"]).path)).resolve().is_relative_to(root):
            yield distribution


def _files(distribution: importlib.metadata.Distribution) -> Iterator[Path]:
    for file in distribution.files or ():
        yield Path(str(distribution.locate_file(file))).resolve()
