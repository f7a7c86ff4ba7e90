"""The builds of triton_fa1: forward and backward, with the tiles that each dtype and head dim gets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Literal, get_args

import torch

from attnkit.ahead.build import Binary, Build
from attnkit.ahead.triton_compiler import absent, compile_kernel
from attnkit.ahead.triton_flash import ABSENT, MASKS, MODIFIERS, Modifier

__all__ = ["binary", "builds"]

Kernel = Literal["forward", "backward"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WHOLE = ("bf16", "fp32")
"""The dtypes that have a build for every head dim."""
HALF = ("fp16", 128)
"""The head dim that float16 is built for."""
DS = (64, 128, 256)
MANY = 128
"""Queries."""
OTHERS: dict[str, tuple[str, tuple[Modifier, ...]]] = {
    "window": ("band", ()),
    "documents": ("documents", ()),
    "prefix": ("prefix", ()),
    "boolean": ("boolean", ()),
    "window-softcap-alibi": ("band", ("softcap", "alibi")),
    "causal-varlen": ("causal", ("varlen",)),
}
"""The kind of mask and what modifies scores; a sink is no matter of the kernels."""
UNALIGNED = ((128, 16), (64, 32), (16, 128))
"""d and dv of packed sequences between whose rows there is a gap: backward has tiles of both widths on chip, and where
they share a place there has to be one way to read it; see triton_flash_tiles.py."""


def builds(arch: int) -> Iterator[Build]:
    """Every dtype and head dim with the causal mask, which needs more than none does, and one with the others."""
    sizes = [*itertools.product(WHOLE, DS), HALF]
    for kernel, (dtype, d) in itertools.product(get_args(Kernel), sizes):
        compiled = partial(binary, arch, kernel, dtype, d, "causal")
        yield Build(f"triton_fa1/{kernel}/{dtype}-d{d}-causal", arch, compiled, absent)
    for kernel, (form, (mask, modifiers)) in itertools.product(get_args(Kernel), OTHERS.items()):
        compiled = partial(binary, arch, kernel, "bf16", 128, mask, modifiers)
        yield Build(f"triton_fa1/{kernel}/bf16-d128-{form}", arch, compiled, absent)
    for d, dv in UNALIGNED:
        compiled = partial(binary, arch, "backward", "bf16", d, "full", ("varlen",), dv=dv, aligned=False)
        yield Build(f"triton_fa1/backward/bf16-d{d}-dv{dv}-full-varlen-unaligned", arch, compiled, absent)


def binary(
    arch: int, kernel: Kernel, dtype: str, d: int, mask: str, modifiers: tuple[Modifier, ...] = (),
    *, dv: int | None = None, aligned: bool = True,
) -> Binary:  # fmt: skip
    """Compile forward or backward, with the tiles of many queries, for strides that are multiples of 16 or any."""
    from attnkit.variants import triton_fa1_backward as backward
    from attnkit.variants import triton_fa1_kernel as forward

    dv = d if dv is None else dv
    if kernel == "forward":
        function, warps, width = forward.forward_kernel, 4, forward.padded
        block_m, block_n = forward.tiles(DTYPES[dtype], max(d, dv), MANY, mask)
    else:
        function, width = backward.backward_kernel, backward.width
        block_m, block_n, warps = backward.tiles(DTYPES[dtype], max(d, dv))
    constants: dict[str, object] = {
        "D": d, "DP": width(d), "DV": dv, "DVP": width(dv), "BM": block_m, "BN": block_n,
        "MASK": mask, "PRECISION": "tf32x3" if dtype == "fp32" else "ieee",
    }  # fmt: skip
    types = dict.fromkeys(("p_q", "p_k", "p_v", "p_out", "p_dout", "p_dk", "p_dv"), f"*{dtype}")
    types |= dict.fromkeys(("p_o", "p_m", "p_l", "p_dq", "p_lse2", "p_delta"), "*fp32")
    types |= MASKS[mask]
    for modifier in modifiers:
        types |= MODIFIERS[modifier]
    constants |= {name: None for name in ABSENT if name not in types}
    strides = () if aligned else tuple(name for name in function.arg_names if name.startswith("s_"))
    return compile_kernel(
        function, arch, types, constants, unaligned=("lower", "upper", *strides), num_warps=warps, num_stages=1
    )
