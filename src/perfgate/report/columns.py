"""The columns of a table of cases, shared by every format that prints one.

A column in which no row has a value is left out. Where the page is narrow, a format leaves columns out from the end of
`IMPORTANCE`, and says which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from perfgate.report import units
from perfgate.report.rows import Row
from perfgate.verdict import Verdict

__all__ = ["IMPORTANCE", "Column", "blocks", "columns"]

IMPORTANCE = (
    "median",
    "verdict",
    "speed-up",
    "FLOP/s",
    "% matrix",
    "change",
    "B/s",
    "% bandwidth",
    "P95",
    "peak mem",
    "P99",
    "tokens/s",
    "less mem",
    "interval",
    "visible from",
)
"""Columns, the most important first; rates go by their unit without its prefix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table.

    Attributes:
        name: Its entry in `IMPORTANCE`.
        title: What stands above it, unit included.
        cells: Its text, a cell a row.
    """

    name: str
    title: str
    cells: tuple[str, ...]


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that have something to say of these rows, from left to right."""

    def column(name: str, cell: Callable[[Row], str], title: str | None = None) -> Column:
        return Column(name=name, title=title or name, cells=tuple(map(cell, rows)))

    flops_scale, flops_prefix = units.rate_unit([r.flops_per_second for r in rows])
    # GB/s is what bandwidths are given in, also where they are terabytes
    every = [
        column("median", lambda r: units.seconds(r.median)),
        column("P95", lambda r: units.seconds(r.p95)),
        column("P99", lambda r: units.seconds(r.p99)),
        column("FLOP/s", lambda r: units.rates(r.flops_per_second, flops_scale), f"{flops_prefix}FLOP/s"),
        column("% matrix", lambda r: units.percent(r.matrix_share)),
        column("B/s", lambda r: units.rates(r.bytes_per_second, 1e9), "GB/s"),
        column("% bandwidth", lambda r: units.percent(r.bandwidth_share)),
        column("tokens/s", lambda r: units.quantity(r.tokens_per_second, "")),
        column("peak mem", lambda r: units.quantity(r.peak_bytes, "B")),
        column("speed-up", lambda r: units.multiple(r.speedup)),
        column("less mem", lambda r: units.multiple(r.memory_reduction)),
        column("change", lambda r: units.signed_percent(r.verdict.ratio if r.verdict else None)),
        column("interval", lambda r: _interval(r.verdict), "new/old"),
        column("visible from", lambda r: _visible(r.verdict)),
        column("verdict", lambda r: str(r.verdict.state) if r.verdict else units.DASH),
    ]
    return [c for c in every if set(c.cells) - {units.DASH}]


def _interval(verdict: Verdict | None) -> str:
    if verdict is None or verdict.low is None or verdict.high is None:
        return units.DASH
    return f"[{verdict.low:.3f}, {verdict.high:.3f}]"


def _visible(verdict: Verdict | None) -> str:
    return units.DASH if verdict is None or verdict.visible is None else f"{100 * verdict.visible:.1f} %"


def blocks(rows: Sequence[Row]) -> list[tuple[str | None, list[tuple[str, Row]]]]:
    """The rows group by group, in their order, each with a label that tells it from the others of its group.

    A label is the part of the case's name (parts stand between slashes) in which the cases of the group differ.
    """
    groups: dict[str | None, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.case.group, []).append(row)
    return [(group, list(zip(_labels(group, members), members, strict=True))) for group, members in groups.items()]


def _labels(group: str | None, members: Sequence[Row]) -> list[str]:
    names = [row.case.name for row in members]
    parts = [name.split("/") for name in names]
    if group is None or len({len(p) for p in parts}) > 1:
        short = names
    elif len(parts) == 1:
        said = set(group.split("/"))
        short = ["/".join(p for p in parts[0] if p not in said) or names[0]]
    else:
        differing = [i for i in range(len(parts[0])) if len({p[i] for p in parts}) > 1]
        short = ["/".join(p[i] for i in differing) for p in parts]
    return [f"{label} (ref)" if row.case.reference else label for label, row in zip(short, members, strict=True)]
