"""Which tiles the Triton products use for how many rows of x and of weight, and how tiles get to the kernels.

A form is looked up, never searched for at run time: ``TABLE`` has them in the order in which they are taken, as far as
x and weight have no more rows than a line says. ``python -m perf.tune_product`` times them; a call may pass its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

__all__ = ["FEW", "TABLE", "Kind", "Tiles", "copyable", "family", "fitting", "source", "tiles"]

Kind = Literal["half", "int8", "dynamic"]
"""Weights of 16 bits; of 8 bits; of 8 bits times an x of 8 bits."""

FEW = 16
"""Rows of x that fit the smallest tile of the tensor cores."""
ANY = 2**31
NARROW = 8192
"""Rows of weight: with fewer, tiles must be small for every processor to have one."""
COPY_ALIGNMENT = 16
"""Bytes: the unit of the copy engine's addresses and strides."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """One compiled form of a kernel.

    Attributes:
        block_m: Rows of x a tile.
        block_n: Rows of weight a tile.
        block_k: Elements of either at a time.
        warps: Warps a program.
        stages: Tiles in flight.
        loads: Whether threads load tiles, or the copy engine, which must be able to: see `copyable`. For products of
            integers on a Hopper "async" is the copy engine and no wait at the end of a tile of k: see
            triton_dynamic_hopper.py, where warps are those that multiply, and stages those of the ring.
        left: Whether int8 weights that are to become 16 bits are the left operand: see triton_product_kernel.py.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    loads: Literal["pointer", "tma", "async"] = "pointer"
    left: bool = False


Row = tuple[int, int, Tiles]
"""At most so many rows of x, at most so many of weight, and the form."""

# Family of architectures -> what is multiplied. 80 serves what has no lines of its own.
TABLE: dict[int, dict[Kind, tuple[Row, ...]]] = {
    80: {
        "half": (
            (FEW, ANY, Tiles(FEW, 16, 256, 4, 4)),
            (64, ANY, Tiles(64, 128, 64, 4, 4)),
            (ANY, ANY, Tiles(128, 128, 64, 8, 3)),
        ),
        "int8": (
            (FEW, ANY, Tiles(FEW, 16, 512, 4, 4)),
            (64, ANY, Tiles(64, 128, 64, 4, 4)),
            (ANY, ANY, Tiles(128, 128, 64, 8, 3)),
        ),
        "dynamic": (
            (64, ANY, Tiles(64, 64, 128, 4, 4)),
            (ANY, ANY, Tiles(128, 128, 128, 8, 3)),
        ),
    },
    90: {
        "int8": (
            (FEW, ANY, Tiles(FEW, 16, 512, 4, 4)),
            (256, NARROW, Tiles(64, 64, 128, 4, 4, "tma", left=True)),
            (512, NARROW, Tiles(128, 64, 128, 4, 3, "tma", left=True)),
            (64, ANY, Tiles(64, 64, 128, 4, 4, "tma", left=True)),
            (128, ANY, Tiles(128, 128, 64, 8, 4, "tma", left=True)),
            (ANY, ANY, Tiles(256, 64, 64, 4, 3, "tma", left=True)),
        ),
        "dynamic": (
            (128, NARROW, Tiles(64, 32, 128, 4, 8, "async")),
            (256, NARROW, Tiles(64, 64, 128, 4, 6, "async")),
            (64, ANY, Tiles(64, 64, 128, 4, 6, "async")),
            (512, ANY, Tiles(128, 128, 128, 4, 6, "async")),
            (ANY, ANY, Tiles(256, 128, 128, 8, 4, "async")),
        ),
    },
}


def family(device: torch.device) -> int:
    """The device's part of the table; Hopper's for the CPU, where only the interpreter runs."""
    return 90 if device.type != "cuda" or hopper(device) else 80


def hopper(device: torch.device) -> bool:
    """Whether it is a GPU of that architecture."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def tiles(arch: int, kind: Kind, m: int, n: int) -> Tiles:
    """The form for ``m`` rows of x and ``n`` of weight."""
    lines = TABLE.get(arch, TABLE[80]).get(kind) or TABLE[80][kind]
    return next(form for most_m, most_n, form in lines if m <= most_m and n <= most_n)


def copyable(t: torch.Tensor) -> bool:
    """Whether the copy engine can load a matrix: contiguous rows, 16-byte addresses and strides, nothing broadcast."""
    stride = t.stride(0) * t.element_size()
    return t.stride(1) == 1 and stride > 0 and stride % COPY_ALIGNMENT == 0 and t.data_ptr() % COPY_ALIGNMENT == 0


def source(t: torch.Tensor, rows: int, form: Tiles) -> Any:
    """What a kernel loads a matrix from, in tiles of ``rows``: the tensor, or a host descriptor of it."""
    if form.loads == "pointer":
        return t
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(t, list(t.shape), [t.stride(0), 1], [rows, form.block_k])


def fitting(form: Tiles, x: torch.Tensor, weight: torch.Tensor) -> Tiles:
    """The form itself, or one with loads by threads where the copy engine cannot load both matrices.

    "async" is for a Hopper alone, nor has Gluon an interpreter: elsewhere it is the form of any other GPU.
    """
    able = copyable(x) and copyable(weight)
    if form.loads != "async":
        return form if able else replace(form, loads="pointer")
    return form if able and hopper(x.device) else tiles(80, "dynamic", x.shape[0], weight.shape[0])
