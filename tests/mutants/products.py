"""Bugs in products: in Triton, of int8 weights, and of the matrix-vector kernels in CUDA C++ (run on the host)."""

from __future__ import annotations

from tests.mutants.mutant import planter

__all__ = ["AROUND", "DYNAMIC", "INT8", "MATVEC", "MUTANTS", "PRODUCT"]

PRODUCT = ("product triton_product", "tiles")
DYNAMIC = ("product triton_dynamic", "integers", "no-number")
AROUND = ("norm", "residual")
INT8 = ("half-a-scale", "whole-range")
MATVEC = ("matvec registers", "matvec registers-int8", "matvec bulk", "matvec bulk-int8")

product = planter("product", "products/triton_product_kernel.py", *PRODUCT)
dynamic = planter("dynamic", "products/triton_dynamic_kernel.py", *DYNAMIC)
around = planter("dynamic", "products/triton_dynamic_kernel.py", *AROUND)
linear = planter("int8", "linear.py", *INT8)
shared = planter("matvec", "cuda/matvec.cuh", *MATVEC[:2])
int8 = planter("matvec", "cuda/matvec.cuh", MATVEC[1], MATVEC[3])
fixed = planter("matvec-fixed", "cuda/matvec.cuh", "matvec-fixed", "fixed-range")
bulk = planter("matvec-bulk", "cuda/matvec_bulk.cu", MATVEC[2])
registers = planter("matvec-registers", "cuda/matvec_registers.cu", MATVEC[0])

MUTANTS = (
    product(
        "tail-of-k-not-masked",
        "tail not masked",
        "m_k = (i_k + o_k < k)[None, :]",
        "m_k = (i_k + o_k < k + BK)[None, :]",
    ),
    product(
        "last-tile-of-k-lost",
        "wrong block range",
        "for i_k in tl.range(0, k, BK)",
        "for i_k in tl.range(0, k - BK + 1, BK)",
    ),
    product(
        "accumulator-not-added-to", "stale accumulator", "b_weight.to(b_x.dtype)), b_out)", "b_weight.to(b_x.dtype)))"
    ),
    product("left-accumulator-not-added-to", "stale accumulator", "tl.trans(b_x), b_out)", "tl.trans(b_x))"),
    product("last-group-as-large-as-others", "wrong block range", "tl.minimum(rows - first, GROUP)", "GROUP"),
    product("scale-dropped", "dropped scale", "b_out *= tl.load(p_scale", "b_out *= 1.0 + 0.0 * tl.load(p_scale"),
    product("bias-scaled-too", "wrong scale", "if p_bias is not None:", "if p_bias is not None and p_scale is None:"),
    product("last-column-unwritten", "output not written", "& (o_n < n)[None, :])", "& (o_n < n - 1)[None, :])"),
    product(
        "out-by-width-of-x",
        "transposed stride",
        "o_m[:, None] * tl.cast(n, tl.int64)",
        "o_m[:, None] * tl.cast(tl.minimum(k, n), tl.int64)",
    ),
    dynamic("truncated", "lost precision", "b_steps + NEAREST - NEAREST", "b_steps"),
    dynamic("unit-of-128", "wrong scale", "largest / LARGEST, LEAST", "largest / 128.0, LEAST"),
    dynamic("largest-without-sign", "wrong scale", "bitcast=True) & MAGNITUDE", "bitcast=True)"),
    dynamic("unit-of-first-row", "wrong scale", "tl.load(p_unit + o_m,", "tl.load(p_unit + 0 * o_m,"),
    dynamic("unit-of-zeros", "fully masked row", "largest / LARGEST, LEAST)", "largest / LARGEST, 0.0)"),
    dynamic("nan-made-a-number", "lost nan", 'tl.where(finite, unit, float("nan"))', "tl.where(finite, unit, 1.0)"),
    dynamic("rows-by-width", "transposed stride", "p_rounded + i_m * s_rounded", "p_rounded + i_m * k"),
    dynamic(
        "tail-of-row-not-written", "output not written", "to(tl.int8), mask=o_k < k)", "to(tl.int8), mask=o_k < k - 1)"
    ),
    dynamic("tail-of-k-not-masked", "tail not masked", "(i_k + o_k < k)[None, :]", "(i_k + o_k < k + BK)[None, :]"),
    dynamic("sum-not-added-to", "stale accumulator", "tl.trans(b_weight), b_sum, out", "tl.trans(b_weight), out"),
    dynamic("bias-times-scale", "wrong scale", "if p_bias is not None:", "if p_bias is not None and p_scale is None:"),
    around("norm-keeps-the-mean", "lost term", "b_x - tl.sum(b_x, 0) / k, 0.0)", "b_x, 0.0)"),
    around("mean-of-padding", "padding takes part", "b_x - tl.sum(b_x, 0) / k", "b_x - tl.sum(b_x, 0) / DP"),
    around("deviation-of-padding", "padding takes part", "tl.sum(b_x * b_x, 0) / k", "tl.sum(b_x * b_x, 0) / DP"),
    around("padding-loses-the-mean", "tail not masked", "tl.where(o_k < k, b_x - tl", "tl.where(o_k < DP, b_x - tl"),
    around("epsilon-left-out", "wrong constant", " / k + epsilon)", " / k + 1e-5)"),
    around("norm-not-in-its-dtype", "lost precision", "b_x.to(p_x.dtype.element_ty).to(tl.float32)", "b_x"),
    around("residual-of-first-row", "wrong index", "tl.load(p_residual + o_out", "tl.load(p_residual + o_out % n"),
    around("left-half-twice", "output not written", "p_out, m, n, o_m, o_n + BN // 2)", "p_out, m, n, o_m, o_n)"),
    linear("truncated", "lost precision", "(exact / scale[:, None]).round()", "(exact / scale[:, None]).trunc()"),
    linear("one-scale-for-all", "wrong scale", "exact.abs().amax(1) if", "exact.abs().amax().expand(len(exact)) if"),
    linear("largest-without-sign", "wrong scale", "exact.abs().amax(1) if", "exact.amax(1) if"),
    linear("range-to-128", "overflow", "LARGEST = 127", "LARGEST = 128"),
    linear("scale-of-zeros", "fully masked row", ".clamp(min=torch.finfo(torch.float32).tiny)", ""),
    int8("sign-bit-lost", "wrong int8", "masked<0x00800080, 0x43004300>(bytes)", "0x43004300"),
    int8("sign-bit-lost-in-fp16", "wrong int8", "(bytes), 0x64806480)", "(bytes), 0x64006400)"),
    int8("order-of-bytes", "wrong int8", "v[j].x, v[j].y, 0x7632", "v[j].x, v[j].y, 0x3276"),
    shared(
        "last-row-of-tile-lost", "tail not masked", "tile * TILE + r < rows.count", "tile * TILE + r < rows.count - 1"
    ),
    shared("odd-rows-unowned", "output not written", "even + (block < odd)", "even"),
    shared("sums-kept-for-the-next", "stale accumulator", "part[warp * m * TILE] = 0.f;", ""),
    shared("first-warp-alone", "lost sum", "sum += found[warp];", "sum = found[warp];"),
    shared("bias-by-tile", "wrong index", "to_float(bias[column])", "to_float(bias[tile * TILE + r])"),
    fixed("carry-lost", "wrong constant", "(word)x[i] + 0x00808080) ^", "(word)x[i]) ^"),
    fixed("upper-digits-by-the-lower", "wrong scale", "65536.f * two", "256.f * two"),
    fixed("units-of-first-row", "wrong scale", "row ? unit.second : unit.first", "unit.first"),
    fixed("digits-of-first-row", "wrong index", "4 * min(g / 4, m - 1) + g % 4", "g % 4"),
    fixed("largest-of-first-warp", "missing reduction", "largest[row * ALL + i]", "largest[row * ALL]"),
    fixed("top-digit-overflows", "overflow", ">> 23) - 29, 1)", ">> 23) - 30, 1)"),
    registers("lower-half-not-masked", "tail not masked", "there > 8) piece", "there > 0) piece"),
    registers("sums-never-cleared", "stale accumulator", "    sums = Sums();\n", ""),
    registers("x-read-before-it-is-there", "missing barrier", "});\n  __syncthreads();", "});"),
    registers(
        "sums-read-before-they-are-there", "missing barrier", "leave_tile();\n    __syncthreads();", "leave_tile();"
    ),
    bulk("sums-read-before-they-are-there", "missing barrier", "    sync_multiplying();\n    finish", "    finish"),
    bulk(
        "x-read-before-it-is-there",
        "missing barrier",
        "sync_multiplying);\n  }\n  __syncthreads();",
        "sync_multiplying);\n  }",
    ),
    bulk("stage-not-waited-for", "missing barrier", "        barrier_wait(full + turn.stage, turn.parity);\n", ""),
    bulk(
        "stage-filled-while-read", "missing barrier", "      barrier_wait(empty + turn.stage, turn.parity ^ 1);\n", ""
    ),
    bulk("parity-never-turned", "missing barrier", "stage = 0; parity ^= 1;", "stage = 0;"),
)
