"""The terminal section: where it was measured, the table, then what a reader must know, the worst first.

It returns lines and prints nothing. Colour is the caller's: `paint(text, *markup)` gets names of pytest's markup
("red", "green", "yellow", "bold") and returns the text to print. No line of the table is wider than the terminal;
sentences are left whole, so that they can be searched for.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

from perfgate.report import sentences
from perfgate.report.columns import IMPORTANCE, Column, blocks, columns
from perfgate.report.rows import Results, Row
from perfgate.report.units import natural
from perfgate.verdict import State, Verdict

__all__ = ["WIDE", "Paint", "render", "room"]

Paint = Callable[..., str]
"""``paint(text, *markup) -> str``: the text with these names of pytest's markup applied."""

MARKUP: Mapping[str, tuple[str, ...]] = {
    State.REGRESSED: ("red", "bold"),
    State.REFUSED: ("red",),
    State.MISSING: ("yellow",),
    State.NEW: ("yellow",),
    State.ACCEPTED: ("yellow", "bold"),
    State.UNRESOLVED: ("yellow",),
    State.IMPROVED: ("green",),
}

ALIKE = 4
"""From this many on, cases with the same verdict for the same reason share a line."""

LISTED = 20
"""How many cases of a state that is not red are listed, if the table has the others."""

ALWAYS = (State.REGRESSED, State.ACCEPTED)
"""States of which every case is listed."""

PAGE = 40
"""Lines after which the next group repeats the titles of the columns."""

KEPT = 4
"""How many of the most important columns stay at the cost of the names' middles."""

NAME = 24
"""Characters of a name that stay at the cost of columns."""

GAP = 2

WIDE = 240
"""Columns that are enough for the whole table."""


def room() -> int:
    """Columns of the terminal, or what COLUMNS says; in a file or a CI's log there is room for the whole table."""
    return shutil.get_terminal_size(fallback=(WIDE, 24)).columns


def render(results: Results, *, width: int = 80, paint: Paint | None = None) -> list[str]:
    """The section as lines, without its title.

    Args:
        results: What to say.
        width: Columns of the terminal; the table leaves out its least important columns to fit, and says so.
        paint: Applies colour, if any.
    """
    colour = paint or _plain
    lines = [sentences.machine(results), *sentences.methods(results)]
    lines += ["", *_table(results.rows, width, colour)] if results.rows else ["nothing was measured"]
    if results.outcome is not None:
        summary = colour(sentences.summary(results.outcome.verdicts), "bold")
        lines += ["", *_verdicts(results, colour), summary, *sentences.remarks(results)]
    ceilings = sentences.ceilings(results)
    tail = [ceilings] if ceilings else []
    tail += [f"note: {note}" for note in sentences.notes(results)]
    if results.out_of_memory:
        tail.append("out of memory, which is a result and not an error:")
        tail += [f"  {case}: {results.out_of_memory[case]}" for case in sorted(results.out_of_memory, key=natural)]
    tail += [f"not here: {name}: {why}" for name, why in results.absent.items()]
    return [*lines, "", *tail] if tail else lines


def _plain(text: str, *markup: str) -> str:
    return text


def _table(rows: Sequence[Row], width: int, paint: Paint) -> Iterator[str]:
    groups = blocks(rows)
    every = columns([row for _, members in groups for _, row in members])
    indent = {group: "" if group is None else "  " for group, _ in groups}
    longest = max(len(indent[group] + label) for group, members in groups for label, _ in members)
    kept, left_out, name_width = _fit(every, longest, width)
    widths = [_width(c) for c in kept]
    titles = " " * name_width + "".join(" " * GAP + c.title.rjust(w) for c, w in zip(kept, widths, strict=True))
    since, i = PAGE, 0
    for group, members in groups:
        if since >= PAGE:
            yield titles
            since = 0
        if group is not None:
            yield paint(_clip(group, width), "bold")
        for label, _ in members:
            cells = (" " * GAP + _cell(c, i, w, paint) for c, w in zip(kept, widths, strict=True))
            yield (_clip(indent[group] + label, name_width).ljust(name_width) + "".join(cells)).rstrip()
            i += 1
        since += 1 + len(members)
    if left_out:
        yield f"no room in {width} columns for: {', '.join(c.title for c in left_out)}"


def _fit(every: list[Column], longest: int, width: int) -> tuple[list[Column], list[Column], int]:
    """Which columns stay, which do not, and how wide the names are."""

    def rest(columns: list[Column]) -> int:
        return width - sum(GAP + _width(c) for c in columns)

    kept = sorted(every, key=lambda c: IMPORTANCE.index(c.name))
    while len(kept) > KEPT and rest(kept) < longest:
        kept.pop()
    while len(kept) > 1 and rest(kept) < min(longest, NAME):
        kept.pop()
    stays = [c for c in every if c in kept]
    return stays, [c for c in every if c not in kept], max(1, min(longest, rest(stays)))


def _width(column: Column) -> int:
    return max(len(column.title), *map(len, column.cells))


def _cell(column: Column, i: int, width: int, paint: Paint) -> str:
    text = column.cells[i].rjust(width)
    markup = MARKUP.get(column.cells[i], ()) if column.name == "verdict" else ()
    return paint(text, *markup) if markup else text


def _clip(text: str, width: int) -> str:
    """The text, or its two ends around an ellipsis: names differ at their ends."""
    if len(text) <= width:
        return text
    head = (width - 1) * 2 // 3
    return text[:head] + "…" + text[len(text) - (width - 1 - head) :]


def _verdicts(results: Results, paint: Paint) -> Iterator[str]:
    """The verdicts in the gate's order; what is not red and stands in the table is not listed without end."""
    tabled = {row.case.name for row in results.rows}
    for state, of_state in groupby(sentences.listed(results), key=lambda v: v.state):
        markup = MARKUP[state]
        alike: dict[str, list[Verdict]] = {}
        for verdict in of_state:
            alike.setdefault(verdict.reason, []).append(verdict)
        room, unsaid = LISTED, 0
        for reason, verdicts in alike.items():
            shared = len(verdicts) >= ALIKE
            if shared:
                yield paint(f"{len(verdicts)} cases {state}: {reason}", *markup)
            for verdict in verdicts:
                if verdict.case in tabled and state not in ALWAYS and (room <= 0 or len(verdicts) > LISTED):
                    unsaid += not shared
                    continue
                room -= 1
                yield f"  {verdict.case}" if shared else paint(str(verdict), *markup)
                yield from (f"    {sentence}" for sentence in verdict.why)
        if unsaid:
            yield f"and {unsaid} more {state}: see the table"
