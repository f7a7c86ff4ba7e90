"""int8 times int8 in Triton: the rows of x are rounded to int8 as they come, and products are of integers.

    unit_m = max_k |x_mk| / 127        r_mk = round(x_mk / unit_m)        out = (r qᵀ) · unit · scale + bias

A unit for each row of x, found in the call (dynamic quantisation of activations as in LLM.int8(), Dettmers et al.,
2022, without its outlier features in 16 bits). Sums are exact, in int32, and the tensor cores do twice as many products
a second as of 16 bits. x is off by half a unit at most, so a feature that is far larger than the others of its row
costs those their digits. A row that holds inf or nan gives nan.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from attnkit import triton_device
from attnkit.product import Product, misfit
from attnkit.products import torch_dynamic
from attnkit.products.product_tiles import COPY_ALIGNMENT, Tiles, family, fitting, source, tiles

__all__ = ["PRODUCT", "multiply", "rejects", "rounded", "rows_form"]

MAX_K = 2**16
"""Elements of a row that a program holds in registers; sums of more than twice as many would not fit int32."""


def rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x ``[m, k]`` in int8, with rows as the copy engine wants them, and the unit of each row ``[m]`` in float32."""
    from attnkit.products.triton_dynamic_kernel import rows_kernel

    m, k = x.shape
    steps = torch.empty(m, -(-k // COPY_ALIGNMENT) * COPY_ALIGNMENT, dtype=torch.int8, device=x.device)[:, :k]
    unit = torch.empty(m, dtype=torch.float32, device=x.device)
    padded, warps = rows_form(k)
    with current(x.device):
        rows_kernel[(m,)](x, steps, unit, k, x.stride(0), steps.stride(0), DP=padded, num_warps=warps)
    return steps, unit


def rows_form(k: int) -> tuple[int, int]:
    """What ``k`` elements are padded to, and the warps of a row."""
    padded = 1 << (k - 1).bit_length()
    return padded, min(max(padded // 1024, 4), 16)


def multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    form: Tiles | None = None,
) -> torch.Tensor:
    """Multiply: x ``[m, k]``, int8 weight ``[n, k]`` with scale ``[n]`` to out ``[m, n]``; sums are in int32.

    Raises:
        ValueError: If `rejects` rejects it.
    """
    if reason := rejects(x, weight, scale, bias):
        raise ValueError(f"triton_dynamic cannot: {reason}")
    from attnkit.products.triton_dynamic_kernel import integers_kernel

    (m, k), n = x.shape, weight.shape[0]
    steps, unit = rounded(x)
    form = fitting(form or tiles(family(x.device), "dynamic", m, n), steps, weight)
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    grid = (-(-n // form.block_n) * -(-m // form.block_m),)
    options: dict[str, Any] = {"num_warps": form.warps, "num_stages": form.stages}
    with current(x.device):
        integers_kernel[grid](
            source(steps, form.block_m, form), unit, source(weight, form.block_n, form), scale, bias, out,
            m, n, k, steps.stride(0), weight.stride(0),
            BM=form.block_m, BN=form.block_n, BK=form.block_k,
            LOADS=form.loads, EVEN=form.loads == "tma" or k % form.block_k == 0, **options,
        )  # fmt: skip
    return out


def current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Where Triton launches."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def rejects(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None, bias: torch.Tensor | None = None
) -> str | None:
    """Why these operands cannot be multiplied by these kernels, or None."""
    if reason := triton_device.absent():
        return reason
    if reason := misfit(x, weight, scale, bias) or torch_dynamic.unfit(x, weight, scale, bias):
        return reason
    m, k = x.shape
    if m < 1 or not 1 <= k <= MAX_K:
        return f"x must have rows of 1 to {MAX_K} elements, got {list(x.shape)}"
    if not len(weight):
        return "weight must have rows, got none"
    if x.stride(1) != 1 or weight.stride(1) != 1:
        return "rows of x and weight must be contiguous"
    return triton_device.rejects(x.device)


PRODUCT = Product(
    "triton_dynamic",
    "x rounded to int8 as it comes, products of integers on the tensor cores, in Triton",
    multiply,
    rejects,
    torch_dynamic.explains,
)
