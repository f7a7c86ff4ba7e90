"""Where a run of base against head is, while somebody waits for it."""

from __future__ import annotations

import sys
import time

__all__ = ["Progress"]

MINUTE = 60.0


class Progress:
    """One line that says where the run is and how long it will take; where no terminal is, a line each minute.

    Args:
        blocks: How many there will be for all that is known.
    """

    def __init__(self, blocks: int) -> None:
        self._blocks, self._start = blocks, time.monotonic()
        self._said = self._start
        self._terminal = sys.stdout.isatty()

    def extend(self, blocks: int) -> None:
        """There will be more blocks."""
        self._blocks += blocks

    def __call__(self, block: int, done: int, of: int) -> None:
        """So many cases of a block are done; the first call of a block starts its clock."""
        now = time.monotonic()
        if done == 0:
            self._start = now
        if not self._terminal and now - self._said < MINUTE:
            return
        self._said = now
        left = ""
        if done:
            seconds = (now - self._start) / done * ((of - done) + of * (self._blocks - block - 1))
            left = f", {seconds // 60:.0f}:{seconds % 60:02.0f} left"
        line = f"block {block + 1} of {self._blocks}: {done} of {of} cases{left}"
        print(f"\r\x1b[K{line}" if self._terminal else line, end="" if self._terminal else "\n", flush=True)

    def clear(self) -> None:
        """Make room for a line that stays."""
        if self._terminal:
            print("\r\x1b[K", end="", flush=True)
