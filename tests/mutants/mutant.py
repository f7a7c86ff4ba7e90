"""A planted bug: pieces of attnkit's source, and what stands in their place. Knows nothing of how it is found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["SOURCE", "Edit", "Mutant", "planter"]

SOURCE = Path(__file__).parents[2] / "src" / "attnkit"

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Edit:
    """A piece of a file of attnkit, which must be in it once, and what stands in its place."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """A planted bug.

    Attributes:
        name: Its own among all, ``family/what is wrong``.
        kind: The kind of bug, in a few words that mutants share.
        checks: Names of the laws that it is put to, in this order: see checks.py.
        edits: The patch. None are a control: it must pass.
        device: ``cuda`` where no interpreter can show it.
        tramples: It writes over what is not its own, and then any error may come of it, the process's end, or none.
    """

    name: str
    kind: str
    checks: tuple[str, ...]
    edits: tuple[Edit, ...]
    device: Device = "cpu"
    tramples: bool = False

    def plant(self, folder: Path) -> None:
        """Copy attnkit into this folder, with the bug in it.

        Raises:
            ValueError: If a piece is not in its file exactly once: the source has changed, and the mutant must too.
        """
        shutil.copytree(SOURCE, folder / "attnkit", ignore=shutil.ignore_patterns("__pycache__"))
        for edit in self.edits:
            path = folder / "attnkit" / edit.file
            text = path.read_text()
            if (times := text.count(edit.old)) != 1:
                raise ValueError(
                    f"mutant {self.name}: expected once in {edit.file}, found {times} times, the text {edit.old!r}: "
                    "change the mutant as the source was changed"
                )
            path.write_text(text.replace(edit.old, edit.new))


def planter(family: str, file: str, *checks: str, device: Device = "cpu") -> Callable[[str, str, str, str], Mutant]:
    """Return what makes a family's mutants of one file: called with name, kind, old and new."""

    def planted(name: str, kind: str, old: str, new: str) -> Mutant:
        return Mutant(f"{family}/{name}", kind, checks, (Edit(file, old, new),), device)

    return planted
