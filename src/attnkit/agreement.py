"""Does a product agree with float64?

    |out - truth|  <=  k · 2⁻²⁴ · (Σ |x| |w| · scale + |bias|)  +  eps · |truth|  +  explained

Sums of k products in float32 may be off by the first part, in whatever order they are taken (Higham, Accuracy and
Stability of Numerical Algorithms, 2002, chapter 4), and the result is rounded once to the dtype, whose eps is twice its
rounding. What is explained beside that is a product's own matter: one that rounds x says by how much. Weights are what
they are: what int8 makes of a layer's own is another matter (see attnkit.linear).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Agreement", "agreement"]

FLOAT32_ROUNDING = 2.0**-24
ROWS_AT_ONCE = 4096
"""Rows of weight that are held in float64 at a time."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a result is from the truth.

    Attributes:
        wrong: Elements that are further from it than rounding explains, or not finite.
        largest: The largest error as a multiple of what is allowed.
        mean_error: Mean absolute error.
    """

    wrong: int
    largest: float
    mean_error: float


def agreement(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    explained: torch.Tensor | None = None,
) -> Agreement:
    """Hold out ``[m, n]`` against x ``[m, k]`` times weight ``[n, k]``, times scale ``[n]``, plus bias ``[n]``.

    ``explained`` ``[m, n]`` is what a product says of itself: see `attnkit.product.Product.explains`.

    Raises:
        ValueError: If out has another shape or dtype than the product has.
    """
    expected = (x.shape[0], weight.shape[0])
    if out.shape != expected or out.dtype != x.dtype:
        raise ValueError(f"expected out {list(expected)} in {x.dtype}, got {list(out.shape)} in {out.dtype}")
    wrong, largest, total = 0, 0.0, 0.0
    exact = x.detach().double()
    for i in range(0, weight.shape[0], ROWS_AT_ONCE):
        rows = slice(i, i + ROWS_AT_ONCE)
        w = weight[rows].detach().double()
        if scale is not None:
            w = w * scale[rows, None].double()
        truth, size = exact @ w.T, exact.abs() @ w.abs().T
        if bias is not None:
            truth, size = truth + bias[rows].double(), size + bias[rows].double().abs()
        error = (out[:, rows].double() - truth).abs()
        allowed = x.shape[1] * FLOAT32_ROUNDING * size + torch.finfo(out.dtype).eps * truth.abs()
        if explained is not None:
            allowed = allowed + explained[:, rows].double()
        wrong += int((~(error <= allowed)).sum())
        largest = max(largest, float((error / allowed.clamp(min=1e-300)).max()))
        total += float(error.sum())
    return Agreement(wrong, largest, total / max(out.numel(), 1))
