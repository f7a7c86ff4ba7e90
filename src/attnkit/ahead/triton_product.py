"""The builds of triton_product: every form that its table gives, with weights of 8 and 16 bits; a few in float16."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from attnkit.ahead.build import Binary, Build
from attnkit.ahead.triton_compiler import absent, compile_kernel
from attnkit.products.product_tiles import Kind, Tiles, tiles

__all__ = ["NARROW", "WEIGHTS", "WIDE", "binary", "builds", "forms", "loaded"]

ROWS = (1, 64, 2048, 128, 256, 512)
"""Rows of x."""
HALF = (1, 2048)
"""Those in float16."""
WIDE, NARROW = 12288, 4096
"""Rows of weight."""
WEIGHTS: dict[str, Kind] = {"i8": "int8", "bf16": "half"}


def builds(arch: int) -> Iterator[Build]:
    """Each for sizes that tiles do not divide."""
    for weight, kind in WEIGHTS.items():
        for name, form in forms(arch, kind).items():
            yield Build(f"triton_product/bf16-{weight}-{name}", arch, partial(binary, arch, form, weight), absent)
    for rows, kind in itertools.product(HALF, WEIGHTS.values()):
        weight = "i8" if kind == "int8" else "fp16"
        half = partial(binary, arch, tiles(arch, kind, rows, WIDE), weight, "fp16")
        yield Build(f"triton_product/fp16-{weight}-m{rows}", arch, half, absent)


def forms(arch: int, kind: Kind) -> dict[str, Tiles]:
    """Every form of the table under the name of the first sizes that get it, and those where the copy engine cannot."""
    found: dict[str, Tiles] = {}
    for n, rows in ((n, rows) for n in (WIDE, NARROW) for rows in ROWS):
        form = tiles(arch, kind, rows, n)
        if form not in found.values():
            found[f"m{rows}" if n == WIDE else f"m{rows}-n{n}"] = form
    if found["m2048"].loads == "tma":
        found["m2048-pointer"] = replace(found["m2048"], loads="pointer")
    if found["m2048"].loads == "async":
        found |= {f"m{rows}-pointer": tiles(80, kind, rows, WIDE) for rows in (64, 2048)}
    return found


def binary(arch: int, form: Tiles, weight: str, dtype: str = "bf16") -> Binary:
    """Compile it, for an x of this dtype."""
    from attnkit.products.triton_product_kernel import product_kernel

    constants = {
        "BM": form.block_m, "BN": form.block_n, "BK": form.block_k,
        "LOADS": form.loads, "EVEN": False, "LEFT": form.left,
    }  # fmt: skip
    types = {name: f"*{dtype}" for name in product_kernel.arg_names if name.startswith("p_")} | {"p_scale": "*fp32"}
    types |= loaded("p_x", dtype, form.block_m, form) | loaded("p_weight", weight, form.block_n, form)
    return compile_kernel(
        product_kernel, arch, types, constants, aligned=("k",), num_warps=form.warps, num_stages=form.stages
    )


def loaded(name: str, element: str, rows: int, form: Tiles) -> dict[str, str]:
    """The type of what a kernel loads in tiles of ``rows``."""
    return {name: f"tensordesc<{element}[{rows},{form.block_k}]>" if form.loads == "tma" else f"*{element}"}
