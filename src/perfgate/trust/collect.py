"""A run of base against head, as its journal has it, into what is kept to judge perfgate by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from perfgate import contest, verdict
from perfgate.ab import outcome
from perfgate.ab.evidence import COMPLETE, read, rule_of
from perfgate.ab.trees import UNCOMMITTED
from perfgate.contest import Block, Findings
from perfgate.record import Record
from perfgate.trust.data import Contest, Origin, Planted, TrustError, What
from perfgate.verdict import Quantity

__all__ = ["from_journal", "planted"]


def from_journal(
    path: Path,
    *,
    what: What,
    occasion: str,
    suite: str,
    planted: Mapping[str, Planted] | None = None,
    disturbance: str = "",
    seconds: Mapping[str, float] | None = None,
) -> Contest:
    """Judge a journal again, by its own numbers of blocks and floor, and keep what was seen with the verdicts.

    Args:
        path: The journal of ``perfgate ab``.
        what: aa, planted or drift.
        occasion: Name of the start of the machine.
        suite: Name of the cases.
        planted: What was planted, by case.
        disturbance: What disturbed the machine.
        seconds: How long it took: ``screen``, ``whole``.

    Raises:
        JournalError: If it is no journal of base against head.
        TrustError: If the run did not come to its end, or is of two revisions where it is said to be of one.
    """
    evidence = read(path)
    header, sides = evidence.header, evidence.environments
    if evidence.end != COMPLETE or "head" not in sides:
        raise TrustError(f"{path} is of a run that did not come to its end ({evidence.end}): collect it anew")
    base, head = (str(header[side]).split()[0] for side in ("base", "head"))
    if what != "planted" and base != head:
        raise TrustError(f"{path} compares {head[:7]} with {base[:7]}: unchanged code is a commit against itself")
    if what != "planted" and str(header["head"]).endswith(UNCOMMITTED):
        raise TrustError(f"{path} is of code that was not committed: unchanged code is a commit against itself")
    found = contest.judge(evidence.blocks, rule_of(header), evidence.controls, evidence.suspects)

    def judged(blocks: Sequence[Block], controls: object, picked: object) -> Findings:
        return found

    verdicts = outcome.conclude(evidence, judged)[0].verdicts
    timed = evidence.compared
    return Contest(
        what=what,
        origin=Origin(date=header["started"], occasion=occasion, commit=head, environment=sides["head"]),
        suite=suite,
        seconds=seconds or {},
        unfit=found.unfit,
        controls=tuple(sorted(evidence.controls - (planted or {}).keys())),
        planted=planted or {},
        disturbance=disturbance,
        blocks=tuple(evidence.blocks),
        verdicts={one.case: one for one in verdicts if one.case in timed and one.quantity is Quantity.TIME},
        fills=_fills([record for name, record in evidence.records("head").items() if name in timed]),
    )


def _fills(records: Sequence[Record]) -> frozenset[str] | None:
    """The cases whose calls copy or fill memory; None if no case tells what it launches."""
    if all(samples.kernels is None for record in records for samples in record.processes):
        return None
    return frozenset(record.case.name for record in records if verdict.fills(record))


def planted(text: str) -> tuple[str, Planted]:
    """``CASE=ASKED:TRUE``, both in per cent, e.g. ``forward/naive/b1-...=2:1.98``.

    Raises:
        ValueError: If it is not that.
    """
    case, _, sizes = text.rpartition("=")
    asked, _, true = sizes.partition(":")
    try:
        return case, Planted(asked=round(float(asked) / 100, 9), true=float(true) / 100)
    except ValueError as error:
        raise ValueError(f"expected CASE=ASKED:TRUE in per cent, e.g. a/case=2:1.98, got {text!r}: {error}") from error
