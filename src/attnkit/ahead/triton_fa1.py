"""The builds of triton_fa1: its one kernel, with the tiles that each dtype and head dim gets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch

from attnkit.ahead.build import Binary, Build
from attnkit.ahead.triton_compiler import compile_kernel
from attnkit.ahead.triton_flash import ABSENT, MASKS, MODIFIERS, Modifier

__all__ = ["binary", "builds"]

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
DS = (64, 128, 256)
MANY = 128
"""Queries."""
OTHERS: dict[str, tuple[str, tuple[Modifier, ...]]] = {
    "window": ("band", ()),
    "documents": ("documents", ()),
    "boolean": ("boolean", ()),
    "window-softcap-alibi": ("band", ("softcap", "alibi")),
    "causal-varlen": ("causal", ("varlen",)),
}
"""The kind of mask and what modifies scores; a sink is no matter of the kernel."""


def builds(arch: int) -> Iterator[Build]:
    """Every dtype and head dim with the causal mask, which needs more than none does, and one with the others."""
    for dtype, d in itertools.product(DTYPES, DS):
        yield Build(f"triton_fa1/forward/{dtype}-d{d}-causal", arch, partial(binary, arch, dtype, d, "causal"))
    for form, (mask, modifiers) in OTHERS.items():
        compiled = partial(binary, arch, "bf16", 128, mask, modifiers)
        yield Build(f"triton_fa1/forward/bf16-d128-{form}", arch, compiled)


def binary(arch: int, dtype: str, d: int, mask: str, modifiers: tuple[Modifier, ...] = ()) -> Binary:
    """Compile it, with the tiles of many queries."""
    from attnkit.variants.triton_fa1_kernel import forward_kernel, padded, tiles

    block_m, block_n = tiles(DTYPES[dtype], d, MANY, mask)
    constants: dict[str, object] = {
        "D": d, "DP": padded(d), "DV": d, "DVP": padded(d), "BM": block_m, "BN": block_n,
        "MASK": mask, "PRECISION": "tf32x3" if dtype == "fp32" else "ieee",
    }  # fmt: skip
    types = dict.fromkeys(("p_q", "p_k", "p_v", "p_out"), f"*{dtype}") | dict.fromkeys(("p_o", "p_m", "p_l"), "*fp32")
    types |= MASKS[mask]
    for modifier in modifiers:
        types |= MODIFIERS[modifier]
    constants |= {name: None for name in ABSENT if name not in types}
    return compile_kernel(
        forward_kernel, arch, types, constants, unaligned=("lower", "upper"), num_warps=4, num_stages=1
    )
