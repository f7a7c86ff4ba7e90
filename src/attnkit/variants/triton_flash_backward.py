"""FlashAttention-2 backward in Triton: three kernels and their launcher.

    P  = exp(S - lse)      dP = dO Vᵀ      delta = rowsum(dO · O)      dS = P · (dP - delta)
    dV = Pᵀ dO             dK = dSᵀ Q · scale             dQ = dS K · scale

A capped score bends dS by its derivative; a sink has dsink = -Σ exp(sink - lse) · delta, over rows and batches.

The forward kept the log-sum-exp, so P is computed again tile by tile (Dao, FlashAttention-2, 2023). Three launches:
    statistics   delta and the log-sum-exp in base 2, padded so that the other two read them without a mask
    dkdv         one program owns BN keys of one key head and walks over the queries of every head of its group
    dq           one program owns BM queries of one head and walks over the keys
Every sum has one owner and one order: no atomics, and the same input gives the same bits. The price is that S and dP
are computed twice, seven products where a kernel with atomics does five.

A row without a live key, or behind the last row, has ``lse = +inf`` in the padded statistics: its P is exp2(-inf) = 0
and it takes part in nothing, without a mask. Letters and ``LOADS`` are those of the forward.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl

from attnkit.mask import Mask
from attnkit.triton_scores import (
    LOG2E,
    base_2,
    first_tile,
    is_live,
    is_live_transposed,
    is_partial,
    keys_of,
    queries_of,
    score_arguments,
)
from attnkit.variants.triton_flash_batch import Batch, sequence, statistic
from attnkit.variants.triton_flash_forward import load_rows, load_tile
from attnkit.variants.triton_flash_tiles import ROW_PADDING, Config, launch, padded, source
from attnkit.varlen import Varlen

BASE_2 = tl.constexpr(LOG2E)


@triton.jit(do_not_specialize=["hq", "sq"])
def statistics_kernel(
    p_out, p_dout, p_lse, p_lse2, p_delta, s_ob, s_os, s_oh, s_gb, s_gs, s_gh, hq, sq, rows,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    n_blocks = rows // BM
    i_m = tl.program_id(0) % n_blocks * BM
    i_bh = tl.program_id(0) // n_blocks
    i_b = i_bh // hq
    i_h = i_bh % hq
    o_m = i_m + tl.arange(0, BM)
    p_out += i_b * tl.cast(s_ob, tl.int64) + i_h * tl.cast(s_oh, tl.int64)
    p_dout += i_b * tl.cast(s_gb, tl.int64) + i_h * tl.cast(s_gh, tl.int64)
    b_out = load_rows(p_out, s_os, i_m, sq, BM, D, DP, False).to(tl.float32)
    b_dout = load_rows(p_dout, s_gs, i_m, sq, BM, D, DP, False).to(tl.float32)
    b_lse = tl.load(p_lse + i_bh * tl.cast(sq, tl.int64) + o_m, mask=o_m < sq, other=float("-inf"))
    p_rows = i_bh * tl.cast(rows, tl.int64) + o_m
    tl.store(p_lse2 + p_rows, tl.where(b_lse == float("-inf"), float("inf"), b_lse * BASE_2))
    tl.store(p_delta + p_rows, tl.sum(b_out * b_dout, 1))


@triton.jit(do_not_specialize=["hkv", "sq", "skv", "lower", "upper"])
def dkdv_kernel(
    q, k, v, dout, p_dk, p_dv, p_lse2, p_delta, scale, scale_log2,
    s_qb, s_qs, s_qh, s_kb, s_ks, s_kh, s_vb, s_vs, s_vh, s_gb, s_gs, s_gh, s_dkb, s_dks, s_dkh, s_dvb, s_dvs, s_dvh,
    hkv, group, sq, skv, rows, lower, upper, scale_cap, cap_log2, p_slope, p_starts_q, p_starts_k,
    D: tl.constexpr, DP: tl.constexpr, DV: tl.constexpr, DVP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    MASK: tl.constexpr, SCALED: tl.constexpr, EVEN_Q: tl.constexpr, EVEN_KV: tl.constexpr, LOADS: tl.constexpr,
    PRECISION: tl.constexpr, WANT_DK: tl.constexpr, WANT_DV: tl.constexpr,
):  # fmt: skip
    # under the causal mask the first keys are seen by the most queries, so the natural order starts with the longest
    n_blocks = tl.cdiv(skv, BN)
    i_n = tl.program_id(0) % n_blocks * BN
    i_bh = tl.program_id(0) // n_blocks
    i_b = i_bh // hkv
    i_hkv = i_bh % hkv
    o_n = i_n + tl.arange(0, BN)
    if p_starts_q is not None:
        # i_b is a sequence: sizes are its own from here on, and its rows lie in the one batch that there is
        o_q, sq = sequence(p_starts_q, i_b)
        o_k, skv = sequence(p_starts_k, i_b)
        if i_n >= skv:
            return
        i_b = 0
        q += o_q * tl.cast(s_qs, tl.int64)
        k += o_k * tl.cast(s_ks, tl.int64)
        v += o_k * tl.cast(s_vs, tl.int64)
        dout += o_q * tl.cast(s_gs, tl.int64)
        p_lse2 += o_q
        p_delta += o_q
        p_dk += o_k * tl.cast(s_dks, tl.int64)
        p_dv += o_k * tl.cast(s_dvs, tl.int64)
    diagonal = skv - sq
    if p_starts_q is not None and MASK == "band":
        lower += diagonal
        upper += diagonal

    if LOADS == "pointer":
        k += i_b * tl.cast(s_kb, tl.int64) + i_hkv * tl.cast(s_kh, tl.int64)
        v += i_b * tl.cast(s_vb, tl.int64) + i_hkv * tl.cast(s_vh, tl.int64)
    b_k = load_tile(k, s_ks, i_b, i_hkv, i_n, skv, BN, D, DP, EVEN_KV, LOADS)
    if WANT_DK:
        b_v = load_tile(v, s_vs, i_b, i_hkv, i_n, skv, BN, DV, DVP, EVEN_KV, LOADS)
    b_dk = tl.zeros([BN, DP], tl.float32)
    b_dv = tl.zeros([BN, DVP], tl.float32)
    unit = scale_log2
    if SCALED:
        unit = 1.0

    # keys and queries behind the last ones need no mask: the former are not stored, the latter have lse = +inf
    i_begin = 0
    i_left = 0
    i_full = sq
    i_end = sq
    if MASK == "causal":
        i_begin = tl.maximum(i_n - diagonal, 0) // BM * BM
        i_left = i_n + BN - 1 - diagonal
    elif MASK != "full":
        i_begin, i_left, i_full, i_end = queries_of(i_n, diagonal, sq, lower, upper, BM, BN, MASK)
    for i_g in range(group):
        i_h = i_hkv * group + i_g
        q_head = q
        dout_head = dout
        if LOADS == "pointer":
            q_head += i_b * tl.cast(s_qb, tl.int64) + i_h * tl.cast(s_qh, tl.int64)
            dout_head += i_b * tl.cast(s_gb, tl.int64) + i_h * tl.cast(s_gh, tl.int64)
        o_head = (i_b * hkv * group + i_h) * tl.cast(rows, tl.int64)
        slope = None
        if p_slope is not None:
            slope = tl.load(p_slope + i_h)
        for i_m in tl.range(i_begin, i_end, BM):
            o_m = i_m + tl.arange(0, BM)
            b_q = load_tile(q_head, s_qs, i_b, i_h, i_m, sq, BM, D, DP, EVEN_Q, LOADS)
            b_lse2 = statistic(p_lse2 + o_head, o_m, sq, float("inf"), p_starts_q is not None)
            b_st = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)
            b_dout = load_tile(dout_head, s_gs, i_b, i_h, i_m, sq, BM, DV, DVP, EVEN_Q, LOADS)
            if WANT_DK:
                # issued before the exponentials, which then run under it
                b_dpt = tl.dot(b_v, tl.trans(b_dout), input_precision=PRECISION)
            b_st, b_bend = base_2(
                b_st, o_m[None, :], o_n[:, None], diagonal, scale_log2, scale_cap, cap_log2, slope, SCALED
            )  # fmt: skip
            b_pt = tl.exp2(b_st * unit - b_lse2[None, :])
            if MASK != "full":
                if is_partial(i_m, i_left, i_full, MASK, "queries"):
                    b_pt = tl.where(is_live_transposed(o_m, o_n, diagonal, sq, lower, upper, MASK), b_pt, 0.0)
            if WANT_DV:
                b_dv = tl.dot(b_pt.to(b_dout.dtype), b_dout, b_dv, input_precision=PRECISION)
            if WANT_DK:
                b_delta = statistic(p_delta + o_head, o_m, sq, 0.0, p_starts_q is not None)
                b_dst = b_pt * (b_dpt - b_delta[None, :])
                if cap_log2 is not None:
                    b_dst *= b_bend
                b_dk = tl.dot(b_dst.to(b_q.dtype), b_q, b_dk, input_precision=PRECISION)

    o_row = tl.arange(0, BN)[:, None]
    o_d = tl.arange(0, DP)[None, :]
    m_dk = (o_n < skv)[:, None] & (o_d < D)
    o_dv = tl.arange(0, DVP)[None, :]
    m_dv = (o_n < skv)[:, None] & (o_dv < DV)
    if WANT_DK:
        p_dk += i_b * tl.cast(s_dkb, tl.int64) + i_hkv * tl.cast(s_dkh, tl.int64) + i_n * tl.cast(s_dks, tl.int64)
        tl.store(p_dk + (o_row * s_dks + o_d), (b_dk * scale).to(p_dk.dtype.element_ty), mask=m_dk)
    if WANT_DV:
        p_dv += i_b * tl.cast(s_dvb, tl.int64) + i_hkv * tl.cast(s_dvh, tl.int64) + i_n * tl.cast(s_dvs, tl.int64)
        tl.store(p_dv + (o_row * s_dvs + o_dv), b_dv.to(p_dv.dtype.element_ty), mask=m_dv)


@triton.jit(do_not_specialize=["hq", "sq", "skv", "lower", "upper"])
def dq_kernel(
    q, k, v, dout, p_dq, p_lse2, p_delta, scale, scale_log2,
    s_qb, s_qs, s_qh, s_kb, s_ks, s_kh, s_vb, s_vs, s_vh, s_gb, s_gs, s_gh, s_dqb, s_dqs, s_dqh,
    hq, group, sq, skv, rows, lower, upper, scale_cap, cap_log2, p_slope, p_starts_q, p_starts_k,
    D: tl.constexpr, DP: tl.constexpr, DV: tl.constexpr, DVP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    MASK: tl.constexpr, SCALED: tl.constexpr, EVEN_Q: tl.constexpr, EVEN_KV: tl.constexpr, LOADS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(sq, BM)
    i_block = tl.program_id(0) % n_blocks
    i_bh = tl.program_id(0) // n_blocks
    if MASK == "causal":
        # the last queries see the most keys: start them first, so that short blocks fill the end
        i_block = n_blocks - 1 - i_block
    i_b = i_bh // hq
    i_h = i_bh % hq
    i_hkv = i_h // group
    i_m = i_block * BM
    o_m = i_m + tl.arange(0, BM)
    if p_starts_q is not None:
        # i_b is a sequence: sizes are its own from here on, and its rows lie in the one batch that there is
        o_q, sq = sequence(p_starts_q, i_b)
        o_k, skv = sequence(p_starts_k, i_b)
        if i_m >= sq:
            return
        i_b = 0
        i_bh = i_h
        q += o_q * tl.cast(s_qs, tl.int64)
        k += o_k * tl.cast(s_ks, tl.int64)
        v += o_k * tl.cast(s_vs, tl.int64)
        dout += o_q * tl.cast(s_gs, tl.int64)
        p_lse2 += o_q
        p_delta += o_q
        p_dq += o_q * tl.cast(s_dqs, tl.int64)
    diagonal = skv - sq
    if p_starts_q is not None and MASK == "band":
        lower += diagonal
        upper += diagonal

    if LOADS == "pointer":
        q += i_b * tl.cast(s_qb, tl.int64) + i_h * tl.cast(s_qh, tl.int64)
        k += i_b * tl.cast(s_kb, tl.int64) + i_hkv * tl.cast(s_kh, tl.int64)
        v += i_b * tl.cast(s_vb, tl.int64) + i_hkv * tl.cast(s_vh, tl.int64)
        dout += i_b * tl.cast(s_gb, tl.int64) + i_h * tl.cast(s_gh, tl.int64)
    b_q = load_tile(q, s_qs, i_b, i_h, i_m, sq, BM, D, DP, EVEN_Q, LOADS)
    b_dout = load_tile(dout, s_gs, i_b, i_h, i_m, sq, BM, DV, DVP, EVEN_Q, LOADS)
    o_head = i_bh * tl.cast(rows, tl.int64)
    b_lse2 = statistic(p_lse2 + o_head, o_m, sq, float("inf"), p_starts_q is not None)
    b_delta = statistic(p_delta + o_head, o_m, sq, 0.0, p_starts_q is not None)
    b_dq = tl.zeros([BM, DP], tl.float32)

    slope = None
    if p_slope is not None:
        slope = tl.load(p_slope + i_h)
    unit = scale_log2
    if SCALED:
        unit = 1.0
    i_left, i_full, i_end = keys_of(i_m, diagonal, skv, lower, upper, BM, BN, MASK)
    i_begin = 0
    if MASK == "band" or MASK == "documents":
        i_begin = first_tile(i_m, diagonal, skv, lower, upper, BN, MASK)
    for i_n in tl.range(i_begin, i_end, BN):
        o_n = i_n + tl.arange(0, BN)
        b_k = load_tile(k, s_ks, i_b, i_hkv, i_n, skv, BN, D, DP, EVEN_KV, LOADS)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        b_v = load_tile(v, s_vs, i_b, i_hkv, i_n, skv, BN, DV, DVP, EVEN_KV, LOADS)
        # issued before the exponentials, which then run under it
        b_dp = tl.dot(b_dout, tl.trans(b_v), input_precision=PRECISION)
        b_s, b_bend = base_2(
            b_s, o_m[:, None], o_n[None, :], diagonal, scale_log2, scale_cap, cap_log2, slope, SCALED
        )  # fmt: skip
        b_p = tl.exp2(b_s * unit - b_lse2[:, None])
        if MASK != "full" or not EVEN_KV:
            if is_partial(i_n, i_left, i_full, MASK, "keys"):
                b_p = tl.where(is_live(o_m, o_n, diagonal, skv, lower, upper, MASK), b_p, 0.0)
        b_ds = b_p * (b_dp - b_delta[:, None])
        if cap_log2 is not None:
            b_ds *= b_bend
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision=PRECISION)

    o_d = tl.arange(0, DP)[None, :]
    m_out = (o_m < sq)[:, None] & (o_d < D)
    p_dq += i_b * tl.cast(s_dqb, tl.int64) + i_h * tl.cast(s_dqh, tl.int64) + i_m * tl.cast(s_dqs, tl.int64)
    tl.store(p_dq + (tl.arange(0, BM)[:, None] * s_dqs + o_d), (b_dq * scale).to(p_dq.dtype.element_ty), mask=m_out)


def backward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, dout: torch.Tensor,
    *, mask: Mask, scale: float, dkdv: Config, dq: Config, varlen: Varlen | None = None,
    softcap: float | None = None, alibi: torch.Tensor | None = None, sink: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """The gradients of q, k, v and of the sink, where there is one.

    q ``[b, sq, hq, d]``, k ``[b, skv, hkv, d]``, v ``[b, skv, hkv, dv]``, out and dout ``[b, sq, hq, dv]``, lse
    ``[b, hq, sq]``, sink ``[hq]``.
    """
    b, sq, hq, _ = q.shape
    hkv, dv = v.shape[2:]
    batch = Batch.of(q, k, varlen)
    rows = triton.cdiv(sq, ROW_PADDING) * ROW_PADDING
    lse2, delta = torch.empty((2, b, hq, rows), dtype=torch.float32, device=q.device)
    grad_q, grad_k, grad_v = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    if not (q.numel() and k.numel()):
        return grad_q.zero_(), grad_k.zero_(), grad_v.zero_(), None if sink is None else torch.zeros_like(sink)

    def statistics() -> None:
        block = 64
        statistics_kernel[(rows // block * b * hq,)](
            out, dout, lse, lse2, delta, *out.stride()[:3], *dout.stride()[:3], hq, sq, rows,
            D=dv, DP=padded(dv), BM=block,
        )  # fmt: skip

    def sources(config: Config) -> list[object]:
        tiles = ((q, config.block_m), (k, config.block_n), (v, config.block_n), (dout, config.block_m))
        return [source(t, block, config) for t, block in tiles]

    strides = [stride for t in (q, k, v, dout) for stride in t.stride()[:3]]
    scores = score_arguments(scale, softcap, alibi)

    def keys(want_dk: bool, want_dv: bool) -> None:
        dkdv_kernel[(triton.cdiv(batch.skv, dkdv.block_n) * batch.n * hkv,)](
            *sources(dkdv), grad_k, grad_v, lse2, delta, scale, scale * LOG2E,
            *strides, *grad_k.stride()[:3], *grad_v.stride()[:3], hkv, hq // hkv, batch.sq, batch.skv, rows,
            **batch.arguments(dkdv, q, k, v, mask, "keys"), **scores,
            WANT_DK=want_dk, WANT_DV=want_dv,
        )  # fmt: skip

    def queries() -> None:
        dq_kernel[(triton.cdiv(batch.sq, dq.block_m) * batch.n * hq,)](
            *sources(dq), grad_q, lse2, delta, scale, scale * LOG2E,
            *strides, *grad_q.stride()[:3], hq, hq // hkv, batch.sq, batch.skv, rows,
            **batch.arguments(dq, q, k, v, mask), **scores,
        )  # fmt: skip

    launch(statistics, q)
    for wanted in ((True, False), (False, True)) if dkdv.split else ((True, True),):
        launch(partial(keys, *wanted), q)
    launch(queries, q)
    grad_sink = None
    if sink is not None:
        # its weight in each row, exp(sink - lse), is 0 behind the last row
        grad_sink = -(torch.exp2(sink[:, None] * LOG2E - lse2) * delta).sum((0, 2))
    return grad_q, grad_k, grad_v, grad_sink
