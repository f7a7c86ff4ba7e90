"""The builds of triton_product: the tiles that it takes for few, some and many rows, with weights of 8 and 16 bits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch

from attnkit.ahead.build import Binary, Build
from attnkit.ahead.triton_compiler import compile_kernel

__all__ = ["binary", "builds"]

ROWS = (1, 64, 2048)
"""Rows of x, one for each entry of its tiles."""
WEIGHTS = {"i8": torch.int8, "bf16": torch.bfloat16}


def builds(arch: int) -> Iterator[Build]:
    """Each for sizes that tiles do not divide."""
    for rows, weight in itertools.product(ROWS, WEIGHTS):
        yield Build(f"triton_product/bf16-{weight}-m{rows}", arch, partial(binary, arch, rows, weight))


def binary(arch: int, rows: int, weight: str) -> Binary:
    """Compile it."""
    from attnkit.products.triton_product import tiles
    from attnkit.products.triton_product_kernel import product_kernel

    form = tiles(rows, WEIGHTS[weight])
    constants = {"BM": form.block_m, "BN": form.block_n, "BK": form.block_k, "EVEN": False}
    types = {name: "*bf16" for name in product_kernel.arg_names if name.startswith("p_")}
    types |= {"p_weight": f"*{weight}", "p_scale": "*fp32"}
    return compile_kernel(
        product_kernel, arch, types, constants, aligned=("k",), num_warps=form.warps, num_stages=form.stages
    )
