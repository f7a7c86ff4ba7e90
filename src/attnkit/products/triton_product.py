"""x ``[m, k]`` times weight ``[n, k]`` transposed in Triton, with 16-bit or int8 weights, for one row or for thousands.

A program owns a tile [BM, BN] of out and walks along k. int8 weights are loaded as bytes and become 16-bit floats in
registers, exactly, so that half of the traffic is saved and the tensor cores see what they know; the scale of an output
channel is common to its whole sum and is applied once, to the float32 sum.

That half is what int8 weights save. Where rows are so many that the product is compute, widening them costs more: on a
Hopper torch's product in 16 bits is faster then, in every form of this one (`python -m perf.tune_product`). int8
weights are for that memory; for a prompt's speed x is rounded, too (triton_dynamic.py).

For a few rows a program has few columns of out and much of k at a time, because then all that counts is how much of the
weight is on its way; the matrix-vector kernels in CUDA C++ are nearer to the speed of memory there.
"""

from __future__ import annotations

from typing import Any

import torch

from attnkit import triton_device
from attnkit.product import Product, misfit, wants_gradient
from attnkit.products.product_tiles import Kind, Tiles, family, fitting, source, tiles

__all__ = ["PRODUCT", "Tiles", "multiply", "rejects"]


def multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    form: Tiles | None = None,
) -> torch.Tensor:
    """Multiply: x ``[m, k]`` in 16 bits, weight ``[n, k]`` to out ``[m, n]``; sums are in float32.

    Raises:
        ValueError: If `rejects` rejects it.
    """
    if reason := rejects(x, weight, scale, bias):
        raise ValueError(f"triton_product cannot: {reason}")
    from attnkit.products.triton_product_kernel import product_kernel

    (m, k), n = x.shape, weight.shape[0]
    kind: Kind = "int8" if weight.dtype == torch.int8 else "half"
    form = fitting(form or tiles(family(x.device), kind, m, n), x, weight)
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    grid = (-(-n // form.block_n) * -(-m // form.block_m),)
    options: dict[str, Any] = {"num_warps": form.warps, "num_stages": form.stages}
    with triton_device.current(x.device, x.dtype):
        product_kernel[grid](
            source(x, form.block_m, form), source(weight, form.block_n, form), scale, bias, out,
            m, n, k, x.stride(0), weight.stride(0),
            BM=form.block_m, BN=form.block_n, BK=form.block_k,
            LOADS=form.loads, EVEN=form.loads == "tma" or k % form.block_k == 0, LEFT=form.left, **options,
        )  # fmt: skip
    return out


def rejects(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None, bias: torch.Tensor | None = None
) -> str | None:
    """Why these operands cannot be multiplied by this kernel, or None."""
    if reason := triton_device.absent():
        return reason
    if reason := misfit(x, weight, scale, bias) or wants_gradient(x, weight, scale, bias):
        return reason
    if x.dtype not in (torch.float16, torch.bfloat16):
        return f"x must be float16 or bfloat16, got {x.dtype}"
    if weight.dtype not in (x.dtype, torch.int8):
        return f"weight must be int8 or of x's dtype, got {weight.dtype} and {x.dtype}"
    if x.stride(1) != 1 or weight.stride(1) != 1:
        return "rows of x and weight must be contiguous"
    if not (x.numel() and weight.numel()):
        return f"x and weight must have elements, got {list(x.shape)} and {list(weight.shape)}"
    return triton_device.rejects(x.device, x.dtype)


PRODUCT = Product("triton_product", "dequantised in registers, on the tensor cores, in Triton", multiply, rejects)
