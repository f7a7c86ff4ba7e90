"""Verdicts of builds as a table for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from perfgate.static import sass
from perfgate.static.judge import State, Verdict
from perfgate.static.profile import Profile

__all__ = ["render", "summary"]

GAP = 2
REASONS = 4
"""Reasons shown of a build that merely changed."""


def _matrix(profile: Profile) -> str:
    return " ".join(f"{kind} {number}" for kind, number in sass.matrix(profile.counts).items()) or "-"


def columns(arch: int) -> tuple[tuple[str, Callable[[Profile], str]], ...]:
    """Titles, and what stands under them of a profile."""
    return (
        ("registers", lambda p: str(p.registers)),
        ("stack B", lambda p: str(p.stack)),
        ("LDL+STL", lambda p: str(p.local)),
        ("shared B", lambda p: str(p.shared)),
        ("warps", lambda p: str(p.warps)),
        ("blocks/SM", lambda p: str(p.blocks(arch))),
        ("matrix", _matrix),
        ("EX2 (covered)", lambda p: f"{p.loop.get(sass.EXPONENTIAL, 0)} ({p.covered})"),
        ("BAR", lambda p: str(p.counts.get("BAR", 0))),
    )


def render(arch: int, verdicts: Sequence[Verdict], *, every: bool = False) -> Iterator[str]:
    """The lines of an architecture's table; builds that are unchanged only where `every` is set."""
    shown = [v for v in verdicts if every or v.state != State.UNCHANGED]
    if not shown:
        return
    titles = [title for title, _ in columns(arch)]
    rows = [[cell(v, text) for _, text in columns(arch)] for v in shown]
    name = max(len(v.name) for v in shown)
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    yield " " * (name + GAP) + (" " * GAP).join(t.rjust(w) for t, w in zip(titles, widths, strict=True)) + "  verdict"
    for verdict, row in zip(shown, rows, strict=True):
        cells = (" " * GAP).join(c.rjust(w) for c, w in zip(row, widths, strict=True))
        yield f"{verdict.name:{name}}{' ' * GAP}{cells}  {verdict.state}"
        reasons = verdict.why if verdict.state != State.CHANGED else verdict.why[:REASONS]
        yield from (f"    {why}" for why in reasons)
        if len(reasons) < len(verdict.why):
            yield f"    and {len(verdict.why) - len(reasons)} more"


def cell(verdict: Verdict, text: Callable[[Profile], str]) -> str:
    """One value, or two where they differ."""
    values = [text(p) for p in (verdict.old, verdict.new) if p]
    return " > ".join(dict.fromkeys(values)) or "-"


def summary(arch: int, verdicts: Sequence[Verdict]) -> str:
    """One line: how many builds an architecture has, by state."""
    counts = Counter(v.state for v in verdicts)
    states = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
    return f"sm_{arch}: {len(verdicts)} builds, compiled and not run: {states}"
