"""Split-KV attention of a few queries, in one Triton kernel.

A program owns one split of the keys of one key head of one sequence. Its tile has a row for each query and each query
head that reads the key head: row r is query r // group in head r % group. It walks over its keys with the running
maximum and sum of FlashAttention-2 and writes an unnormalised output, the maximum and the sum. Whoever of a key head's
programs finishes last combines them, in the order of the splits: the result is the same whoever it was.

Letters: BM rows and BN keys a tile, D and DV the head dims, DP and DVP the same rounded up to a power of two, PAGE the
keys of a page (0: the cache is contiguous).
"""

from __future__ import annotations

import contextlib
import functools

import torch
import triton
import triton.language as tl

from attnkit.mask import Mask, Prefix, Window
from attnkit.triton_scores import LOG2E, base_2, keys_seen, score_arguments

BASE_2 = tl.constexpr(LOG2E)
BLOCK_N = 64


@triton.jit
def rows_of(
    p_base, p_table, i_n, i_end, s_block, s_row, D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, PAGE: tl.constexpr
):
    """[BN, DP]: keys i_n to i_n + BN of one head; 0 behind i_end and behind D."""
    o_n = i_n + tl.arange(0, BN)
    o_d = tl.arange(0, DP)
    m_n = o_n < i_end
    if PAGE == 0:
        o_row = o_n * tl.cast(s_row, tl.int64)
    else:
        i_page = tl.load(p_table + o_n // PAGE, mask=m_n, other=0)
        o_row = i_page * tl.cast(s_block, tl.int64) + (o_n % PAGE) * tl.cast(s_row, tl.int64)
    return tl.load(p_base + (o_row[:, None] + o_d[None, :]), mask=m_n[:, None] & (o_d < D)[None, :], other=0.0)


@triton.jit(do_not_specialize=["hkv", "skv", "splits", "left", "upper"])
def splitkv_kernel(
    p_q, p_k, p_v, p_out, p_lengths, p_table, p_partial, p_arrived, scale_log2,
    s_qb, s_qs, s_qh, s_kb, s_ks, s_kh, s_vb, s_vs, s_vh, s_ob, s_os, s_oh, s_tb, hkv, skv, splits,
    left, upper, scale_cap, cap_log2, p_slope, p_sink,
    SQ: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, DV: tl.constexpr, DVP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PAGE: tl.constexpr, MASK: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    i_split = tl.program_id(0)
    i_bh = tl.program_id(1)
    i_b = i_bh // hkv
    i_h = i_bh % hkv
    n = skv
    if HAS_LENGTHS:
        n = tl.load(p_lengths + i_b)
    i_first = 0
    lower = 0
    if MASK == "band":
        # keys before the first query's window are not visited
        lower = n - SQ - left
        upper += n - SQ
        i_first = tl.maximum(lower, 0) // BN * BN
    # whole tiles to each split; the last splits of a short sequence have none
    tiles = tl.cdiv(tl.cdiv(n - i_first, BN), splits)
    i_start = tl.minimum(i_first + i_split * tiles * BN, n)
    i_end = tl.minimum(i_start + tiles * BN, n)

    o_m = tl.arange(0, BM)
    o_d = tl.arange(0, DP)
    o_dv = tl.arange(0, DVP)
    i_query = o_m // GROUP
    o_head = i_h * GROUP + o_m % GROUP
    m_m = o_m < SQ * GROUP
    p_q += i_b * tl.cast(s_qb, tl.int64)
    b_q = tl.load(
        p_q + (i_query[:, None] * tl.cast(s_qs, tl.int64) + o_head[:, None] * tl.cast(s_qh, tl.int64) + o_d[None, :]),
        mask=m_m[:, None] & (o_d < D)[None, :], other=0.0,
    )  # fmt: skip
    if PAGE == 0:
        p_k += i_b * tl.cast(s_kb, tl.int64)
        p_v += i_b * tl.cast(s_vb, tl.int64)
    else:
        p_table += i_b * tl.cast(s_tb, tl.int64)
    p_k += i_h * tl.cast(s_kh, tl.int64)
    p_v += i_h * tl.cast(s_vh, tl.int64)
    last = tl.full([BM], 0, tl.int32) + n - 1
    if MASK == "causal":
        last = i_query + n - SQ
    elif MASK != "full":
        first, last = keys_seen(i_query, n - SQ, n, lower, upper, MASK)
    slope = None
    if p_slope is not None:
        slope = tl.load(p_slope + o_head, mask=m_m, other=0.0)[:, None]

    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    if p_sink is not None:
        if i_split == 0:
            # as if a key with this score and no value had been seen
            m = tl.load(p_sink + o_head, mask=m_m, other=0.0) * BASE_2
            l += 1.0
    b_out = tl.zeros([BM, DVP], tl.float32)
    for i_n in tl.range(i_start, i_end, BN):
        b_k = rows_of(p_k, p_table, i_n, i_end, s_kb, s_ks, D, DP, BN, PAGE)
        b_v = rows_of(p_v, p_table, i_n, i_end, s_vb, s_vs, DV, DVP, BN, PAGE)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        o_n = i_n + tl.arange(0, BN)
        b_s, _ = base_2(
            b_s, i_query[:, None], o_n[None, :], n - SQ, scale_log2, scale_cap, cap_log2, slope, True
        )  # fmt: skip
        m_live = (o_n[None, :] <= last[:, None]) & (o_n < i_end)[None, :]
        if MASK == "band":
            m_live = m_live & (o_n[None, :] >= first[:, None])
        b_s = tl.where(m_live, b_s, float("-inf"))
        m_new = tl.maximum(m, tl.max(b_s, 1))
        # a row with no live key yet has m_new = -inf, and -inf - -inf is nan
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        b_p = tl.exp2(b_s - shift[:, None])
        alpha = tl.exp2(m - shift)
        l = l * alpha + tl.sum(b_p, 1)
        b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out * alpha[:, None], input_precision=PRECISION)
        m = m_new

    o_out = i_query[:, None] * tl.cast(s_os, tl.int64) + o_head[:, None] * tl.cast(s_oh, tl.int64) + o_dv[None, :]
    p_out += i_b * tl.cast(s_ob, tl.int64)
    m_out = m_m[:, None] & (o_dv < DV)[None, :]
    if splits == 1:
        b_out = b_out / tl.where(l == 0.0, 1.0, l)[:, None]
        tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_out)
    else:
        # a split's record: for each row DV sums of values, then the row's maximum and sum
        RECORD: tl.constexpr = SQ * GROUP * (DV + 2)
        p_records = p_partial + i_bh * tl.cast(splits, tl.int64) * RECORD
        o_values = o_m[:, None] * (DV + 2) + o_dv[None, :]
        o_stats = o_m * (DV + 2) + DV
        p_mine = p_records + i_split * RECORD
        tl.store(p_mine + o_values, b_out, mask=m_out)
        tl.store(p_mine + o_stats, m, mask=m_m)
        tl.store(p_mine + o_stats + 1, l, mask=m_m)
        # every thread's stores come before the one thread's release
        tl.debug_barrier()
        arrived = tl.atomic_add(p_arrived + i_bh, 1, sem="acq_rel")
        if arrived == splits - 1:
            tl.debug_barrier()
            m = tl.full([BM], float("-inf"), tl.float32)
            l = tl.zeros([BM], tl.float32)
            b_out = tl.zeros([BM, DVP], tl.float32)
            for i in tl.range(0, splits):
                p_theirs = p_records + i * RECORD
                m_theirs = tl.load(p_theirs + o_stats, mask=m_m, other=float("-inf"), cache_modifier=".cg")
                l_theirs = tl.load(p_theirs + o_stats + 1, mask=m_m, other=0.0, cache_modifier=".cg")
                b_theirs = tl.load(p_theirs + o_values, mask=m_out, other=0.0, cache_modifier=".cg")
                m_new = tl.maximum(m, m_theirs)
                shift = tl.where(m_new == float("-inf"), 0.0, m_new)
                alpha = tl.exp2(m - shift)
                beta = tl.exp2(m_theirs - shift)
                l = l * alpha + l_theirs * beta
                b_out = b_out * alpha[:, None] + b_theirs * beta[:, None]
                m = m_new
            b_out = b_out / tl.where(l == 0.0, 1.0, l)[:, None]
            tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_out)
            # ready for the next call
            tl.store(p_arrived + i_bh, 0)


@functools.cache
def programs_at_once(device: torch.device) -> int:
    """How many programs the device runs at a time; those of an H200 where there is no GPU."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
    return 2 * processors


def choose_splits(heads: int, longest: int, device: torch.device) -> int:
    """Splits for which the slowest processor has the least to do.

    Programs come in waves; a program walks over its tiles, then leaves a record that takes about as long as two tiles.
    The last one reads all records, four of them in about the time of a tile.

    Args:
        heads: Key heads of all sequences.
        longest: Keys that a sequence may have.
        device: Where it runs.
    """
    slots = programs_at_once(device)
    tiles = triton.cdiv(longest, BLOCK_N)

    def cost(splits: int) -> int:
        combining = 2 + triton.cdiv(splits, 4) if splits > 1 else 0
        return triton.cdiv(heads * splits, slots) * triton.cdiv(tiles, splits) + combining

    return min(range(1, max(1, min(tiles, 128)) + 1), key=lambda splits: (cost(splits), splits))


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: torch.Tensor | None,
    table: torch.Tensor | None,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None,
    alibi: torch.Tensor | None,
    sink: torch.Tensor | None,
    splits: int,
    longest: int,
    partial: torch.Tensor,
    arrived: torch.Tensor,
) -> torch.Tensor:
    """q ``[b, sq, hq, d]``, k, v ``[b, skv, hkv, ·]`` or pages, last dims contiguous, to out ``[b, sq, hq, dv]``."""
    b, sq, hq, d = q.shape
    hkv, dv = v.shape[2:]
    group = hq // hkv
    out = torch.empty((b, sq, hq, dv), dtype=q.dtype, device=q.device)
    if not (q.numel() and longest):
        return out.zero_()
    wide = q.dtype == torch.float32 or max(d, dv) > 128
    arguments = score_arguments(scale, softcap, alibi)
    del arguments["SCALED"]  # here scores are, always
    with torch.cuda.device(q.device) if q.is_cuda else contextlib.nullcontext():
        splitkv_kernel[(splits, b * hkv)](
            q, k, v, out, lengths if lengths is not None else q, table if table is not None else q, partial, arrived,
            scale * LOG2E, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
            table.stride(0) if table is not None else 0, hkv, longest, splits,
            SQ=sq, GROUP=group, D=d, DP=padded(d), DV=dv, DVP=padded(dv), BM=max(16, padded(sq * group)), BN=BLOCK_N,
            PAGE=0 if table is None else k.shape[1], HAS_LENGTHS=lengths is not None,
            p_sink=sink, **edges(mask, sq, longest), **arguments,
            PRECISION="tf32x3" if q.dtype == torch.float32 else "ieee", num_warps=4, num_stages=2 if wide else 3,
        )  # fmt: skip
    return out


def edges(mask: Mask, sq: int, longest: int) -> dict[str, object]:
    """What the kernel is given for a mask: its kind, and its edges along the diagonal, which is where a length says."""
    match mask:
        case Window(left, right):
            far = sq + longest
            left, right = (far if side is None else min(side, far) for side in (left, right))
            return {"MASK": "band", "left": left, "upper": right}
        case Prefix(length):
            return {"MASK": "prefix", "left": None, "upper": min(length, longest)}
        case _:
            return {"MASK": mask, "left": None, "upper": None}


def padded(size: int) -> int:
    """A power of two of at least 16, as tiles have it."""
    return max(16, triton.next_power_of_2(size))
