"""Which device and which software: the key under which a baseline is filed.

Two runs may be compared only if their keys are equal; what differs below the key (driver, patch levels) is said.
Knows nothing of torch: `perfgate.gpu` and `host()` fill it in.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Environment", "host"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where numbers were measured.

    Attributes:
        device: The device's name, e.g. ``"NVIDIA H200"``.
        versions: Software by name, in full, e.g. ``{"cuda": "13.0", "torch": "2.11.0+cu130", "driver": "580.1"}``.
        facts: What else describes the machine and may differ, e.g. ``{"uuid": ..., "sm_count": "132"}``. What
            several devices measured has all their uuids, with commas between.
    """

    device: str
    versions: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The directory name of this environment's baselines, e.g. ``NVIDIA-H200_cu130_torch2.11``."""
        parts = [self.device]
        if cuda := self.versions.get("cuda"):
            parts.append("cu" + "".join(cuda.split(".")[:2]))
        if torch := self.versions.get("torch"):
            parts.append("torch" + ".".join(torch.split("+")[0].split(".")[:2]))
        return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts)).strip("-")

    def same_device(self, other: Environment) -> bool:
        """Whether this device is the other's, or one of them, and not only of their kind; one without id never is."""
        mine, theirs = self._devices(), other._devices()
        return bool(mine) and mine <= theirs

    def differences(self, other: Environment) -> list[str]:
        """What differs without forbidding a comparison, e.g. ``driver 580.1 here, 570.2 in the baseline``."""
        names = sorted(set(self.versions) | set(other.versions))
        another = bool(self._devices() and other._devices()) and not self.same_device(other)
        said = [f"another {self.device} than the baseline's: of short calls only larger slowdowns are called"]
        return said * another + [
            f"{name} {self.versions.get(name, 'absent')} here, {other.versions.get(name, 'absent')} in the baseline"
            for name in names
            if self.versions.get(name) != other.versions.get(name)
        ]

    def _devices(self) -> set[str]:
        return set(filter(None, self.facts.get("uuid", "").split(",")))

    def to_json(self) -> dict[str, object]:
        """A JSON object, `from_json`'s inverse."""
        return {"key": self.key, "device": self.device, "versions": dict(self.versions), "facts": dict(self.facts)}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Environment:
        """Read what `to_json` wrote.

        Raises:
            ValueError: If the object is not an environment.
        """
        device, versions, facts = data.get("device"), data.get("versions", {}), data.get("facts", {})
        if not (isinstance(device, str) and isinstance(versions, Mapping) and isinstance(facts, Mapping)):
            raise ValueError(f"expected an environment with device, versions and facts, got {dict(data)!r}")
        return cls(device=device, versions=dict(versions), facts=dict(facts))


def host(versions: Mapping[str, str] | None = None) -> Environment:
    """The host's processor as an environment; `versions` names the software that matters."""
    facts = {"python": platform.python_version()}
    return Environment(device=f"CPU {_processor()}", versions=dict(versions or {}), facts=facts)


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = found[1] if found else (platform.processor() or platform.machine())
    return re.sub(r"\((R|TM|tm)\)|@.*$|\bCPU\b", "", name).strip()
