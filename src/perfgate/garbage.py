"""Python's garbage, which is not collected while something is counted, timed or captured."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["kept"]


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Collect no garbage meanwhile."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
