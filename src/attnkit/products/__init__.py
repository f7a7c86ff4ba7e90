"""The table of products: a module a way to multiply, and one line here.

Importing this needs torch alone. A product whose package is missing is in the table all the same; `rejects` says so.
"""

from __future__ import annotations

from typing import Literal

import torch

from attnkit.product import Product, Rounding
from attnkit.products import (
    bitsandbytes_product,
    cuda_matvec,
    torch_dynamic,
    torch_product,
    torchao_product,
    triton_dynamic,
    triton_product,
)
from attnkit.products.matvec_tiles import MAX_ROWS

__all__ = ["TABLE", "Activations", "choose", "product", "rounding", "rounds"]

Activations = Literal["int8"] | None
"""What becomes of x before it meets int8 weights: it is rounded to int8, or left as it is."""

TABLE: tuple[Product, ...] = (
    torch_product.PRODUCT,
    triton_product.PRODUCT,
    cuda_matvec.PRODUCT,
    cuda_matvec.OVERLAP,
    torch_dynamic.PRODUCT,
    triton_dynamic.PRODUCT,
    *bitsandbytes_product.PRODUCTS,
    torchao_product.PRODUCT,
)


def product(name: str) -> Product:
    """Return the product of that name.

    Raises:
        ValueError: If there is none.
    """
    for entry in TABLE:
        if entry.name == name:
            return entry
    raise ValueError(f"no product is called {name!r}: take one of {', '.join(entry.name for entry in TABLE)}")


def rounds(activations: Activations, rows: int) -> bool:
    """Whether x is rounded to int8: not where it has so few rows that only reading the weight takes time."""
    return activations == "int8" and rows > MAX_ROWS


def rounding(
    x: torch.Tensor, *weights: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
) -> Rounding | None:
    """The fastest product that rounds x and takes each of these weights, with its scale and bias; None if none does."""
    ways = (triton_dynamic.ROUNDING, torch_dynamic.ROUNDING) if x.device.type == "cuda" else (torch_dynamic.ROUNDING,)
    for way in ways:
        if all(way.product.rejects(x, *operands) is None for operands in weights):
            return way
    return None


def choose(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    activations: Activations = None,
) -> Product:
    """The fastest way to multiply these operands here: CUDA C++ for a few rows, Triton for more of them by int8.

    With ``activations`` the rows of x may be rounded to int8 first, where they are many and no gradient is wanted.
    """
    if rounds(activations, len(x)) and (way := rounding(x, (weight, scale, bias))):
        return way.product
    if x.device.type == "cuda":
        if cuda_matvec.rejects(x, weight, scale, bias) is None:
            return cuda_matvec.PRODUCT
        if weight.dtype == torch.int8 and triton_product.rejects(x, weight, scale, bias) is None:
            return triton_product.PRODUCT
    return torch_product.PRODUCT
