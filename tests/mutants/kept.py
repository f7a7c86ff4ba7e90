"""What came of the mutants that need a GPU, where there was one: on_gpu.json. Elsewhere the page has it from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import perfgate.gpu
from tests.mutants.mutant import Mutant
from tests.mutants.trials import Verdict

__all__ = ["FILE", "Kept", "digest", "read", "write"]

FILE = Path(__file__).with_name("on_gpu.json")


@dataclass(frozen=True, slots=True)
class Kept:
    """What came of them.

    Attributes:
        device: The GPU's name.
        versions: Of what ran there.
        found: By name of the mutant the law that found it, and at which of its examples.
        planted: By name what it was then (see `digest`).
    """

    device: str
    versions: dict[str, str]
    found: dict[str, tuple[str, int]]
    planted: dict[str, str]


def read(file: Path = FILE) -> Kept:
    """What the file has."""
    document = json.loads(file.read_text(encoding="utf-8"))
    found = {name: (law, example) for name, (law, example) in document["found"].items()}
    return Kept(document["device"], document["versions"], found, document["planted"])


def digest(mutant: Mutant) -> str:
    """A few digits of what it plants and which laws it is put to: another mutant may have the same name."""
    said = repr((mutant.edits, mutant.checks))
    return hashlib.sha256(said.encode()).hexdigest()[:12]


def write(verdicts: Sequence[Verdict], file: Path = FILE) -> None:
    """Keep what came of the mutants among these that ran on this GPU."""
    environment = perfgate.gpu.environment()
    here = [verdict for verdict in verdicts if verdict.mutant.device == "cuda" and verdict.caught]
    document = {
        "device": environment.device,
        "versions": dict(environment.versions),
        "found": {verdict.mutant.name: (verdict.by, verdict.example) for verdict in here},
        "planted": {verdict.mutant.name: digest(verdict.mutant) for verdict in here},
    }
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
