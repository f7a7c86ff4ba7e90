"""Transformer Engine's DotProductAttention, behind the same call as every other variant.

Written from its sources of version 2.20; its parity tests run where it is installed. It computes by flash-attn where
that is installed, by cuDNN, or unfused, whichever it takes for a problem: what is timed is its choice.

It is a module without parameters, kept by its configuration. Its layout is ours, with the heads of out side by side; it
takes grouped heads as they are. Causal is aligned top-left there, causal_bottom_right as ours.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import torch

from attnkit import library_device
from attnkit.problem import Mask, Pass, Problem, Varlen, Window
from attnkit.variant import FEATURES, Feature, Variant

__all__ = ["VARIANT"]

REMEDY = "pip install --no-build-isolation transformer-engine[pytorch]"
MAX_D = 256
HAS = ("causal-top-left", "window", "varlen")
LACKS: dict[Feature, str] = {feature: "not built into this variant" for feature in FEATURES if feature not in HAS}


@functools.lru_cache(maxsize=256)
def module(**configuration: Any) -> Any:
    """Return the module of a configuration."""
    from transformer_engine.pytorch import DotProductAttention

    return DotProductAttention(**configuration)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: Mask = "full",
    scale: float | None = None,
    varlen: Varlen | None = None,
) -> torch.Tensor:
    """Transformer Engine: q [b, sq, hq, d], k [b, skv, hkv, d], v [b, skv, hkv, dv] to out [b, sq, hq, dv]."""
    (b, sq, hq, d), (_, skv, hkv, dv) = q.shape, v.shape
    alike = sq == skv if varlen is None else varlen.queries == varlen.keys
    compute = module(
        num_attention_heads=hq,
        kv_channels=(d, dv),
        num_gqa_groups=hkv,
        qkv_format="bshd" if varlen is None else "thd",
        attn_mask_type=mask_type(mask, alike, packed=varlen is not None),
        window_size=(mask.left, mask.right) if isinstance(mask, Window) else None,
        attention_type="self" if alike else "cross",
        softmax_scale=scale,
    )
    out: torch.Tensor
    if varlen is None:
        out = compute(q, k, v)
    else:
        starts = varlen.starts(q.device)
        out = compute(
            q[0],
            k[0],
            v[0],
            cu_seqlens_q=starts.queries,
            cu_seqlens_kv=starts.keys,
            max_seqlen_q=max(varlen.queries),
            max_seqlen_kv=max(varlen.keys),
            pad_between_seqs=False,
        )
    return out.view(b, sq, hq, dv)


def mask_type(mask: Mask, alike: bool, packed: bool) -> str:
    """Return a mask by its name there. Where all sizes are alike both diagonals are one, and more takes top-left."""
    if mask == "full" or (isinstance(mask, Window) and mask.right):
        return "padding" if packed else "no_mask"
    aligned = "causal" if alike or mask == "causal-top-left" else "causal_bottom_right"
    return f"padding_{aligned}" if packed else aligned


def absent() -> str | None:
    """Say that the package is missing. Only its presence is looked at: importing it takes seconds and needs a GPU."""
    # find_spec("transformer_engine.pytorch") would import transformer_engine
    spec = importlib.util.find_spec("transformer_engine")
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    places = [place for folder in folders for place in (folder / "wheel_lib", folder, folder.parent)]
    if any(next(place.glob("transformer_engine_torch*.so"), None) for place in places):
        return None
    return f"the package transformer-engine is not installed with its part for torch: {REMEDY}"


def rejects(problem: Problem, device: torch.device, pass_: Pass) -> str | None:
    """Say why the package cannot compute a problem on a device."""
    if reason := library_device.rejects(problem, device):
        return reason
    d, dv = problem.d, problem.dv
    if max(d, dv) > MAX_D or d % 8 or dv % 8:
        return f"d and dv must be multiples of 8 and at most {MAX_D}, got d={d} and dv={dv}"
    if isinstance(problem.mask, Window) and None in (problem.mask.left, problem.mask.right):
        return f"a window must have both bounds, got {problem.mask}"
    for sq, skv in problem.varlen or ((problem.sq, problem.skv),):
        if sq == 0 or skv == 0:
            return f"sequences without queries or keys are not known to work, got {sq} queries on {skv} keys"
        if skv < sq and problem.mask not in ("full", "causal-top-left"):
            return f"rows that see no key are not known to be answered with 0, got {sq} queries on {skv} keys"
    return library_device.too_old(device)


VARIANT = Variant(
    name="transformer_engine",
    summary="Transformer Engine's DotProductAttention, by the kernels that it chooses",
    attention=attention,
    rejects=rejects,
    absent=absent,
    lacks=LACKS,
)
