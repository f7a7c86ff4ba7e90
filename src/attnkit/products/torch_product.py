"""The product as torch has it: what every other one is compared with, and what runs everywhere.

int8 weights are multiplied in float32, weight and x alike, so that their sums do not overflow in float16 and nothing is
rounded but the result. It is differentiable in x.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from attnkit.product import Product

__all__ = ["PRODUCT"]


def multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply: x ``[m, k]``, weight ``[n, k]`` to out ``[m, n]``."""
    if weight.dtype != torch.int8:
        return F.linear(x, weight, bias)
    out = F.linear(x.float(), weight.float())
    if scale is not None:
        out = out * scale
    if bias is not None:
        out = out + bias.float()
    return out.to(x.dtype)


def rejects(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None, bias: torch.Tensor | None = None
) -> str | None:
    """Why these operands cannot be multiplied: a scale belongs to int8."""
    if scale is not None and weight.dtype != torch.int8:
        return f"a scale is for int8 weights, got {weight.dtype}"
    return None


def explains(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """How far off a product may be for partial sums that cuBLAS rounds to the dtype before it adds them: ``[m, n]``.

    Torch lets it unless told otherwise (``torch.backends.cuda.matmul.allow_..._reduced_precision_reduction``); a bias
    is one of the parts.
    """
    matmul = torch.backends.cuda.matmul
    lets = {
        torch.bfloat16: matmul.allow_bf16_reduced_precision_reduction,
        torch.float16: matmul.allow_fp16_reduced_precision_reduction,
    }
    if not x.is_cuda or weight.dtype == torch.int8 or not lets.get(x.dtype):
        return x.new_zeros(x.shape[0], weight.shape[0])
    size = x.detach().float().abs() @ weight.detach().float().abs().T
    if bias is not None:
        size = size + bias.detach().float().abs()
    return torch.finfo(x.dtype).eps * size


PRODUCT = Product("torch", "torch's own product; int8 weights become float32 before it", multiply, rejects, explains)
