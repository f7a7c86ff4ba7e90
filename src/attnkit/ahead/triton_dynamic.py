"""The builds of triton_dynamic: every form of its product that the table gives, and what rounds rows of Llama's.

One form adds a residual, and rows are rounded with a norm before it, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from attnkit.ahead.build import Binary, Build
from attnkit.ahead.triton_compiler import compile_kernel
from attnkit.ahead.triton_product import NARROW, forms, loaded
from attnkit.products.product_tiles import Tiles, tiles

__all__ = ["binary", "builds", "rounding"]

KS = (4096, 11008)
"""Elements of a row."""


def builds(arch: int) -> Iterator[Build]:
    """Each for sizes that tiles do not divide."""
    for name, form in forms(arch, "dynamic").items():
        yield Build(f"triton_dynamic/integers/bf16-{name}", arch, partial(binary, arch, form))
    for k in KS:
        yield Build(f"triton_dynamic/rows/bf16-k{k}", arch, partial(rounding, arch, k))
        yield Build(f"triton_dynamic/rows/bf16-k{k}-norm", arch, partial(rounding, arch, k, norm=True))
    narrow = tiles(arch, "dynamic", 512, NARROW)
    yield Build("triton_dynamic/integers/bf16-residual", arch, partial(binary, arch, narrow, residual=True))


def binary(arch: int, form: Tiles, *, residual: bool = False) -> Binary:
    """Compile the product."""
    if form.loads == "async":
        return hopper(arch, form, residual=residual)
    from attnkit.products.triton_dynamic_kernel import integers_kernel

    constants = {
        "BM": form.block_m, "BN": form.block_n, "BK": form.block_k, "LOADS": form.loads, "EVEN": False,
        "OVERLAP": arch >= 90, "p_bias" if residual else "p_residual": None,
    }  # fmt: skip
    types = {"p_unit": "*fp32", "p_scale": "*fp32", "p_bias": "*bf16", "p_residual": "*bf16", "p_out": "*bf16"}
    types |= loaded("p_x", "i8", form.block_m, form) | loaded("p_weight", "i8", form.block_n, form)
    return compile_kernel(
        integers_kernel,
        arch,
        types,
        constants,
        aligned=("k", "n") if residual else ("k",),
        num_warps=form.warps,
        num_stages=form.stages,
        launch_pdl=arch >= 90,
    )


def hopper(arch: int, form: Tiles, *, residual: bool) -> Binary:
    """Compile Hopper's own."""
    from attnkit.products.triton_dynamic_hopper import integers_kernel, layout, registers

    constants = {
        "BM": form.block_m, "BN": form.block_n, "BK": form.block_k, "STAGES": form.stages, "WARPS": form.warps,
        "p_bias" if residual else "p_residual": None,
    }  # fmt: skip
    types = {"p_unit": "*fp32", "p_scale": "*fp32", "p_bias": "*bf16", "p_residual": "*bf16", "p_out": "*bf16"}
    for name, rows in (("p_x", form.block_m), ("p_weight", form.block_n)):
        types[name] = f"tensordesc<i8[{rows},{form.block_k}],{layout(rows, form)!r}>"
    return compile_kernel(
        integers_kernel,
        arch,
        types,
        constants,
        aligned=("k", "n"),
        num_warps=form.warps,
        maxnreg=registers(form),
        launch_pdl=True,
    )


def rounding(arch: int, k: int, *, norm: bool = False) -> Binary:
    """Compile what rounds rows."""
    from attnkit.products.triton_dynamic import rows_form
    from attnkit.products.triton_dynamic_kernel import rows_kernel

    padded, warps = rows_form(k)
    types = {"p_x": "*bf16", "p_gain": "*bf16", "p_shift": "*bf16", "p_rounded": "*i8", "p_unit": "*fp32"}
    constants: dict[str, object] = {"DP": padded, "NORM": norm, "OVERLAP": arch >= 90}
    constants |= {} if norm else {"p_gain": None, "p_shift": None}
    return compile_kernel(rows_kernel, arch, types | {"epsilon": "fp32"}, constants, aligned=("k",), num_warps=warps)
