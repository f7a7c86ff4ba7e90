"""What is kept of a case: its samples, process by process, small enough to commit.

A record travels in pytest-benchmark's ``extra_info["perfgate"]``, so a file saved without ``--benchmark-save-data``
holds all that is needed to judge again. A run holds one process, a baseline several.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from perfgate.case import Case, Work
from perfgate.clock import Method, Samples
from perfgate.kernels import Kernels

__all__ = ["SCHEMA", "Record", "pack", "unpack"]

SCHEMA = 1
TICK = 1e-10
"""Resolution of packed durations in seconds; the finest step that CUDA events showed is 32 ns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A case and its samples from one or several processes.

    Raises:
        ValueError: If there is no process, or the processes were timed by different methods.
    """

    case: Case
    processes: tuple[Samples, ...]

    def __post_init__(self) -> None:
        if not self.processes:
            raise ValueError(f"{self.case.name}: a record needs the samples of at least one process, got none")
        methods = {s.method for s in self.processes}
        if len(methods) > 1:
            names = " and ".join(sorted(map(str, methods)))
            raise ValueError(f"{self.case.name}: processes were timed by different methods: {names}")

    @property
    def method(self) -> Method:
        """How the case was timed."""
        return self.processes[0].method

    def to_json(self) -> dict[str, Any]:
        """A JSON object, `from_json`'s inverse up to the resolution of packed durations."""
        # processes of one code launch the same kernels: each list is written once
        kernels = list(dict.fromkeys(s.kernels for s in self.processes if s.kernels is not None))
        return {
            "schema": SCHEMA,
            "case": asdict(self.case),
            "method": asdict(self.method),
            **({"kernels": [k.to_json() for k in kernels]} if kernels else {}),
            "processes": [
                {
                    "samples": pack(s.seconds),
                    # JSON has no infinity: what was not known (the half width of five samples) is left out
                    "counters": {name: value for name, value in s.counters.items() if math.isfinite(value)},
                    "notes": list(s.notes),
                    **({"kernels": kernels.index(s.kernels)} if s.kernels is not None else {}),
                }
                for s in self.processes
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Read what `to_json` wrote.

        Raises:
            ValueError: If the object is not a record of this schema.
        """
        if data.get("schema") != SCHEMA:
            raise ValueError(f"expected a record of schema {SCHEMA}, got {data.get('schema')!r}: measure it anew")
        try:
            case = dict(data["case"])
            work = case.pop("work")
            method = Method(**data["method"])
            kernels = [Kernels.from_json(k) for k in data.get("kernels", ())]
            return cls(
                case=Case(**case, work=Work(**work) if work is not None else None),
                processes=tuple(
                    Samples(
                        seconds=unpack(p["samples"]),
                        method=method,
                        counters={name: float(value) for name, value in p["counters"].items()},
                        notes=tuple(p["notes"]),
                        kernels=kernels[p["kernels"]] if "kernels" in p else None,
                    )
                    for p in data["processes"]
                ),
            )
        except (KeyError, IndexError, TypeError, AttributeError, struct.error, zlib.error) as error:
            raise ValueError(f"not a record of schema {SCHEMA}: {error!r}") from error


def pack(seconds: tuple[float, ...]) -> str:
    """Durations in about three bytes each, exact to `TICK`, in their order."""
    ticks = [round(s / TICK) for s in seconds]
    base = min(ticks)
    wide = max(ticks) - base >= 2**32
    body = struct.pack(f"<QB{len(ticks)}{'Q' if wide else 'I'}", base, wide, *(t - base for t in ticks))
    return base64.b85encode(zlib.compress(body, 9)).decode()


def unpack(text: str) -> tuple[float, ...]:
    """`pack`'s inverse."""
    body = zlib.decompress(base64.b85decode(text))
    base, wide = struct.unpack_from("<QB", body)
    kind, size = ("Q", 8) if wide else ("I", 4)
    offsets = struct.unpack_from(f"<{(len(body) - 9) // size}{kind}", body, 9)
    return tuple((base + o) * TICK for o in offsets)
