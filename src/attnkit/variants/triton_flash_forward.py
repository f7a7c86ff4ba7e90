"""FlashAttention-2 forward in Triton: the kernel and its launcher.

    S = Q Kᵀ · scale        P = exp(S - rowmax S)        out = P V / rowsum P        lse = log(rowsum P) + rowmax S

What masks and modifiers make of S is in triton_scores.py; a sink is where maximum and sum of a row begin.

One program owns BM queries of one head and walks over the keys in tiles of BN, keeping the running maximum ``m``, the
running sum ``l`` and the unnormalised output in registers, so scores never reach memory (Dao, FlashAttention-2, 2023;
the online softmax is Milakov and Gimelshein's, 2018).

Letters: BM queries and BN keys a tile, D and DV the head dims, DP and DVP the same rounded up to a power of two. Scores
live in base 2: ``scale_log2 = scale · log2 e`` is folded into the multiply-add in front of exp2.

Tiles of keys that every row sees need no mask; those on an edge of the mask and the ragged tail are masked, and those
that no row sees are not visited.
Packed sequences have their own lengths and first rows; see triton_flash_batch.py.
Tiles arrive in one of two ways (``LOADS``):
    pointer   ordinary (asynchronous) loads: any strides, any D
    tma       a 4-D descriptor made by the host: the copy engine computes addresses, and zeroes what lies outside

OFFSET is what is added to the exponents of P, and so to those of its sum: e4m3, to which P is rounded where V is fp8,
has few numbers below 1 and many above. 448 is its largest, so 2^8 fits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from attnkit.mask import Mask
from attnkit.problem import dtype_of_out
from attnkit.triton_scores import (
    LOG2E,
    base_2,
    first_tile,
    is_live,
    is_partial,
    keys_of,
    score_arguments,
)
from attnkit.variants.triton_flash_batch import Batch, sequence
from attnkit.variants.triton_flash_tiles import Config, launch, offset, source
from attnkit.varlen import Varlen

BASE_2 = tl.constexpr(LOG2E)
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


@triton.jit(do_not_specialize=["hq", "sq", "skv", "lower", "upper", "total"])
def forward_kernel(
    q, k, v, p_out, p_lse, scale_log2,
    s_qb, s_qs, s_qh, s_kb, s_ks, s_kh, s_vb, s_vs, s_vh, s_ob, s_os, s_oh,
    hq, group, sq, skv, lower, upper, scale_cap, cap_log2, p_slope, p_sink, p_starts_q, p_starts_k, total,
    D: tl.constexpr, DP: tl.constexpr, DV: tl.constexpr, DVP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    MASK: tl.constexpr, SCALED: tl.constexpr, EVEN_Q: tl.constexpr, EVEN_KV: tl.constexpr, LOADS: tl.constexpr,
    PRECISION: tl.constexpr, OFFSET: tl.constexpr,
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
        q += o_q * tl.cast(s_qs, tl.int64)
        k += o_k * tl.cast(s_ks, tl.int64)
        v += o_k * tl.cast(s_vs, tl.int64)
        p_out += o_q * tl.cast(s_os, tl.int64)
        p_lse += i_h * tl.cast(total, tl.int64) + o_q
    diagonal = skv - sq
    if p_starts_q is not None and MASK == "band":
        lower += diagonal
        upper += diagonal

    if LOADS == "pointer":
        q += i_b * tl.cast(s_qb, tl.int64) + i_h * tl.cast(s_qh, tl.int64)
        k += i_b * tl.cast(s_kb, tl.int64) + i_hkv * tl.cast(s_kh, tl.int64)
        v += i_b * tl.cast(s_vb, tl.int64) + i_hkv * tl.cast(s_vh, tl.int64)
    b_q = load_tile(q, s_qs, i_b, i_h, i_m, sq, BM, D, DP, EVEN_Q, LOADS)

    slope = None
    if p_slope is not None:
        slope = tl.load(p_slope + i_h)
    unit = scale_log2
    if SCALED:
        unit = 1.0
    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    if p_sink is not None:
        # as if a key with this score and no value had been seen
        m = tl.zeros([BM], tl.float32) + tl.load(p_sink + i_h) * BASE_2
        l += 2.0**OFFSET
    b_out = tl.zeros([BM, DVP], tl.float32)
    i_left, i_full, i_end = keys_of(i_m, diagonal, skv, lower, upper, BM, BN, MASK)
    i_begin = 0
    if MASK == "band" or MASK == "documents":
        i_begin = first_tile(i_m, diagonal, skv, lower, upper, BN, MASK)
    for i_n in tl.range(i_begin, i_end, BN):
        o_n = i_n + tl.arange(0, BN)
        b_k = load_tile(k, s_ks, i_b, i_hkv, i_n, skv, BN, D, DP, EVEN_KV, LOADS)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        b_s, _ = base_2(
            b_s, o_m[:, None], o_n[None, :], diagonal, scale_log2, scale_cap, cap_log2, slope, SCALED
        )  # fmt: skip
        if MASK != "full" or not EVEN_KV:
            if is_partial(i_n, i_left, i_full, MASK, "keys"):
                b_s = tl.where(is_live(o_m, o_n, diagonal, skv, lower, upper, MASK), b_s, float("-inf"))
        m_new = tl.maximum(m, tl.max(b_s, 1) * unit)
        if MASK != "full":
            # a row with no live key yet has m_new = -inf, and -inf - -inf is nan
            shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        else:
            shift = m_new
        less = shift
        if OFFSET != 0:
            less = shift - OFFSET
        b_p = tl.exp2(b_s * unit - less[:, None])
        alpha = tl.exp2(m - shift)
        l = l * alpha + tl.sum(b_p, 1)
        b_out = b_out * alpha[:, None]
        b_v = load_tile(v, s_vs, i_b, i_hkv, i_n, skv, BN, DV, DVP, EVEN_KV, LOADS)
        b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out, input_precision=PRECISION)
        m = m_new

    # a row with no live key: out 0, lse -inf
    l_safe = tl.where(l == 0.0, 1.0, l)
    b_out = (b_out / l_safe[:, None]).to(p_out.dtype.element_ty)
    if OFFSET != 0:
        m -= OFFSET
    b_lse = (m + tl.log2(l_safe)) * LN2
    o_d = tl.arange(0, DVP)
    m_out = (o_m < sq)[:, None] & (o_d < DV)[None, :]
    p_out += i_b * tl.cast(s_ob, tl.int64) + i_h * tl.cast(s_oh, tl.int64) + i_m * tl.cast(s_os, tl.int64)
    tl.store(p_out + (tl.arange(0, BM)[:, None] * s_os + o_d[None, :]), b_out, mask=m_out)
    if p_starts_q is None:
        p_lse += i_bh * tl.cast(sq, tl.int64)
    tl.store(p_lse + o_m, b_lse, mask=o_m < sq)


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *,
    mask: Mask, scale: float, config: Config, varlen: Varlen | None = None,
    softcap: float | None = None, alibi: torch.Tensor | None = None, sink: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """q ``[b, sq, hq, d]``, k, v ``[b, skv, hkv, ·]`` to out ``[b, sq, hq, dv]`` and lse ``[b, hq, sq]`` in float32.

    fp8 gives a bfloat16 out.
    """
    b, sq, hq, _ = q.shape
    hkv, dv = v.shape[2:]
    out = torch.empty((b, sq, hq, dv), dtype=dtype_of_out(q.dtype), device=q.device)
    lse = torch.empty((b, hq, sq), dtype=torch.float32, device=q.device)
    if not (q.numel() and k.numel()):
        return out.zero_(), lse.fill_(float("-inf")) if sink is None else lse.copy_(sink[:, None])
    batch = Batch.of(q, k, varlen)
    programs = triton.cdiv(batch.sq, config.block_m) * batch.n * hq
    launch(
        lambda: forward_kernel[(programs,)](
            source(q, config.block_m, config), source(k, config.block_n, config), source(v, config.block_n, config),
            out, lse, scale * LOG2E,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], hq, hq // hkv, batch.sq, batch.skv,
            p_sink=sink, OFFSET=offset(v.dtype), total=None if varlen is None else sq,
            **batch.arguments(config, q, k, v, mask), **score_arguments(scale, softcap, alibi),
        ),
        q,
    )  # fmt: skip
    return out, lse
