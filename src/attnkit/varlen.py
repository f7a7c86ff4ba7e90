"""Varlen: a batch of sequences of different lengths, packed behind each other without padding.

    q [1, sum of queries, hq, d]        k [1, sum of keys, hkv, d]

Sequence n has queries[n] queries and keys[n] keys, either of which may be 0. A query sees keys of its own sequence
alone, and those by the problem's mask as if the sequence were the only one: with its own sizes, aligned bottom-right
within it. Distances are within a sequence, too. What documents (mask.py) cannot say: keys that are more or fewer than
queries, and a sequence that has none of either.

Knows masks; knows nothing of heads and scores.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import NamedTuple

import torch

from attnkit import mask as masks
from attnkit.mask import Mask, Prefix, Window

__all__ = ["Starts", "Varlen"]


class Starts(NamedTuple):
    """Where each sequence begins, and behind the last one where it ends: int32 [n + 1], as FlashAttention has them."""

    queries: torch.Tensor
    keys: torch.Tensor


@dataclass(frozen=True, slots=True)
class Varlen:
    """The lengths of sequences that are packed into one.

    Attributes:
        queries: Of each sequence.
        keys: Of each sequence.

    Raises:
        ValueError: For what are no lengths.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("queries", "keys"):
            lengths = getattr(self, name)
            if not isinstance(lengths, tuple) or not lengths:
                raise ValueError(f"{name} of sequences must be a tuple that is not empty, got {lengths!r}")
            for length in lengths:
                masks.whole(f"{name} of a sequence", length, 0)
        if len(self.queries) != len(self.keys):
            got = f"{len(self.queries)} and {len(self.keys)}"
            raise ValueError(f"sequences must have as many lengths of queries as of keys, got {got}")

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Give each sequence's queries and keys."""
        return zip(self.queries, self.keys, strict=True)

    @property
    def name(self) -> str:
        """Stable: ``varlen7_0_32x4``, or where keys are not as many as queries ``varlen1x3-on9_0_4``."""
        lengths = runs(self.queries)
        return f"varlen{lengths}" if self.queries == self.keys else f"varlen{lengths}-on{runs(self.keys)}"

    def check(self, mask: Mask, b: int, sq: int, skv: int) -> None:
        """Refuse sizes that are not those of the sequences together, and masks that are of one size.

        Raises:
            ValueError: Saying what was expected.
        """
        if b != 1:
            raise ValueError(f"packed sequences are one batch: b must be 1, got {b}")
        for name, size, lengths in (("sq", sq, self.queries), ("skv", skv, self.keys)):
            if size != sum(lengths):
                raise ValueError(f"{name} must be that of all sequences together, {sum(lengths)}, got {size}")
        check(mask)

    def live_pairs(self, mask: Mask) -> int:
        """Return the pairs of a query and a key that it sees, in one head."""
        return sum(masks.live_pairs(cut(mask, skv), sq, skv) for sq, skv in self)

    def live_keys(self, mask: Mask) -> int:
        """Return the keys that any query sees, in one head."""
        return sum(masks.live_keys(cut(mask, skv), sq, skv) for sq, skv in self if sq)

    def slices(self) -> Iterator[tuple[slice, slice]]:
        """Give where each sequence's queries and keys lie."""
        ends = zip(accumulate(self.queries), accumulate(self.keys), strict=True)
        for (sq, skv), (end, end_of_keys) in zip(self, ends, strict=True):
            yield slice(end - sq, end), slice(end_of_keys - skv, end_of_keys)

    def starts(self, device: torch.device) -> Starts:
        """Return where sequences begin. It is kept: while a CUDA graph is captured nothing can be copied there."""
        return starts(self, device)


@functools.lru_cache(maxsize=64)
def starts(varlen: Varlen, device: torch.device) -> Starts:
    """Return where sequences begin, on a device."""
    begins = ([0, *accumulate(lengths)] for lengths in (varlen.queries, varlen.keys))
    return Starts(*(torch.tensor(begin, dtype=torch.int32, device=device) for begin in begins))


def check(mask: Mask) -> None:
    """Refuse masks that sequences of different lengths do not have.

    Raises:
        ValueError: Saying which they have.
    """
    if not (mask in ("full", "causal") or isinstance(mask, Window | Prefix)):
        raise ValueError(f"the mask of sequences must be full, causal, a Window or a Prefix, got {mask!r}")


def cut(mask: Mask, skv: int) -> Mask:
    """Return the mask of a sequence of so many keys: a prefix that is longer hides none."""
    return "full" if isinstance(mask, Prefix) and mask.length > skv else mask


def runs(lengths: tuple[int, ...]) -> str:
    """Return lengths as part of a name: ``7_0_32x4``."""
    found = [(length, len(list(run))) for length, run in groupby(lengths)]
    return "_".join(f"{length}x{times}" if times > 1 else str(length) for length, times in found)
