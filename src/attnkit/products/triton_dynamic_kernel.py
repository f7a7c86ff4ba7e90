"""The kernels of triton_dynamic: one rounds the rows of x, or of its LayerNorm, to int8, one multiplies integers.

Letters as in triton_product_kernel. DP is k, padded to a power of two. OVERLAP: the second is launched while the first
runs, and waits for it on the device (programmatic dependent launch).
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from attnkit.products.triton_product_kernel import tile_of

LARGEST = tl.constexpr(127)
LEAST = tl.constexpr(2.0**-126)
"""The smallest normal float32."""
NEAREST = tl.constexpr(1.5 * 2.0**23)
"""A float32 plus this has no digits behind the point: what was there is rounded to nearest, ties to even."""
MAGNITUDE = tl.constexpr(0x7FFFFFFF)
LARGE = tl.constexpr(128 * 128)
"""Sums that take half of the registers of four warps."""


@triton.jit
def rows_kernel(
    p_x, p_gain, p_shift, p_rounded, p_unit, k, s_x, s_rounded, epsilon,
    DP: tl.constexpr, NORM: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        gdc_launch_dependents()
    i_m = tl.program_id(0).to(tl.int64)
    o_k = tl.arange(0, DP)
    b_x = tl.load(p_x + i_m * s_x + o_k, mask=o_k < k, other=0.0).to(tl.float32)
    if NORM:
        # asked for before the row is waited for
        if p_gain is not None:
            b_gain = tl.load(p_gain + o_k, mask=o_k < k, other=0.0)
        if p_shift is not None:
            b_shift = tl.load(p_shift + o_k, mask=o_k < k, other=0.0)
        # the mean goes before anything is squared: what is small beside it is not lost
        b_x = tl.where(o_k < k, b_x - tl.sum(b_x, 0) / k, 0.0)
        b_x *= tl.rsqrt(tl.sum(b_x * b_x, 0) / k + epsilon)
        if p_gain is not None:
            b_x *= b_gain.to(tl.float32)
        if p_shift is not None:
            b_x += b_shift.to(tl.float32)
        # as if it had been in memory meanwhile
        b_x = b_x.to(p_x.dtype.element_ty).to(tl.float32)
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
    p_x, p_unit, p_weight, p_scale, p_bias, p_residual, p_out, m, n, k, s_x, s_weight,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, LOADS: tl.constexpr, EVEN: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        # before anything is read: whatever came before has written it then
        gdc_wait()
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
    if p_residual is None or BM * BN < LARGE:
        finish(b_sum, p_unit, p_scale, p_bias, p_residual, p_out, m, n, o_m, o_n)
    else:
        # in halves: there are no registers for all that is to be added
        b_left, b_right = tl.split(tl.permute(tl.reshape(b_sum, [BM, 2, BN // 2]), [0, 2, 1]))
        o_n = i_n * BN + tl.arange(0, BN // 2)
        finish(b_left, p_unit, p_scale, p_bias, p_residual, p_out, m, n, o_m, o_n)
        finish(b_right, p_unit, p_scale, p_bias, p_residual, p_out, m, n, o_m, o_n + BN // 2)


@triton.jit
def finish(b_sum, p_unit, p_scale, p_bias, p_residual, p_out, m, n, o_m, o_n):
    """Make of sums what they stand for, and write it."""
    b_out = b_sum.to(tl.float32) * tl.load(p_unit + o_m, mask=o_m < m, other=0.0)[:, None]
    b_out *= tl.load(p_scale + o_n, mask=o_n < n, other=0.0)[None, :]
    if p_bias is not None:
        b_out += tl.load(p_bias + o_n, mask=o_n < n, other=0.0).to(tl.float32)[None, :]
    o_out = o_m[:, None] * tl.cast(n, tl.int64) + o_n[None, :]
    m_out = (o_m < m)[:, None] & (o_n < n)[None, :]
    if p_residual is not None:
        b_out += tl.load(p_residual + o_out, mask=m_out, other=0.0).to(tl.float32)
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_out)
