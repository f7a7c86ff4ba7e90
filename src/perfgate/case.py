"""A case: one thing that is timed, and the work it does at least.

Knows names and sizes. Knows nothing of clocks, devices or pytest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Case", "Work"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The floating-point operations and the least bytes of one call.

    Attributes:
        flops: Floating-point operations, a multiply-add counted as two.
        bytes: Bytes through device memory if every input is read once and every output written once.
        tokens: Tokens that one call processes; zero where the case has none.
        dtype: The number format whose matrix rate is this case's ceiling, e.g. ``"bf16"``; None without a matrix
            product.

    Raises:
        ValueError: For a negative or non-finite amount.
    """

    flops: float = 0.0
    bytes: float = 0.0
    tokens: float = 0.0
    dtype: str | None = None

    def __post_init__(self) -> None:
        for name in ("flops", "bytes", "tokens"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"work.{name} must be finite and not negative, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing that is timed.

    Attributes:
        name: Stable, and the case's identity: a baseline is found by it.
        group: Cases of one group are alternatives for one problem, compared with the group's reference.
        reference: Whether speed-up and memory reduction of the group are counted from this case.
        work: What one call does at least, if known.
    """

    name: str
    group: str | None = None
    reference: bool = False
    work: Work | None = None

    def __post_init__(self) -> None:
        if not self.name or self.name != self.name.strip():
            raise ValueError(f"a case needs a name without blanks at its ends, got {self.name!r}")
