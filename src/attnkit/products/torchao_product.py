"""torchao's int8 weight-only product, on the same int8 weights as every other one.

On a GPU it is compiled, as torchao means it to be: as it stands it would write the weight out in 16 bits first.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F

from attnkit import torch_compiler
from attnkit.product import Product

__all__ = ["PRODUCT"]


def linear(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product as the package has it, uncompiled."""
    from torchao.quantization import Int8Tensor

    return F.linear(x, Int8Tensor(weight, scale[:, None], [1, weight.shape[1]], x.dtype), bias)


@functools.cache
def compiled() -> Callable[..., torch.Tensor]:
    """The same, compiled once a shape."""
    return torch_compiler.compiled(linear, mode="max-autotune-no-cudagraphs")


def multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply: x ``[m, k]``, int8 weight ``[n, k]`` with scale ``[n]`` to out ``[m, n]``.

    Raises:
        ValueError: If `rejects` rejects it.
    """
    if (reason := rejects(x, weight, scale, bias)) or scale is None:
        raise ValueError(f"torchao cannot: {reason}")
    return (compiled() if x.is_cuda else linear)(x, weight, scale, bias)


def rejects(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None, bias: torch.Tensor | None = None
) -> str | None:
    """Why these operands cannot be multiplied by the package, or None."""
    if importlib.util.find_spec("torchao") is None:
        return "the package torchao is not installed: pip install torchao"
    try:
        from torchao.quantization import Int8Tensor  # noqa: F401
    except ImportError:
        return "the package torchao has no Int8Tensor: pip install 'torchao>=0.18'"
    if weight.dtype != torch.int8 or scale is None:
        return f"weight must be int8 with a scale, got {weight.dtype} {'without one' if scale is None else 'and one'}"
    return None


def explains(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """By how much out ``[m, n]`` may be off because x times the integers, and that times the scale, are rounded."""
    size = x.float().abs() @ weight.float().abs().T
    if scale is not None:
        size = size * scale
    return torch.finfo(x.dtype).eps * size


PRODUCT = Product("torchao", "torchao's int8 weights, compiled on a GPU", multiply, rejects, explains)
