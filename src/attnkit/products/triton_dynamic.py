"""int8 times int8 in Triton: the rows of x are rounded to int8 as they come, and products are of integers.

    unit_m = max_k |x_mk| / 127        r_mk = round(x_mk / unit_m)        out = (r qᵀ) · unit · scale + bias

A unit for each row of x, found in the call (dynamic quantisation of activations as in LLM.int8(), Dettmers et al.,
2022, without its outlier features in 16 bits). Sums are exact, in int32, and the tensor cores do twice as many products
a second as of 16 bits. x is off by half a unit at most, so a feature that is far larger than the others of its row
costs those their digits. A row that holds inf or nan gives nan.

What stands before and behind such a product is no kernel of its own: with a LayerNorm the row that is normed is still
in registers when it is rounded, and a residual is added to the finished sums before they are.
"""

from __future__ import annotations

from typing import Any

import torch

from attnkit import triton_device
from attnkit.product import Product, Rounding, misfit, misfit_norm, misfit_residual
from attnkit.products import torch_dynamic
from attnkit.products.product_tiles import COPY_ALIGNMENT, Tiles, family, fitting, source, tiles

__all__ = ["PRODUCT", "ROUNDING", "multiply", "multiply_rounded", "rejects", "rounded", "rows_form"]

MAX_K = 2**16
"""Elements of a row that a program holds in registers; sums of more than twice as many would not fit int32."""


def rounded(x: torch.Tensor, norm: torch.nn.LayerNorm | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """x ``[m, k]`` in int8, with rows as the copy engine wants them, and the unit of each row ``[m]`` in float32.

    With a norm it is the norm of x that is rounded, to x's dtype and then to int8.

    Raises:
        ValueError: If the norm is not for x.
    """
    if norm is not None and (reason := misfit_norm(x, norm)):
        raise ValueError(f"triton_dynamic cannot: {reason}")
    from attnkit.products.triton_dynamic_kernel import rows_kernel

    m, k = x.shape
    steps = torch.empty(m, -(-k // COPY_ALIGNMENT) * COPY_ALIGNMENT, dtype=torch.int8, device=x.device)[:, :k]
    unit = torch.empty(m, dtype=torch.float32, device=x.device)
    padded, warps = rows_form(k)
    with triton_device.current(x.device, x.dtype):
        rows_kernel[(m,)](
            x, norm and norm.weight, norm and norm.bias, steps, unit, k, x.stride(0), steps.stride(0),
            norm.eps if norm else 0.0, DP=padded, NORM=norm is not None, OVERLAP=overlaps(x.device), num_warps=warps,
        )  # fmt: skip
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
    if (reason := rejects(x, weight, scale, bias)) or scale is None:
        raise ValueError(f"triton_dynamic cannot: {reason}")
    return multiply_rounded(*rounded(x), weight, scale, bias, dtype=x.dtype, form=form)


def multiply_rounded(
    steps: torch.Tensor,
    unit: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    dtype: torch.dtype,
    residual: torch.Tensor | None = None,
    form: Tiles | None = None,
) -> torch.Tensor:
    """Multiply what `rounded` gave, steps ``[m, k]`` and unit ``[m]``, and add residual ``[m, n]``, to out in dtype.

    Raises:
        ValueError: If operands do not belong together.
    """
    if reason := misfit(steps, weight, scale, bias) or misfit_residual(steps, weight, residual, dtype):
        raise ValueError(f"triton_dynamic cannot: {reason}")
    if any(t.dtype != torch.int8 or t.stride(1) != 1 for t in (steps, weight)) or unit.shape != steps.shape[:1]:
        raise ValueError("triton_dynamic cannot: expected rows of int8 and a unit for each of x: see rounded")
    (m, k), n = steps.shape, weight.shape[0]
    form = fitting(form or tiles(family(steps.device), "dynamic", m, n), steps, weight)
    out = torch.empty(m, n, dtype=dtype, device=steps.device)
    if form.loads == "async":
        from attnkit.products.triton_dynamic_hopper import launch

        with triton_device.current(steps.device, dtype):
            launch(steps, unit, weight, scale, bias, residual, out, form)
        return out
    from attnkit.products.triton_dynamic_kernel import integers_kernel

    grid = (-(-n // form.block_n) * -(-m // form.block_m),)
    options: dict[str, Any] = {"num_warps": form.warps, "num_stages": form.stages}
    overlap = overlaps(steps.device)
    with triton_device.current(steps.device, dtype):
        integers_kernel[grid](
            source(steps, form.block_m, form), unit, source(weight, form.block_n, form), scale, bias, residual, out,
            m, n, k, steps.stride(0), weight.stride(0),
            BM=form.block_m, BN=form.block_n, BK=form.block_k,
            LOADS=form.loads, EVEN=form.loads == "tma" or k % form.block_k == 0, OVERLAP=overlap, launch_pdl=overlap,
            **options,
        )  # fmt: skip
    return out


def overlaps(device: torch.device) -> bool:
    """Whether a kernel may begin before the one ahead of it has ended, and wait on the device; no interpreter can."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


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
    return triton_device.rejects(x.device, x.dtype)


PRODUCT = Product(
    "triton_dynamic",
    "x rounded to int8 as it comes, products of integers on the tensor cores, in Triton",
    multiply,
    rejects,
    torch_dynamic.explains,
)

ROUNDING = Rounding(PRODUCT, rounded, multiply_rounded)
