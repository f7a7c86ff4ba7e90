"""The product of integers of triton_dynamic for Hopper, in Gluon: a product runs on while the next one is begun.

Triton waits for a product of integers at the end of each tile of k. Here one warp does nothing but keep STAGES tiles of
x and of weight in flight, and of the products of the others one is always under way when another is waited for:

    load:      wait for empty[s], copy a tile of either to stage s, which completes full[s]
    multiply:  wait for full[s], begin the product of stage s, wait for the one before, arrive at its empty[s]

A program takes tiles of out until there are no more, and the first loads of the next are in flight while one is
written. It is launched while the kernel before it runs, and waits on the device. Sums, scales and roundings are those
of triton_dynamic_kernel. Rows of x and weight must be what the copy engine can load; what is behind their ends it gives
as zeros. Letters as in triton_product_kernel. Gluon has no interpreter: without a GPU this compiles and no more.
"""

from __future__ import annotations

from typing import Any

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_wait

from attnkit.products.product_tiles import Tiles
from attnkit.products.triton_product_kernel import tile_of

__all__ = ["integers_kernel", "launch", "layout", "registers", "together"]

PART, NARROWEST = gl.constexpr(128 * 32), gl.constexpr(32)
"""Elements of a tile that are finished at a time where more is to be held than sums, and columns at least: `in_rows`
puts so many beside each other."""
SHARED = 227 * 1024
"""Bytes of shared memory that the programs of a processor can have."""
BESIDE = 8 * 1024
"""More than what a program asks for beside its stages."""

place = gluon.jit(tile_of.fn)
copy = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
"""Triton 3.9 knows it by the first name alone."""


@gluon.constexpr_function
def in_sums(BN, WARPS):
    # Triton knows no instruction for 256 rows of weight; a constant of the module would not be part of its cache's key
    return gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, min(BN, 128), 32])


@gluon.constexpr_function
def in_rows(BM, BN, WARPS):
    """As in_sums, but that a thread has eight neighbours of a row instead of two: what it loads and stores at once."""
    neighbours, below = [[0, 1], [0, 2], [0, 4]], [8, 0]
    columns = [[0, 2**i] for i in range(5, BN.bit_length() - 1)]
    rows = [[2**i, 0] for i in range((16 * WARPS).bit_length() - 1, BM.bit_length() - 1)]
    lanes = [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]]
    warps = [[16 * 2**i, 0] for i in range(WARPS.bit_length() - 1)]
    return gl.DistributedLinearLayout([*neighbours, below, *columns, *rows], lanes, warps, [], [BM, BN])


@gluon.jit
def load(
    p_x, p_weight, b_x, b_weight, full, empty, m, n, k,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    # both parts read what the kernel before this one writes, which may not have ended
    gdc_wait()
    i = 0
    for i_tile in range(gl.program_id(0), gl.cdiv(m, BM) * gl.cdiv(n, BN), gl.num_programs(0)):
        i_m, i_n = place(i_tile, m, n, BM, BN)
        for i_k in range(0, k, BK):
            s = i % STAGES
            # a stage is empty before its first turn: of a new barrier, the phase before the first one is over
            mbarrier.wait(empty.index(s), ((i // STAGES) & 1) ^ 1)
            mbarrier.expect(full.index(s), p_x.block_type.nbytes + p_weight.block_type.nbytes)
            copy(p_x, [i_m * BM, i_k], full.index(s), b_x.index(s))
            copy(p_weight, [i_n * BN, i_k], full.index(s), b_weight.index(s))
            i += 1


@gluon.jit
def write(
    b_sum, p_unit, p_scale, p_bias, p_residual, p_out, first_m, first_n, m, n,
    BM: gl.constexpr, BN: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    # with a residual, or in float32, registers hold a part of what is added and written beside the sums
    MORE: gl.constexpr = p_residual is not None or p_out.dtype.element_ty == gl.float32
    if MORE and BM * BN > PART and BN > NARROWEST:
        HALF: gl.constexpr = in_sums(BN // 2, WARPS)
        b_left, b_right = b_sum.reshape([BM, 2, BN // 2]).permute((0, 2, 1)).split()
        b_left = gl.convert_layout(b_left, HALF, assert_trivial=True)
        b_right = gl.convert_layout(b_right, HALF, assert_trivial=True)
        write(
            b_left, p_unit, p_scale, p_bias, p_residual, p_out, first_m, first_n, m, n,
            BM, BN // 2, WARPS,
        )  # fmt: skip
        write(
            b_right, p_unit, p_scale, p_bias, p_residual, p_out, first_m, first_n + BN // 2, m, n,
            BM, BN // 2, WARPS,
        )  # fmt: skip
    else:
        SUMS: gl.constexpr = in_sums(BN, WARPS)
        ROWS: gl.constexpr = in_rows(BM, BN, WARPS)
        o_m = first_m + gl.arange(0, BM, gl.SliceLayout(1, SUMS))
        o_n = first_n + gl.arange(0, BN, gl.SliceLayout(0, SUMS))
        b_out = b_sum.to(gl.float32) * gl.load(p_unit + o_m, mask=o_m < m, other=0.0)[:, None]
        b_out *= gl.load(p_scale + o_n, mask=o_n < n, other=0.0)[None, :]
        if p_bias is not None:
            b_out += gl.load(p_bias + o_n, mask=o_n < n, other=0.0).to(gl.float32)[None, :]
        o_m = first_m + gl.arange(0, BM, gl.SliceLayout(1, ROWS))
        o_n = first_n + gl.arange(0, BN, gl.SliceLayout(0, ROWS))
        m_out = (o_m < m)[:, None] & (o_n < n)[None, :]
        o_out = o_m.to(gl.int64)[:, None] * n + o_n[None, :]
        if p_residual is not None:
            b_residual = gl.load(p_residual + o_out, mask=m_out, other=0.0)
            b_out += gl.convert_layout(b_residual, SUMS).to(gl.float32)
        b_out = gl.convert_layout(b_out.to(p_out.dtype.element_ty), ROWS)
        gl.store(p_out + o_out, b_out, mask=m_out)


@gluon.jit
def multiply(
    b_x, b_weight, full, empty, p_unit, p_scale, p_bias, p_residual, p_out, m, n, k,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    SUMS: gl.constexpr = in_sums(BN, WARPS)
    gdc_wait()
    i = 0
    for i_tile in range(gl.program_id(0), gl.cdiv(m, BM) * gl.cdiv(n, BN), gl.num_programs(0)):
        i_m, i_n = place(i_tile, m, n, BM, BN)
        s = i % STAGES
        mbarrier.wait(full.index(s), (i // STAGES) & 1)
        b_sum = gl.zeros([BM, BN], gl.int32, SUMS)
        b_sum = warpgroup_mma(
            b_x.index(s), b_weight.index(s).permute((1, 0)), b_sum, use_acc=False, is_async=True
        )  # fmt: skip
        b_sum = warpgroup_mma_wait(1, deps=[b_sum])
        i += 1
        for _ in range(BK, k, BK):
            before = s
            s = i % STAGES
            mbarrier.wait(full.index(s), (i // STAGES) & 1)
            b_sum = warpgroup_mma(b_x.index(s), b_weight.index(s).permute((1, 0)), b_sum, is_async=True)
            # the one before is over: nothing reads its stage any more
            b_sum = warpgroup_mma_wait(1, deps=[b_sum])
            mbarrier.arrive(empty.index(before), count=1)
            i += 1
        b_sum = warpgroup_mma_wait(0, deps=[b_sum])
        mbarrier.arrive(empty.index(s), count=1)

        write(
            b_sum, p_unit, p_scale, p_bias, p_residual, p_out, i_m * BM, i_n * BN, m, n,
            BM, BN, WARPS,
        )  # fmt: skip


@gluon.jit(do_not_specialize=["m"])
def integers_kernel(
    p_x, p_unit, p_weight, p_scale, p_bias, p_residual, p_out, m, n, k,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    b_x = gl.allocate_shared_memory(gl.int8, [STAGES, BM, BK], p_x.layout)
    b_weight = gl.allocate_shared_memory(gl.int8, [STAGES, BN, BK], p_weight.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(STAGES):
        mbarrier.init(full.index(s), count=1)
        mbarrier.init(empty.index(s), count=1)
    fence_async_shared()
    gl.warp_specialize([
        (multiply, (b_x, b_weight, full, empty, p_unit, p_scale, p_bias, p_residual, p_out, m, n, k,
                    BM, BN, BK, STAGES, WARPS)),
        (load, (p_x, p_weight, b_x, b_weight, full, empty, m, n, k, BM, BN, BK, STAGES)),
    ], [1], [24])  # fmt: skip


def launch(
    steps: torch.Tensor,
    unit: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor,
    form: Tiles,
) -> None:
    """Multiply steps ``[m, k]`` by weight ``[n, k]`` into out ``[m, n]``, on the current device."""
    (m, k), n = steps.shape, weight.shape[0]
    processors = torch.cuda.get_device_properties(steps.device).multi_processor_count
    programs = min(-(-m // form.block_m) * -(-n // form.block_n), together(form) * processors)
    integers_kernel[(programs,)](
        descriptor(steps, form.block_m, form), unit, descriptor(weight, form.block_n, form), scale, bias, residual, out,
        m, n, k,
        BM=form.block_m, BN=form.block_n, BK=form.block_k, STAGES=form.stages, WARPS=form.warps,
        num_warps=form.warps, maxnreg=registers(form), launch_pdl=True,
    )  # fmt: skip


def descriptor(t: torch.Tensor, rows: int, form: Tiles) -> Any:
    """What tiles of ``rows`` of a matrix are loaded by."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    return TensorDescriptor(t, list(t.shape), [t.stride(0), 1], [rows, form.block_k], layout(rows, form))


def layout(rows: int, form: Tiles) -> Any:
    """How such a tile lies in shared memory."""
    return gl.NVMMASharedLayout.get_default_for([rows, form.block_k], gl.int8)


def together(form: Tiles) -> int:
    """Programs of a processor: two of four warps that multiply, which is what its registers are for, if both fit."""
    stages = form.stages * (form.block_m + form.block_n) * form.block_k
    return 2 if form.warps == 4 and 2 * (stages + BESIDE) <= SHARED else 1


def registers(form: Tiles) -> int:
    """Of a thread when a program begins; those of the loading warps, which come in fours, go to the others then."""
    return 65536 // (2 * (4 + 4) * 32) if form.warps == 4 else 65536 // ((8 + 4) * 32) // 8 * 8
