"""P = softmax(Q Kᵀ · scale, over live keys) in one Triton kernel that writes P to memory.

One program owns BM queries of one head and walks twice over the keys in tiles of BN: first for the running maximum and
sum (Milakov and Gimelshein, 2018), then, with Q Kᵀ computed again, to write P. So any number of keys fits, and the
scores themselves never reach memory. Keys behind the diagonal are written as zeros without a product.

Letters: BM queries and BN keys a tile, D the head dim, DP the same rounded up to a power of two.
"""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl

LOG2E = 1.4426950408889634


@triton.jit
def scores(
    b_q, p_k, s_ks, i_n, last, skv, scale_log2,
    D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[BM, BN] in base 2, -inf where row i does not see key j, that is behind ``last[i]``."""
    o_row = tl.arange(0, BN)
    o_d = tl.arange(0, DP)
    p_rows = p_k + i_n * tl.cast(s_ks, tl.int64) + (o_row[:, None] * tl.cast(s_ks, tl.int64) + o_d[None, :])
    b_k = tl.load(p_rows, mask=(i_n + o_row < skv)[:, None] & (o_d < D)[None, :], other=0.0)
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale_log2
    return tl.where((i_n + o_row)[None, :] <= last[:, None], b_s, float("-inf"))


@triton.jit(do_not_specialize=["hq", "sq"])
def probabilities_kernel(
    p_q, p_k, p_p, scale_log2, s_qb, s_qs, s_qh, s_kb, s_ks, s_kh, hq, group, sq, skv,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
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

    # no row of the tile sees a key from i_end on
    i_end = skv
    last = tl.full([BM], skv - 1, tl.int32)
    if CAUSAL:
        i_end = tl.minimum(skv, tl.maximum(i_m + BM + skv - sq, 0))
        last = tl.minimum(last, o_m + (skv - sq))

    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    for i_n in tl.range(0, i_end, BN):
        b_s = scores(b_q, p_k, s_ks, i_n, last, skv, scale_log2, D, DP, BN, PRECISION)
        m_new = tl.maximum(m, tl.max(b_s, 1))
        # a row with no live key yet has m_new = -inf, and -inf - -inf is nan
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        l = l * tl.exp2(m - shift) + tl.sum(tl.exp2(b_s - shift[:, None]), 1)
        m = m_new

    # a row with no live key: all of its P is 0
    shift = tl.where(l == 0.0, 0.0, m)
    inverse = 1.0 / tl.where(l == 0.0, 1.0, l)
    p_p += (i_bh * tl.cast(sq, tl.int64) + i_m) * skv
    o_p = tl.arange(0, BM)[:, None] * tl.cast(skv, tl.int64)
    for i_n in tl.range(0, i_end, BN):
        b_s = scores(b_q, p_k, s_ks, i_n, last, skv, scale_log2, D, DP, BN, PRECISION)
        b_p = tl.exp2(b_s - shift[:, None]) * inverse[:, None]
        o_n = i_n + tl.arange(0, BN)
        tl.store(
            p_p + (o_p + o_n[None, :]), b_p.to(p_p.dtype.element_ty), mask=(o_m < sq)[:, None] & (o_n < skv)[None, :]
        )
    b_zero = tl.zeros([BM, BN], p_p.dtype.element_ty)
    for i_n in tl.range(tl.cdiv(i_end, BN) * BN, skv, BN):
        o_n = i_n + tl.arange(0, BN)
        tl.store(p_p + (o_p + o_n[None, :]), b_zero, mask=(o_m < sq)[:, None] & (o_n < skv)[None, :])


def tiles(dtype: torch.dtype, d: int) -> tuple[int, int, int]:
    """Queries and keys a tile, and warps: smaller where a row of Q takes many registers."""
    if dtype == torch.float32:
        return (64, 32, 4) if d <= 64 else (32, 16, 4) if d <= 128 else (16, 16, 4)
    return (64, 32, 4) if d > 128 else (128, 64, 8)


def probabilities(q: torch.Tensor, k: torch.Tensor, causal: bool, scale: float) -> torch.Tensor:
    """q ``[b, sq, hq, d]``, k ``[b, skv, hkv, d]``, last dims contiguous, to P ``[b, hq, sq, skv]`` in their dtype."""
    b, sq, hq, d = q.shape
    skv, hkv = k.shape[1:3]
    p = torch.empty((b, hq, sq, skv), dtype=q.dtype, device=q.device)
    block_m, block_n, warps = tiles(q.dtype, d)
    with torch.cuda.device(q.device) if q.is_cuda else contextlib.nullcontext():
        probabilities_kernel[(triton.cdiv(sq, block_m) * b * hq,)](
            q, k, p, scale * LOG2E, *q.stride()[:3], *k.stride()[:3], hq, hq // hkv, sq, skv,
            D=d, DP=max(16, triton.next_power_of_2(d)), BM=block_m, BN=block_n, CAUSAL=causal,
            PRECISION="tf32x3" if q.dtype == torch.float32 else "ieee", num_warps=warps, num_stages=2,
        )  # fmt: skip
    return p
