"""Tables of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["table"]


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """A table in Markdown whose first columns are text."""
    marks = ["---" if i < left else "---:" for i in range(len(titles))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (titles, marks, *rows))
