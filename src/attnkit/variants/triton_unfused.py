"""Fusion alone: one Triton kernel makes P = softmax(Q Kᵀ · scale, over live keys), then a matrix product out = P V.

It is the step between the textbook and FlashAttention: scores and mask never reach memory, but P does,
``[b, hq, sq, skv]`` in the dtype of the inputs, so memory and traffic still grow with sq · skv. The kernel is in
triton_unfused_kernel.py.

Backward is the explicit formula on the saved P, in torch's operations; it materialises dP and dS as well:

    dV = Pᵀ dO        dP = dO Vᵀ        dS = P · (dP - rowsum(P · dP)) · scale        dQ = dS K        dK = dSᵀ Q

The derivative of a capped score the kernel writes beside P, and the weight of a sink, whose gradient is minus the sum
over rows of weight times rowsum(P · dP).

Inputs may have any strides; q and k are copied first where their last dimension is not contiguous. The matrix products
see the queries of a group of heads as the rows of one matrix, so K and V are never repeated. float32 scores are three
tf32 products (``tf32x3``), as accurate as float32.
"""

from __future__ import annotations

from typing import Any

import torch

from attnkit import triton_device
from attnkit.arguments import check_derivative, check_mask, check_modifiers, check_tensors
from attnkit.problem import Mask, Pass, Problem
from attnkit.variant import Feature, Variant

__all__ = ["VARIANT", "attention"]

BATCHES: tuple[Feature, ...] = ("varlen", "cache", "paged")

MAX_D = 256
"""Largest head dim: a program of the kernel holds whole rows of Q."""


def by_group(t: torch.Tensor, hkv: int) -> torch.Tensor:
    """Turn ``[b, hq, s, ·]`` into ``[b, hkv, group · s, ·]``: the query heads of a key head under each other."""
    return t.reshape(t.shape[0], hkv, t.shape[1] // hkv * t.shape[2], t.shape[3])


class Unfused(torch.autograd.Function):
    """Forward and backward on a saved P."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sink: torch.Tensor | None, options: dict[str, Any]
    ) -> torch.Tensor:
        """Make P by the kernel and out by a product."""
        from attnkit.variants.triton_unfused_kernel import probabilities

        q, k = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k))
        b, sq, hq, _ = q.shape
        p, bend, weight = probabilities(q, k, sink=sink, bends=any(ctx.needs_input_grad), **options)
        ctx.save_for_backward(q, k, v, p, bend, weight)
        ctx.scale = options["scale"]
        out = by_group(p, k.shape[2]) @ v.transpose(1, 2)
        return out.view(b, hq, sq, v.shape[3]).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Make dq, dk, dv and dsink from P; dS is rounded to the dtype of q for its products, as P was."""
        check_derivative("triton_unfused")
        q, k, v, p, bend, weight = ctx.saved_tensors
        b, sq, hq, d = q.shape
        q, p, dout = (by_group(t, k.shape[2]) for t in (q.transpose(1, 2), p, dout.transpose(1, 2)))
        k, v = k.transpose(1, 2), v.transpose(1, 2)  # [b, hkv, skv, ·]
        dv = p.mT @ dout
        dp = (dout @ v.mT).float()
        inner = (p * dp).sum(-1, keepdim=True)
        ds = p * (dp - inner) * ctx.scale
        ds = (ds if bend is None else ds * by_group(bend, k.shape[1])).to(q.dtype)
        dq = (ds @ k).view(b, hq, sq, d)
        dk = ds.mT @ q
        dsink = None if weight is None else -(weight * inner.view(b, hq, sq)).sum((0, 2))
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), dsink, None


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: Mask = "full",
    scale: float | None = None,
    softcap: float | None = None,
    alibi: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention that writes P to memory.

    Args:
        q: ``[b, sq, hq, d]``, float16, bfloat16 or float32; d is at most 256.
        k: ``[b, skv, hkv, d]``, hkv divides hq: query head h reads key head ``h // (hq // hkv)``.
        v: ``[b, skv, hkv, dv]``.
        mask: Any of mask.py; causal is aligned bottom-right.
        scale: ``1 / sqrt(d)`` unless given.
        softcap: Positive: scores stay between it and its negative. Backward then reads a second tensor of P's size.
        alibi: ``[hq]``, float32: what a key's score loses by its distance. No gradient.
        sink: ``[hq]``, float32: a logit that takes weight and has no value; with a gradient.

    Returns:
        out ``[b, sq, hq, dv]``; 0 for a query without a live key.

    Raises:
        ValueError: For shapes, dtypes, devices, a mask or modifiers that do not fit together.
    """
    check_tensors(q, k, v)
    if q.shape[3] > MAX_D:
        raise ValueError(f"d must be at most {MAX_D}, got {q.shape[3]}")
    check_mask(mask, q, k)
    check_modifiers(q, softcap, alibi, sink)
    alibi, sink = (None if x is None else x.contiguous() for x in (alibi, sink))
    scale = q.shape[3] ** -0.5 if scale is None else scale
    return Unfused.apply(q, k, v, sink, {"mask": mask, "scale": scale, "softcap": softcap, "alibi": alibi})


def rejects(problem: Problem, device: torch.device, pass_: Pass) -> str | None:
    """Say why this variant cannot compute a problem on a device."""
    if problem.d > MAX_D:
        return f"d must be at most {MAX_D}, got {problem.d}"
    return triton_device.rejects(device, problem.torch_dtype)


VARIANT = Variant(
    name="triton_unfused",
    summary="softmax(Q Kᵀ) in one Triton kernel that writes P to memory, then a matrix product with V",
    attention=attention,
    rejects=rejects,
    absent=triton_device.absent,
    lacks=dict.fromkeys(BATCHES, "P is one tensor, of sequences of one length")
    | {"fp8": "P is made for backward, too"},
)
