"""The builds of triton_splitkv as a decoder calls it: one query, lengths on the device, with and without pages."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch

from attnkit.ahead.build import Binary, Build
from attnkit.ahead.triton_compiler import absent, compile_kernel
from attnkit.ahead.triton_flash import MASKS
from attnkit.variants.triton_splitkv_tiles import FEW_ROWS, HOPPER, split_form, whole_form

__all__ = ["binary", "builds"]

DS = (64, 128)
ROWS = (1, 8, 32)
"""Query heads of a key head, which are the rows of a tile."""
PAGES = (0, 16)
"""Keys a page; 0 is a cache without pages."""
OPTIONAL = ("lower", "upper", "scale_cap", "cap_log2", "p_slope", "p_sink")
"""None where neither mask nor modifiers need them."""


def builds(arch: int) -> Iterator[Build]:
    """A kernel for each head dim, group of heads and kind of cache."""
    for d, rows, page in itertools.product(DS, ROWS, PAGES):
        name = f"triton_splitkv/decode/bf16-d{d}-rows{rows}-page{page}"
        yield Build(name, arch, partial(binary, arch, "bf16", d, rows, page), absent)
        if rows <= FEW_ROWS and arch == 10 * HOPPER:
            yield Build(f"{name}-whole", arch, partial(binary, arch, "bf16", d, rows, page, whole=True), absent)
    name = "triton_splitkv/decode/bf16-d128-rows8-page16-window-softcap-alibi-sink"
    yield Build(name, arch, partial(binary, arch, "bf16", 128, 8, 16, "band", modified=True), absent)
    name = "triton_splitkv/decode/bf16-d128-rows8-page0-boolean"
    yield Build(name, arch, partial(binary, arch, "bf16", 128, 8, 0, "boolean"), absent)
    name = "triton_splitkv/decode/bf16-d128-rows8-page0-prefix"
    yield Build(name, arch, partial(binary, arch, "bf16", 128, 8, 0, "prefix"), absent)
    yield Build("triton_splitkv/decode/bf16-d256-rows8-page16", arch, partial(binary, arch, "bf16", 256, 8, 16), absent)
    for rows in ROWS[:2]:
        name = f"triton_splitkv/decode/fp16-d128-rows{rows}-page16"
        yield Build(name, arch, partial(binary, arch, "fp16", 128, rows, 16), absent)
    yield Build("triton_splitkv/combine/fp16-d128", arch, partial(combining, arch, "fp16", 128), absent)
    for d in DS:
        yield Build(f"triton_splitkv/combine/bf16-d{d}", arch, partial(combining, arch, "bf16", d), absent)


def binary(
    arch: int, dtype: str, d: int, rows: int, page: int, mask: str = "causal",
    *, modified: bool = False, whole: bool = False,
) -> Binary:  # fmt: skip
    """Compile it, plain or with all that modifies scores, for keys split or whole; a boolean mask has no lengths."""
    from attnkit.variants.triton_splitkv_kernel import splitkv_kernel, tiles

    form = whole_form(torch.bfloat16, rows, d, d, arch // 10) if whole else None
    form = form or split_form(torch.bfloat16, rows, d, d)
    constants: dict[str, object] = tiles(form, 1, rows, d, d) | {
        "PAGE": page, "MASK": mask, "HAS_LENGTHS": mask != "boolean", "PRECISION": "ieee",
        "APART": form.apart, "EARLY": form.apart and arch >= 90,
    }  # fmt: skip
    types = {name: f"*{dtype}" for name in splitkv_kernel.arg_names if name.startswith("p_")}
    types |= dict.fromkeys(("p_lengths", "p_table", "p_arrived"), "*i32") | {"p_partial": "*fp32"}
    optional = dict(MASKS[mask])
    if modified:
        optional |= {"scale_cap": "fp32", "cap_log2": "fp32", "p_slope": "*fp32", "p_sink": "*fp32"}
    types |= optional
    constants |= {name: None for name in OPTIONAL if name not in optional}
    warps, stages = form.warps, form.stages
    return compile_kernel(
        splitkv_kernel, arch, types, constants, unaligned=("s_tb",), num_warps=warps, num_stages=stages
    )


def combining(arch: int, dtype: str, d: int) -> Binary:
    """Compile the kernel that combines what the splits of eight heads found."""
    from attnkit.variants.triton_splitkv_kernel import at_once, combine_kernel, padded

    constants = {"SQ": 1, "GROUP": 8, "DV": d, "DVP": padded(d), "SB": at_once(d), "WAIT": arch >= 90}
    return compile_kernel(
        combine_kernel, arch, {"p_out": f"*{dtype}", "p_partial": "*fp32"}, constants, num_warps=4,
        launch_pdl=arch >= 90,
    )  # fmt: skip
