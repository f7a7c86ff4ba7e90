"""Attention as a textbook writes it in torch: every step a tensor in memory, in the dtype of the inputs.

    S = Q Kᵀ · scale, modified          P = softmax(S, over live keys)          O = P V          [b, hq, sq, skv] scores

It is what the others are compared with: in speed and memory, and in error (a fused kernel that rounds less often
must not be further from the truth). Good for small sizes and for reading; bad for anything long, since S and P are
written to memory and read again, forward and backward.
"""

from __future__ import annotations

import functools
import math

import torch

from attnkit.mask import dense
from attnkit.problem import Boolean, Mask, Pass, Prefix, Problem, Varlen, Window
from attnkit.variant import Variant

__all__ = ["VARIANT"]


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: Mask = "full",
    scale: float | None = None,
    softcap: float | None = None,
    alibi: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    varlen: Varlen | None = None,
    lengths: torch.Tensor | None = None,
    table: torch.Tensor | None = None,
) -> torch.Tensor:
    """Materialised attention: q [b, sq, hq, d], k [b, skv, hkv, d], v [b, skv, hkv, dv] to out [b, sq, hq, dv].

    Keys and values are repeated for each query head that reads them. Slopes `alibi` and logits `sink` are [hq].
    Packed sequences are computed one after the other. Of a cache the pages are gathered first (by `table` [b, n]), and
    what lies behind `lengths` [b] is replaced by zeros.
    """
    if varlen is not None:
        alone = functools.partial(attention, mask=mask, scale=scale, softcap=softcap, alibi=alibi, sink=sink)
        return torch.cat([alone(q[:, i], k[:, j], v[:, j]) for i, j in varlen.slices()], dim=1)
    if lengths is not None:
        k, v = (cached(x, lengths, table) for x in (k, v))
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [b, h, s, d]
    if group > 1:
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = (q @ k.transpose(-2, -1)) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)  # [b, hq, sq, skv]
    sq, skv = scores.shape[-2:]
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if alibi is not None:
        scores = scores - (alibi[:, None, None] * distance(sq, skv, q.device, lengths)).to(q.dtype)
    if mask == "full" and sink is None and lengths is None:
        return (scores.softmax(dim=-1) @ v).transpose(1, 2)
    dead = dense(mask, sq, skv, q.device).logical_not() if lengths is None else hidden(mask, sq, skv, lengths)
    scores = scores.masked_fill(dead, -math.inf)
    if sink is not None:
        # one key more, which takes its weight and has no value
        scores = torch.cat((scores, sink.to(q.dtype)[:, None, None].expand(*scores.shape[:3], 1)), dim=-1)
    weights = scores.softmax(dim=-1)[..., :skv]
    if sink is None and (sq > skv or isinstance(mask, Window | Boolean) or lengths is not None):
        # some rows may see no key, and a softmax over nothing is nan
        weights = weights.masked_fill(dead, 0)
    return (weights @ v).transpose(1, 2)


def distance(sq: int, skv: int, device: torch.device, lengths: torch.Tensor | None) -> torch.Tensor:
    """Return how far query i lies from key j, [sq, skv], where the last query lies at the last key.

    In a cache that is the last one of each sequence: [b, 1, sq, skv].
    """
    i, j = torch.arange(sq, device=device)[:, None], torch.arange(skv, device=device)
    return (i + ((skv if lengths is None else lengths[:, None, None, None]) - sq) - j).abs()


def cached(x: torch.Tensor, lengths: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
    """Return keys or values of a cache as [b, skv, hkv, d], with zeros behind the lengths."""
    if table is not None:
        x = x[table].flatten(1, 2)
    behind = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
    return x.masked_fill(behind[..., None, None], 0)


def hidden(mask: Mask, sq: int, skv: int, lengths: torch.Tensor) -> torch.Tensor:
    """Return which keys of a cache queries do not see, [b, 1, sq, skv]; see `attnkit.cache`."""
    i, j = torch.arange(sq, device=lengths.device)[:, None], torch.arange(skv, device=lengths.device)
    end = lengths[:, None, None, None]
    own = i + end - sq
    match mask:
        case Window(left, right):
            before = own - (skv + sq if left is None else left)
            dead = (j < before) | (j > own + (skv if right is None else right))
        case Prefix(length):
            dead = (j >= length) & (j > own)
        case _:
            dead = j > (own if mask == "causal" else own + skv + sq)
    return dead | (j >= end)


def rejects(problem: Problem, device: torch.device, pass_: Pass) -> str | None:
    """Take everything: only memory sets a limit."""
    return None


VARIANT = Variant("naive", "materialised in torch, every step in the inputs' dtype", attention, rejects, lacks={})
