"""What came of the mutants that need a GPU, where there was one: on_gpu.json. Elsewhere the page has it from there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import perfgate.gpu
from tests.mutants.trials import Verdict

__all__ = ["FILE", "Kept", "read", "write"]

FILE = Path(__file__).with_name("on_gpu.json")


@dataclass(frozen=True, slots=True)
class Kept:
    """What came of them.

    Attributes:
        device: The GPU's name.
        versions: Of what ran there.
        found: By name of the mutant the law that found it, and at which of its examples.
    """

    device: str
    versions: dict[str, str]
    found: dict[str, tuple[str, int]]


def read(file: Path = FILE) -> Kept:
    """What the file has."""
    document = json.loads(file.read_text(encoding="utf-8"))
    found = {name: (law, example) for name, (law, example) in document["found"].items()}
    return Kept(document["device"], document["versions"], found)


def write(verdicts: Sequence[Verdict], file: Path = FILE) -> None:
    """Keep what came of the mutants among these that ran on this GPU."""
    environment = perfgate.gpu.environment()
    found = {v.mutant.name: (v.by, v.example) for v in verdicts if v.mutant.device == "cuda" and v.caught}
    document = {"device": environment.device, "versions": dict(environment.versions), "found": found}
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
