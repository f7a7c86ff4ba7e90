"""The kernel of triton_product.

Letters: BM rows of x, BN rows of weight, BK elements of either a tile. EVEN promises that BK divides k.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["m"])
def product_kernel(
    p_x, p_weight, p_scale, p_bias, p_out, m, n, k, s_x, s_weight,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    o_m = tl.program_id(1) * BM + tl.arange(0, BM)
    o_k = tl.arange(0, BK)
    # a row that is not there reads the last one, and is not written
    p_x += tl.minimum(o_m, m - 1)[:, None] * tl.cast(s_x, tl.int64) + o_k[None, :]
    p_weight += tl.minimum(o_n, n - 1)[:, None] * tl.cast(s_weight, tl.int64) + o_k[None, :]
    b_out = tl.zeros([BM, BN], tl.float32)
    for i_k in tl.range(0, k, BK):
        if EVEN:
            b_x = tl.load(p_x + i_k)
            b_weight = tl.load(p_weight + i_k)
        else:
            m_k = (i_k + o_k < k)[None, :]
            b_x = tl.load(p_x + i_k, mask=m_k, other=0.0)
            b_weight = tl.load(p_weight + i_k, mask=m_k, other=0)
        b_out = tl.dot(b_x, tl.trans(b_weight.to(b_x.dtype)), b_out)
    if p_scale is not None:
        b_out *= tl.load(p_scale + o_n, mask=o_n < n, other=0.0)[None, :]
    if p_bias is not None:
        b_out += tl.load(p_bias + o_n, mask=o_n < n, other=0.0).to(tl.float32)[None, :]
    p_out += o_m[:, None] * tl.cast(n, tl.int64) + o_n[None, :]
    tl.store(p_out, b_out.to(p_out.dtype.element_ty), mask=(o_m < m)[:, None] & (o_n < n)[None, :])
