"""The builds of triton_dynamic: every form of its product that the table gives, and what rounds rows of Llama's.

One form adds a residual, and rows are rounded with a norm before it, too. float16 has one of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from attnkit.ahead.build import Binary, Build
from attnkit.ahead.triton_compiler import absent, compile_kernel
from attnkit.ahead.triton_product import NARROW, WIDE, forms, loaded
from attnkit.products.product_tiles import Tiles, tiles

__all__ = ["binary", "builds", "rounding"]

KS = (4096, 11008)
"""Elements of a row."""


def builds(arch: int) -> Iterator[Build]:
    """Each for sizes that tiles do not divide."""
    for name, form in forms(arch, "dynamic").items():
        yield Build(f"triton_dynamic/integers/bf16-{name}", arch, partial(binary, arch, form), absent)
    for k in KS:
        yield Build(f"triton_dynamic/rows/bf16-k{k}", arch, partial(rounding, arch, k), absent)
        yield Build(f"triton_dynamic/rows/bf16-k{k}-norm", arch, partial(rounding, arch, k, norm=True), absent)
    many = tiles(arch, "dynamic", 2048, WIDE)
    yield Build("triton_dynamic/integers/fp16-m2048", arch, partial(binary, arch, many, dtype="fp16"), absent)
    yield Build(
        "triton_dynamic/rows/fp16-k4096-norm", arch, partial(rounding, arch, 4096, norm=True, dtype="fp16"), absent
    )
    narrow = tiles(arch, "dynamic", 512, NARROW)
    yield Build("triton_dynamic/integers/bf16-residual", arch, partial(binary, arch, narrow, residual=True), absent)


def binary(arch: int, form: Tiles, *, residual: bool = False, dtype: str = "bf16") -> Binary:
    """Compile the product, for an out of this dtype."""
    if form.loads == "async":
        return hopper(arch, form, residual=residual, dtype=dtype)
    from attnkit.products.triton_dynamic_kernel import integers_kernel

    constants = {
        "BM": form.block_m, "BN": form.block_n, "BK": form.block_k, "LOADS": form.loads, "EVEN": False,
        "OVERLAP": arch >= 90, "p_bias" if residual else "p_residual": None,
    }  # fmt: skip
    types = dict.fromkeys(("p_unit", "p_scale"), "*fp32")
    types |= dict.fromkeys(("p_bias", "p_residual", "p_out"), f"*{dtype}")
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


def hopper(arch: int, form: Tiles, *, residual: bool, dtype: str) -> Binary:
    """Compile Hopper's own."""
    from attnkit.products.triton_dynamic_hopper import integers_kernel, layout, registers

    constants = {
        "BM": form.block_m, "BN": form.block_n, "BK": form.block_k, "STAGES": form.stages, "WARPS": form.warps,
        "p_bias" if residual else "p_residual": None,
    }  # fmt: skip
    types = dict.fromkeys(("p_unit", "p_scale"), "*fp32")
    types |= dict.fromkeys(("p_bias", "p_residual", "p_out"), f"*{dtype}")
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


def rounding(arch: int, k: int, *, norm: bool = False, dtype: str = "bf16") -> Binary:
    """Compile what rounds rows of this dtype."""
    from attnkit.products.triton_dynamic import rows_form
    from attnkit.products.triton_dynamic_kernel import rows_kernel

    padded, warps = rows_form(k)
    types = dict.fromkeys(("p_x", "p_gain", "p_shift"), f"*{dtype}") | {"p_rounded": "*i8", "p_unit": "*fp32"}
    constants: dict[str, object] = {"DP": padded, "NORM": norm, "OVERLAP": arch >= 90}
    constants |= {} if norm else {"p_gain": None, "p_shift": None}
    return compile_kernel(rows_kernel, arch, types | {"epsilon": "fp32"}, constants, aligned=("k",), num_warps=warps)
