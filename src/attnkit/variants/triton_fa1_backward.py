"""FlashAttention-1's backward loop: a tile of keys outside, tiles of queries inside, dQ added to in memory.

    P  = exp(S - lse)      dP = dO Vᵀ      delta = rowsum(dO · O)      dS = P · (dP - delta)
    dV = Pᵀ dO             dK = dSᵀ Q · scale             dQ = dS K · scale

A capped score bends dS by its derivative; a sink has dsink = -Σ exp(sink - lse) · delta, over rows and batches.

One program takes a tile of keys and values of one key head and walks over the queries of every head of its group (Dao
et al., 2022, algorithm 4): dK and dV of the tile stay on chip, and what the tile adds to dQ is added in memory. So S
and dP are computed once, in five products and not seven, and every row of dQ has one writer: no atomics, and the same
input gives the same bits. The price is dQ, read and written in float32 for each tile of keys, and that key heads are
all the parallelism there is.

The forward kept m and l. Of these and of O the log-sum-exp and delta are made before the first tile, once, as in
FlashAttention-2. A row that has no weight on anything has ``lse = +inf`` there, so that its sink has none either.
Scores are transposed: dV and dK take P and dS as the products leave them. Letters are those of the forward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from attnkit.mask import Mask
from attnkit.triton_device import current
from attnkit.triton_scores import LOG2E, base_2, is_live_transposed, mask_arguments, queries_of, score_arguments
from attnkit.variants.triton_fa1_kernel import padded, rows_of
from attnkit.varlen import Varlen


@triton.jit(do_not_specialize=["hkv", "sq", "skv", "lower", "upper"])
def backward_kernel(
    p_q, p_k, p_v, p_out, p_dout, p_dq, p_dk, p_dv, p_m, p_l, p_lse2, p_delta, scale, scale_log2,
    s_qb, s_qs, s_qh, s_kb, s_ks, s_kh, s_vb, s_vs, s_vh, s_ob, s_os, s_oh, s_gb, s_gs, s_gh,
    s_dqb, s_dqs, s_dqh, s_dkb, s_dks, s_dkh, s_dvb, s_dvs, s_dvh, hkv, group, sq, skv,
    lower, upper, scale_cap, cap_log2, p_slope, p_starts_q, p_starts_k,
    D: tl.constexpr, DP: tl.constexpr, DV: tl.constexpr, DVP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i_b = tl.program_id(0) // hkv
    i_hkv = tl.program_id(0) % hkv
    # of a head, in all sequences that are packed
    rows = tl.cast(sq, tl.int64)
    if p_starts_q is not None:
        # i_b is a sequence: sizes are its own from here on, and its rows lie in the one batch that there is
        o_q = tl.load(p_starts_q + i_b)
        o_k = tl.load(p_starts_k + i_b)
        sq = tl.load(p_starts_q + i_b + 1) - o_q
        skv = tl.load(p_starts_k + i_b + 1) - o_k
        i_b = 0
        p_q += o_q * tl.cast(s_qs, tl.int64)
        p_k += o_k * tl.cast(s_ks, tl.int64)
        p_v += o_k * tl.cast(s_vs, tl.int64)
        p_out += o_q * tl.cast(s_os, tl.int64)
        p_dout += o_q * tl.cast(s_gs, tl.int64)
        p_dq += o_q * tl.cast(s_dqs, tl.int64)
        p_dk += o_k * tl.cast(s_dks, tl.int64)
        p_dv += o_k * tl.cast(s_dvs, tl.int64)
        p_m += o_q
        p_l += o_q
        p_lse2 += o_q
        p_delta += o_q
    diagonal = skv - sq
    if p_starts_q is not None and MASK == "band":
        lower += diagonal
        upper += diagonal
    p_q += i_b * tl.cast(s_qb, tl.int64)
    p_out += i_b * tl.cast(s_ob, tl.int64)
    p_dout += i_b * tl.cast(s_gb, tl.int64)
    p_dq += i_b * tl.cast(s_dqb, tl.int64)
    p_k += i_b * tl.cast(s_kb, tl.int64) + i_hkv * tl.cast(s_kh, tl.int64)
    p_v += i_b * tl.cast(s_vb, tl.int64) + i_hkv * tl.cast(s_vh, tl.int64)
    p_dk += i_b * tl.cast(s_dkb, tl.int64) + i_hkv * tl.cast(s_dkh, tl.int64)
    p_dv += i_b * tl.cast(s_dvb, tl.int64) + i_hkv * tl.cast(s_dvh, tl.int64)
    o_group = (i_b * hkv + i_hkv) * group * rows
    o_d = tl.arange(0, DP)
    o_dv = tl.arange(0, DVP)

    for i_g in range(group):
        i_h = i_hkv * group + i_g
        o_head = o_group + i_g * rows
        p_out_head = p_out + i_h * tl.cast(s_oh, tl.int64)
        p_dout_head = p_dout + i_h * tl.cast(s_gh, tl.int64)
        for i_m in tl.range(0, sq, BM):
            o_m = i_m + tl.arange(0, BM)
            b_out = rows_of(p_out_head, s_os, i_m, sq, BM, DV, DVP).to(tl.float32)
            b_dout = rows_of(p_dout_head, s_gs, i_m, sq, BM, DV, DVP).to(tl.float32)
            m = tl.load(p_m + o_head + o_m, mask=o_m < sq, other=0.0)
            l = tl.load(p_l + o_head + o_m, mask=o_m < sq, other=1.0)
            b_lse2 = m + tl.log2(l)
            tl.store(p_lse2 + o_head + o_m, tl.where(b_lse2 == float("-inf"), float("inf"), b_lse2), mask=o_m < sq)
            tl.store(p_delta + o_head + o_m, tl.sum(b_out * b_dout, 1), mask=o_m < sq)
    # what one thread wrote another may read, here and behind each tile of keys
    tl.debug_barrier()

    for i_n in tl.range(0, skv, BN):
        o_n = i_n + tl.arange(0, BN)
        b_k = rows_of(p_k, s_ks, i_n, skv, BN, D, DP)
        b_v = rows_of(p_v, s_vs, i_n, skv, BN, DV, DVP)
        b_dk = tl.zeros([BN, DP], tl.float32)
        b_dv = tl.zeros([BN, DVP], tl.float32)
        # queries before i_begin and from i_end on see none of these keys
        i_begin, _left, _full, i_end = queries_of(i_n, diagonal, sq, lower, upper, BM, BN, MASK)
        for i_g in range(group):
            i_h = i_hkv * group + i_g
            o_head = o_group + i_g * rows
            p_q_head = p_q + i_h * tl.cast(s_qh, tl.int64)
            p_dout_head = p_dout + i_h * tl.cast(s_gh, tl.int64)
            p_dq_head = p_dq + i_h * tl.cast(s_dqh, tl.int64)
            slope = None
            if p_slope is not None:
                slope = tl.load(p_slope + i_h)
            for i_m in tl.range(i_begin, i_end, BM):
                o_m = i_m + tl.arange(0, BM)
                b_q = rows_of(p_q_head, s_qs, i_m, sq, BM, D, DP)
                b_dout = rows_of(p_dout_head, s_gs, i_m, sq, BM, DV, DVP)
                b_lse2 = tl.load(p_lse2 + o_head + o_m, mask=o_m < sq, other=float("inf"))
                b_delta = tl.load(p_delta + o_head + o_m, mask=o_m < sq, other=0.0)
                b_st = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)
                b_dpt = tl.dot(b_v, tl.trans(b_dout), input_precision=PRECISION)
                b_st, b_bend = base_2(
                    b_st, o_m[None, :], o_n[:, None], diagonal, scale_log2, scale_cap, cap_log2, slope, True
                )  # fmt: skip
                # keys behind the last one are 0, but 0 times an infinite weight is nan
                live = (o_n < skv)[:, None]
                if MASK != "full":
                    live = live & is_live_transposed(o_m, o_n, diagonal, sq, lower, upper, MASK)
                b_pt = tl.where(live, tl.exp2(b_st - b_lse2[None, :]), 0.0)
                b_dv = tl.dot(b_pt.to(b_dout.dtype), b_dout, b_dv, input_precision=PRECISION)
                b_dst = b_pt * (b_dpt - b_delta[None, :])
                if cap_log2 is not None:
                    b_dst *= b_bend
                b_dst = b_dst.to(b_q.dtype)
                b_dk = tl.dot(b_dst, b_q, b_dk, input_precision=PRECISION)
                b_dq = rows_of(p_dq_head, s_dqs, i_m, sq, BM, D, DP)
                b_dq = tl.dot(tl.trans(b_dst), b_k, b_dq, input_precision=PRECISION)
                o_dq = o_m[:, None] * tl.cast(s_dqs, tl.int64) + o_d[None, :]
                tl.store(p_dq_head + o_dq, b_dq, mask=(o_m < sq)[:, None] & (o_d < D)[None, :])
        tl.debug_barrier()
        m_n = (o_n < skv)[:, None]
        o_dk = o_n[:, None] * tl.cast(s_dks, tl.int64) + o_d[None, :]
        tl.store(p_dk + o_dk, (b_dk * scale).to(p_dk.dtype.element_ty), mask=m_n & (o_d < D)[None, :])
        o_dvs = o_n[:, None] * tl.cast(s_dvs, tl.int64) + o_dv[None, :]
        tl.store(p_dv + o_dvs, b_dv.to(p_dv.dtype.element_ty), mask=m_n & (o_dv < DV)[None, :])


def tiles(dtype: torch.dtype, d: int) -> tuple[int, int, int]:
    """Queries and keys a tile, and warps: K, V, dK and dV of a tile of keys are on chip all the time.

    With 128 columns of 16 bits Ampere spills some hundred bytes; half the keys would not, but read dQ twice as often.
    """
    if dtype == torch.float32:
        return 32 if d <= 128 else 16, 32 if d <= 64 else 16, 8
    return 32, 64 if d <= 128 else 32, 8


def width(size: int) -> int:
    """Columns of a block. Two warp groups have half of them each on Hopper, where they share the 64 keys of a tile.

    Halves have at least 16: of 8 Triton 3.6 reads past the end, in float32 at least (see triton_flash_tiles.py).
    """
    return max(32, padded(size))


def backward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, m: torch.Tensor, l: torch.Tensor,
    dout: torch.Tensor, *, mask: Mask, scale: float, softcap: float | None = None, alibi: torch.Tensor | None = None,
    sink: torch.Tensor | None = None, varlen: Varlen | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """The gradients of q, k, v and of the sink, where there is one.

    q ``[b, sq, hq, d]``, k ``[b, skv, hkv, d]``, v ``[b, skv, hkv, dv]``, out and dout ``[b, sq, hq, dv]``, last dims
    contiguous; m and l ``[b, hq, sq]``, as the forward left them, sink ``[hq]``.
    """
    b, sq, hq, d = q.shape
    skv, hkv, dv = v.shape[1:]
    dq = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    grad_k, grad_v = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (k, v))
    lse2, delta = torch.empty((2, b, hq, sq), dtype=torch.float32, device=q.device)
    n, starts = b, None
    if varlen is None:
        arguments = mask_arguments(mask, sq, skv, q.device, of="keys")
    else:
        # a band counts from each sequence's own diagonal
        arguments = mask_arguments(mask, sq + skv, sq + skv, q.device, of="keys")
        n, starts = len(varlen.queries), varlen.starts(q.device)
    block_m, block_n, warps = tiles(q.dtype, max(d, dv))
    arguments |= score_arguments(scale, softcap, alibi)
    del arguments["SCALED"]  # here scores are, always
    strides = [stride for t in (q, k, v, out, dout, dq, grad_k, grad_v) for stride in t.stride()[:3]]
    with current(q.device, q.dtype):
        backward_kernel[(n * hkv,)](
            q, k, v, out, dout, dq, grad_k, grad_v, m, l, lse2, delta, scale, scale * LOG2E,
            *strides, hkv, hq // hkv, sq, skv,
            p_starts_q=None if starts is None else starts.queries, p_starts_k=None if starts is None else starts.keys,
            **arguments, D=d, DP=width(d), DV=dv, DVP=width(dv), BM=block_m, BN=block_n,
            PRECISION="tf32x3" if q.dtype == torch.float32 else "ieee", num_warps=warps, num_stages=1,
        )  # fmt: skip
    grad_sink = None
    if sink is not None:
        grad_sink = -(torch.exp2(sink[:, None] * LOG2E - lse2) * delta).sum((0, 2))
    return dq.mul_(scale).to(q.dtype), grad_k, grad_v, grad_sink
