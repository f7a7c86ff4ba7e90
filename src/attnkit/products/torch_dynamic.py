"""int8 times int8 by torch: what triton_dynamic is compared with, and what runs without Triton.

The mathematics is in triton_dynamic.py. The product of integers is cuBLAS's on a GPU (torch._int_mm), whose sizes are
limited; on the CPU, where torch's is wrong for rows of one element, it is made in float64, which is exact.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from attnkit.product import Product, Rounding, misfit_norm, misfit_residual, wants_gradient

__all__ = ["LARGEST", "PRODUCT", "ROUNDING", "explains", "multiply", "multiply_rounded", "rejects", "rounded", "unfit"]

LARGEST = 127
LEAST = torch.finfo(torch.float32).tiny
MAX_K = 2**16
"""Elements of a row: sums of more than twice as many would not fit int32."""
HALF_A_STEP = 0.5 * (1 + 2.0**-12)
"""What rounding takes from a number, in units of its row: half of one, and a little where a quotient of up to 127,
itself off by a few units of float32, falls on the wrong side of the middle."""


def rounded(x: torch.Tensor, norm: torch.nn.LayerNorm | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """x ``[m, k]`` in int8, and the unit of each row ``[m]`` in float32; nan for a row with inf or nan, all zeros.

    With a norm it is the norm of x that is rounded, to x's dtype and then to int8.

    Raises:
        ValueError: If the norm is not for x.
    """
    if norm is not None:
        if reason := misfit_norm(x, norm):
            raise ValueError(f"torch_dynamic cannot: {reason}")
        x = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    exact = x.float()
    largest = exact.abs().amax(1)
    unit = (largest / LARGEST).clamp(min=LEAST)
    finite = largest.isfinite()
    steps = (exact / unit[:, None]).round().clamp(-LARGEST, LARGEST)
    # one row after the other, whatever x is like: cuBLAS takes no others
    steps = torch.where(finite[:, None], steps, 0.0).to(torch.int8, memory_format=torch.contiguous_format)
    return steps, torch.where(finite, unit, torch.nan)


def multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply: x ``[m, k]``, int8 weight ``[n, k]`` with scale ``[n]`` to out ``[m, n]``; sums are in int32.

    Raises:
        ValueError: If `rejects` rejects it.
    """
    if (reason := rejects(x, weight, scale, bias)) or scale is None:
        raise ValueError(f"torch_dynamic cannot: {reason}")
    return multiply_rounded(*rounded(x), weight, scale, bias, dtype=x.dtype)


def multiply_rounded(
    steps: torch.Tensor,
    unit: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    dtype: torch.dtype,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply what `rounded` gave, steps ``[m, k]`` and unit ``[m]``, and add residual ``[m, n]``, to out in dtype.

    Raises:
        ValueError: If the residual is not for the result.
    """
    if reason := misfit_residual(steps, weight, residual, dtype):
        raise ValueError(f"torch_dynamic cannot: {reason}")
    if steps.device.type == "cuda":
        sums = torch._int_mm(steps, weight.T)
    else:
        sums = steps.double() @ weight.T.double()
    out = sums.float() * unit[:, None] * scale
    if bias is not None:
        out = out + bias.float()
    if residual is not None:
        out = out + residual.float()
    return out.to(dtype)


def unfit(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None, bias: torch.Tensor | None) -> str | None:
    """Why a product of int8 by int8 is not for these operands, or None."""
    if weight.dtype != torch.int8 or scale is None:
        return f"weight must be int8 with a scale, got {weight.dtype} {'without one' if scale is None else 'and one'}"
    if not x.is_floating_point():
        return f"x must be of floating point, got {x.dtype}"
    return wants_gradient(x, scale, bias)


def rejects(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None, bias: torch.Tensor | None = None
) -> str | None:
    """Why these operands cannot be multiplied by torch's product of integers, or None."""
    if reason := unfit(x, weight, scale, bias):
        return reason
    k = x.shape[1]
    if not 1 <= k <= MAX_K:
        return f"x must have rows of 1 to {MAX_K} elements, got {k}"
    return beyond_cublas(x, weight) if x.device.type == "cuda" else None


def beyond_cublas(x: torch.Tensor, weight: torch.Tensor) -> str | None:
    """Why cuBLAS does not multiply integers of these sizes, or None."""
    (m, k), n = x.shape, weight.shape[0]
    if m <= 16 or not n or n % 8 or k % 8:
        return f"on a GPU x must have more than 16 rows, and n and k must be multiples of 8, got m={m}, n={n}, k={k}"
    if weight.stride(1) != 1 or weight.stride(0) % 8 or weight.data_ptr() % 8:
        return "on a GPU rows of weight must be contiguous and begin at multiples of 8 bytes"
    return None


def explains(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """By how much out ``[m, n]`` may be off because x is rounded to int8: half a unit of its row for each element."""
    size = weight.float().abs().sum(1)
    if scale is not None:
        size = size * scale
    unit = (x.float().abs().amax(1) / LARGEST).clamp(min=LEAST)
    return HALF_A_STEP * unit[:, None] * size


PRODUCT = Product(
    "torch_dynamic",
    "x rounded to int8 as it comes, products of integers by torch",
    multiply,
    rejects,
    explains,
)

ROUNDING = Rounding(PRODUCT, rounded, multiply_rounded)
