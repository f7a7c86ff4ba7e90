r"""Names as coordinates: a case name ``suite/alternative/problem`` placed on a panel, a line and an axis.

    forward / triton_flash / b4-h16-s4096-d128-bf16-causal      with x = s(\d+)
    panel: forward, b4-h16-d128-bf16-causal      series: triton_flash      x: 4096

Which field is the axis is the caller's to say: perfgate knows none of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from perfgate.report.rows import Results, Row
from perfgate.report.units import natural

__all__ = ["Axis", "Panel", "panels"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    r"""Which field of a problem's name runs along x.

    Attributes:
        pattern: Matches one whole field of the problem (fields stand between hyphens), x its group: ``r"s(\d+)"``.
        label: What x is, e.g. ``"sequence length"``; the pattern if left out.
        along: Matches the fields that may change along x without starting another panel: ``r"b\d+"``.

    Raises:
        ValueError: If a pattern is not a regular expression, or `pattern` has not exactly one group.
    """

    pattern: str
    label: str = ""
    along: str | None = None

    def __post_init__(self) -> None:
        for text in (self.pattern, self.along or ""):
            try:
                re.compile(text)
            except re.error as error:
                raise ValueError(f"not a regular expression: {text!r} ({error})") from None
        if re.compile(self.pattern).groups != 1:
            raise ValueError(f"expected a pattern with one group, such as 's(\\d+)', got {self.pattern!r}")

    def place(self, name: str) -> tuple[str, str, str, float] | None:
        """(suite, rest of the problem, alternative, x), or None for a name that has no place on this axis."""
        parts = name.split("/")
        if len(parts) != 3:
            return None
        suite, alternative, problem = parts
        fields = problem.split("-")
        found = [m for f in fields if (m := re.fullmatch(self.pattern, f))]
        if len(found) != 1:
            return None
        try:
            x = float(found[0][1])
        except (TypeError, ValueError):
            return None
        rest = [f for f in fields if f != found[0][0] and not (self.along and re.fullmatch(self.along, f))]
        return suite, "-".join(rest), alternative, x


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """The cases that differ in alternative and x only.

    Attributes:
        suite: First part of their names.
        problem: What their problems have in common.
        xs: Every x, ascending.
        series: Every alternative, the reference first, the others in natural order.
        rows: What was measured, by alternative and x.
        out_of_memory: Where the device had no memory, as (alternative, x).
    """

    suite: str
    problem: str
    xs: tuple[float, ...]
    series: tuple[str, ...]
    rows: dict[tuple[str, float], Row] = field(hash=False)
    out_of_memory: frozenset[tuple[str, float]] = frozenset()

    @property
    def title(self) -> str:
        """Its name: ``forward, b4-h16-d128-bf16-causal``."""
        return f"{self.suite}, {self.problem}" if self.problem else self.suite


def panels(results: Results, axis: Axis, *, least: int = 2) -> tuple[list[Panel], list[str]]:
    """The panels in natural order, and the names that have no place: no such field, or fewer than `least` x.

    Raises:
        ValueError: If two cases have the same place.
    """
    placed: dict[tuple[str, str], dict[tuple[str, float], str]] = {}
    homeless: list[str] = []
    by_name = {row.case.name: row for row in results.rows}
    for name in _unique([*by_name, *results.out_of_memory]):
        place = axis.place(name)
        if place is None:
            homeless.append(name)
            continue
        suite, problem, alternative, x = place
        other = placed.setdefault((suite, problem), {}).setdefault((alternative, x), name)
        if other != name:
            raise ValueError(f"{other} and {name} have the same place: select one, or narrow what changes along x")
    drawn = []
    for (suite, problem), cells in sorted(placed.items(), key=lambda item: (natural(item[0][0]), natural(item[0][1]))):
        xs = tuple(sorted({x for _, x in cells}))
        if len(xs) < least:
            homeless += cells.values()
            continue
        references = {place[0] for place, name in cells.items() if name in by_name and by_name[name].case.reference}
        series = sorted({alternative for alternative, _ in cells}, key=lambda a: (a not in references, natural(a)))
        drawn.append(
            Panel(
                suite=suite,
                problem=problem,
                xs=xs,
                series=tuple(series),
                rows={place: by_name[name] for place, name in cells.items() if name in by_name},
                out_of_memory=frozenset(place for place, name in cells.items() if name not in by_name),
            )
        )
    return drawn, sorted(homeless, key=natural)


def _unique(names: Iterable[str]) -> Sequence[str]:
    return tuple(dict.fromkeys(names))
