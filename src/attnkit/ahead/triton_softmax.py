"""The builds of the decoder's softmax: rows of two lengths, which get as many warps as there are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

from attnkit.ahead.build import Binary, Build
from attnkit.ahead.triton_compiler import absent, compile_kernel

__all__ = ["binary", "builds"]

DTYPES = ("bf16", "fp16")
BLOCKS = (512, 4096)
"""Lengths of a row, rounded up to a power of two."""


def builds(arch: int) -> Iterator[Build]:
    """A kernel for each dtype and length."""
    for dtype, block in itertools.product(DTYPES, BLOCKS):
        yield Build(f"triton_softmax/{dtype}-n{block}", arch, partial(binary, arch, dtype, block), absent)


def binary(arch: int, dtype: str, block: int) -> Binary:
    """Compile it."""
    from attnkit.llama.softmax_kernel import softmax_kernel, warps

    types = dict.fromkeys(("p_x", "p_out"), f"*{dtype}")
    return compile_kernel(softmax_kernel, arch, types, {"BLOCK": block}, num_warps=warps(block))
