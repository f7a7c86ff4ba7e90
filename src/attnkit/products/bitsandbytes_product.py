"""bitsandbytes' LLM.int8() product (Dettmers et al., 2022), on the same int8 weights as every other one.

Its activations are int8, too: each row of x is rounded to 127 steps of its largest element. With a threshold, features
of x in which an element is larger than that are left out of it and multiplied in 16 bits; what they are is found out on
the host, so such a product cannot be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings

import torch

from attnkit.product import Product

__all__ = ["PRODUCTS"]

LARGEST = 127


def multiply(
    threshold: float,
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply: x ``[m, k]`` in 16 bits, int8 weight ``[n, k]`` with scale ``[n]`` to out ``[m, n]``.

    Raises:
        ValueError: If `rejects` rejects it.
    """
    if (reason := rejects(x, weight, scale, bias)) or scale is None:
        raise ValueError(f"bitsandbytes cannot: {reason}")
    import bitsandbytes
    from bitsandbytes.autograd._functions import MatmulLtState

    state = MatmulLtState()
    # it keeps the largest element of a row where we keep a step
    state.CB, state.SCB = weight, scale * LARGEST
    state.threshold, state.has_fp16_weights, state.is_training = threshold, False, False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "MatMul8bitLt: inputs will be cast")
        out: torch.Tensor = bitsandbytes.matmul(x, weight, state=state, bias=bias)
    return out


def rejects(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None, bias: torch.Tensor | None = None
) -> str | None:
    """Why these operands cannot be multiplied by the package, or None."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return "the package bitsandbytes is not installed: pip install bitsandbytes"
    if weight.dtype != torch.int8 or scale is None:
        return f"weight must be int8 with a scale, got {weight.dtype} {'without one' if scale is None else 'and one'}"
    if x.dtype not in (torch.float16, torch.bfloat16):
        return f"x must be float16 or bfloat16, got {x.dtype}"
    if not weight.is_contiguous():
        return "weight must be contiguous"
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, bias)):
        return "has no backward here: call it under torch.no_grad() or torch.inference_mode()"
    return None


def explains(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """By how much out ``[m, n]`` may be off because x is rounded to int8 and what is between is rounded to float16."""
    size = weight.float().abs()
    if scale is not None:
        size = size * scale[:, None]
    half_a_step = x.float().abs().amax(1) / (2 * LARGEST)  # [m]
    between = torch.finfo(torch.float16).eps * (x.float().abs() @ size.T)
    return half_a_step[:, None] * size.sum(1) + between


def of(name: str, threshold: float, summary: str) -> Product:
    """The product with one threshold."""
    return Product(name, summary, functools.partial(multiply, threshold), rejects, explains)


PRODUCTS = (
    of("bitsandbytes", 0.0, "bitsandbytes' LLM.int8(), all of x in int8"),
    of("bitsandbytes_6", 6.0, "bitsandbytes' LLM.int8(), features of x beyond 6 in 16 bits"),
)
