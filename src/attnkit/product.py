"""A product: one way to multiply a few rows by the weight of a linear layer, and what it can and cannot do.

    out [m, n] = x [m, k] · weightᵀ [k, n] · scale [n] + bias [n]

The weight is of x's dtype and has no scale, or int8 with one scale for each of its rows (an output channel).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

__all__ = [
    "Explains",
    "Multiply",
    "MultiplyRounded",
    "Product",
    "Rejects",
    "Rounded",
    "Rounding",
    "misfit",
    "misfit_norm",
    "misfit_residual",
    "wants_gradient",
]


class Multiply(Protocol):
    """The call of every product: x [m, k], weight [n, k], scale [n] in float32, bias [n] to out [m, n] in x's dtype."""

    def __call__(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Multiply."""
        ...


Rejects = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None], str | None]
Explains = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Product:
    """One way to multiply.

    Attributes:
        name: Stable; it is part of the name of every case that times it.
        summary: What it is, in one line.
        multiply: The call. It is made for what `rejects` does not reject.
        rejects: Why these operands cannot be multiplied in this way, or None.
        explains: By how much out ``[m, n]`` may be off for what is rounded beside sums and result, x itself for
            example; None if there is nothing.
    """

    name: str
    summary: str
    multiply: Multiply
    rejects: Rejects
    explains: Explains | None = None


class Rounded(Protocol):
    """Rounds x [m, k], or its norm, to int8: that, and the unit of each row [m] in float32."""

    def __call__(self, x: torch.Tensor, norm: torch.nn.LayerNorm | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Round."""
        ...


class MultiplyRounded(Protocol):
    """Multiplies what was rounded; plus residual [m, n], if there is one, to out [m, n] in dtype."""

    def __call__(
        self,
        steps: torch.Tensor,
        unit: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        dtype: torch.dtype,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Multiply."""
        ...


@dataclass(frozen=True, slots=True)
class Rounding:
    """A product that rounds x, in its two steps: what is rounded once may meet several weights.

    Attributes:
        product: Both steps, and what they cannot do.
        rounded: The first, which may norm x before.
        multiply: The second, which may add a residual.
    """

    product: Product
    rounded: Rounded
    multiply: MultiplyRounded


def misfit(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None, bias: torch.Tensor | None) -> str | None:
    """Why operands do not belong together, or a kernel would not find scale and bias one after the other; None else."""
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        return f"expected x [m, k] and weight [n, k], got {list(x.shape)} and {list(weight.shape)}"
    for name, vector in (("scale", scale), ("bias", bias)):
        if vector is None:
            continue
        if vector.shape != weight.shape[:1]:
            return f"expected a {name} [{len(weight)}], one a row of weight, got {list(vector.shape)}"
        if not vector.is_contiguous():
            return f"{name} must be contiguous"
    for name, t in (("weight", weight), ("scale", scale), ("bias", bias)):
        if t is not None and t.device != x.device:
            return f"{name} must be on x's device, got {t.device} and {x.device}"
    return None


def misfit_norm(x: torch.Tensor, norm: torch.nn.LayerNorm) -> str | None:
    """Why a norm cannot be taken of the rows of x ``[m, k]`` on their way into a product, or None."""
    if norm.normalized_shape != x.shape[1:]:
        return f"expected a norm of rows of {x.shape[1]} elements, got {list(norm.normalized_shape)}"
    for name, t in (("weight", norm.weight), ("bias", norm.bias)):
        if t is not None and (t.dtype != x.dtype or t.device != x.device or not t.is_contiguous()):
            return f"the norm's {name} must be contiguous, in {x.dtype} and on {x.device}, got {t.dtype} on {t.device}"
    return wants_gradient(x, norm.weight, norm.bias)


def misfit_residual(
    steps: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None, dtype: torch.dtype
) -> str | None:
    """Why a residual cannot be added to out ``[m, n]`` in dtype, or None."""
    if residual is None:
        return None
    shape = (steps.shape[0], weight.shape[0])
    if residual.shape != shape or residual.dtype != dtype or residual.device != steps.device:
        given = f"{list(residual.shape)} in {residual.dtype} on {residual.device}"
        return f"expected a residual {list(shape)} in {dtype} on {steps.device}, got {given}"
    if not residual.is_contiguous():
        return "the residual must be contiguous"
    return wants_gradient(residual)


def wants_gradient(*operands: torch.Tensor | None) -> str | None:
    """Why a product without a backward is not for these operands, or None."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands):
        return "has no backward: call it under torch.no_grad() or torch.inference_mode()"
    return None
