"""Split-KV attention of a few queries, in Triton kernels.

A program owns one split of the keys of one key head of one sequence. Its tile has a row for each query and each query
head that reads the key head: row r is query r // group in head r % group. It walks over its keys with the running
maximum and sum of FlashAttention-2 and leaves a record: an unnormalised output, the maximum and the sum. Records are
combined by whoever of a key head's programs finishes last, or by a kernel of their own, which waits on the device for
the one before it. Either takes them in the order of the splits: the result is the same whoever it was.

Letters: BM rows and BN keys a tile, D and DV the head dims, DP and DVP the same rounded up to a power of two, PAGE the
keys of a page (0: the cache is contiguous), SB splits of which records are read at a time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from attnkit.mask import Mask, Prefix, Window
from attnkit.triton_device import current
from attnkit.triton_scores import LOG2E, base_2, is_live, keys_seen, mask_arguments, score_arguments
from attnkit.variants.triton_splitkv_tiles import Form

BASE_2 = tl.constexpr(LOG2E)


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


@triton.jit
def combined(
    p_values, p_stats, splits, i_row, ROWS: tl.constexpr, DV: tl.constexpr, DVP: tl.constexpr, SB: tl.constexpr
):
    """[DVP]: one row of a key head's output, out of the records of all its splits."""
    o_dv = tl.arange(0, DVP)
    m = float("-inf")
    l = 0.0
    b_out = tl.zeros([DVP], tl.float32)
    for i in tl.range(0, splits, SB):
        # many at a time, for the way to the L2 and back is what takes long
        o_s = i + tl.arange(0, SB)
        m_s = o_s < splits
        o_rows = o_s * ROWS + i_row
        m_theirs = tl.load(p_stats + o_rows * 2, mask=m_s, other=float("-inf"), cache_modifier=".cg")
        l_theirs = tl.load(p_stats + o_rows * 2 + 1, mask=m_s, other=0.0, cache_modifier=".cg")
        b_theirs = tl.load(
            p_values + (o_rows[:, None] * DV + o_dv[None, :]), mask=m_s[:, None] & (o_dv < DV)[None, :], other=0.0,
            cache_modifier=".cg",
        )  # fmt: skip
        m_new = tl.maximum(m, tl.max(m_theirs, 0))
        # a row of which no split has a live key has m_new = -inf
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        alpha = tl.exp2(m - shift)
        beta = tl.exp2(m_theirs - shift)
        l = l * alpha + tl.sum(l_theirs * beta, 0)
        b_out = b_out * alpha + tl.sum(b_theirs * beta[:, None], 0)
        m = m_new
    return b_out / tl.where(l == 0.0, 1.0, l)


@triton.jit(do_not_specialize=["hkv", "splits"])
def combine_kernel(
    p_out, p_partial, s_ob, s_os, s_oh, hkv, splits,
    SQ: tl.constexpr, GROUP: tl.constexpr, DV: tl.constexpr, DVP: tl.constexpr, SB: tl.constexpr, WAIT: tl.constexpr,
):  # fmt: skip
    """One row of a key head's output a program."""
    i_row = tl.program_id(0)
    i_bh = tl.program_id(1)
    ROWS: tl.constexpr = SQ * GROUP
    if WAIT:
        gdc_wait()
    p_values = p_partial + i_bh * tl.cast(splits, tl.int64) * (ROWS * DV)
    p_stats = p_partial + (tl.num_programs(1) * tl.cast(DV, tl.int64) + i_bh * 2) * splits * ROWS
    b_out = combined(p_values, p_stats, splits, i_row, ROWS, DV, DVP, SB)
    o_dv = tl.arange(0, DVP)
    i_head = i_bh % hkv * GROUP + i_row % GROUP
    p_out += i_bh // hkv * tl.cast(s_ob, tl.int64) + i_row // GROUP * tl.cast(s_os, tl.int64)
    tl.store(p_out + i_head * tl.cast(s_oh, tl.int64) + o_dv, b_out.to(p_out.dtype.element_ty), mask=o_dv < DV)


@triton.jit(do_not_specialize=["hkv", "skv", "splits", "lower", "upper"])
def splitkv_kernel(
    p_q, p_k, p_v, p_out, p_lengths, p_table, p_partial, p_arrived, scale_log2,
    s_qb, s_qs, s_qh, s_kb, s_ks, s_kh, s_vb, s_vs, s_vh, s_ob, s_os, s_oh, s_tb, hkv, skv, splits,
    lower, upper, scale_cap, cap_log2, p_slope, p_sink,
    SQ: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, DV: tl.constexpr, DVP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PAGE: tl.constexpr, MASK: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    PRECISION: tl.constexpr, SB: tl.constexpr, AGAIN: tl.constexpr, APART: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        gdc_launch_dependents()
    i_split = tl.program_id(0)
    i_bh = tl.program_id(1)
    i_b = i_bh // hkv
    i_h = i_bh % hkv
    n = skv
    if HAS_LENGTHS:
        n = tl.load(p_lengths + i_b)
    i_first = 0
    if MASK == "band":
        # keys before the first query's window are not visited
        lower += n - SQ
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
    o_q = i_query[:, None] * tl.cast(s_qs, tl.int64) + o_head[:, None] * tl.cast(s_qh, tl.int64) + o_d[None, :]
    m_q = m_m[:, None] & (o_d < D)[None, :]
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
    b_q = tl.zeros([BM, DP], p_q.dtype.element_ty)
    if not AGAIN:
        b_q = tl.load(p_q + o_q, mask=m_q, other=0.0)
    for i_n in tl.range(i_start, i_end, BN):
        if AGAIN:
            # with each tile, and as if it depended on it: so the first keys need not wait until the queries are there
            b_q = tl.load(p_q + ((i_n >> 31) * 16 + o_q), mask=m_q, other=0.0)
        b_k = rows_of(p_k, p_table, i_n, i_end, s_kb, s_ks, D, DP, BN, PAGE)
        b_v = rows_of(p_v, p_table, i_n, i_end, s_vb, s_vs, DV, DVP, BN, PAGE)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        o_n = i_n + tl.arange(0, BN)
        b_s, _ = base_2(
            b_s, i_query[:, None], o_n[None, :], n - SQ, scale_log2, scale_cap, cap_log2, slope, True
        )  # fmt: skip
        m_live = (o_n[None, :] <= last[:, None]) & (o_n < i_end)[None, :]
        if MASK == "boolean":
            m_live = m_live & is_live(i_query, o_n, n - SQ, n, lower, upper, MASK)
        if MASK == "band" or MASK == "documents":
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
        # all values of all key heads, then for each row its maximum and its sum
        ROWS: tl.constexpr = SQ * GROUP
        p_values = p_partial + i_bh * tl.cast(splits, tl.int64) * (ROWS * DV)
        p_stats = p_partial + (tl.num_programs(1) * tl.cast(DV, tl.int64) + i_bh * 2) * splits * ROWS
        o_rows = i_split * ROWS + o_m
        tl.store(p_values + (o_rows[:, None] * DV + o_dv[None, :]), b_out, mask=m_out)
        tl.store(p_stats + o_rows * 2, m, mask=m_m)
        tl.store(p_stats + o_rows * 2 + 1, l, mask=m_m)
        if not APART:
            # every thread's stores come before the one thread's release
            tl.debug_barrier()
            arrived = tl.atomic_add(p_arrived + i_bh, 1, sem="acq_rel")
            if arrived == splits - 1:
                tl.debug_barrier()
                for i_row in tl.range(0, ROWS):
                    b_sum = combined(p_values, p_stats, splits, i_row, ROWS, DV, DVP, SB)
                    i_head = i_h * GROUP + i_row % GROUP
                    p_row = p_out + i_row // GROUP * tl.cast(s_os, tl.int64) + i_head * tl.cast(s_oh, tl.int64)
                    tl.store(p_row + o_dv, b_sum.to(p_out.dtype.element_ty), mask=o_dv < DV)
                # ready for the next call
                tl.store(p_arrived + i_bh, 0)


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
    form: Form,
) -> torch.Tensor:
    """q ``[b, sq, hq, d]``, k, v ``[b, skv, hkv, ·]`` or pages, last dims contiguous, to out ``[b, sq, hq, dv]``."""
    b, sq, hq, d = q.shape
    hkv, dv = v.shape[2:]
    group = hq // hkv
    out = torch.empty((b, sq, hq, dv), dtype=q.dtype, device=q.device)
    if not (q.numel() and longest):
        return out.zero_()
    arguments = score_arguments(scale, softcap, alibi)
    del arguments["SCALED"]  # here scores are, always
    apart = form.apart and splits > 1
    # programmatic dependent launch; the interpreter has neither the launch nor its instructions
    overlap = apart and q.is_cuda and torch.cuda.get_device_capability(q.device) >= (9, 0)
    with current(q.device, q.dtype):
        splitkv_kernel[(splits, b * hkv)](
            q, k, v, out, lengths if lengths is not None else q, table if table is not None else q, partial, arrived,
            scale * LOG2E, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
            table.stride(0) if table is not None else 0, hkv, longest, splits,
            PAGE=0 if table is None else k.shape[1], HAS_LENGTHS=lengths is not None,
            p_sink=sink, **edges(mask, sq, longest, q.device), **arguments,
            PRECISION="tf32x3" if q.dtype == torch.float32 else "ieee",
            **tiles(form, sq, group, d, dv), APART=apart, EARLY=overlap,
            num_warps=form.warps, num_stages=form.stages,
        )  # fmt: skip
        if apart:
            combine_kernel[(sq * group, b * hkv)](
                out, partial, *out.stride()[:3], hkv, splits,
                SQ=sq, GROUP=group, DV=dv, DVP=padded(dv), SB=at_once(dv), WAIT=overlap,
                num_warps=4, launch_pdl=overlap,
            )  # fmt: skip
    return out


def tiles(form: Form, sq: int, group: int, d: int, dv: int) -> dict[str, Any]:
    """The sizes that the kernel is compiled for."""
    rows = sq * group
    return {
        "SQ": sq, "GROUP": group, "D": d, "DP": padded(d), "DV": dv, "DVP": padded(dv), "BM": padded(rows),
        "BN": form.block_n, "AGAIN": form.again, "SB": at_once(dv),
    }  # fmt: skip


def at_once(dv: int) -> int:
    """Splits of which the records of a row are read together: as many as are quickly added up."""
    return min(32, 4096 // padded(dv))


def edges(mask: Mask, sq: int, longest: int, device: torch.device) -> dict[str, object]:
    """What the kernel is given for a mask: its kind, and its edges along the diagonal, which is where a length says."""
    far = sq + longest
    match mask:
        case Window(left, right):
            left, right = (far if side is None else min(side, far) for side in (left, right))
            return {"MASK": "band", "lower": -left, "upper": right}
        case "causal-top-left":
            return {"MASK": "band", "lower": -far, "upper": sq - longest}
        case Prefix(length):
            return {"MASK": "prefix", "lower": None, "upper": min(length, longest)}
        case _:
            return mask_arguments(mask, sq, longest, device)


def padded(size: int) -> int:
    """A power of two of at least 16, as tiles have it."""
    return max(16, triton.next_power_of_2(size))
