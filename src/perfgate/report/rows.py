"""From records to rows: what is read off the samples of a case, and off those of its group.

    rate       = work / median           share      = rate / ceiling measured in the same run
    speed-up   = median of the reference / median   (memory reduction likewise, of peak bytes)

A value that has no meaning (no work stated, no ceiling measured, no reference in the group) is None. Numbers are SI;
`perfgate.report.units` makes them pretty.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from perfgate import stats
from perfgate.case import Case
from perfgate.clock import Method
from perfgate.environment import Environment
from perfgate.gate import Outcome
from perfgate.record import Record
from perfgate.report.units import natural
from perfgate.roofline import bandwidth
from perfgate.verdict import Quantity, Verdict

__all__ = ["Results", "Row", "rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case, measured.

    Attributes:
        case: What was timed.
        method: How it was timed.
        processes: How many processes the samples come from.
        calls: How many samples there are, over all processes.
        median: Median duration in seconds, over the samples of all processes together; `p95` and `p99` likewise.
        flops_per_second: Floating-point operations a second at the median.
        bytes_per_second: Least bytes a second at the median.
        tokens_per_second: Tokens a second at the median.
        matrix_share: `flops_per_second` over the matrix rate measured for the case's dtype.
        bandwidth_share: `bytes_per_second` over the best bandwidth measured.
        peak_bytes: Most device memory the call held in any process.
        speedup: How many times faster than the reference of its group.
        memory_reduction: How many times less memory than the reference of its group.
        verdict: That of its time against the baseline, if there is one.
        notes: What the clock said of the samples.
    """

    case: Case
    method: Method
    processes: int
    calls: int
    median: float
    p95: float
    p99: float
    flops_per_second: float | None = None
    bytes_per_second: float | None = None
    tokens_per_second: float | None = None
    matrix_share: float | None = None
    bandwidth_share: float | None = None
    peak_bytes: float | None = None
    speedup: float | None = None
    memory_reduction: float | None = None
    verdict: Verdict | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All that a report says of one run or one baseline.

    Attributes:
        rows: The measured cases, as `rows` orders them.
        environment: Where they were measured.
        ceilings: What the machine did at best in the same run, in bytes or operations a second:
            ``copy_bytes_per_second``, ``read_bytes_per_second``, ``flops_per_second.<dtype>``.
        outcome: What the gate decided, if it was asked.
        out_of_memory: Cases that the device had no memory for, with the reason. A result, not an error.
        absent: Alternatives that are not installed or not possible here, with reason and remedy.
        notes: What else must be said, once each.
        command: The command that measured.
    """

    rows: tuple[Row, ...]
    environment: Environment
    ceilings: Mapping[str, float] = field(default_factory=dict)
    outcome: Outcome | None = None
    out_of_memory: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    command: str | None = None

    @classmethod
    def of(
        cls,
        records: Mapping[str, Record] | Iterable[Record],
        environment: Environment,
        *,
        ceilings: Mapping[str, float] | None = None,
        outcome: Outcome | None = None,
        out_of_memory: Mapping[str, str] | None = None,
        absent: Mapping[str, str] | None = None,
        notes: Iterable[str] = (),
        command: str | None = None,
    ) -> Results:
        """The results of these records; rows and verdicts are brought together here."""
        return cls(
            rows=tuple(rows(records, ceilings or {}, outcome.verdicts if outcome else ())),
            environment=environment,
            ceilings=dict(ceilings or {}),
            outcome=outcome,
            out_of_memory={case: _brief(why) for case, why in (out_of_memory or {}).items()},
            absent=dict(absent or {}),
            notes=tuple(dict.fromkeys(notes)),
            command=command,
        )

    def select(self, pattern: str) -> Results:
        """The cases whose names this regular expression finds; what the gate said of the whole run is left out.

        Raises:
            ValueError: If the pattern is not a regular expression, or finds nothing.
        """
        try:
            found = re.compile(pattern).search
        except re.error as error:
            raise ValueError(f"not a regular expression: {pattern!r} ({error})") from None
        rows = tuple(row for row in self.rows if found(row.case.name))
        out_of_memory = {case: why for case, why in self.out_of_memory.items() if found(case)}
        if not rows and not out_of_memory:
            raise ValueError(f"{pattern!r} finds none of the {len(self.rows)} cases")
        return replace(self, rows=rows, out_of_memory=out_of_memory, outcome=None)

    @property
    def methods(self) -> dict[Method, int]:
        """How many cases were timed by each method, the most frequent first."""
        return dict(Counter(row.method for row in self.rows).most_common())

    @property
    def processes(self) -> int:
        """The most processes that any case was timed in."""
        return max((row.processes for row in self.rows), default=0)


def rows(
    records: Mapping[str, Record] | Iterable[Record],
    ceilings: Mapping[str, float] | None = None,
    verdicts: Iterable[Verdict] = (),
) -> list[Row]:
    """One row a record: groups in natural order of their names, in a group the reference first, then the fastest.

    The order of the records does not matter. Cases without a group come last. Speed-up and memory reduction are counted
    from the one reference of the group that was timed by the same method; with none, or with several, there are none.

    Args:
        records: What was measured, by name or not.
        ceilings: Best rates measured in the same run, in bytes or operations a second (see `Results`).
        verdicts: Against the baseline, found by the name of their case.

    Raises:
        ValueError: If two records are of one case.
    """
    known = list(records.values() if isinstance(records, Mapping) else records)
    twice = [name for name, n in Counter(r.case.name for r in known).items() if n > 1]
    if twice:
        raise ValueError(f"expected one record a case, got several of {twice[0]!r}: merge the processes first")
    judged = {v.case: v for v in verdicts if v.quantity is Quantity.TIME}
    measured = [_alone(r, ceilings or {}, judged.get(r.case.name)) for r in known]
    references: dict[tuple[str | None, Method], list[Row]] = {}
    for row in measured:
        if row.case.reference and row.case.group is not None:
            references.setdefault((row.case.group, row.method), []).append(row)
    compared = [_beside(row, references.get((row.case.group, row.method), [])) for row in measured]
    return sorted(compared, key=_order)


def _alone(record: Record, ceilings: Mapping[str, float], verdict: Verdict | None) -> Row:
    """What a record says by itself."""
    pooled = [s for samples in record.processes for s in samples.seconds]
    peaks = [s.counters["peak_bytes"] for s in record.processes if "peak_bytes" in s.counters]
    median = stats.quantile(pooled, 0.5)
    work = record.case.work
    flops, least_bytes, tokens = (work.flops, work.bytes, work.tokens) if work else (0.0, 0.0, 0.0)
    matrix = ceilings.get(f"flops_per_second.{work.dtype}") if work and work.dtype else None
    return Row(
        case=record.case,
        method=record.method,
        processes=len(record.processes),
        calls=len(pooled),
        median=median,
        p95=stats.quantile(pooled, 0.95),
        p99=stats.quantile(pooled, 0.99),
        flops_per_second=_over(flops, median),
        bytes_per_second=_over(least_bytes, median),
        tokens_per_second=_over(tokens, median),
        matrix_share=_over(_over(flops, median), matrix),
        bandwidth_share=_over(_over(least_bytes, median), bandwidth(ceilings)),
        peak_bytes=max(peaks, default=None),
        verdict=verdict,
        notes=tuple(dict.fromkeys(note for s in record.processes for note in s.notes)),
    )


def _beside(row: Row, references: list[Row]) -> Row:
    """The row with what it is worth against the reference of its group."""
    if len(references) != 1:
        return row
    reference = references[0]
    return replace(
        row,
        speedup=_over(reference.median, row.median),
        memory_reduction=_over(reference.peak_bytes, row.peak_bytes),
    )


def _over(amount: float | None, per: float | None) -> float | None:
    """A quotient, or None where it would say nothing."""
    return amount / per if amount and per and amount > 0 and per > 0 else None


def _order(row: Row) -> tuple[object, ...]:
    group, name = row.case.group, row.case.name
    if group is None:
        return (True, natural(name))
    return (False, natural(group), not row.case.reference, row.median, natural(name))


def _brief(why: str) -> str:
    """An allocator's reason as far as what it was asked for: torch's goes on with a page of advice."""
    sentences = why.split(". ")
    return why if len(sentences) <= 2 else ". ".join(sentences[:2]) + "."
