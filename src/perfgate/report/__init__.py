"""Reports: a module a format. Each takes `Results` and returns text; none prints, measures or judges.

A new format is a module with such a function, and a line in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from perfgate.report import markdown, plot, roof, terminal
from perfgate.report.grid import Axis
from perfgate.report.rows import Results, Row, rows

__all__ = ["FORMATS", "Axis", "Format", "Results", "Row", "rows"]

Format = Callable[[Results, Axis | None], str]
"""The text of a report; the axis is for the formats that lay alternatives out over one."""


def _text(results: Results, axis: Axis | None = None) -> str:
    """The terminal's section, wide enough for every column; it lays nothing out over an axis."""
    return "\n".join(terminal.render(results, width=terminal.WIDE)) + "\n"


FORMATS: Mapping[str, Format] = {
    "text": _text,
    "markdown": markdown.render,
    "svg": plot.render,
    "roofline": roof.render,
}
