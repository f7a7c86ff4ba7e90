"""The sequences of a batch, as the kernels of triton_flash get them: of one length, or packed behind each other.

Packed sequences are one batch in memory and many to a kernel: each has programs for as many tiles as the longest one,
and those behind its own last row end at once. Its sizes and its first row are read on the device. What is loaded is
masked by its own length, so nothing of the next sequence comes into a tile, whatever is in it; the copy engine zeroes
only what lies outside of a tensor, so it does not load them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl

from attnkit.mask import Mask
from attnkit.triton_scores import mask_arguments
from attnkit.variants.triton_flash_tiles import Config, constants
from attnkit.varlen import Starts, Varlen

__all__ = ["Batch", "sequence", "statistic"]

NOT_PACKED = {"p_starts_q": None, "p_starts_k": None}


@triton.jit
def sequence(p_starts, i_b):
    """The first row of a sequence among those packed into one, and how many it has."""
    start = tl.load(p_starts + i_b)
    return start, tl.load(p_starts + i_b + 1) - start


@triton.jit
def statistic(p_rows, o_m, sq, beyond, PACKED: tl.constexpr):
    """A number for each query; ``beyond`` for those behind the last one, where the padding has it unless PACKED."""
    if PACKED:
        b_rows = tl.load(p_rows + o_m, mask=o_m < sq, other=beyond)
    else:
        b_rows = tl.load(p_rows + o_m)
    return b_rows


@dataclass(frozen=True, slots=True)
class Batch:
    """The sequences of a call.

    Attributes:
        n: How many.
        sq: Queries of the longest.
        skv: Keys of the longest.
        starts: Where the queries and the keys of packed ones begin.
    """

    n: int
    sq: int
    skv: int
    starts: Starts | None

    @classmethod
    def of(cls, q: torch.Tensor, k: torch.Tensor, varlen: Varlen | None) -> Batch:
        """The sequences of q ``[b, sq, hq, d]`` and k ``[b, skv, hkv, d]``."""
        if varlen is None:
            return cls(q.shape[0], q.shape[1], k.shape[1], None)
        return cls(len(varlen.queries), max(varlen.queries), max(varlen.keys), varlen.starts(q.device))

    def arguments(
        self,
        config: Config,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: Mask,
        of: Literal["queries", "keys"] = "queries",
    ) -> dict[str, object]:
        """What a kernel is given for sizes, mask and sequences."""
        found = constants(config, q, k, v)
        if self.starts is None:
            return found | mask_arguments(mask, self.sq, self.skv, q.device, of) | NOT_PACKED
        # lengths differ, so no tile is known to be whole, and a band counts from each sequence's own diagonal
        found |= {"EVEN_Q": False, "EVEN_KV": False}
        longest = self.sq + self.skv
        found |= mask_arguments(mask, longest, longest, q.device, of)
        return found | {"p_starts_q": self.starts.queries, "p_starts_k": self.starts.keys}
