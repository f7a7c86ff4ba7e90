"""The kernels of triton_dynamic: one rounds the rows of x to int8, one multiplies integers.

Letters as in triton_product_kernel. DP is k, padded to a power of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnkit.products.triton_product_kernel import tile_of

LARGEST = tl.constexpr(127)
LEAST = tl.constexpr(2.0**-126)
"""The smallest normal float32."""
NEAREST = tl.constexpr(1.5 * 2.0**23)
"""A float32 plus this has no digits behind the point: what was there is rounded to nearest, ties to even."""
MAGNITUDE = tl.constexpr(0x7FFFFFFF)


@triton.jit
def rows_kernel(p_x, p_rounded, p_unit, k, s_x, s_rounded, DP: tl.constexpr):
    i_m = tl.program_id(0).to(tl.int64)
    o_k = tl.arange(0, DP)
    b_x = tl.load(p_x + i_m * s_x + o_k, mask=o_k < k, other=0.0).to(tl.float32)
    # magnitudes are in the order of their bits, in which what is not a number is the largest of all and is not lost
    largest = tl.max(b_x.to(tl.int32, bitcast=True) & MAGNITUDE, 0).to(tl.float32, bitcast=True)
    unit = tl.where(largest > LARGEST * LEAST, largest / LARGEST, LEAST)
    finite = largest < float("inf")
    # out of a row with inf or nan comes nan: zeros times a unit that is nan
    tl.store(p_unit + i_m, tl.where(finite, unit, float("nan")))
    b_steps = tl.where(finite, b_x * (1.0 / unit), 0.0)
    b_steps = tl.minimum(tl.maximum(b_steps + NEAREST - NEAREST, -LARGEST), LARGEST)
    tl.store(p_rounded + i_m * s_rounded + o_k, b_steps.to(tl.int8), mask=o_k < k)


@triton.jit(do_not_specialize=["m"])
def integers_kernel(
    p_x, p_unit, p_weight, p_scale, p_bias, p_out, m, n, k, s_x, s_weight,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, LOADS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    i_m, i_n = tile_of(tl.program_id(0), m, n, BM, BN)
    o_m = i_m * BM + tl.arange(0, BM)
    o_n = i_n * BN + tl.arange(0, BN)
    if LOADS == "pointer":
        o_k = tl.arange(0, BK)
        # a row that is not there reads the last one, and is not written
        p_x += tl.minimum(o_m, m - 1)[:, None] * tl.cast(s_x, tl.int64) + o_k[None, :]
        p_weight += tl.minimum(o_n, n - 1)[:, None] * tl.cast(s_weight, tl.int64) + o_k[None, :]
    b_sum = tl.zeros([BM, BN], tl.int32)
    for i_k in tl.range(0, k, BK):
        if LOADS == "tma":
            b_x = p_x.load([i_m * BM, i_k])
            b_weight = p_weight.load([i_n * BN, i_k])
        elif EVEN:
            b_x = tl.load(p_x + i_k)
            b_weight = tl.load(p_weight + i_k)
        else:
            m_k = (i_k + o_k < k)[None, :]
            b_x = tl.load(p_x + i_k, mask=m_k, other=0)
            b_weight = tl.load(p_weight + i_k, mask=m_k, other=0)
        b_sum = tl.dot(b_x, tl.trans(b_weight), b_sum, out_dtype=tl.int32)
    b_out = b_sum.to(tl.float32) * tl.load(p_unit + o_m, mask=o_m < m, other=0.0)[:, None]
    b_out *= tl.load(p_scale + o_n, mask=o_n < n, other=0.0)[None, :]
    if p_bias is not None:
        b_out += tl.load(p_bias + o_n, mask=o_n < n, other=0.0).to(tl.float32)[None, :]
    p_out += o_m[:, None] * tl.cast(n, tl.int64) + o_n[None, :]
    tl.store(p_out, b_out.to(p_out.dtype.element_ty), mask=(o_m < m)[:, None] & (o_n < n)[None, :])
