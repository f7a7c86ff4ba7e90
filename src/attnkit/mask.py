"""Masks: which keys a query sees. A closed vocabulary of values that can be compared, hashed and named.

    full              every key
    causal            j <= i + skv - sq      aligned bottom-right: the last query sees every key
    causal-top-left   j <= i                 the first query sees the first key alone
    Window(l, r)      i + skv - sq - l <= j <= i + skv - sq + r; a side that is None has no bound
    Prefix(n)         j < n, or causal       a prompt is seen from both sides, what follows is causal (prefix LM)
    Documents(...)    only keys of the query's own document, where sequences are packed into one; causal or not
    Boolean(p, seed)  each pair by itself, drawn with probability p: no structure that a kernel could use

Query i of sq, key j of skv. Here sq = 3 and skv = 5:

    causal        causal-top-left   Window(1, 0)   Prefix(4)
    x x x . .     x . . . .         . x x . .      x x x x .
    x x x x .     x x . . .         . . x x .      x x x x .
    x x x x x     x x x . .         . . . x x      x x x x x

What has no parameter is a plain string. Knows nothing of heads, batches and scores.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Literal, get_args

import torch

__all__ = ["PLAIN", "Boolean", "Documents", "Mask", "Plain", "Prefix", "Window", "dense", "live_keys", "live_pairs"]

Plain = Literal["full", "causal", "causal-top-left"]
PLAIN: tuple[Plain, ...] = get_args(Plain)


def whole(name: str, value: object, least: int) -> None:
    """Refuse what is no whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def finite(value: object) -> bool:
    """Whether this is a number, and not infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window along the bottom-right diagonal (Beltagy et al., Longformer, 2020).

    Attributes:
        left: Keys seen before the diagonal; None is all of them.
        right: Keys seen behind the diagonal; None is all of them.

    Raises:
        ValueError: For a negative side, and for the windows that have another name: full and causal.
    """

    left: int | None
    right: int | None

    def __post_init__(self) -> None:
        for name in ("left", "right"):
            if getattr(self, name) is not None:
                whole(f"{name} of a window", getattr(self, name), 0)
        if self.left is None and self.right in (None, 0):
            name = "full" if self.right is None else "causal"
            raise ValueError(f"a window needs a bound that another mask has not, got {self}: say {name!r}")

    @property
    def name(self) -> str:
        """Stable: ``window-l64-r0``; a side without a bound is left out."""
        sides = (("l", self.left), ("r", self.right))
        return "-".join(["window", *(f"{side}{n}" for side, n in sides if n is not None)])

    def fits(self, sq: int, skv: int) -> None:
        """Take every size."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first keys are seen by every query, the others causally (Raffel et al., T5, 2020).

    Attributes:
        length: Keys that everybody sees.
    """

    length: int

    def __post_init__(self) -> None:
        whole("length of a prefix", self.length, 1)

    @property
    def name(self) -> str:
        """Stable: ``prefix128``."""
        return f"prefix{self.length}"

    def fits(self, sq: int, skv: int) -> None:
        """Refuse a prefix longer than the keys."""
        if self.length > skv:
            raise ValueError(f"a prefix must not be longer than skv, got {self.length} and skv={skv}")


@dataclass(frozen=True, slots=True)
class Documents:
    """Sequences packed into one: a query sees keys of its own document alone (Krell et al., sequence packing, 2021).

    Attributes:
        lengths: Tokens of each document; together they are sq and skv.
        causal: Whether a query sees its document only up to itself.
    """

    lengths: tuple[int, ...]
    causal: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.lengths, tuple) or not self.lengths:
            raise ValueError(f"lengths of documents must be a tuple that is not empty, got {self.lengths!r}")
        for length in self.lengths:
            whole("length of a document", length, 1)

    @property
    def name(self) -> str:
        """Stable: ``documents96_32x4-causal``, four documents of 32 tokens behind one of 96."""
        runs = [(length, len(list(run))) for length, run in groupby(self.lengths)]
        lengths = "_".join(f"{length}x{times}" if times > 1 else str(length) for length, times in runs)
        return f"documents{lengths}-causal" if self.causal else f"documents{lengths}"

    def fits(self, sq: int, skv: int) -> None:
        """Refuse sizes that are not those of the documents together."""
        if not sum(self.lengths) == sq == skv:
            raise ValueError(f"lengths of documents must sum to sq = skv, got {sum(self.lengths)}, sq={sq}, skv={skv}")


@dataclass(frozen=True, slots=True)
class Boolean:
    """Any pairs: each is seen with probability `density`, by numbers that depend on the seed and the sizes alone.

    Attributes:
        density: From 0 to 1.
        seed: Which of those masks.
    """

    density: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not (finite(self.density) and 0 <= self.density <= 1):
            raise ValueError(f"density of a boolean mask must be from 0 to 1, got {self.density!r}")
        whole("seed of a boolean mask", self.seed, 0)

    @property
    def name(self) -> str:
        """Stable: ``boolean0.5-seed0``."""
        return f"boolean{float(self.density)!r}-seed{self.seed}"

    def fits(self, sq: int, skv: int) -> None:
        """Take every size."""

    def drawn(self, sq: int, skv: int) -> torch.Tensor:
        """Return the mask [sq, skv] itself, on the CPU."""
        return torch.rand(sq, skv, generator=torch.Generator().manual_seed(self.seed)) < self.density


Mask = Plain | Window | Prefix | Documents | Boolean


def check(mask: object, sq: int, skv: int) -> None:
    """Refuse what is no mask, and a mask that does not fit these sizes.

    Raises:
        ValueError: Saying what was expected.
    """
    if isinstance(mask, Window | Prefix | Documents | Boolean):
        mask.fits(sq, skv)
    elif mask not in PLAIN:
        others = "a Window, Prefix, Documents or Boolean"
        raise ValueError(f"mask must be one of {', '.join(PLAIN)}, or {others}, got {mask!r}")


def name(mask: Mask) -> str:
    """Return the mask's part of a problem's name."""
    return mask if isinstance(mask, str) else mask.name


def stairs(rows: int, columns: int, shift: int) -> int:
    """Return how many columns j of row i, over all rows, have j <= i + shift."""

    def up_to(steps: int) -> int:
        """Rows of 1, 2, ... columns, as many as there are steps, none wider than the mask."""
        slope = min(max(steps, 0), columns)
        return slope * (slope + 1) // 2 + max(steps - columns, 0) * columns

    return up_to(shift + rows) - up_to(shift)


def live_pairs(mask: Mask, sq: int, skv: int) -> int:
    """Return the pairs of a query and a key that it sees, in one head; of a boolean mask by counting."""
    shift = skv - sq
    match mask:
        case "full":
            return sq * skv
        case "causal":
            return stairs(sq, skv, shift)
        case "causal-top-left":
            return stairs(sq, skv, 0)
        case Window(left, right):
            seen = sq * skv if right is None else stairs(sq, skv, shift + right)
            return seen if left is None else seen - stairs(sq, skv, shift - left - 1)
        case Prefix(length):
            return stairs(sq, skv, shift) + sq * length - stairs(sq, length, shift)
        case Documents(lengths, causal):
            return sum(stairs(n, n, 0) if causal else n * n for n in lengths)
        case Boolean():
            return counted(mask, sq, skv)[0]


def live_keys(mask: Mask, sq: int, skv: int) -> int:
    """Return the keys that any query sees, in one head; of a boolean mask by counting."""
    match mask:
        case "causal-top-left":
            return min(sq, skv)
        case Window(left, _) if left is not None:
            return min(sq + left, skv)
        case Boolean():
            return counted(mask, sq, skv)[1]
        case _:
            return skv


@functools.lru_cache(maxsize=64)
def counted(mask: Boolean, sq: int, skv: int) -> tuple[int, int]:
    """Return the live pairs and the live keys of a mask that has no formula."""
    live = mask.drawn(sq, skv)
    return int(live.sum()), int(live.any(0).sum())


def dense(mask: Mask, sq: int, skv: int, device: torch.device | str) -> torch.Tensor:
    """Return the mask as booleans [sq, skv], true where query i sees key j.

    What a variant makes of it is the variant's, but it must not be written to. The oracle has masks of its own.
    """
    live = torch.ones(sq, skv, dtype=torch.bool, device=device)
    shift = skv - sq
    match mask:
        case "full":
            return live
        case "causal":
            return live.tril_(shift)
        case "causal-top-left":
            return live.tril_()
        case Window(left, right):
            live = live if right is None else live.tril_(shift + right)
            return live if left is None else live.triu_(shift - left)
        case Prefix(length):
            live.tril_(shift)[:, :length] = True
            return live
        case Documents(lengths, causal):
            live.zero_()
            for end, n in zip(accumulate(lengths), lengths, strict=True):
                live[end - n : end, end - n : end] = True
            return live.tril_() if causal else live
        case Boolean():
            return placed(mask, sq, skv, torch.device(device))


@functools.lru_cache(maxsize=8)
def placed(mask: Boolean, sq: int, skv: int, device: torch.device) -> torch.Tensor:
    """Return a drawn mask on a device. It is kept: while a CUDA graph is captured nothing can be copied there."""
    return mask.drawn(sq, skv).to(device)
