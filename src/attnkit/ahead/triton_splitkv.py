"""The builds of triton_splitkv as a decoder calls it: one query, lengths on the device, with and without pages."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch

from attnkit.ahead.build import Binary, Build
from attnkit.ahead.triton_compiler import absent, compile_kernel
from attnkit.variants.triton_splitkv_tiles import FEW_ROWS, HOPPER, split_form, whole_form

__all__ = ["binary", "builds"]

DS = (64, 128)
ROWS = (1, 8, 32)
"""Query heads of a key head, which are the rows of a tile."""
PAGES = (0, 16)
"""Keys a page; 0 is a cache without pages."""


def builds(arch: int) -> Iterator[Build]:
    """A kernel for each head dim, group of heads and kind of cache."""
    for d, rows, page in itertools.product(DS, ROWS, PAGES):
        name = f"triton_splitkv/decode/bf16-d{d}-rows{rows}-page{page}"
        yield Build(name, arch, partial(binary, arch, "bf16", d, rows, page), absent)
        if rows <= FEW_ROWS and arch == 10 * HOPPER:
            yield Build(f"{name}-whole", arch, partial(binary, arch, "bf16", d, rows, page, whole=True), absent)
    name = "triton_splitkv/decode/bf16-d128-rows8-page16-window-softcap-alibi-sink"
    yield Build(name, arch, partial(binary, arch, "bf16", 128, 8, 16, modified=True), absent)
    name = "triton_splitkv/decode/bf16-d128-rows8-page0-boolean"
    yield Build(name, arch, partial(binary, arch, "bf16", 128, 8, 0, boolean=True), absent)
    for rows in ROWS[:2]:
        name = f"triton_splitkv/decode/fp16-d128-rows{rows}-page16"
        yield Build(name, arch, partial(binary, arch, "fp16", 128, rows, 16), absent)
    yield Build("triton_splitkv/combine/fp16-d128", arch, partial(combining, arch, "fp16", 128), absent)
    for d in DS:
        yield Build(f"triton_splitkv/combine/bf16-d{d}", arch, partial(combining, arch, "bf16", d), absent)


def binary(
    arch: int, dtype: str, d: int, rows: int, page: int,
    *, modified: bool = False, boolean: bool = False, whole: bool = False,
) -> Binary:  # fmt: skip
    """Compile it, plain, with a window and all that modifies scores or with a boolean mask, for keys split or whole."""
    from attnkit.variants.triton_splitkv_kernel import splitkv_kernel, tiles

    form = whole_form(torch.bfloat16, rows, d, d, arch // 10) if whole else None
    form = form or split_form(torch.bfloat16, rows, d, d)
    constants: dict[str, object] = tiles(form, 1, rows, d, d) | {
        "PAGE": page, "MASK": "band" if modified else "boolean" if boolean else "causal",
        "HAS_LENGTHS": not boolean, "PRECISION": "ieee",
        "APART": form.apart, "EARLY": form.apart and arch >= 90,
    }  # fmt: skip
    types = {name: f"*{dtype}" for name in splitkv_kernel.arg_names if name.startswith("p_")}
    types |= dict.fromkeys(("p_lengths", "p_table", "p_arrived"), "*i32") | {"p_partial": "*fp32"}
    optional = {"lower": "i32", "upper": "i32", "scale_cap": "fp32", "cap_log2": "fp32"}
    optional |= dict.fromkeys(("p_slope", "p_sink"), "*fp32")
    if modified:
        types |= optional
    else:
        constants |= dict.fromkeys(optional)
    if boolean:
        types["lower"] = "*u8"
        del constants["lower"]
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
