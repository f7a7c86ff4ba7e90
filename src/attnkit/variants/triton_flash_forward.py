"""FlashAttention-2 forward in Triton: the kernel and its launcher.

    S = Q Kᵀ · scale        P = exp(S - rowmax S)        out = P V / rowsum P        lse = log(rowsum P) + rowmax S

One program owns BM queries of one head and walks over the keys in tiles of BN, keeping the running maximum ``m``, the
running sum ``l`` and the unnormalised output in registers, so scores never reach memory (Dao, FlashAttention-2, 2023;
the online softmax is Milakov and Gimelshein's, 2018).

Letters: BM queries and BN keys a tile, D the head dim, DP the same rounded up to a power of two. Scores live in base 2:
``scale_log2 = scale · log2 e`` is folded into the multiply-add in front of exp2.

Keys that every row of the tile sees are walked first and without a mask; the diagonal and the ragged tail are masked.
Tiles arrive in one of two ways (``LOADS``):
    pointer   ordinary (asynchronous) loads: any strides, any D
    tma       a 4-D descriptor made by the host: the copy engine computes addresses, and zeroes what lies outside
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from attnkit.variants.triton_flash_tiles import Config, constants, launch, source

LOG2E = 1.4426950408889634
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_rows(p_base, stride, i_row, n_rows, ROWS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, EVEN: tl.constexpr):
    """Rows ``i_row ..`` of one head as [ROWS, DP], zero outside; EVEN promises that all rows are inside."""
    o_row = tl.arange(0, ROWS)
    o_d = tl.arange(0, DP)
    p_rows = p_base + i_row * tl.cast(stride, tl.int64) + (o_row[:, None] * stride + o_d[None, :])
    m_row = (i_row + o_row < n_rows)[:, None]
    m_d = (o_d < D)[None, :]
    if EVEN:
        if D == DP:
            b_rows = tl.load(p_rows)
        else:
            b_rows = tl.load(p_rows, mask=m_d, other=0.0)
    else:
        if D == DP:
            b_rows = tl.load(p_rows, mask=m_row, other=0.0)
        else:
            b_rows = tl.load(p_rows, mask=m_row & m_d, other=0.0)
    return b_rows


@triton.jit
def load_tile(
    source, stride, i_b, i_h, i_row, n_rows,
    ROWS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, EVEN: tl.constexpr, LOADS: tl.constexpr,
):  # fmt: skip
    """A tile of one head: ``source`` is the head's pointer, or the descriptor of the whole tensor."""
    if LOADS == "pointer":
        b_rows = load_rows(source, stride, i_row, n_rows, ROWS, D, DP, EVEN)
    else:
        b_rows = source.load([i_b, i_h, i_row, 0]).reshape(ROWS, DP)
    return b_rows


@triton.jit
def is_live(o_m, o_n, diagonal, skv, CAUSAL: tl.constexpr):
    """[BM, BN]: whether query i sees key j. Causal is aligned at the bottom right: j <= i + skv - sq."""
    last = tl.full(o_m.shape, skv - 1, tl.int32)
    if CAUSAL:
        last = tl.minimum(last, o_m + diagonal)
    return o_n[None, :] <= last[:, None]


@triton.jit
def keys_of(i_m, diagonal, skv, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr):
    """``(i_full, i_end)``: every row of the tile sees the keys before i_full, no row those from i_end on."""
    i_full = skv // BN * BN
    i_end = skv
    if CAUSAL:
        i_full = tl.minimum(i_full, tl.maximum(i_m + diagonal + 1, 0) // BN * BN)
        i_end = tl.minimum(i_end, i_m + BM + diagonal)
    return i_full, i_end


@triton.jit(do_not_specialize=["hq", "sq", "skv"])
def forward_kernel(
    q, k, v, p_out, p_lse, scale_log2,
    s_qb, s_qs, s_qh, s_kb, s_ks, s_kh, s_vb, s_vs, s_vh, s_ob, s_os, s_oh,
    hq, group, sq, skv,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    CAUSAL: tl.constexpr, EVEN_Q: tl.constexpr, EVEN_KV: tl.constexpr, LOADS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(sq, BM)
    i_block = tl.program_id(0) % n_blocks
    i_bh = tl.program_id(0) // n_blocks
    if CAUSAL:
        # the last queries see the most keys: start them first, so that short blocks fill the end
        i_block = n_blocks - 1 - i_block
    i_b = i_bh // hq
    i_h = i_bh % hq
    i_hkv = i_h // group
    i_m = i_block * BM
    o_m = i_m + tl.arange(0, BM)
    diagonal = skv - sq

    if LOADS == "pointer":
        q += i_b * tl.cast(s_qb, tl.int64) + i_h * tl.cast(s_qh, tl.int64)
        k += i_b * tl.cast(s_kb, tl.int64) + i_hkv * tl.cast(s_kh, tl.int64)
        v += i_b * tl.cast(s_vb, tl.int64) + i_hkv * tl.cast(s_vh, tl.int64)
    b_q = load_tile(q, s_qs, i_b, i_h, i_m, sq, BM, D, DP, EVEN_Q, LOADS)

    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    b_out = tl.zeros([BM, DP], tl.float32)
    i_full, i_end = keys_of(i_m, diagonal, skv, BM, BN, CAUSAL)
    for i_n in tl.range(0, i_end, BN):
        o_n = i_n + tl.arange(0, BN)
        b_k = load_tile(k, s_ks, i_b, i_hkv, i_n, skv, BN, D, DP, EVEN_KV, LOADS)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        if CAUSAL or not EVEN_KV:
            if i_n >= i_full:
                b_s = tl.where(is_live(o_m, o_n, diagonal, skv, CAUSAL), b_s, float("-inf"))
        m_new = tl.maximum(m, tl.max(b_s, 1) * scale_log2)
        if CAUSAL:
            # a row with no live key yet has m_new = -inf, and -inf - -inf is nan
            shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        else:
            shift = m_new
        b_p = tl.exp2(b_s * scale_log2 - shift[:, None])
        alpha = tl.exp2(m - shift)
        l = l * alpha + tl.sum(b_p, 1)
        b_out = b_out * alpha[:, None]
        b_v = load_tile(v, s_vs, i_b, i_hkv, i_n, skv, BN, D, DP, EVEN_KV, LOADS)
        b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out, input_precision=PRECISION)
        m = m_new

    # a row with no live key: out 0, lse -inf
    l_safe = tl.where(l == 0.0, 1.0, l)
    b_out = (b_out / l_safe[:, None]).to(p_out.dtype.element_ty)
    b_lse = (m + tl.log2(l_safe)) * LN2
    o_d = tl.arange(0, DP)
    m_out = (o_m < sq)[:, None] & (o_d < D)[None, :]
    p_out += i_b * tl.cast(s_ob, tl.int64) + i_h * tl.cast(s_oh, tl.int64) + i_m * tl.cast(s_os, tl.int64)
    tl.store(p_out + (tl.arange(0, BM)[:, None] * s_os + o_d[None, :]), b_out, mask=m_out)
    tl.store(p_lse + i_bh * tl.cast(sq, tl.int64) + o_m, b_lse, mask=o_m < sq)


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, scale: float, config: Config
) -> tuple[torch.Tensor, torch.Tensor]:
    """q ``[b, sq, hq, d]``, k, v ``[b, skv, hkv, d]`` to out ``[b, sq, hq, d]`` and lse ``[b, hq, sq]`` in float32."""
    b, sq, hq, d = q.shape
    skv, hkv = k.shape[1:3]
    out = torch.empty((b, sq, hq, d), dtype=q.dtype, device=q.device)
    lse = torch.empty((b, hq, sq), dtype=torch.float32, device=q.device)
    programs = triton.cdiv(sq, config.block_m) * b * hq
    launch(
        lambda: forward_kernel[(programs,)](
            source(q, config.block_m, config), source(k, config.block_n, config), source(v, config.block_n, config),
            out, lse, scale * LOG2E,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], hq, hq // hkv, sq, skv,
            **constants(config, q, k, causal),
        ),
        q.device,
    )  # fmt: skip
    return out, lse
