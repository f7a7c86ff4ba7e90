"""Markdown for GitHub: for a README a small table of alternatives over one axis, for a comment or a page all cases.

    | alternative | 512 | 1024 | 2048 |        a row an alternative, a column an x, the fastest in bold,
    |---|--:|--:|--:|                          in brackets the speed-up over the reference
    | naive (ref) | 38.2 | 41.0 | out of memory |
    | flash | **412 (10.8×)** | **520 (12.7×)** | **590** |

GitHub takes 65,536 characters a comment: what does not fit is left out from the end, and is said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from perfgate.report import sentences, units
from perfgate.report.columns import columns
from perfgate.report.grid import Axis, Panel, panels
from perfgate.report.metric import Metric
from perfgate.report.metric import metric as metric_of
from perfgate.report.rows import Results
from perfgate.verdict import Verdict

__all__ = ["LIMIT", "render", "replace_block"]

LIMIT = 65_536
"""Bytes of a page; GitHub counts characters, of which there are never more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page that can be shortened from its end.

    Attributes:
        head: What stands above the lines.
        lines: What can be left out, the most important first.
        tail: What stands below them.
        noun: What a line is: for the sentence that says how many were left out.
    """

    head: str
    lines: Sequence[str]
    tail: str = ""
    noun: str = "lines"


def render(
    results: Results, axis: Axis | None = None, *, metric: str = "flops", full: bool = True, limit: int = LIMIT
) -> str:
    """A page: where and how it was measured, what the gate found, a small table a panel, all cases.

    Args:
        results: What to say.
        axis: What runs along the small tables; without it there are none.
        metric: What their cells say: ``"time"``, ``"flops"`` or ``"bytes"``.
        full: Whether the table of all cases follows.
        limit: Most bytes of the page.

    Raises:
        ValueError: For an unknown metric, or a limit below that of the page's first part.
    """
    shown = metric_of(metric)
    parts = [_where(results)]
    if results.outcome is not None:
        parts.append(_verdicts(results))
    if axis is not None:
        drawn, _ = panels(results, axis)
        parts += [_pivot(panel, axis, shown) for panel in drawn]
    if full and results.rows:
        parts.append(_every_case(results))
    parts += [s for s in _remarks(results) if s.lines]
    return _within(limit, parts)


def replace_block(text: str, name: str, body: str) -> str:
    """The document with the lines between ``<!-- generated: NAME -->`` and ``<!-- end -->`` replaced by `body`.

    Raises:
        ValueError: If the document does not have exactly one such block, or `body` would end it early.
    """
    begin, end = f"<!-- generated: {name} -->", "<!-- end -->"
    if "<!-- end -->" in body or "<!-- generated:" in body:
        raise ValueError(f"the text for block {name!r} has a block's marker in it: it could not be replaced again")
    if text.count(begin) != 1:
        raise ValueError(
            f"expected one line {begin!r} in the document, got {text.count(begin)}: write it, with {end!r} below it"
        )
    before, after = text.split(begin)
    inside, closed, rest = after.partition(end)
    if not closed or "<!-- generated:" in inside:
        raise ValueError(f"block {name!r} has no end: write a line {end!r} below {begin!r}")
    return f"{before}{begin}\n{body.strip()}\n{end}{rest}"


def _where(results: Results) -> Section:
    lines = [_escape(s) for s in [*sentences.methods(results), sentences.ceilings(results)] if s]
    if results.command:
        lines.append(f"command: {_code(results.command)}")
    device = f"Measured on **{_escape(sentences.machine(results))}**\n"
    return Section(head="\n".join([device, *(f"- {line}" for line in lines)]), lines=[])


def _verdicts(results: Results) -> Section:
    table = [
        f"| {v.what} | {_cell(v.case)} | {units.signed_percent(v.ratio)} | {_evidence(v)} |"
        for v in sentences.listed(results)
    ]
    summary = sentences.summary(results.outcome.verdicts if results.outcome else ())
    head = "\n\n".join([f"**{summary}**", *map(_escape, sentences.remarks(results))])
    if table:
        head += "\n\n| verdict | case | change | evidence |\n|---|---|--:|---|"
    return Section(head=head, lines=table, noun="verdicts")


def _evidence(verdict: Verdict) -> str:
    return "<br>".join(map(_escape, (verdict.reason, *verdict.why)))


def _pivot(panel: Panel, axis: Axis, metric: Metric) -> Section:
    head = f"**{_escape(panel.title)}**: {metric.title} over {_escape(axis.label or axis.pattern)}"
    if any(row.speedup is not None for row in panel.rows.values()):
        head += " (in brackets the speed-up over the reference)"
    head += "\n\n| | " + " | ".join(map(units.plain, panel.xs)) + " |\n|---|" + "--:|" * len(panel.xs)
    best: dict[float, float] = {}
    for (_, x), row in panel.rows.items():
        if (value := metric.value(row)) is not None:
            best[x] = (min if metric.lower_is_better else max)(best.get(x, value), value)
    lines = []
    for name in panel.series:
        cells = [_pivot_cell(panel, metric, (name, x), best.get(x)) for x in panel.xs]
        reference = any(row.case.reference for (other, _), row in panel.rows.items() if other == name)
        lines.append(f"| {_escape(name)}{' (ref)' if reference else ''} | {' | '.join(cells)} |")
    return Section(head=head, lines=lines, noun="alternatives")


def _pivot_cell(panel: Panel, metric: Metric, place: tuple[str, float], best: float | None) -> str:
    if place in panel.out_of_memory:
        return "out of memory"
    row = panel.rows.get(place)
    value = metric.value(row) if row else None
    if row is None or value is None:
        return units.DASH
    text = metric.text(value)
    if row.speedup is not None and not row.case.reference:
        text += f" ({units.multiple(row.speedup)})"
    return f"**{text}**" if value == best else text


def _every_case(results: Results) -> Section:
    every = columns(results.rows)
    titles = "| case | " + " | ".join(c.title for c in every) + " |\n|---|" + "--:|" * len(every)
    lines = []
    for i, row in enumerate(results.rows):
        name = f"{_cell(row.case.name)}{' (ref)' if row.case.reference else ''}"
        lines.append(f"| {name} | " + " | ".join(c.cells[i] for c in every) + " |")
    head = f"<details><summary>All {len(lines)} cases</summary>\n\n{titles}"
    return Section(head=head, lines=lines, tail="\n</details>", noun="cases")


def _remarks(results: Results) -> list[Section]:
    memory = [f"- {_code(case)}: {_escape(why)}" for case, why in results.out_of_memory.items()]
    absent = [f"- {_escape(name)}: {_escape(why)}" for name, why in results.absent.items()]
    return [
        Section(head="Notes:\n", lines=[f"- {_escape(note)}" for note in sentences.notes(results)], noun="notes"),
        Section(head="Out of memory (a result, not an error):\n", lines=memory, noun="cases"),
        Section(head="Not here:\n", lines=absent, noun="alternatives"),
    ]


def _within(limit: int, parts: Sequence[Section]) -> str:
    """The parts one below the other, each as long as the room allows that the heads of the later ones leave."""
    everything = "".join(_joined(part, part.lines) for part in parts).rstrip("\n") + "\n"
    if len(everything.encode()) <= limit:
        return everything
    said = "{} of {} {} left out: they would not fit into {:,} bytes.\n"
    least = [len((_joined(p, []) + said.format(10**9, 10**9, p.noun, limit)).encode()) for p in parts]
    whole = len(parts)
    while whole > 1 and sum(least[:whole]) + len(said) + 40 > limit:
        whole -= 1
    if sum(least[:whole]) > limit:
        raise ValueError(
            f"a page of {limit:,} bytes has no room for its head: raise the limit to {least[0]:,} at least"
        )
    page = ""
    for i, part in enumerate(parts[:whole]):
        room = limit - len(page.encode()) - sum(least[i:whole]) - (len(said) + 40 if whole < len(parts) else 0)
        kept: list[str] = []
        for line in part.lines:
            room -= len(line.encode()) + 1
            if room < 0:
                break
            kept.append(line)
        page += _joined(part, kept)
        if len(kept) < len(part.lines):
            page += said.format(len(part.lines) - len(kept), len(part.lines), part.noun, limit) + "\n"
    if whole < len(parts):
        page += said.format(len(parts) - whole, len(parts), "parts", limit)
    return page.rstrip("\n") + "\n"


def _joined(part: Section, lines: Sequence[str]) -> str:
    return "\n".join([part.head, *lines, *([part.tail] if part.tail else [])]) + "\n\n"


def _escape(text: str) -> str:
    """Text that Markdown shows as it is, in a table or out of it."""
    text = re.sub(r"([\\`*|<&])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text).replace("](", "]\\(")


def _code(text: str) -> str:
    """A code span."""
    flat = " ".join(text.split())
    return f"`` {flat} ``" if "`" in flat else f"`{flat}`"


def _cell(text: str) -> str:
    """A code span in a table, where a bar would end the cell."""
    return _code(text).replace("|", "\\|")
