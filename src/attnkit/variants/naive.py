"""Attention as a textbook writes it in torch: every step a tensor in memory, in the dtype of the inputs.

    S = Q Kᵀ · scale          P = softmax(S, over live keys)          O = P V          [b, hq, sq, skv] scores

It is what the others are compared with: in speed and memory, and in error (a fused kernel that rounds less often
must not be further from the truth). Good for small sizes and for reading; bad for anything long, since S and P are
written to memory and read again, forward and backward.
"""

from __future__ import annotations

import math

import torch

from attnkit.problem import Mask, Pass, Problem
from attnkit.variant import Variant

__all__ = ["VARIANT"]


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, mask: Mask = "full", scale: float | None = None
) -> torch.Tensor:
    """Materialised attention: q [b, sq, hq, d], k [b, skv, hkv, d], v [b, skv, hkv, dv] to out [b, sq, hq, dv].

    Keys and values are repeated for each query head that reads them.
    """
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [b, h, s, d]
    if group > 1:
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = (q @ k.transpose(-2, -1)) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)  # [b, hq, sq, skv]
    if mask == "full":
        return (scores.softmax(dim=-1) @ v).transpose(1, 2)
    sq, skv = scores.shape[-2:]
    dead = torch.ones(sq, skv, dtype=torch.bool, device=q.device).triu(1 + skv - sq)
    weights = scores.masked_fill(dead, -math.inf).softmax(dim=-1)
    if sq > skv:
        # the first rows see no key, and a softmax over nothing is nan
        weights = weights.masked_fill(dead, 0)
    return (weights @ v).transpose(1, 2)


def rejects(problem: Problem, device: torch.device, pass_: Pass) -> str | None:
    """Take everything: only memory sets a limit."""
    return None


VARIANT = Variant("naive", "materialised in torch, every step in the inputs' dtype", attention, rejects)
