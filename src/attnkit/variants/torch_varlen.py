"""Torch's varlen_attn: FlashAttention-2 on packed sequences, which scaled_dot_product_attention does not take.

Its layout is ours without the batch, offsets are FlashAttention's, and its causal mask, a window without keys behind
the diagonal, is aligned bottom-right within each sequence. It is for packed sequences alone, on CUDA, in 16 bits.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch

from attnkit import library_device
from attnkit.problem import Mask, Pass, Problem, Varlen, Window
from attnkit.variant import FEATURES, Variant

__all__ = ["VARIANT"]

MODULE = "torch.nn.attention.varlen"
MAX_D = 256
HAS = ("varlen", "window")


@functools.cache
def function() -> tuple[Callable[..., Any], frozenset[str]]:
    """Return torch's function, and the names of what it takes, which differ from release to release."""
    call = importlib.import_module(MODULE).varlen_attn
    return call, frozenset(inspect.signature(call).parameters)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    varlen: Varlen,
    mask: Mask = "full",
    scale: float | None = None,
) -> torch.Tensor:
    """Attention of packed sequences: q [1, sq, hq, d], k [1, skv, hkv, d], v [1, skv, hkv, d] to out [1, sq, hq, d]."""
    call, takes = function()
    window = (library_device.NO_BOUND, 0) if mask == "causal" else library_device.window(mask)
    options: dict[str, Any] = {"scale": scale, "window_size": window}
    if "enable_gqa" in takes:
        options["enable_gqa"] = q.shape[2] != k.shape[2]
    longest = max(varlen.queries), max(varlen.keys)
    out: torch.Tensor = call(q[0], k[0], v[0], *varlen.starts(q.device), *longest, **options)
    return out[None]


def absent() -> str | None:
    """Say that this torch has no such function, or an earlier one."""
    if importlib.util.find_spec(MODULE) is not None and {"scale", "window_size"} <= function()[1]:
        return None
    return f"torch {torch.__version__} has no varlen_attn with a scale and a window: install torch 2.11 or later"


def rejects(problem: Problem, device: torch.device, pass_: Pass) -> str | None:
    """Say why it cannot compute a problem on a device."""
    if problem.varlen is None:
        return "made for packed sequences alone: for others torch has scaled_dot_product_attention"
    if reason := library_device.rejects(problem, device):
        return reason
    if problem.d != problem.dv:
        return f"d must equal dv, got d={problem.d} and dv={problem.dv}"
    if problem.d > MAX_D or problem.d % 8:
        return f"d must be a multiple of 8 and at most {MAX_D}, got {problem.d}"
    if problem.group > 1 and "enable_gqa" not in function()[1]:
        return f"torch {torch.__version__} has no grouped heads here, got hq={problem.hq} and hkv={problem.hkv}"
    if isinstance(problem.mask, Window) and any(
        q > k for q, k in zip(problem.varlen.queries, problem.varlen.keys, strict=True)
    ):
        return "takes a side of a window that reaches past the longest keys for one without a bound: needs sq <= skv"
    return library_device.too_old(device)


VARIANT = Variant(
    name="torch_varlen",
    summary="torch's varlen_attn, FlashAttention-2 on packed sequences",
    attention=attention,
    rejects=rejects,
    absent=absent,
    lacks={feature: "torch's varlen_attn has full, causal and windows" for feature in FEATURES if feature not in HAS},
)
