"""The kernel of triton_product, and how programs share the tiles of a product.

Letters: BM rows of x, BN rows of weight, BK elements of either a tile. LOADS says whether threads load tiles or the
copy engine, which puts zeros where there is nothing. EVEN promises threads that BK divides k. LEFT makes the weight
the left operand, outᵀ = weight · xᵀ: a Hopper's tensor cores take that one from registers, where int8 has just become
16 bits, while as the right one it would go through shared memory a second time.
"""

from __future__ import annotations

import triton
import triton.language as tl

GROUP = tl.constexpr(8)
"""Tiles of x that go together, so that a tile of weight is read by its programs at about the same time."""


@triton.jit
def tile_of(i, m, n, BM: tl.constexpr, BN: tl.constexpr):
    """The tile of x and the tile of weight of program i: all tiles of a group of x to one of weight, then the next."""
    rows, columns = tl.cdiv(m, BM), tl.cdiv(n, BN)
    first = i // (GROUP * columns) * GROUP
    many = tl.minimum(rows - first, GROUP)
    i_group = i % (GROUP * columns)
    return first + i_group % many, i_group // many


@triton.jit(do_not_specialize=["m"])
def product_kernel(
    p_x, p_weight, p_scale, p_bias, p_out, m, n, k, s_x, s_weight,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    LOADS: tl.constexpr, EVEN: tl.constexpr, LEFT: tl.constexpr,
):  # fmt: skip
    i_m, i_n = tile_of(tl.program_id(0), m, n, BM, BN)
    o_m = i_m * BM + tl.arange(0, BM)
    o_n = i_n * BN + tl.arange(0, BN)
    if LOADS == "pointer":
        o_k = tl.arange(0, BK)
        # a row that is not there reads the last one, and is not written
        p_x += tl.minimum(o_m, m - 1)[:, None] * tl.cast(s_x, tl.int64) + o_k[None, :]
        p_weight += tl.minimum(o_n, n - 1)[:, None] * tl.cast(s_weight, tl.int64) + o_k[None, :]
    b_out = tl.zeros([BN, BM] if LEFT else [BM, BN], tl.float32)
    for i_k in tl.range(0, k, BK):
        if LOADS == "tma":
            b_x = p_x.load([i_m * BM, i_k])
            b_weight = p_weight.load([i_n * BN, i_k])
        elif EVEN:
            b_x = tl.load(p_x + i_k)
            b_weight = tl.load(p_weight + i_k)
        else:
            m_k = (i_k + o_k < k)[None, :]
            b_x = tl.load(p_x + i_k, mask=m_k, other=0.0)
            b_weight = tl.load(p_weight + i_k, mask=m_k, other=0)
        if LEFT:
            b_out = tl.dot(b_weight.to(b_x.dtype), tl.trans(b_x), b_out)
        else:
            b_out = tl.dot(b_x, tl.trans(b_weight.to(b_x.dtype)), b_out)
    if LEFT:
        b_out = tl.trans(b_out)
    if p_scale is not None:
        b_out *= tl.load(p_scale + o_n, mask=o_n < n, other=0.0)[None, :]
    if p_bias is not None:
        b_out += tl.load(p_bias + o_n, mask=o_n < n, other=0.0).to(tl.float32)[None, :]
    p_out += o_m[:, None] * tl.cast(n, tl.int64) + o_n[None, :]
    tl.store(p_out, b_out.to(p_out.dtype.element_ty), mask=(o_m < m)[:, None] & (o_n < n)[None, :])
