"""Products of one to eight rows in CUDA C++: x ``[m, k]`` times weight ``[n, k]`` transposed, at the speed of memory.

The kernels are cuda/matvec_registers.cu and cuda/matvec_bulk.cu; matvec_tiles.py says which form of them is used where.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from attnkit import nvrtc
from attnkit.product import Product, misfit, wants_gradient
from attnkit.products.matvec_tiles import MAX_ROWS, Config, Limits, Weights, choose, launch_shape

__all__ = ["OVERLAP", "PRODUCT", "explains", "matvec", "rejects"]

ALIGNMENT = 16


def matvec(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    overlap: bool = False,
    config: Config | None = None,
) -> torch.Tensor:
    """Multiply: x ``[m, k]`` in 16 bits, weight ``[n, k]`` in x's dtype or int8 with scale ``[n]`` to out ``[m, n]``.

    Sums are in float32; where the form has a fixed-point x they are exact until they are put together. With
    ``overlap``, or a ``config`` that has it, the kernel reads weights while the one before it on the stream ends: that
    one must not write weight, scale or bias.

    Raises:
        ValueError: If `rejects` rejects it.
    """
    if reason := rejects(x, weight, scale, bias, overlap=overlap, config=config):
        raise ValueError(f"cuda_matvec cannot: {reason}")
    (m, k), n, weights = x.shape, weight.shape[0], _weights(weight)
    config = config or _chosen(x, weight, overlap)
    shape = launch_shape(config, weights, m, n, k, limits(x.device).sms)
    kernel = nvrtc.compile(
        nvrtc.SOURCES / config.source, ("matvec",), config.options(x.dtype, weights), x.device
    )["matvec"]  # fmt: skip
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    kernel(
        shape.grid, config.threads,
        weight, x, scale, bias, out, n, k, m, weight.stride(0), x.stride(0), n // shape.grid, n % shape.grid,
        shape.phase, shape.slots,
        shared=shape.shared, overlap=config.overlap,
    )  # fmt: skip
    return out


def rejects(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    overlap: bool = False,
    config: Config | None = None,
) -> str | None:
    """Why these tensors cannot be multiplied by this kernel, or None."""
    if reason := wants_gradient(x, weight, scale, bias):
        return reason
    if x.device.type != "cuda":
        return f"runs on a CUDA device, got {x.device.type}"
    if reason := nvrtc.absent():
        return reason
    if reason := unfit(x, weight, scale, bias):
        return reason
    m, k = x.shape
    return (config or _chosen(x, weight, overlap)).why_not(_weights(weight), m, weight.shape[0], k, limits(x.device))


def unfit(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None, bias: torch.Tensor | None) -> str | None:
    """Why no form of the kernel takes these operands, or None."""
    if reason := misfit(x, weight, scale, bias):
        return reason
    if x.dtype not in (torch.float16, torch.bfloat16):
        return f"x must be float16 or bfloat16, got {x.dtype}"
    if weight.dtype not in (x.dtype, torch.int8):
        return f"weight must be int8 or of x's dtype, got {weight.dtype} and {x.dtype}"
    # the kernel is compiled for x's dtype, and reads bias as that
    if bias is not None and bias.dtype != x.dtype:
        return f"bias must be of x's dtype, got {bias.dtype} and {x.dtype}"
    if scale is not None and scale.dtype != torch.float32:
        return f"scale must be float32, got {scale.dtype}"
    m, k = x.shape
    if not 1 <= m <= MAX_ROWS:
        return f"x must have 1 to {MAX_ROWS} rows, got {m}"
    unit = ALIGNMENT // weight.element_size()
    if not k or k % unit:
        return f"k must be a multiple of {unit}, got {k}"
    if not len(weight):
        return "weight must have rows, got none"
    for name, t in (("x", x), ("weight", weight)):
        if t.stride(1) != 1 or t.stride(0) * t.element_size() % ALIGNMENT or t.data_ptr() % ALIGNMENT:
            return f"rows of {name} must be contiguous and begin at multiples of {ALIGNMENT} bytes"
    return None


def explains(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    overlap: bool = False,
    config: Config | None = None,
) -> torch.Tensor:
    """By how much out ``[m, n]`` may be off because x is made a fixed-point number; nothing in forms that do not."""
    if not (config or _chosen(x, weight, overlap)).fixed:
        return torch.zeros(x.shape[0], weight.shape[0], device=x.device)
    size = weight.float().abs().sum(1)
    if scale is not None:
        size = size * scale
    # a row's largest is below 2^exponent, and that is 2^30 units
    exponent = torch.frexp(x.abs().amax(1).float()).exponent
    return torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent - 31)[:, None] * size


def _chosen(x: torch.Tensor, weight: torch.Tensor, overlap: bool) -> Config:
    (m, _), (n, k) = x.shape, weight.shape
    return choose(_weights(weight), m, n, k, limits(x.device), overlap=overlap)


def _weights(weight: torch.Tensor) -> Weights:
    return "int8" if weight.dtype == torch.int8 else "half"


@functools.cache
def limits(device: torch.device) -> Limits:
    """What the device has."""
    properties: Any = torch.cuda.get_device_properties(device)
    return Limits(
        (properties.major, properties.minor), properties.multi_processor_count, properties.shared_memory_per_block_optin
    )


PRODUCT = Product("cuda_matvec", "one to eight rows at the speed of memory, CUDA C++", matvec, rejects, explains)
OVERLAP = Product(
    "cuda_matvec_overlap",
    "the same, reading weights while the kernel before it ends, which must not write them",
    functools.partial(matvec, overlap=True),
    functools.partial(rejects, overlap=True),
    functools.partial(explains, overlap=True),
)
