"""FlashAttention's first loop order (Dao et al., 2022, algorithms 1 and 4): keys outside, queries inside.

One program computes one head. It takes a tile of keys and values and walks over all queries with it; output, maximum
and sum of every row go back to memory and are read again for the next tile. So the scores never reach memory, but the
output does, once for each tile of keys, and heads are all the parallelism there is: the two things that
FlashAttention-2 turned around. Backward has the same order: dK and dV of a tile stay on chip, and dQ goes to memory and
back. There one program computes a key head with every query head that reads it, and so is deterministic.

Where a gradient is wanted, and nowhere else, inputs, output, maxima and sums are kept for it. The kernels are in
triton_fa1_kernel.py (forward) and triton_fa1_backward.py, masks and scores in attnkit/triton_scores.py: queries that
see none of a tile of keys are not visited with it.
"""

from __future__ import annotations

from typing import Any

import torch

from attnkit import triton_device
from attnkit.arguments import check_derivative, check_mask, check_modifiers, check_tensors
from attnkit.problem import Mask, Pass, Problem, Varlen
from attnkit.variant import FOR_PROMPTS, Variant

__all__ = ["VARIANT", "attention"]


MAX_D = 256
"""Largest head dim: a program holds a tile of whole rows."""


class Fa1(torch.autograd.Function):
    """Forward and backward as one operation of autograd."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sink: torch.Tensor | None, options: dict[str, Any]
    ) -> torch.Tensor:
        """Keep maximum and sum of every row, which are in memory as it is."""
        from attnkit.variants import triton_fa1_kernel

        out, m, l = triton_fa1_kernel.forward(q, k, v, sink=sink, **options)
        # what has no gradient is kept here, too: autograd sees to it that nobody changed it meanwhile
        ctx.save_for_backward(q, k, v, out, m, l, sink, options["alibi"])
        ctx.options = options
        return out

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Make dq, dk, dv and dsink."""
        from attnkit.variants import triton_fa1_backward

        check_derivative("triton_fa1")
        q, k, v, out, m, l, sink, _alibi = ctx.saved_tensors
        dout = contiguous_rows(dout)
        return *triton_fa1_backward.backward(q, k, v, out, m, l, dout, sink=sink, **ctx.options), None


def contiguous_rows(t: torch.Tensor) -> torch.Tensor:
    """``t [b, s, h, d]`` itself, or a copy where its last dimension is not contiguous."""
    return t if t.stride(3) == 1 else t.contiguous()


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
    varlen: Varlen | None = None,
) -> torch.Tensor:
    """Attention by tiles of keys.

    Args:
        q: ``[b, sq, hq, d]``, float16, bfloat16 or float32; d is at most 256.
        k: ``[b, skv, hkv, d]``, hkv divides hq: query head h reads key head ``h // (hq // hkv)``.
        v: ``[b, skv, hkv, dv]``, dv at most 256.
        mask: Any of mask.py; causal is aligned bottom-right.
        scale: ``1 / sqrt(d)`` unless given.
        softcap: Positive: scores stay between it and its negative.
        alibi: ``[hq]``, float32: what a key's score loses by its distance. No gradient.
        sink: ``[hq]``, float32: a logit that takes weight and has no value; with a gradient.
        varlen: The sequences that are packed into one batch; the mask is that of each.

    Returns:
        out ``[b, sq, hq, dv]``; 0 for a query without a live key.

    Raises:
        ValueError: For shapes, dtypes, devices, a mask or modifiers that do not fit together.
    """
    check_tensors(q, k, v)
    if max(q.shape[3], v.shape[3]) > MAX_D:
        raise ValueError(f"d and dv must be at most {MAX_D}, got {q.shape[3]} and {v.shape[3]}")
    check_mask(mask, q, k, varlen)
    check_modifiers(q, softcap, alibi, sink)
    q, k, v = map(contiguous_rows, (q, k, v))
    alibi, sink = (None if x is None else x.contiguous() for x in (alibi, sink))
    scale = q.shape[3] ** -0.5 if scale is None else scale
    options: dict[str, Any] = {"mask": mask, "scale": scale, "softcap": softcap, "alibi": alibi, "varlen": varlen}
    return Fa1.apply(q, k, v, sink, options)


def rejects(problem: Problem, device: torch.device, pass_: Pass) -> str | None:
    """Say why this variant cannot compute a problem on a device."""
    if max(problem.d, problem.dv) > MAX_D:
        return f"d and dv must be at most {MAX_D}, got {problem.d} and {problem.dv}"
    return triton_device.rejects(device, problem.torch_dtype)


VARIANT = Variant(
    name="triton_fa1",
    summary="FlashAttention's first loop order in Triton: keys outside, the output rescaled in memory",
    attention=attention,
    rejects=rejects,
    absent=triton_device.absent,
    lacks=FOR_PROMPTS | {"fp8": "weights are multiplied in the dtype of the inputs, unscaled"},
)
