"""The builds of triton_flash: every row of the table of tiles, for the masks that need the most and the least of it.

``causal-ragged`` is the causal mask on lengths that no tile divides, the form with the most masks; ``full-even`` has
none; ``causal-even`` is what is timed most. float16 is left out: it has bfloat16's tiles, and instructions that differ
in the names of their types alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, get_args

import torch

from attnkit.ahead.build import Binary, Build
from attnkit.ahead.triton_compiler import compile_kernel
from attnkit.variants.triton_flash_tiles import Config, Kernel, Loads, padded, precision, row

__all__ = ["binary", "builds"]

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
DS = (64, 128, 256)
"""The head dims that the table tells apart."""
FORMS = {"causal-ragged": (True, False), "causal-even": (True, True), "full-even": (False, True)}
"""Whether the mask is causal, and whether tiles divide the lengths."""

Want = Literal["", "dk", "dv"]
"""Which of its results a split dkdv computes; all of them if empty."""


def builds(arch: int) -> Iterator[Build]:
    """Every configuration that the table can give to a call on this architecture."""
    for kernel, dtype, d, form, loads in itertools.product(get_args(Kernel), DTYPES, DS, FORMS, get_args(Loads)):
        causal, even = FORMS[form]
        width = DTYPES[dtype]
        config = row(arch, kernel, width, d, causal, loads)
        if config is None and loads == "pointer":
            config = row(80, kernel, width, d, causal, loads)  # what `choose` does
        if config is None:
            continue
        wants: tuple[Want, ...] = ("dk", "dv") if config.split else ("",)
        for want in wants:
            name = f"triton_flash/{want or kernel}/{dtype}-d{d}-{form}-{loads}"
            yield Build(name, arch, partial(binary, arch, kernel, dtype, d, causal, even, config, want))
    for dtype, d in itertools.product(DTYPES, DS):
        yield Build(f"triton_flash/statistics/{dtype}-d{d}", arch, partial(statistics, arch, dtype, d))


def binary(
    arch: int, kernel: Kernel, dtype: str, d: int, causal: bool, even: bool, config: Config, want: Want = "",
    **options: Any,
) -> Binary:  # fmt: skip
    """Compile forward, dkdv or dq; `options` go to the compiler beside the configuration's."""
    from attnkit.variants import triton_flash_backward as backward
    from attnkit.variants import triton_flash_forward as forward

    function = {"forward": forward.forward_kernel, "dkdv": backward.dkdv_kernel, "dq": backward.dq_kernel}[kernel]
    tiles = {"q": config.block_m, "dout": config.block_m, "k": config.block_n, "v": config.block_n}
    types = dict.fromkeys(("p_out", "p_dq", "p_dk", "p_dv"), f"*{dtype}")
    types |= dict.fromkeys(("p_lse", "p_lse2", "p_delta"), "*fp32")
    for name, rows in tiles.items():
        types[name] = f"tensordesc<{dtype}[1,1,{rows},{padded(d)}]>" if config.loads == "tma" else f"*{dtype}"
    constants = {
        "D": d, "DP": padded(d), "BM": config.block_m, "BN": config.block_n, "CAUSAL": causal,
        "EVEN_Q": even, "EVEN_KV": even, "LOADS": config.loads, "PRECISION": precision(DTYPES[dtype]),
        "WANT_DK": want != "dv", "WANT_DV": want != "dk",
    }  # fmt: skip
    return compile_kernel(function, arch, types, constants, num_warps=config.warps, num_stages=config.stages, **options)


def statistics(arch: int, dtype: str, d: int) -> Binary:
    """Compile the kernel before the backward ones."""
    from attnkit.variants.triton_flash_backward import statistics_kernel

    types = {"p_out": f"*{dtype}", "p_dout": f"*{dtype}", "p_lse": "*fp32", "p_lse2": "*fp32", "p_delta": "*fp32"}
    return compile_kernel(statistics_kernel, arch, types, {"D": d, "DP": padded(d), "BM": 64})
