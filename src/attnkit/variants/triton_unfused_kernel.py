"""P = softmax(Q Kᵀ · scale, over live keys) in one Triton kernel that writes P to memory.

One program owns BM queries of one head and walks twice over the keys in tiles of BN: first for the running maximum and
sum (Milakov and Gimelshein, 2018), then, with Q Kᵀ computed again, to write P. So any number of keys fits, and the
scores themselves never reach memory. Tiles of keys that a mask hides are written as zeros without a product. What masks
and modifiers make of scores is in triton_scores.py; a sink is where maximum and sum of a row begin.

Letters: BM queries and BN keys a tile, D the head dim, DP the same rounded up to a power of two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from attnkit.mask import Mask
from attnkit.triton_device import current
from attnkit.triton_scores import (
    LOG2E,
    base_2,
    first_tile,
    is_live,
    keys_of,
    keys_seen,
    mask_arguments,
    score_arguments,
)

BASE_2 = tl.constexpr(LOG2E)


@triton.jit
def scores(
    b_q, p_k, s_ks, i_n, o_m, first, last, diagonal, skv, lower, upper, scale_log2, scale_cap, cap_log2, slope,
    D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[BM, BN] in base 2, -inf where row i does not see key j, and the bend of a capped score.

    Where the mask is a span, row i sees the keys from first[i] to last[i].
    """
    o_row = tl.arange(0, BN)
    o_d = tl.arange(0, DP)
    p_rows = p_k + i_n * tl.cast(s_ks, tl.int64) + (o_row[:, None] * tl.cast(s_ks, tl.int64) + o_d[None, :])
    b_k = tl.load(p_rows, mask=(i_n + o_row < skv)[:, None] & (o_d < D)[None, :], other=0.0)
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
    o_n = i_n + o_row
    b_s, b_bend = base_2(b_s, o_m[:, None], o_n[None, :], diagonal, scale_log2, scale_cap, cap_log2, slope, True)
    if MASK == "boolean":
        live = is_live(o_m, o_n, diagonal, skv, lower, upper, MASK)
    else:
        live = o_n[None, :] <= last[:, None]
        if MASK == "band" or MASK == "documents":
            live = live & (o_n[None, :] >= first[:, None])
    return tl.where(live, b_s, float("-inf")), b_bend


@triton.jit(do_not_specialize=["hq", "sq", "lower", "upper"])
def probabilities_kernel(
    p_q, p_k, p_p, p_bend, p_weight, scale_log2, s_qb, s_qs, s_qh, s_kb, s_ks, s_kh, hq, group, sq, skv,
    lower, upper, scale_cap, cap_log2, p_slope, p_sink,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(sq, BM)
    i_m = tl.program_id(0) % n_blocks * BM
    i_bh = tl.program_id(0) // n_blocks
    i_b = i_bh // hq
    i_h = i_bh % hq
    o_m = i_m + tl.arange(0, BM)
    o_d = tl.arange(0, DP)
    p_q += i_b * tl.cast(s_qb, tl.int64) + i_h * tl.cast(s_qh, tl.int64)
    p_k += i_b * tl.cast(s_kb, tl.int64) + (i_h // group) * tl.cast(s_kh, tl.int64)
    m_q = (o_m < sq)[:, None] & (o_d < D)[None, :]
    b_q = tl.load(p_q + (o_m[:, None] * tl.cast(s_qs, tl.int64) + o_d[None, :]), mask=m_q, other=0.0)

    # no row of the tile sees a key before i_begin or from i_end on
    i_end = skv
    last = tl.full([BM], skv - 1, tl.int32)
    first = last
    if MASK == "causal":
        i_end = tl.minimum(skv, tl.maximum(i_m + BM + skv - sq, 0))
        last = tl.minimum(last, o_m + (skv - sq))
    diagonal = skv - sq
    if MASK != "full" and MASK != "causal":
        _left, _full, i_end = keys_of(i_m, diagonal, skv, lower, upper, BM, BN, MASK)
        i_end = tl.maximum(i_end, 0)
        first, last = keys_seen(o_m, diagonal, skv, lower, upper, MASK)

    slope = None
    if p_slope is not None:
        slope = tl.load(p_slope + i_h)
    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    if p_sink is not None:
        # as if a key with this score had been seen
        sink = tl.load(p_sink + i_h) * BASE_2
        m = tl.zeros([BM], tl.float32) + sink
        l += 1.0
    i_begin = 0
    if MASK == "band" or MASK == "documents":
        i_begin = first_tile(i_m, diagonal, skv, lower, upper, BN, MASK)
    for i_n in tl.range(i_begin, i_end, BN):
        b_s, _bend = scores(
            b_q, p_k, s_ks, i_n, o_m, first, last, diagonal, skv, lower, upper, scale_log2, scale_cap, cap_log2, slope,
            D, DP, BN, MASK, PRECISION,
        )  # fmt: skip
        m_new = tl.maximum(m, tl.max(b_s, 1))
        # a row with no live key yet has m_new = -inf, and -inf - -inf is nan
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        l = l * tl.exp2(m - shift) + tl.sum(tl.exp2(b_s - shift[:, None]), 1)
        m = m_new

    # a row with no live key: all of its P is 0
    shift = tl.where(l == 0.0, 0.0, m)
    inverse = 1.0 / tl.where(l == 0.0, 1.0, l)
    if p_weight is not None:
        tl.store(p_weight + i_bh * tl.cast(sq, tl.int64) + o_m, tl.exp2(sink - shift) * inverse, mask=o_m < sq)
    p_p += (i_bh * tl.cast(sq, tl.int64) + i_m) * skv
    if p_bend is not None:
        p_bend += (i_bh * tl.cast(sq, tl.int64) + i_m) * skv
    o_p = tl.arange(0, BM)[:, None] * tl.cast(skv, tl.int64)
    for i_n in tl.range(i_begin, i_end, BN):
        b_s, b_bend = scores(
            b_q, p_k, s_ks, i_n, o_m, first, last, diagonal, skv, lower, upper, scale_log2, scale_cap, cap_log2, slope,
            D, DP, BN, MASK, PRECISION,
        )  # fmt: skip
        b_p = tl.exp2(b_s - shift[:, None]) * inverse[:, None]
        o_n = i_n + tl.arange(0, BN)
        m_p = (o_m < sq)[:, None] & (o_n < skv)[None, :]
        tl.store(p_p + (o_p + o_n[None, :]), b_p.to(p_p.dtype.element_ty), mask=m_p)
        if p_bend is not None:
            tl.store(p_bend + (o_p + o_n[None, :]), b_bend.to(p_bend.dtype.element_ty), mask=m_p)
    b_zero = tl.zeros([BM, BN], p_p.dtype.element_ty)
    i_hidden = tl.cdiv(i_end, BN) * BN
    if MASK == "band" or MASK == "documents":
        # where nothing is seen, i_begin may lie behind i_end
        i_hidden = tl.maximum(i_hidden, i_begin)
        for i_n in tl.range(0, i_begin, BN):
            o_n = i_n + tl.arange(0, BN)
            m_p = (o_m < sq)[:, None] & (o_n < skv)[None, :]
            tl.store(p_p + (o_p + o_n[None, :]), b_zero, mask=m_p)
            if p_bend is not None:
                tl.store(p_bend + (o_p + o_n[None, :]), b_zero, mask=m_p)
    for i_n in tl.range(i_hidden, skv, BN):
        o_n = i_n + tl.arange(0, BN)
        m_p = (o_m < sq)[:, None] & (o_n < skv)[None, :]
        tl.store(p_p + (o_p + o_n[None, :]), b_zero, mask=m_p)
        if p_bend is not None:
            tl.store(p_bend + (o_p + o_n[None, :]), b_zero, mask=m_p)


def tiles(dtype: torch.dtype, d: int) -> tuple[int, int, int]:
    """Queries and keys a tile, and warps: smaller where a row of Q takes many registers."""
    if dtype == torch.float32:
        return (64, 32, 4) if d <= 64 else (32, 16, 4) if d <= 128 else (16, 16, 4)
    return (64, 32, 4) if d > 128 else (128, 64, 8)


def probabilities(
    q: torch.Tensor, k: torch.Tensor, *, mask: Mask, scale: float,
    softcap: float | None = None, alibi: torch.Tensor | None = None, sink: torch.Tensor | None = None,
    bends: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:  # fmt: skip
    """P, the bend of capped scores and the weight of sinks.

    Args:
        q: ``[b, sq, hq, d]``, its last dim contiguous.
        k: ``[b, skv, hkv, d]``, its last dim contiguous.
        mask: Any of mask.py.
        scale: What products are multiplied with.
        softcap: Of scores, or None.
        alibi: Slopes ``[hq]``, or None.
        sink: Logits ``[hq]``, or None.
        bends: Whether the bend is wanted, where there is a softcap.

    Returns:
        P and the bend ``[b, hq, sq, skv]`` in the dtype of q, the weight ``[b, hq, sq]`` in float32.
    """
    b, sq, hq, d = q.shape
    skv, hkv = k.shape[1:3]
    p = torch.empty((b, hq, sq, skv), dtype=q.dtype, device=q.device)
    bend = torch.empty_like(p) if bends and softcap is not None else None
    weight = None if sink is None else torch.empty((b, hq, sq), dtype=torch.float32, device=q.device)
    block_m, block_n, warps = tiles(q.dtype, d)
    arguments = mask_arguments(mask, sq, skv, q.device) | score_arguments(scale, softcap, alibi)
    del arguments["SCALED"]  # here scores are, always
    with current(q.device, q.dtype):
        probabilities_kernel[(triton.cdiv(sq, block_m) * b * hq,)](
            q, k, p, bend, weight, scale * LOG2E, *q.stride()[:3], *k.stride()[:3], hq, hq // hkv, sq, skv,
            D=d, DP=max(16, triton.next_power_of_2(d)), BM=block_m, BN=block_n, p_sink=sink, **arguments,
            PRECISION="tf32x3" if q.dtype == torch.float32 else "ieee", num_warps=warps, num_stages=2,
        )  # fmt: skip
    return p, bend, weight
