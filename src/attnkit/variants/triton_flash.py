"""FlashAttention-2 in plain Triton: the variant people can read (Dao, FlashAttention-2, 2023).

Forward keeps the log-sum-exp of every row; backward is deterministic. The kernels are in triton_flash_forward.py and
triton_flash_backward.py, the tile sizes in triton_flash_tiles.py; this module is what the outside sees.

float32 products are three tf32 products on the tensor cores (``tf32x3``: each factor split into two tf32 numbers, the
smallest of the four partial products dropped), which keeps float32's accuracy; ``ieee`` would avoid tensor cores, spill
registers and be slower by an order of magnitude.

Inputs may have any strides; where the last dimension is not contiguous, or rows lie 2^23 elements apart or more, the
tensor is copied first. Hopper's copy engine (TMA) is used where addresses and strides are multiples of 16 bytes and
nothing is broadcast; ordinary loads do the rest. Without a GPU the kernels run in Triton's interpreter, if
TRITON_INTERPRET=1 was set before Triton was first imported.
"""

from __future__ import annotations

from typing import Any

import torch

from attnkit import triton_device
from attnkit.problem import Mask, Pass, Problem
from attnkit.variant import Variant
from attnkit.variants.triton_flash_tiles import MAX_D, Config, Kernel, choose, copyable, loadable

__all__ = ["VARIANT", "Config", "attention", "attention_with_lse"]

Configs = dict[Kernel, Config]


class Flash(torch.autograd.Function):
    """Forward and backward as one operation of autograd. The log-sum-exp has no gradient."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float, configs: Configs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        from attnkit.variants import triton_flash_forward

        q, k, v = loadable(q), loadable(k), loadable(v)
        config = configs.get("forward") or chosen("forward", causal, q, k, v)
        out, lse = triton_flash_forward.forward(q, k, v, causal=causal, scale=scale, config=config)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.mark_non_differentiable(lse)
        ctx.causal, ctx.scale, ctx.configs = causal, scale, configs
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor, _dlse: object) -> tuple[torch.Tensor | None, ...]:
        from attnkit.variants import triton_flash_backward

        q, k, v, out, lse = ctx.saved_tensors
        dout = loadable(dout)
        dkdv, dq = (ctx.configs.get(kernel) or chosen(kernel, ctx.causal, q, k, v, dout) for kernel in ("dkdv", "dq"))
        gradients = triton_flash_backward.backward(
            q, k, v, out, lse, dout, causal=ctx.causal, scale=ctx.scale, dkdv=dkdv, dq=dq
        )
        return *gradients, None, None, None


def chosen(kernel: Kernel, causal: bool, *loaded: torch.Tensor) -> Config:
    """The table's configuration for a kernel that loads these tensors."""
    q = loaded[0]
    return choose(kernel, q.device, q.dtype, q.shape[3], causal, all(map(copyable, loaded)))


def attention_with_lse(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: Mask = "full",
    scale: float | None = None,
    configs: Configs | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and the log-sum-exp of its scaled scores.

    Args:
        q: ``[b, sq, hq, d]``, float16, bfloat16 or float32.
        k: ``[b, skv, hkv, d]``, hkv divides hq: query head h reads key head ``h // (hq // hkv)``.
        v: ``[b, skv, hkv, d]``.
        mask: ``full``, or ``causal``: query i sees key j where ``j <= i + skv - sq``.
        scale: Positive; ``1 / sqrt(d)`` unless given.
        configs: Tiles by kernel, in place of the table's.

    Returns:
        out ``[b, sq, hq, d]`` in the dtype of q, and lse ``[b, hq, sq]`` in float32 (natural logarithm, no gradient).
        A query without a live key has out 0 and lse ``-inf``.

    Raises:
        ValueError: For shapes, dtypes or a scale that do not fit together.
    """
    if not (q.ndim == k.ndim == v.ndim == 4 and k.shape == v.shape and q.shape[::3] == k.shape[::3]):
        shapes = f"{list(q.shape)}, {list(k.shape)} and {list(v.shape)}"
        raise ValueError(f"q must be [b, sq, hq, d] and k and v [b, skv, hkv, d], got {shapes}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must have one dtype, got {q.dtype}, {k.dtype} and {v.dtype}")
    if q.shape[2] % k.shape[2] or q.shape[3] > MAX_D:
        raise ValueError(f"hkv must divide hq and d be at most {MAX_D}, got {list(q.shape)} and {list(k.shape)}")
    scale = q.shape[3] ** -0.5 if scale is None else scale
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}: scale q instead")
    return Flash.apply(q, k, v, mask == "causal", scale, configs or {})


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: Mask = "full",
    scale: float | None = None,
    configs: Configs | None = None,
) -> torch.Tensor:
    """q ``[b, sq, hq, d]``, k and v ``[b, skv, hkv, d]`` to out ``[b, sq, hq, d]``; see `attention_with_lse`."""
    return attention_with_lse(q, k, v, mask=mask, scale=scale, configs=configs)[0]


def rejects(problem: Problem, device: torch.device, pass_: Pass) -> str | None:
    """Why these kernels cannot compute a problem on a device. Forward and backward take the same problems."""
    if problem.d != problem.dv:
        return f"d must equal dv, got d={problem.d} and dv={problem.dv}"
    if problem.d > MAX_D:
        return f"d must be at most {MAX_D}, got {problem.d}"
    if problem.scale is not None and problem.scale <= 0:
        return f"scale must be positive, got {problem.scale}"
    return triton_device.rejects(device)


VARIANT = Variant(
    name="triton_flash",
    summary="FlashAttention-2 in Triton: tiles and online softmax, deterministic backward",
    attention=attention,
    rejects=rejects,
    absent=triton_device.absent,
)
