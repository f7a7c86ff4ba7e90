"""The flash-attn package, FlashAttention-2 by its authors (Dao, 2023), behind the same call as every other variant.

Its layout is ours, it takes grouped heads as they are, and since version 2.1 its causal mask is aligned bottom-right.
Rows without a live key give 0. FlashAttention-4 may be installed under the same name and without it.
"""

from __future__ import annotations

import importlib.util

import torch

from attnkit import library_device
from attnkit.problem import Mask, Pass, Problem, Varlen
from attnkit.variant import FEATURES, Variant

__all__ = ["VARIANT"]

MAX_D = 256


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: Mask = "full",
    scale: float | None = None,
    varlen: Varlen | None = None,
) -> torch.Tensor:
    """FlashAttention-2: q [b, sq, hq, d], k [b, skv, hkv, d], v [b, skv, hkv, d] to out [b, sq, hq, d]."""
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    options = {"softmax_scale": scale, "causal": mask == "causal"}
    out: torch.Tensor
    if varlen is None:
        out = flash_attn_func(q, k, v, **options)
        return out
    longest = max(varlen.queries), max(varlen.keys)
    out = flash_attn_varlen_func(q[0], k[0], v[0], *varlen.starts(q.device), *longest, **options)
    return out[None]


def absent() -> str | None:
    """Say that the package is missing. Only its presence is looked at: importing it takes seconds and needs a GPU."""
    spec = importlib.util.find_spec("flash_attn")
    if spec is None or spec.origin is None:  # a folder without __init__.py, in which flash-attn-4 has flash_attn.cute
        return "the package flash-attn is not installed: pip install flash-attn --no-build-isolation"
    return None


def rejects(problem: Problem, device: torch.device, pass_: Pass) -> str | None:
    """Say why the package cannot compute a problem on a device."""
    if reason := library_device.rejects(problem, device):
        return reason
    if problem.d != problem.dv:
        return f"d must equal dv, got d={problem.d} and dv={problem.dv}"
    if problem.d > MAX_D:
        return f"d must be at most {MAX_D}, got {problem.d}"
    if problem.d % 8:
        return f"d must be a multiple of 8 (the package would copy q, k and v to pad them), got {problem.d}"
    return library_device.too_old(device)


VARIANT = Variant(
    name="flash_attn",
    summary="FlashAttention-2 from the flash-attn package",
    attention=attention,
    rejects=rejects,
    absent=absent,
    lacks={feature: "not built into this variant" for feature in FEATURES if feature != "varlen"},
)
