"""What was collected on GPUs to find out how far perfgate can be trusted: a file of JSON lines, one a run, committed.

    {"trust": 1, "what": "aa", "date": ..., "occasion": ..., "commit": ..., "environment": {...}, "suite": "default",
     "seconds": {"screen": 210.0, "whole": 330.0}, "unfit": null, "controls": [...], "fills": [...],
     "stages": [1, 1, 2, ...],
     "cases": {"forward/...": {"method": {...}, "visits": [[0, "base", "<packed>", 1.98e9], ...], "verdict": {...}}}}
    {... "what": "planted", "planted": {"forward/...": {"asked": 0.02, "true": 0.0198}}, ...}
    {... "what": "drift", "disturbance": "another process multiplies matrices from the third block on", ...}
    {"trust": 1, "what": "timer", ..., "seconds": {"softmax": {"perfgate": 5.1e-6, "cupti": 5.0e-6}}}
    {"trust": 1, "what": "spread", ..., "seconds": {"forward/...": {"perfgate": [5.1e-6, ...], "plain": [5.3e-6, ...]}},
     "windows": {"forward/...": [[[5.1e-6, 5.2e-6], [5.0e-6, 5.0e-6], ...], ...]}}

A run is aa (unchanged code against itself), planted (slowdowns of known size), drift (unchanged code on a machine that
was disturbed), timer (the clock against other timers) or spread (how far processes differ by the clock and by one that
does nothing against it, a median a process). An occasion is one start of one machine. Durations are packed
as in `perfgate.record`. A canary has no verdict. Whatever is not whole is refused.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, cast

from perfgate.clock import Method, Samples
from perfgate.contest import Block, Side, Visit
from perfgate.environment import Environment
from perfgate.record import pack, unpack
from perfgate.verdict import State, Verdict

__all__ = [
    "Contest",
    "Entry",
    "Origin",
    "Planted",
    "Spread",
    "Timing",
    "TrustError",
    "append",
    "check",
    "line",
    "read",
]

SCHEMA = 1
What = Literal["aa", "planted", "drift"]


class TrustError(ValueError):
    """The data cannot be read or added to: the message names the file, the line and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a run comes from.

    Attributes:
        date: When it began, ISO 8601 with its offset.
        occasion: Name of one start of one machine; runs of one occasion share its luck.
        commit: What was measured with, in hexadecimal.
        environment: Which GPU and which software.

    Raises:
        ValueError: For a date without an offset, no occasion, or a commit that is none.
    """

    date: str
    occasion: str
    commit: str
    environment: Environment

    def __post_init__(self) -> None:
        if datetime.fromisoformat(self.date).tzinfo is None:
            raise ValueError(f"date must say its offset from UTC, got {self.date!r}")
        if not self.occasion.strip():
            raise ValueError("occasion must name a start of a machine, got nothing")
        if not re.fullmatch(r"[0-9a-f]{7,40}", self.commit):
            raise ValueError(f"commit must be 7 to 40 hexadecimal digits, got {self.commit!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """A slowdown that was planted in a case.

    Attributes:
        asked: Relative size that was asked for.
        true: Relative size that it had, measured apart.
    """

    asked: float
    true: float

    def __post_init__(self) -> None:
        for name in ("asked", "true"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"a planted slowdown must be positive and finite, got {name}={getattr(self, name)!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """One run of base against head.

    Attributes:
        what: aa, planted or drift.
        origin: Where it comes from.
        suite: Name of the cases that ran.
        seconds: How long it took: ``screen``, and ``whole``.
        unfit: Why the machine was not fit, or None.
        controls: Cases whose kernels were the same on both sides, the planted ones left out, and canaries, which need
            no verdict.
        planted: What was planted, by case; empty unless `what` is planted.
        disturbance: What disturbed the machine; empty unless `what` is drift.
        blocks: What was seen.
        verdicts: What was said of the cases that were timed, by case.
        fills: The cases whose calls copy or fill memory apart from their kernels; None where that is not known.

    Raises:
        ValueError: If these do not go together.
    """

    what: What
    origin: Origin
    suite: str
    seconds: Mapping[str, float]
    unfit: str | None = None
    controls: tuple[str, ...] = ()
    planted: Mapping[str, Planted] = field(default_factory=dict)
    disturbance: str = ""
    blocks: tuple[Block, ...]
    verdicts: Mapping[str, Verdict]
    fills: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if self.what not in ("aa", "planted", "drift"):
            raise ValueError(f"what must be aa, planted, drift, timer or spread, got {self.what!r}")
        if not self.verdicts or not self.blocks:
            raise ValueError(f"a run needs blocks and verdicts, got {len(self.blocks)} and {len(self.verdicts)}")
        if bool(self.planted) != (self.what == "planted") or bool(self.disturbance) != (self.what == "drift"):
            raise ValueError(f"a run of {self.what} with planted={dict(self.planted)} and {self.disturbance!r}")
        if unknown := sorted(self.planted.keys() - self.verdicts.keys()):
            raise ValueError(f"{unknown[0]} was planted and has no verdict")
        if both := sorted(self.planted.keys() & set(self.controls)):
            raise ValueError(f"{both[0]} was planted and is called a control")
        seen = {name for block in self.blocks for name in block.visits}
        # a canary is timed and not judged
        if unjudged := sorted((seen ^ self.verdicts.keys()) - (set(self.controls) - self.verdicts.keys())):
            raise ValueError(f"{unjudged[0]} was timed and not judged, or judged and not timed")
        if not all(math.isfinite(s) and s > 0 for s in self.seconds.values()):
            raise ValueError(f"seconds must be positive and finite, got {dict(self.seconds)}")
        if unknown := sorted((self.fills or frozenset()) - self.verdicts.keys()):
            raise ValueError(f"{unknown[0]} is said to fill memory and has no verdict")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The clock against other timers, on the same kernels.

    Attributes:
        origin: Where it comes from.
        seconds: By kernel and by timer; ``perfgate`` is one of them, and at least one other.
    """

    origin: Origin
    seconds: Mapping[str, Mapping[str, float]]

    what = "timer"

    def __post_init__(self) -> None:
        for kernel, found in self.seconds.items():
            if "perfgate" not in found or len(found) < 2:
                raise ValueError(f"{kernel} needs perfgate's time and another's, got {sorted(found)}")
            if not all(math.isfinite(s) and s > 0 for s in found.values()):
                raise ValueError(f"times of {kernel} must be positive and finite, got {dict(found)}")
        if not self.seconds:
            raise ValueError("expected the times of at least one kernel, got none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How far processes differ, by several clocks.

    Attributes:
        origin: Where it comes from.
        seconds: By case and by clock, the median of each process in their order; ``perfgate`` is one of the clocks.
        windows: By case, for each process two medians of each window of perfgate's clock, of every other sample.
    """

    origin: Origin
    seconds: Mapping[str, Mapping[str, Sequence[float]]]
    windows: Mapping[str, Sequence[Sequence[tuple[float, float]]]]

    what = "spread"

    def __post_init__(self) -> None:
        for case, found in self.seconds.items():
            counts = {clock: len(medians) for clock, medians in found.items()}
            if "perfgate" not in counts or len(counts) < 2 or min(counts.values()) < 2 or len({*counts.values()}) > 1:
                raise ValueError(
                    f"{case} needs the medians of as many processes by perfgate and by another clock, got {counts}"
                )
            if not all(math.isfinite(s) and s > 0 for medians in found.values() for s in medians):
                raise ValueError(f"times of {case} must be positive and finite, got {dict(found)}")
            windows = self.windows.get(case, ())
            whole = len(windows) == counts["perfgate"] and all(windows)
            if not whole or not all(math.isfinite(s) and s > 0 for them in windows for two in them for s in two):
                raise ValueError(f"{case} needs the times of each process's windows, got {windows}")
        if not self.seconds:
            raise ValueError("expected the times of at least one case, got none")


Entry = Contest | Timing | Spread


def read(path: Path) -> list[Entry]:
    """All runs of a file, in its order; none if there is no such file.

    Raises:
        TrustError: If a line is not whole, or a run is there twice.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        raise TrustError(f"{path} is cut off in its last line: take the line away, and collect the run anew")
    entries: list[Entry] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            entry = _from_json(json.loads(line, parse_constant=_no_constant))
            _new(entry, entries)
        except (KeyError, TypeError, ValueError, AttributeError, struct.error, zlib.error) as error:
            raise TrustError(f"{path}, line {number} is no whole run: {type(error).__name__}: {error}") from error
        entries.append(entry)
    return entries


def append(path: Path, entry: Entry) -> None:
    """Add a run at the end of the file, synced to disk; the file is as it was if that fails.

    Raises:
        TrustError: If the file is not whole, holds the run already, or cannot be written.
    """
    before = read(path)
    try:
        _new(entry, before)
    except ValueError as error:
        raise TrustError(f"{path}: {error}") from error
    text = line(entry)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            size = file.tell()
            try:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(file.fileno(), size)
                raise
    except OSError as error:
        raise TrustError(f"{path} cannot be written: {error.strerror}; nothing was added to it") from error


def line(entry: Entry) -> bytes:
    """A run as it is written.

    Raises:
        TrustError: If a case of it was timed by two methods.
    """
    return json.dumps(_to_json(entry), separators=(",", ":"), allow_nan=False).encode() + b"\n"


def check(entries: Sequence[Entry]) -> None:
    """Whether each of these runs is among them once.

    Raises:
        TrustError: If one is there twice.
    """
    for i, entry in enumerate(entries):
        try:
            _new(entry, entries[:i])
        except ValueError as error:
            raise TrustError(str(error)) from error


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} where a number must be")


def _new(entry: Entry, before: Sequence[Entry]) -> None:
    """A run that counts twice would make its luck look like knowledge."""
    for other in before:
        if other == entry or (other.origin.date, other.what) == (entry.origin.date, entry.what):
            raise ValueError(f"the run of {entry.origin.date} ({entry.what}) is there already: a run counts once")


def _to_json(entry: Entry) -> dict[str, Any]:
    origin = {**asdict(entry.origin), "environment": entry.origin.environment.to_json()}
    head = {"trust": SCHEMA, "what": entry.what, **origin}
    if isinstance(entry, Timing | Spread):
        windows = (
            {"windows": {name: entry.windows[name] for name in entry.seconds}} if isinstance(entry, Spread) else {}
        )
        return {**head, "seconds": {name: dict(found) for name, found in entry.seconds.items()}, **windows}
    cases: dict[str, dict[str, Any]] = {
        name: {"verdict": None, "visits": []} for name in sorted({n for b in entry.blocks for n in b.visits})
    }
    for number, block in enumerate(entry.blocks):
        for name, visits in block.visits.items():
            for visit in visits:
                method = asdict(visit.samples.method)
                if cases[name].setdefault("method", method) != method:
                    raise TrustError(f"{name} was timed by two methods in one run: collect it anew")
                hz = visit.samples.counters.get("sm_hz")
                cases[name]["visits"].append([number, visit.side, pack(visit.samples.seconds), hz])
    for name, verdict in entry.verdicts.items():
        numbers = {k: getattr(verdict, k) for k in ("ratio", "low", "high", "floor", "visible")}
        cases[name]["verdict"] = {"state": verdict.state.value, **numbers}
    extra: dict[str, Any] = {}
    if entry.planted:
        extra["planted"] = {name: asdict(planted) for name, planted in entry.planted.items()}
    if entry.disturbance:
        extra["disturbance"] = entry.disturbance
    if entry.fills is not None:
        extra["fills"] = sorted(entry.fills)
    return {
        **head,
        "suite": entry.suite,
        "seconds": dict(entry.seconds),
        "unfit": entry.unfit,
        "controls": list(entry.controls),
        **extra,
        "stages": [block.stage for block in entry.blocks],
        "cases": cases,
    }


def _from_json(data: Mapping[str, Any]) -> Entry:
    if data["trust"] != SCHEMA:
        raise ValueError(f"expected schema {SCHEMA}, got {data['trust']!r}")
    environment = Environment.from_json(data["environment"])
    origin = Origin(date=data["date"], occasion=data["occasion"], commit=data["commit"], environment=environment)
    if data["what"] == "timer":
        return Timing(origin=origin, seconds=data["seconds"])
    if data["what"] == "spread":
        windows = {
            name: [[(first, second) for first, second in process] for process in processes]
            for name, processes in data["windows"].items()
        }
        return Spread(origin=origin, seconds=data["seconds"], windows=windows)
    visits: list[dict[str, list[Visit]]] = [{} for _ in data["stages"]]
    verdicts: dict[str, Verdict] = {}
    for name, case in data["cases"].items():
        for number, side, packed, hz in case["visits"]:
            if number not in range(len(visits)) or side not in ("base", "head"):
                raise ValueError(f"{name} was visited in block {number!r} on side {side!r}")
            counters = {} if hz is None else {"sm_hz": float(hz)}
            samples = Samples(seconds=unpack(packed), method=Method(**case["method"]), counters=counters)
            visits[number].setdefault(name, []).append(Visit(side=cast(Side, side), samples=samples))
        verdict = case["verdict"]
        if verdict is None:
            continue
        numbers = {k: verdict[k] for k in ("ratio", "low", "high", "floor", "visible")}
        if not all(value is None or math.isfinite(value) for value in numbers.values()):
            raise ValueError(f"the verdict of {name} holds {numbers}")
        verdicts[name] = Verdict(case=name, state=State(verdict["state"]), reason="", **numbers)
    return Contest(
        what=data["what"],
        origin=origin,
        suite=data["suite"],
        seconds=data["seconds"],
        unfit=data["unfit"],
        controls=tuple(data["controls"]),
        planted={name: Planted(**planted) for name, planted in data.get("planted", {}).items()},
        disturbance=data.get("disturbance", ""),
        blocks=tuple(
            Block(stage=stage, visits={name: tuple(found) for name, found in block.items()})
            for stage, block in zip(data["stages"], visits, strict=True)
        ),
        verdicts=verdicts,
        fills=frozenset(data["fills"]) if "fills" in data else None,
    )
