"""FlashInfer, attention as servers of language models call it (Ye et al., 2025), from the package flashinfer-python.

Written from its sources of versions 0.6.18 and 0.7.2; its parity tests run where it is installed. It compiles each
configuration (dtype, head dims, whether there is a window or a softcap) when that is first planned, which takes long.

A call is a plan, which is made on the host, and a run. As in a server, whose layers all run what was planned once for
a step, a plan is kept: for packed sequences and batches by their sizes, on a cache by the tensor of lengths and the
table, for as long as torch knows nothing of a change in them. So the call that is timed is the run, and a CUDA graph
captures that. It replays the lengths of its plan: what changes them in a graph has to capture another.

Batches of one length are packed, and copied where they do not lie so. A contiguous cache is one of long pages; of what
is behind a length no value is loaded, and no score counts. Its kernels for prompts are taken for few queries, too, as
its decoding on tensor cores does. Calls share a workspace, so they follow each other on one stream.
"""

from __future__ import annotations

import functools
import importlib.util
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from attnkit import library_device
from attnkit.problem import Mask, Pass, Problem, Varlen, Window
from attnkit.variant import FEATURES, Feature, Variant

__all__ = ["VARIANT"]

DIMS = ((64, 64), (128, 128), (256, 256), (192, 128))
"""Head dims d and dv that its kernels for prompts have on every GPU."""
PAGED_DIMS = DIMS[:3]
WORKSPACE = 128 * 2**20
"""Bytes, which its documentation recommends."""
HAS = ("window", "softcap", "varlen", "cache", "paged")
LACKS: dict[Feature, str] = {
    **{feature: "not built into this variant" for feature in FEATURES if feature not in HAS},
    "alibi": "FlashInfer computes slopes itself and takes none, and keys behind the diagonal gain by their distance",
}


class Plan(NamedTuple):
    """What a plan is told beside lengths, by FlashInfer's names."""

    num_qo_heads: int
    num_kv_heads: int
    head_dim_qk: int
    head_dim_vo: int
    causal: bool
    window_left: int
    logits_soft_cap: float | None
    sm_scale: float | None
    q_data_type: torch.dtype


CACHED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""For each tensor of lengths that lives what was planned last, the table, and the wrapper that has the plan."""


@functools.cache
def workspace(device: torch.device) -> torch.Tensor:
    """Return the memory in which parts of a result lie during a run."""
    return torch.empty(WORKSPACE, dtype=torch.uint8, device=device)


def starts(lengths: tuple[int, ...]) -> torch.Tensor:
    """Return where sequences begin, and where the last one ends, on the host: plans are made there."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


@functools.lru_cache(maxsize=32)  # each has 8 MiB of the GPU's memory; a graph is not to outlive its plan
def packed(varlen: Varlen, plan: Plan, device: torch.device) -> Any:
    """Return a wrapper that has the plan for packed sequences."""
    from flashinfer import BatchPrefillWithRaggedKVCacheWrapper

    wrapper = BatchPrefillWithRaggedKVCacheWrapper(workspace(device), "NHD")
    wrapper.plan(starts(varlen.queries), starts(varlen.keys), **plan._asdict())
    return wrapper


def cached(sq: int, page: int, plan: Plan, lengths: torch.Tensor, table: torch.Tensor | None) -> Any:
    """Return a wrapper that has the plan for so many queries on each sequence of a cache."""
    from flashinfer import BatchPrefillWithPagedKVCacheWrapper

    version = lengths._version, None if table is None else table._version
    kept = CACHED.get(lengths)
    asked = (sq, version, page, plan)
    if kept is not None and kept[0] == asked and kept[1] is table:
        return kept[2]
    keys = lengths.tolist()
    pages = [[n] for n in range(len(keys))] if table is None else table.tolist()
    used = [row[: -(-length // page)] for row, length in zip(pages, keys, strict=True)]
    wrapper = BatchPrefillWithPagedKVCacheWrapper(workspace(lengths.device), "NHD")
    wrapper.plan(
        starts((sq,) * len(keys)),
        starts(tuple(len(row) for row in used)),
        torch.tensor(list(chain.from_iterable(used)), dtype=torch.int32),
        torch.tensor([(length - 1) % page + 1 for length in keys], dtype=torch.int32),
        page_size=page,
        **plan._asdict(),
    )
    CACHED[lengths] = asked, table, wrapper
    return wrapper


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: Mask = "full",
    scale: float | None = None,
    softcap: float | None = None,
    varlen: Varlen | None = None,
    lengths: torch.Tensor | None = None,
    table: torch.Tensor | None = None,
) -> torch.Tensor:
    """FlashInfer: q [b, sq, hq, d], k [b, skv, hkv, d], v [b, skv, hkv, dv] to out [b, sq, hq, dv].

    With a table, k and v are pages, [pages, page, hkv, ·].
    """
    (b, sq, hq, d), (_, skv, hkv, dv) = q.shape, v.shape
    left, _ = library_device.window(mask)  # it ends at the diagonal, as the causal mask does
    plan = Plan(hq, hkv, d, dv, mask != "full", left, softcap, scale, q.dtype)
    rows = q.reshape(b * sq, hq, d)
    out: torch.Tensor
    if lengths is not None:
        out = cached(sq, skv, plan, lengths, table).run(rows, (k, v))
    else:
        sequences = varlen or Varlen((sq,) * b, (skv,) * b)
        wrapper = packed(sequences, plan, q.device)
        out = wrapper.run(rows, k.reshape(-1, hkv, d), v.reshape(-1, hkv, dv))
    return out.view(b, sq, hq, dv)


def absent() -> str | None:
    """Say that the package is missing. Only its presence is looked at: importing it takes seconds."""
    if importlib.util.find_spec("flashinfer") is None:
        return "the package flashinfer-python is not installed: pip install flashinfer-python"
    return None


def rejects(problem: Problem, device: torch.device, pass_: Pass) -> str | None:
    """Say why the package cannot compute a problem on a device."""
    if reason := library_device.rejects(problem, device):
        return reason
    dims = DIMS if problem.cache is None else PAGED_DIMS
    if (problem.d, problem.dv) not in dims:
        return f"d and dv must be one of {', '.join(map(str, dims))}, got d={problem.d} and dv={problem.dv}"
    if isinstance(problem.mask, Window) and problem.mask.right != 0:
        return f"a window must end at the diagonal (right=0), got {problem.mask}"
    for sq, skv in problem.sequences or ((problem.sq, problem.skv),):
        if sq == 0 or skv < (1 if problem.mask == "full" else sq):
            return (
                "its tests have neither sequences without queries or keys, nor fewer keys than queries under a causal "
                f"mask or a window, got {sq} queries on {skv} keys"
            )
    return library_device.too_old(device)


VARIANT = Variant(
    name="flashinfer",
    summary="FlashInfer, from the flashinfer-python package, forward only",
    attention=attention,
    rejects=rejects,
    absent=absent,
    lacks=LACKS,
    forward_only="made for inference: it has no backward",
)
