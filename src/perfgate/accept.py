"""Slowdowns that somebody accepted, with the reason: a file beside the baselines they belong to.

    {"schema": 1, "accepted": [
      {"case": "forward/flash/4k", "quantity": "time", "ratio": 1.061, "because": "sinks cost 6 %",
       "date": "2026-01-31", "baseline": "0001_default.json"}]}

An entry holds for the one baseline that it names: of a renewed one it is stale, which is said, and does nothing. What
it accepts is no longer red and stands in every report. A case that got slower still is red again: it is judged by the
rule of its quantity as if the baseline were slower by what was accepted. Of time that is

    interval above accepted ratio · (1 + floor)
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from perfgate import baseline, preflight, price
from perfgate.baseline import Baseline, BaselineError, rule_for
from perfgate.verdict import Noise, Quantity, State, Verdict

__all__ = ["Acceptance", "add_command", "command", "read", "settle", "write"]

SCHEMA = 1
NAME = "accepted.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """One slowdown that somebody accepted.

    Attributes:
        case: The case's name.
        quantity: What got worse.
        ratio: By how much: new over old.
        because: The reason.
        date: When, ISO 8601.
        baseline: The name of the baseline's file.

    Raises:
        ValueError: For a ratio that is no growth, or an empty text.
    """

    case: str
    quantity: Quantity
    ratio: float
    because: str
    date: str
    baseline: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ratio) and self.ratio > 1):
            raise ValueError(f"a ratio that is accepted is above 1 and finite, got {self.ratio!r}")
        for name in ("case", "because", "date", "baseline"):
            text = getattr(self, name)
            if not (isinstance(text, str) and text.strip()):
                raise ValueError(f"{name} must be a text that is not empty, got {text!r}")

    def __str__(self) -> str:
        return f"{self.quantity} {100 * (self.ratio - 1):+.1f} %, accepted on {self.date}: {self.because}"


def read(path: Path) -> tuple[Acceptance, ...]:
    """What was accepted of the baselines that lie where this one does.

    Args:
        path: Of a baseline.

    Raises:
        BaselineError: If the file is there and cannot be read, is broken, or has another schema.
    """
    file = path.parent / NAME
    if not file.exists():
        return ()
    document = baseline.load(file)
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise BaselineError(f"{file} has schema {found!r}, expected {SCHEMA}: restore it, or remove it and accept anew")
    try:
        entries = [Acceptance(**{**e, "quantity": Quantity(e["quantity"])}) for e in document["accepted"]]
    except (KeyError, TypeError, ValueError) as error:
        raise BaselineError(f"{file} is damaged ({error}): restore it, or remove it and accept anew") from error
    twice = [e for i, e in enumerate(entries) if _key(e) in map(_key, entries[:i])]
    if twice:
        raise BaselineError(f"{file} accepts {twice[0].case} ({twice[0].quantity}) twice: remove one of the two")
    return tuple(entries)


def write(path: Path, entries: Iterable[Acceptance]) -> Path:
    """Write what is accepted of the baselines that lie where this one does; whole, or not at all.

    Raises:
        BaselineError: If the file cannot be written.
    """
    file = path.parent / NAME
    ordered = sorted(entries, key=_key)
    text = json.dumps({"schema": SCHEMA, "accepted": [asdict(e) for e in ordered]}, indent=1, ensure_ascii=False) + "\n"
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=file.parent)
        with open(handle, "w", encoding="utf-8") as opened:
            opened.write(text)
            opened.flush()
            os.fchmod(opened.fileno(), 0o644)
            os.fsync(opened.fileno())
        os.replace(temporary, file)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        reason = error.strerror or str(error)
        raise BaselineError(f"{file} was left as it was: {reason}; make room or check its rights") from error
    return file


def settle(
    verdicts: Sequence[Verdict], entries: Sequence[Acceptance], name: str | None
) -> tuple[list[Verdict], list[str]]:
    """The verdicts with what was accepted no longer red, and what must be said of the other entries.

    Args:
        verdicts: Of one run.
        entries: What was accepted, of whatever baseline.
        name: Of the file of the baseline that this run is held against.
    """
    live = {(e.case, e.quantity): e for e in entries if e.baseline == name}
    settled = []
    for verdict in verdicts:
        entry = live.get((verdict.case, verdict.quantity))
        if entry is not None and verdict.state is State.REGRESSED:
            verdict = _settled(verdict, entry)
            del live[entry.case, entry.quantity]
        settled.append(verdict)
    judged = {v.case for v in verdicts if v.state not in (State.NEW, State.MISSING)}
    notes = [f"{e.case}: {'not seen' if e.case in judged else 'not measured'} now, though {e}" for e in live.values()]
    stale: dict[str, list[str]] = {}
    for e in entries:
        if e.baseline != name:
            stale.setdefault(e.baseline, []).append(e.case)
    notes += [
        f"stale: what was accepted of {file} does not hold for {name or 'this comparison'} and was ignored: "
        f"{', '.join(dict.fromkeys(cases))}"
        for file, cases in stale.items()
    ]
    return settled, notes


def _settled(verdict: Verdict, entry: Acceptance) -> Verdict:
    if _covers(entry, verdict):
        return replace(verdict, state=State.ACCEPTED, reason=f"{verdict.reason}; {entry}")
    return replace(verdict, reason=f"{verdict.reason}; more than {entry}")


def _covers(entry: Acceptance, verdict: Verdict) -> bool:
    if verdict.ratio is None or verdict.low is None or verdict.floor is None:
        return False  # it did not fit into memory, or was exact: no ratio says by how much
    beyond = entry.ratio * (1 + verdict.floor)
    if verdict.quantity is Quantity.TIME:
        return verdict.low <= beyond
    return verdict.ratio <= beyond or verdict.low <= entry.ratio


def add_command(commands: Any) -> None:
    """Declare ``perfgate accept`` among the commands of a parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "accept",
        help="let a case be slower than its baseline, with the reason, until the baseline is renewed",
        description="Write into accepted.json beside the baseline that the last run's slowdown of CASE is accepted. "
        "It stays in every report, and is red again if it grows.",
        allow_abbrev=False,
    )
    parser.add_argument("case", metavar="CASE", help="its whole name, as reports have it")
    parser.add_argument("--because", required=True, metavar="REASON", help="why; every report says it")
    parser.add_argument(
        "--quantity",
        choices=[str(q) for q in Quantity],
        default=str(Quantity.TIME),
        help="what got worse (default: time)",
    )
    parser.add_argument(
        "--from",
        dest="file",
        type=Path,
        default=Path(".perfgate/perf.json"),
        metavar="FILE",
        help="the run that shows it (default: %(default)s)",
    )
    parser.add_argument("--storage", type=Path, default=Path("baselines"), help="default: baselines")
    parser.add_argument(
        "--against", type=Path, metavar="BASELINE", help="default: the newest of that run's environment in --storage"
    )


def command(options: argparse.Namespace) -> int:
    """Accept one slowdown, as ``perfgate accept`` was told.

    Raises:
        BaselineError: If run, baseline or file cannot be read, compared or written.
        ValueError: For a name that is not in the baseline, or a case that did not get worse.
    """
    document = baseline.load(options.file)
    run = baseline.from_document(document, options.file)
    path = options.against or _newest(options.storage, run, document)
    before = baseline.read(path)
    baseline.check_comparable(before, run.environment)
    verdict = _worse(options.case, Quantity(options.quantity), run, before)
    if verdict.ratio is None:
        raise ValueError(f"no ratio covers that {verdict}; measure the baseline anew")
    entry = Acceptance(
        case=options.case,
        quantity=verdict.quantity,
        ratio=round(verdict.ratio, 6),
        because=" ".join(options.because.split()),
        date=datetime.now(UTC).date().isoformat(),
        baseline=path.name,
    )
    kept = [e for e in read(path) if _key(e) != _key(entry)]
    file = write(path, [*kept, entry])
    print(f"{file}: {entry.case}: {entry}")
    return 0


def _newest(storage: Path, run: Baseline, document: Any) -> Path:
    directory = storage / run.environment.key
    found = preflight.compared(directory, preflight.machine_id(document["machine_info"]), True)
    if not found:
        raise BaselineError(f"no baseline of {run.environment.key} in {storage}: give one with --against")
    return found[0]


def _worse(case: str, quantity: Quantity, run: Baseline, before: Baseline) -> Verdict:
    """The verdict that is to be accepted."""
    known = {**before.records, **before.out_of_memory}
    if case not in known:
        near = difflib.get_close_matches(case, known, n=3, cutoff=0.5)
        meant = f": did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"{case} is not in {before.path}{meant}")
    if case not in run.records or case not in before.records:
        raise ValueError(f"{case} has no number in {run.path if case not in run.records else before.path}")
    noise = Noise.of(before.records.values())
    verdicts = price.assess(run.records[case], before.records[case], rule_for(before, run.environment), noise)
    found = next((v for v in verdicts if v.quantity is quantity), None)
    if found is None:
        raise ValueError(f"{case} did not get worse in {quantity}: there is nothing to accept")
    if found.state is not State.REGRESSED:
        raise ValueError(f"there is nothing to accept: {found}")
    return found


def _key(entry: Acceptance) -> tuple[str, str, str]:
    return entry.baseline, entry.case, str(entry.quantity)
