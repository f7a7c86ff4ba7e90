"""FlashAttention-3, for Hopper (Shah et al., 2024), by the operators that its library registers with torch.

The library is looked for, in this order, in the file that the environment variable ATTNKIT_FLASH_ATTN_3 names, in the
package flash_attn_3, which is built in the folder ``hopper`` of github.com/Dao-AILab/flash-attention, and in xformers.
It is loaded by the first call, as a library: neither package is imported.

Its layout is ours, it takes grouped heads as they are, and its causal mask and windows are aligned bottom-right. Rows
without a live key give 0. Inputs that the copy engine cannot address (a last dim that is not contiguous, strides of 0
or of no whole 16 bytes) are copied first. With a few queries it splits keys as it likes, with more it does not.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from attnkit import library_device
from attnkit.problem import Mask, Pass, Problem, Varlen
from attnkit.variant import FEATURES, Feature, Variant

__all__ = ["VARIANT"]

NAMED = "ATTNKIT_FLASH_ATTN_3"
BUILT = (("flash_attn_3", "."), ("xformers", "flash_attn_3"))
"""Packages that bring the library, and where in them it is."""
MAX_D = 256
ALIGNED = 8
"""Elements: 16 bytes."""
MAX_DECODED = 8
"""Queries of a sequence with which the library chooses how often keys are split."""
LEAST_TILE = 64
"""Rows, keys and head dim of its smallest tile: pages of fewer keys, or for fewer rows, are gathered key by key."""

HAS = ("window", "varlen", "paged")
LACKS: dict[Feature, str] = {
    **{feature: "FlashAttention-3 has full, causal and windows" for feature in FEATURES if feature not in HAS},
    "fp8": "not built into this variant",
    "softcap": "a build may leave it out, as xformers' does, and does not say so",
    "cache": "it adds 0 times what is behind a length, which need not be a number",
}


class Lengths(NamedTuple):
    """Where sequences of different lengths begin or end, for the operators; all None of a batch of equal ones."""

    starts_q: torch.Tensor | None = None
    starts_k: torch.Tensor | None = None
    used_k: torch.Tensor | None = None
    longest_q: int | None = None
    longest_k: int | None = None
    table: torch.Tensor | None = None


class Scores(NamedTuple):
    """What becomes of Q Kᵀ: scale, and keys that are seen before and behind the diagonal."""

    scale: float | None
    causal: bool
    left: int
    right: int


def library() -> Path | None:
    """Return the library's file; None if there is none. Nothing is imported."""
    if named := os.environ.get(NAMED):
        return Path(named) if Path(named).is_file() else None
    for package, inside in BUILT:
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            if found := sorted(Path(folder, inside).glob("_C*.so")):
                return found[0]
    return None


@functools.cache
def operators() -> Any:
    """Load the library and return its operators, ``fwd`` and ``bwd``.

    Raises:
        OSError: If it cannot be loaded, with the remedy.
    """
    path = library()
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        remedy = "put the CUDA run time that it was linked with on LD_LIBRARY_PATH before Python starts"
        raise OSError(f"{path} cannot be loaded ({error.__cause__ or error}): {remedy}") from error
    return torch.ops.flash_attn_3


def reachable(x: torch.Tensor) -> torch.Tensor:
    """Return x, or a copy that the copy engine can address."""
    *strides, last = x.stride()
    if last == 1 and x.data_ptr() % 16 == 0 and all(stride > 0 and stride % ALIGNED == 0 for stride in strides):
        return x
    return x.clone(memory_format=torch.contiguous_format)


class Passes(torch.autograd.Function):
    """Forward and backward by the operators: [b, s, h, d], or [all, h, d] where lengths say where sequences begin."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        lengths: Lengths,
        scores: Scores,
        splits: int,
    ) -> torch.Tensor:
        """Compute out; splits is 0 where the library is to choose."""
        q, k, v = (reachable(x) for x in (q, k, v))
        out: torch.Tensor
        out, lse, *_ = operators().fwd(
            q,
            k,
            v,
            cu_seqlens_q=lengths.starts_q,
            cu_seqlens_k=lengths.starts_k,
            seqused_k=lengths.used_k,
            max_seqlen_q=lengths.longest_q,
            max_seqlen_k=lengths.longest_k,
            page_table=lengths.table,
            softmax_scale=scores.scale,
            is_causal=scores.causal,
            window_size_left=scores.left,
            window_size_right=scores.right,
            num_splits=splits,
        )
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.lengths, ctx.scores = lengths, scores
        return out

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Compute dq, dk and dv from the log-sum-exp of the rows."""
        q, k, v, out, lse = ctx.saved_tensors
        lengths, scores = ctx.lengths, ctx.scores
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        operators().bwd(
            reachable(dout),
            q,
            k,
            v,
            out,
            lse,
            dq,
            dk,
            dv,
            cu_seqlens_q=lengths.starts_q,
            cu_seqlens_k=lengths.starts_k,
            max_seqlen_q=lengths.longest_q,
            max_seqlen_k=lengths.longest_k,
            softmax_scale=scores.scale,
            is_causal=scores.causal,
            window_size_left=scores.left,
            window_size_right=scores.right,
        )
        return dq, dk, dv, None, None, None


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: Mask = "full",
    scale: float | None = None,
    varlen: Varlen | None = None,
    lengths: torch.Tensor | None = None,
    table: torch.Tensor | None = None,
) -> torch.Tensor:
    """FlashAttention-3: q [b, sq, hq, d], k [b, skv, hkv, d], v [b, skv, hkv, dv] to out [b, sq, hq, dv].

    With a table, k and v are pages, [pages, page, hkv, ·].
    """
    scores = Scores(scale, mask == "causal", *library_device.window(mask))
    if varlen is not None:
        longest = max(varlen.queries), max(varlen.keys)
        packed = Lengths(*varlen.starts(q.device), None, *longest)
        out: torch.Tensor = Passes.apply(q[0], k[0], v[0], packed, scores, 1)
        return out[None]
    splits = 0 if q.shape[1] <= MAX_DECODED else 1
    out = Passes.apply(q, k, v, Lengths(used_k=lengths, table=table), scores, splits)
    return out


def absent() -> str | None:
    """Say that the library is missing. Only its presence is looked at: loading it takes a GPU's driver."""
    if library() is not None:
        return None
    if named := os.environ.get(NAMED):
        return f"{NAMED} names no file: {named}"
    return (
        "no library of FlashAttention-3 was found: build the package flash_attn_3 (hopper/ of "
        f"github.com/Dao-AILab/flash-attention), install xformers, or name the library's file in {NAMED}"
    )


def rejects(problem: Problem, device: torch.device, pass_: Pass) -> str | None:
    """Say why the library cannot compute a problem on a device."""
    if reason := library_device.rejects(problem, device):
        return reason
    d, dv = problem.d, problem.dv
    if d % ALIGNED or dv % ALIGNED:
        return f"d and dv must be multiples of {ALIGNED}, got d={d} and dv={dv}"
    if d > MAX_D:
        return f"d must be at most {MAX_D}, got {d}"
    if d != dv and not (128 < d <= 192 and 96 < dv <= 128) and not (d <= 64 and dv <= 512):
        return f"d other than dv must be above 128 to 192 with dv above 96 to 128, or d to 64, got d={d} and dv={dv}"
    if pass_ != "fwd" and dv > MAX_D:
        return f"dv must be at most {MAX_D} for gradients, got {dv}"
    rows, page = problem.sq * problem.group, problem.cache.page if problem.cache is not None else None
    if page is not None and page >= LEAST_TILE and rows > LEAST_TILE:
        return f"pages of {page} keys may be loaded whole, and 0 times what is behind a length need not be a number"
    if page is not None and d < dv <= LEAST_TILE:
        return f"of pages it gathers values no wider than keys where one tile is wide enough for both, got {d} and {dv}"
    major, minor = torch.cuda.get_device_capability(device)
    return None if (major, minor) == (9, 0) else f"needs compute capability 9.0, got {major}.{minor}"


VARIANT = Variant(
    name="flash_attn_3",
    summary="FlashAttention-3, by the operators of its library",
    attention=attention,
    rejects=rejects,
    absent=absent,
    lacks=LACKS,
)
