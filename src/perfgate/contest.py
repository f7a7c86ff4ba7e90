"""Base against head on one GPU: what was seen of two revisions that were visited in turn.

block  = fresh processes of both sides; every case visited, A B B A or B A A B
visit  = one side times one case once
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from perfgate.clock import Samples

__all__ = ["Block", "Side", "Visit"]

Side = Literal["base", "head"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One side timed one case once.

    Attributes:
        side: Which revision.
        samples: What it gave.
    """

    side: Side
    samples: Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What one pair of fresh processes gave.

    Attributes:
        stage: 1 screens all cases, 2 confirms those that were suspicious.
        visits: In order of time, by the case's name.
    """

    stage: int
    visits: Mapping[str, tuple[Visit, ...]]
