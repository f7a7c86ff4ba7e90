"""FlashAttention's first loop order (Dao et al., FlashAttention, 2022, algorithm 1): keys outside, queries inside.

One program computes one head. It takes a tile of keys and values and walks over all queries with it; output, maximum
and sum of every row go back to memory and are read again for the next tile. So the scores never reach memory, but the
output does, once for each tile of keys, and heads are all the parallelism there is: the two things that
FlashAttention-2 turned around. Forward only. The kernel is in triton_fa1_kernel.py, masks and scores in
attnkit/triton_scores.py: queries that see none of a tile of keys are not visited with it.
"""

from __future__ import annotations

import torch

from attnkit import triton_device
from attnkit.arguments import check_mask, check_modifiers, check_tensors
from attnkit.problem import Mask, Pass, Problem, Varlen
from attnkit.variant import Feature, Variant

__all__ = ["VARIANT", "attention"]

CACHES: tuple[Feature, ...] = ("cache", "paged")

MAX_D = 256
"""Largest head dim: a program holds a tile of whole rows."""


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
        alibi: ``[hq]``, float32: what a key's score loses by its distance.
        sink: ``[hq]``, float32: a logit that takes weight and has no value.
        varlen: The sequences that are packed into one batch; the mask is that of each.

    Returns:
        out ``[b, sq, hq, dv]``; 0 for a query without a live key.

    Raises:
        ValueError: For shapes, dtypes, devices, a mask or modifiers that do not fit together.
    """
    from attnkit.variants import triton_fa1_kernel

    check_tensors(q, k, v)
    check_mask(mask, q, k, varlen)
    check_modifiers(q, softcap, alibi, sink)
    q, k, v = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k, v))
    alibi = None if alibi is None else alibi.contiguous()
    scale = q.shape[3] ** -0.5 if scale is None else scale
    return triton_fa1_kernel.forward(
        q, k, v, mask=mask, scale=scale, softcap=softcap, alibi=alibi, sink=sink, varlen=varlen
    )


def rejects(problem: Problem, device: torch.device, pass_: Pass) -> str | None:
    """Say why this variant cannot compute a problem on a device."""
    if max(problem.d, problem.dv) > MAX_D:
        return f"d and dv must be at most {MAX_D}, got {problem.d} and {problem.dv}"
    return triton_device.rejects(device)


VARIANT = Variant(
    name="triton_fa1",
    summary="FlashAttention's first loop order in Triton: keys outside, the output rescaled in memory",
    attention=attention,
    rejects=rejects,
    absent=triton_device.absent,
    lacks=dict.fromkeys(CACHES, "made for prompts: a cache is read by triton_splitkv")
    | {"fp8": "weights are multiplied in the dtype of the inputs, unscaled"},
    forward_only="has no backward: take triton_flash",
)
