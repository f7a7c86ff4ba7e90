"""Scores in our Triton kernels: scale, softcap, ALiBi and mask, for every kernel and both passes in one place.

A kernel is compiled for a kind of mask (``MASK``) and for what modifies scores. What a call has not is None or a branch
that is not compiled, and costs nothing. But for ``boolean`` a mask is a span: a query sees the keys from a first to a
last, and neither decreases from one query to the next. So what a tile sees at all, and what all of it sees, follow from
its first and its last row. The same holds for the queries that see a key.

    MASK        a query i sees the keys                      lower, upper
    full        all                                          none
    causal      to i + skv - sq                              none
    band        from i + lower to i + upper                  numbers
    prefix      to i + skv - sq, and those before upper      upper is a number
    documents   from lower[i] to upper[i]                    first and last key of each query; of each key its queries
    boolean     where lower[i, j] is not 0                   lower is the mask, a byte a pair

Scores live in base 2, ``scale_log2 = scale · log2 e``. Attention without modifiers multiplies by it after the mask, in
one instruction with the subtraction in front of exp2; SCALED does so before, which modifiers need and a scale that is
not positive. Arrays over queries are called o_m, over keys o_n.
"""

from __future__ import annotations

import functools
from itertools import accumulate
from typing import Literal

import torch
import triton
import triton.language as tl

from attnkit.mask import Boolean, Documents, Mask, Prefix, Window, dense

__all__ = [
    "LOG2E",
    "base_2",
    "first_tile",
    "is_live",
    "is_live_transposed",
    "is_partial",
    "keys_of",
    "keys_seen",
    "mask_arguments",
    "queries_of",
    "queries_seeing",
    "score_arguments",
]

LOG2E = 1.4426950408889634
BASE_2 = tl.constexpr(LOG2E)
SERIES_BELOW = tl.constexpr(0.3)


@triton.jit
def tanh(x):
    """To a few units in the last place; near 0 by its series, where 1 - exp(-2 x) has lost its digits."""
    y = tl.abs(x)
    y2 = y * y
    series = y * (1.0 + y2 * (-1 / 3 + y2 * (2 / 15 + y2 * (-17 / 315 + y2 * (62 / 2835)))))
    e = tl.exp2(y * (-2.0 * BASE_2))
    y = tl.where(y < SERIES_BELOW, series, (1.0 - e) / (1.0 + e))
    return tl.where(x < 0.0, -y, y)


@triton.jit
def base_2(b_s, o_m, o_n, diagonal, scale_log2, scale_cap, cap_log2, slope, SCALED: tl.constexpr):
    """Products q · k of a tile to scores in base 2, over scale_log2 unless SCALED, and their bend.

    The bend is the derivative of a capped score by what it was. o_m and o_n have the tile's two dimensions, in either
    order: [BM, 1] and [1, BN], or [1, BM] and [BN, 1].
    """
    b_bend = 1.0
    if cap_log2 is not None:
        b_tanh = tanh(b_s * scale_cap)
        b_bend = 1.0 - b_tanh * b_tanh
        b_s = b_tanh * cap_log2
    elif SCALED:
        b_s = b_s * scale_log2
    if slope is not None:
        b_s -= slope * BASE_2 * tl.abs(o_m + diagonal - o_n).to(tl.float32)
    return b_s, b_bend


@triton.jit
def keys_seen(o_m, diagonal, skv, lower, upper, MASK: tl.constexpr):
    """First and last key that queries see; of an array of queries or of one."""
    first = o_m * 0
    last = first + (skv - 1)
    if MASK == "causal":
        last = tl.minimum(last, o_m + diagonal)
    elif MASK == "band":
        first = tl.maximum(o_m + lower, 0)
        last = tl.minimum(last, o_m + upper)
    elif MASK == "prefix":
        last = tl.minimum(last, tl.maximum(o_m + diagonal, upper - 1))
    elif MASK == "documents":
        first = tl.load(lower + o_m, mask=o_m < skv - diagonal, other=0)
        last = tl.load(upper + o_m, mask=o_m < skv - diagonal, other=0)
    return first, last


@triton.jit
def queries_seeing(o_n, diagonal, sq, lower, upper, MASK: tl.constexpr):
    """First and last query that sees a key; of an array of keys or of one."""
    first = o_n * 0
    last = first + (sq - 1)
    if MASK == "causal":
        first = tl.maximum(o_n - diagonal, 0)
    elif MASK == "band":
        first = tl.maximum(o_n - upper, 0)
        last = tl.minimum(last, o_n - lower)
    elif MASK == "prefix":
        first = tl.where(o_n < upper, 0, tl.maximum(o_n - diagonal, 0))
    elif MASK == "documents":
        first = tl.load(lower + o_n, mask=o_n < sq + diagonal, other=0)
        last = tl.load(upper + o_n, mask=o_n < sq + diagonal, other=0)
    return first, last


@triton.jit
def keys_of(i_m, diagonal, skv, lower, upper, BM: tl.constexpr, BN: tl.constexpr, MASK: tl.constexpr):
    """``(i_left, i_full, i_end)`` of a tile of queries: all of it sees the keys from i_left to before i_full.

    None of it sees a key from i_end on.
    """
    if MASK == "full" or MASK == "causal":
        i_full = skv // BN * BN
        i_end = skv
        if MASK == "causal":
            i_full = tl.minimum(i_full, tl.maximum(i_m + diagonal + 1, 0) // BN * BN)
            i_end = tl.minimum(i_end, i_m + BM + diagonal)
        i_left = i_full
    else:
        i_last = tl.minimum(i_m + BM, skv - diagonal) - 1
        _, last = keys_seen(i_m, diagonal, skv, lower, upper, MASK)
        i_full = tl.maximum(last + 1, 0) // BN * BN
        i_left, last = keys_seen(i_last, diagonal, skv, lower, upper, MASK)
        i_end = last + 1
        if MASK == "boolean":
            i_full = 0
    return i_left, i_full, i_end


@triton.jit
def queries_of(i_n, diagonal, sq, lower, upper, BM: tl.constexpr, BN: tl.constexpr, MASK: tl.constexpr):
    """``(i_begin, i_left, i_full, i_end)`` of a tile of keys.

    Queries before i_begin and from i_end on see none of it, those from i_left to before i_full see all of it.
    """
    i_last = tl.minimum(i_n + BN, sq + diagonal) - 1
    first, last = queries_seeing(i_n, diagonal, sq, lower, upper, MASK)
    i_begin = first // BM * BM
    i_full = tl.maximum(last + 1, 0) // BM * BM
    i_left, last = queries_seeing(i_last, diagonal, sq, lower, upper, MASK)
    i_end = last + 1
    if MASK == "boolean":
        i_full = 0
    return i_begin, i_left, i_full, i_end


@triton.jit
def first_tile(i_m, diagonal, skv, lower, upper, BN: tl.constexpr, MASK: tl.constexpr):
    """Where the first tile of BN keys begins that a tile of queries from i_m on sees."""
    first, _ = keys_seen(i_m, diagonal, skv, lower, upper, MASK)
    return first // BN * BN


@triton.jit
def is_partial(i_tile, i_left, i_full, MASK: tl.constexpr, OF: tl.constexpr):
    """Whether a mask is at work in a tile of ``keys`` or ``queries``: not from i_left to before i_full.

    Where a mask has one edge it hides the last keys and the first queries.
    """
    if MASK == "band" or MASK == "documents" or MASK == "boolean":
        partial = (i_tile < i_left) | (i_tile >= i_full)
    elif OF == "keys":
        partial = i_tile >= i_full
    else:
        partial = i_tile < i_left
    return partial


@triton.jit
def is_live(o_m, o_n, diagonal, skv, lower, upper, MASK: tl.constexpr):
    """[BM, BN]: whether query i sees key j, for j behind the last key too."""
    if MASK == "boolean":
        p_live = lower + (o_m[:, None] * tl.cast(skv, tl.int64) + o_n[None, :])
        live = tl.load(p_live, mask=(o_m < skv - diagonal)[:, None] & (o_n < skv)[None, :], other=0) != 0
    else:
        first, last = keys_seen(o_m, diagonal, skv, lower, upper, MASK)
        live = o_n[None, :] <= last[:, None]
        if MASK == "band" or MASK == "documents":
            live = live & (o_n[None, :] >= first[:, None])
    return live


@triton.jit
def is_live_transposed(o_m, o_n, diagonal, sq, lower, upper, MASK: tl.constexpr):
    """[BN, BM]: whether query i sees key j; of queries and keys behind the last ones it may say anything."""
    if MASK == "boolean":
        p_live = lower + (o_m[None, :] * (sq + tl.cast(diagonal, tl.int64)) + o_n[:, None])
        live = tl.load(p_live, mask=(o_m < sq)[None, :] & (o_n < sq + diagonal)[:, None], other=0) != 0
    elif MASK == "causal":
        live = o_n[:, None] <= o_m[None, :] + diagonal
    else:
        first, last = queries_seeing(o_n, diagonal, sq, lower, upper, MASK)
        live = (o_m[None, :] >= first[:, None]) & (o_m[None, :] <= last[:, None])
    return live


def mask_arguments(
    mask: Mask, sq: int, skv: int, device: torch.device, of: Literal["queries", "keys"] = "queries"
) -> dict[str, object]:
    """What a kernel is given for a mask: MASK, lower and upper.

    Args:
        mask: The mask.
        sq: Queries.
        skv: Keys.
        device: Where tensors lie. They are kept: while a CUDA graph is captured nothing can be copied there.
        of: What the kernel owns a tile of, and so whose spans it asks for.
    """
    diagonal, beyond = skv - sq, skv + sq
    lower: int | torch.Tensor | None = None
    upper: int | torch.Tensor | None = None
    match mask:
        case "full" | "causal":
            kind: str = mask
        case "causal-top-left":
            kind, lower, upper = "band", -beyond, 0
        case Window(left, right):
            kind = "band"
            lower = -beyond if left is None else max(diagonal - left, -beyond)
            upper = beyond if right is None else min(diagonal + right, beyond)
        case Prefix(length):
            kind, upper = "prefix", length
        case Documents():
            spans = document_spans(mask, device)
            kind, (lower, upper) = "documents", (spans[:2] if of == "queries" else spans[2:])
        case Boolean():
            kind, lower = "boolean", dense(mask, sq, skv, device).view(torch.uint8)
    return {"MASK": kind, "lower": lower, "upper": upper}


@functools.lru_cache(maxsize=8)
def document_spans(mask: Documents, device: torch.device) -> tuple[torch.Tensor, ...]:
    """First and last key of each query, first and last query of each key; int32 on the device."""
    lengths = torch.tensor(mask.lengths)
    ends = torch.tensor(list(accumulate(mask.lengths)))
    first, last = (torch.repeat_interleave(x, lengths) for x in (ends - lengths, ends - 1))
    own = torch.arange(sum(mask.lengths))
    spans = (first, own, own, last) if mask.causal else (first, last, first, last)
    return tuple(x.to(torch.int32).to(device) for x in spans)


def score_arguments(scale: float, softcap: float | None, alibi: torch.Tensor | None) -> dict[str, object]:
    """What a kernel is given for scores beside scale_log2: the softcap, the slopes and SCALED."""
    return {
        "scale_cap": None if softcap is None else scale / softcap,
        "cap_log2": None if softcap is None else softcap * LOG2E,
        "p_slope": alibi,
        "SCALED": softcap is not None or alibi is not None or scale <= 0,
    }
