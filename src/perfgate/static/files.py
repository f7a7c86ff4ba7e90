"""Baselines of static profiles: a file an architecture, ``STORAGE/sm_90.json``, a line a build."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from perfgate.baseline import BaselineError
from perfgate.static.profile import Profile

__all__ = ["path", "read", "write"]

FORMAT = 1


def path(storage: Path, arch: int) -> Path:
    """Where an architecture's baseline lies."""
    return storage / f"sm_{arch}.json"


def read(storage: Path, arch: int) -> dict[str, Profile]:
    """An architecture's profiles by name; none where there is no baseline.

    Raises:
        BaselineError: If the file is no baseline of static profiles.
    """
    file = path(storage, arch)
    if not file.exists():
        return {}
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}, got {document['format']!r}")
        return {name: Profile.from_json(profile) for name, profile in document["builds"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaselineError(f"{file}: expected a baseline of static profiles, got {error}: renew it") from None


def write(storage: Path, arch: int, profiles: Mapping[str, Profile]) -> Path:
    """Write an architecture's baseline, whole or not at all."""
    file = path(storage, arch)
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(profiles[name].to_json())}" for name in sorted(profiles))
    beside = file.with_suffix(f".{os.getpid()}.tmp")
    beside.write_text(f'{{"format": {FORMAT}, "builds": {{\n{lines}\n}}}}\n', encoding="utf-8")
    beside.replace(file)
    return file
