"""FlashAttention-1's forward loop: a tile of keys outside, tiles of queries inside, their statistics in memory.

For queries i of a tile and the keys of the present tile, with m, l and O of the rows as they lie in memory:

    m' = max(m, rowmax S)        l' = exp(m - m') l + rowsum exp(S - m')
    O' = (l exp(m - m') O + exp(S - m') V) / l'

O is kept normalised and in float32, and written in the dtype of the inputs at the end. What masks and modifiers make of
S, and which queries see a tile of keys at all, is in triton_scores.py; a sink is where m and l of a row begin. Where
sequences are packed a program computes one head of one of them, whose sizes and first rows it reads on the device.

Letters: BM queries and BN keys a tile, D and DV the head dims, DP and DVP the same rounded up to a power of two.
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
    is_live,
    mask_arguments,
    queries_of,
    queries_seeing,
    score_arguments,
)
from attnkit.varlen import Varlen


@triton.jit
def rows_of(p_base, s_row, i_row, n_rows, ROWS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr):
    """[ROWS, DP] of one head; 0 behind n_rows and behind D."""
    o_row = i_row + tl.arange(0, ROWS)
    o_d = tl.arange(0, DP)
    p_rows = p_base + (o_row[:, None] * tl.cast(s_row, tl.int64) + o_d[None, :])
    return tl.load(p_rows, mask=(o_row < n_rows)[:, None] & (o_d < D)[None, :], other=0.0)


@triton.jit(do_not_specialize=["hq", "sq", "skv", "lower", "upper", "total"])
def forward_kernel(
    p_q, p_k, p_v, p_out, p_o, p_m, p_l, scale_log2,
    s_qb, s_qs, s_qh, s_kb, s_ks, s_kh, s_vb, s_vs, s_vh, s_ob, s_os, s_oh, hq, group, sq, skv,
    lower, upper, scale_cap, cap_log2, p_slope, p_starts_q, p_starts_k, total,
    D: tl.constexpr, DP: tl.constexpr, DV: tl.constexpr, DVP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i_bh = tl.program_id(0)
    i_b = i_bh // hq
    i_h = i_bh % hq
    i_row = i_bh * tl.cast(sq, tl.int64)
    if p_starts_q is not None:
        # i_b is a sequence: sizes are its own from here on, and its rows lie in the one batch that there is
        o_q = tl.load(p_starts_q + i_b)
        o_k = tl.load(p_starts_k + i_b)
        sq = tl.load(p_starts_q + i_b + 1) - o_q
        skv = tl.load(p_starts_k + i_b + 1) - o_k
        i_b = 0
        i_row = i_h * tl.cast(total, tl.int64) + o_q
        p_q += o_q * tl.cast(s_qs, tl.int64)
        p_k += o_k * tl.cast(s_ks, tl.int64)
        p_v += o_k * tl.cast(s_vs, tl.int64)
        p_out += o_q * tl.cast(s_os, tl.int64)
    p_q += i_b * tl.cast(s_qb, tl.int64) + i_h * tl.cast(s_qh, tl.int64)
    p_k += i_b * tl.cast(s_kb, tl.int64) + (i_h // group) * tl.cast(s_kh, tl.int64)
    p_v += i_b * tl.cast(s_vb, tl.int64) + (i_h // group) * tl.cast(s_vh, tl.int64)
    p_out += i_b * tl.cast(s_ob, tl.int64) + i_h * tl.cast(s_oh, tl.int64)
    p_o += i_row * DV
    p_m += i_row
    p_l += i_row
    o_dv = tl.arange(0, DVP)
    diagonal = skv - sq
    if p_starts_q is not None and MASK == "band":
        lower += diagonal
        upper += diagonal
    slope = None
    if p_slope is not None:
        slope = tl.load(p_slope + i_h)

    for i_n in tl.range(0, skv, BN):
        b_k = rows_of(p_k, s_ks, i_n, skv, BN, D, DP)
        b_v = rows_of(p_v, s_vs, i_n, skv, BN, DV, DVP)
        o_n = i_n + tl.arange(0, BN)
        # queries before i_begin and from i_end on see none of these keys
        i_begin, _left, _full, i_end = queries_of(i_n, diagonal, sq, lower, upper, BM, BN, MASK)
        if MASK == "band" or MASK == "prefix" or MASK == "documents":
            first, last = queries_seeing(o_n, diagonal, sq, lower, upper, MASK)
        for i_m in tl.range(i_begin, i_end, BM):
            o_m = i_m + tl.arange(0, BM)
            m_m = o_m < sq
            m_o = m_m[:, None] & (o_dv < DV)[None, :]
            o_o = o_m[:, None] * DV + o_dv[None, :]
            b_q = rows_of(p_q, s_qs, i_m, sq, BM, D, DP)
            m = tl.load(p_m + o_m, mask=m_m, other=float("-inf"))
            l = tl.load(p_l + o_m, mask=m_m, other=0.0)
            b_o = tl.load(p_o + o_o, mask=m_o, other=0.0)
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
            b_s, _bend = base_2(
                b_s, o_m[:, None], o_n[None, :], diagonal, scale_log2, scale_cap, cap_log2, slope, True
            )  # fmt: skip
            live = (o_n < skv)[None, :] & m_m[:, None]
            if MASK == "causal":
                live = live & (o_n[None, :] <= o_m[:, None] + diagonal)
            elif MASK == "boolean":
                live = live & is_live(o_m, o_n, diagonal, skv, lower, upper, MASK)
            elif MASK != "full":
                live = live & (o_m[:, None] >= first[None, :]) & (o_m[:, None] <= last[None, :])
            b_s = tl.where(live, b_s, float("-inf"))
            m_new = tl.maximum(m, tl.max(b_s, 1))
            # a row with no live key yet has m_new = -inf, and -inf - -inf is nan
            shift = tl.where(m_new == float("-inf"), 0.0, m_new)
            b_p = tl.exp2(b_s - shift[:, None])
            kept = l * tl.exp2(m - shift)
            l_new = kept + tl.sum(b_p, 1)
            b_o = tl.dot(b_p.to(b_v.dtype), b_v, b_o * kept[:, None], input_precision=PRECISION)
            b_o = b_o / tl.where(l_new == 0.0, 1.0, l_new)[:, None]
            tl.store(p_m + o_m, m_new, mask=m_m)
            tl.store(p_l + o_m, l_new, mask=m_m)
            tl.store(p_o + o_o, b_o, mask=m_o)
        # what one thread wrote another may read for the next tile
        tl.debug_barrier()

    for i_m in tl.range(0, sq, BM):
        o_m = i_m + tl.arange(0, BM)
        m_o = (o_m < sq)[:, None] & (o_dv < DV)[None, :]
        b_o = tl.load(p_o + (o_m[:, None] * DV + o_dv[None, :]), mask=m_o, other=0.0)
        o_out = o_m[:, None] * tl.cast(s_os, tl.int64) + o_dv[None, :]
        tl.store(p_out + o_out, b_o.to(p_out.dtype.element_ty), mask=m_o)


def tiles(dtype: torch.dtype, d: int, sq: int, mask: str) -> tuple[int, int]:
    """Queries and keys a tile: fewer where their rows take many registers, or the addresses of a mask in memory."""
    wide = dtype == torch.float32 or d > 128
    return 16 if wide or sq <= 16 else 64, 32 if wide or mask == "boolean" else 64


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, mask: Mask, scale: float, softcap: float | None = None,
    alibi: torch.Tensor | None = None, sink: torch.Tensor | None = None, varlen: Varlen | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """q ``[b, sq, hq, d]``, k, v ``[b, skv, hkv, ·]``, last dims contiguous, to out ``[b, sq, hq, dv]``, m and l.

    These are ``[b, hq, sq]`` in float32: the maximum of each row's scores in base 2 and what their exponentials above
    it sum to, a sink in both. A row without either has m ``-inf`` and l 0.
    """
    b, sq, hq, d = q.shape
    skv, hkv, dv = v.shape[1:]
    out = torch.empty((b, sq, hq, dv), dtype=q.dtype, device=q.device)
    statistics = {"dtype": torch.float32, "device": q.device}
    o = torch.zeros((b, hq, sq, dv), **statistics)  # type: ignore[call-overload]
    m = torch.full((b, hq, sq), float("-inf"), **statistics)  # type: ignore[call-overload]
    l = torch.zeros((b, hq, sq), **statistics)  # type: ignore[call-overload]
    if sink is not None:
        # as if a key with this score and no value had been seen
        m.copy_(sink[:, None] * LOG2E)
        l.fill_(1.0)
    n, longest, starts = b, sq, None
    if varlen is None:
        arguments = mask_arguments(mask, sq, skv, q.device, of="keys")
    else:
        # a band counts from each sequence's own diagonal
        arguments = mask_arguments(mask, sq + skv, sq + skv, q.device, of="keys")
        n, longest, starts = len(varlen.queries), max(varlen.queries), varlen.starts(q.device)
    block_m, block_n = tiles(q.dtype, max(d, dv), longest, str(arguments["MASK"]))
    arguments |= score_arguments(scale, softcap, alibi)
    del arguments["SCALED"]  # here scores are, always
    with current(q.device, q.dtype):
        forward_kernel[(n * hq,)](
            q, k, v, out, o, m, l, scale * LOG2E,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], hq, hq // hkv, sq, skv,
            p_starts_q=None if starts is None else starts.queries, p_starts_k=None if starts is None else starts.keys,
            total=None if starts is None else sq, **arguments,
            D=d, DP=padded(d), DV=dv, DVP=padded(dv), BM=block_m, BN=block_n,
            PRECISION="tf32x3" if q.dtype == torch.float32 else "ieee", num_warps=4, num_stages=1,
        )  # fmt: skip
    return out, m, l


def padded(size: int) -> int:
    """A power of two of at least 16, as tiles have it."""
    return max(16, triton.next_power_of_2(size))
