"""FlashAttention-4, written in CuTe DSL (PyPI's flash-attn-4), behind the same call as every other variant.

It lives in ``flash_attn.cute``, beside FlashAttention-2 or without it: they share the name of a package. It compiles
each configuration (head dims, mask, packing, modifier, not lengths) when it is first called, which takes seconds. Its
layout is ours, it takes grouped heads as they are, and its causal mask and windows are aligned bottom-right. Rows
without a live key give 0.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from attnkit import library_device
from attnkit.problem import Mask, Pass, Problem, Varlen, Window
from attnkit.variant import FEATURES, Feature, Variant

__all__ = ["VARIANT"]

MAX_D = 256
ALIGNED = 8
LEAST_D_BACKWARD = 64
"""In 4.0.0b36 gradients of d = 16 and d = 40 are wrong on an H200, and those of d = 64 and more right."""
APART = ((192, 128), (128, 64))
"""Head dims d and dv that differ, and that its authors' tests have."""
APART_BACKWARD = ((192, 128),)
"""Those of them whose gradients are right on an H200: of (128, 64) dq and dk are wrong there in 4.0.0b36."""

HAS = ("window", "softcap", "sink", "varlen")
BEHIND = "it adds 0 times what is behind a length, which need not be a number"
LACKS: dict[Feature, str] = {
    **{
        feature: "FlashAttention-4 takes it as a function in CuTe DSL, which this variant does not write"
        for feature in FEATURES
        if feature not in HAS
    },
    "fp8": "not built into this variant",
    "cache": BEHIND,
    "paged": BEHIND,
}


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: Mask = "full",
    scale: float | None = None,
    softcap: float | None = None,
    sink: torch.Tensor | None = None,
    varlen: Varlen | None = None,
) -> torch.Tensor:
    """FlashAttention-4: q [b, sq, hq, d], k [b, skv, hkv, d], v [b, skv, hkv, dv] to out [b, sq, hq, dv]."""
    from flash_attn.cute import flash_attn_func, flash_attn_varlen_func

    options: dict[str, Any] = {"softmax_scale": scale, "causal": mask == "causal", "learnable_sink": sink}
    if isinstance(mask, Window):
        options["window_size"] = (mask.left, mask.right)
    if softcap is not None:
        options["softcap"] = softcap
    out: torch.Tensor
    if varlen is None:
        out = flash_attn_func(q, k, v, **options)[0]
        return out
    starts = varlen.starts(q.device)
    options |= {"cu_seqlens_q": starts.queries, "cu_seqlens_k": starts.keys}
    options |= {"max_seqlen_q": max(varlen.queries), "max_seqlen_k": max(varlen.keys)}
    out = flash_attn_varlen_func(q[0], k[0], v[0], **options)[0]
    return out[None]


def absent() -> str | None:
    """Say which package is missing. Only their presence is looked at: importing them takes seconds and needs a GPU."""
    # find_spec("flash_attn.cute") would import FlashAttention-2 where that is installed
    spec = importlib.util.find_spec("flash_attn")
    folders = (spec and spec.submodule_search_locations) or ()
    if not any(Path(folder, "cute", "interface.py").is_file() for folder in folders):
        return "the package flash-attn-4 is not installed: pip install flash-attn-4"
    if importlib.util.find_spec("cutlass") is None:
        return "flash_attn.cute is there, nvidia-cutlass-dsl is not: pip install flash-attn-4"
    return None


def rejects(problem: Problem, device: torch.device, pass_: Pass) -> str | None:
    """Say why the package cannot compute a problem on a device."""
    if reason := library_device.rejects(problem, device):
        return reason
    d, dv = problem.d, problem.dv
    if d != dv and (d, dv) not in APART:
        return f"d other than dv is known to work for {' and '.join(map(str, APART))}, got d={d} and dv={dv}"
    if d != dv and pass_ != "fwd" and (d, dv) not in APART_BACKWARD:
        return f"its gradients are wrong on Hopper where d is {d} and dv {dv}"
    if d != dv and pass_ != "fwd" and problem.group > 1:
        return f"gradients of grouped heads need d to equal dv, got d={d} and dv={dv}"
    if d > MAX_D or d % ALIGNED:
        return f"d must be a multiple of {ALIGNED} and at most {MAX_D}, got {d}"
    if pass_ != "fwd" and min(d, dv) < LEAST_D_BACKWARD:
        return f"its gradients are wrong on Hopper for d below {LEAST_D_BACKWARD}, got d={d} and dv={dv}"
    major, minor = torch.cuda.get_device_capability(device)
    return None if (major, minor) == (9, 0) else f"is known to work on compute capability 9.0, got {major}.{minor}"


VARIANT = Variant(
    name="flash_attn_4",
    summary="FlashAttention-4 in CuTe DSL, from the flash-attn-4 package",
    attention=attention,
    rejects=rejects,
    absent=absent,
    lacks=LACKS,
)
