"""The builds of append: a token of a decoder's cache, with and without pages."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

from attnkit.ahead.build import Binary, Build
from attnkit.ahead.triton_compiler import absent, compile_kernel

__all__ = ["binary", "builds"]

DS = (64, 128)
PAGES = (0, 16)
"""Keys a page; 0 is a cache without pages."""
HEADS = 8


def builds(arch: int) -> Iterator[Build]:
    """A kernel for each head dim and kind of cache."""
    for d, page in itertools.product(DS, PAGES):
        yield Build(f"triton_append/bf16-d{d}-page{page}", arch, partial(binary, arch, "bf16", d, page), absent)
    yield Build("triton_append/fp16-d128-page16", arch, partial(binary, arch, "fp16", 128, 16), absent)


def binary(arch: int, dtype: str, d: int, page: int) -> Binary:
    """Compile it for keys and values of one width, their last dimensions contiguous."""
    from attnkit.append_kernel import append_kernel

    constants = {"D": d, "DP": d, "DV": d, "DVP": d, "HP": HEADS, "PAGE": page}
    constants |= dict.fromkeys(("s_kd", "s_vd", "s_kcd", "s_vcd"), 1)
    types = {name: f"*{dtype}" for name in append_kernel.arg_names if name.startswith("p_")}
    types |= dict.fromkeys(("p_lengths", "p_table"), "*i32")
    return compile_kernel(append_kernel, arch, types, constants, unaligned=("s_tb",), num_warps=4)
