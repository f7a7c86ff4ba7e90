"""The table of products: a module a way to multiply, and one line here.

Importing this needs torch alone. A product whose package is missing is in the table all the same; `rejects` says so.
"""

from __future__ import annotations

import torch

from attnkit.product import Product
from attnkit.products import bitsandbytes_product, cuda_matvec, torch_product, torchao_product, triton_product

__all__ = ["TABLE", "choose", "product"]

TABLE: tuple[Product, ...] = (
    torch_product.PRODUCT,
    triton_product.PRODUCT,
    cuda_matvec.PRODUCT,
    cuda_matvec.OVERLAP,
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


def choose(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None, bias: torch.Tensor | None = None
) -> Product:
    """The fastest way to multiply these operands here: CUDA C++ for a few rows, Triton for more of them by int8."""
    if x.device.type == "cuda":
        if cuda_matvec.rejects(x, weight, scale, bias) is None:
            return cuda_matvec.PRODUCT
        if weight.dtype == torch.int8 and triton_product.rejects(x, weight, scale, bias) is None:
            return triton_product.PRODUCT
    return torch_product.PRODUCT
