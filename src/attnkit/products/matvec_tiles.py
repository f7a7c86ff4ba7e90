"""Which form of the CUDA matrix-vector kernels is used for which weights, and what a form needs.

A form is looked up, never searched for at run time: ``TABLE`` has them in the order in which they are taken, as far as
the device and the rows of x let them. ``python -m perf.tune_matvec`` times them; a call may pass its own.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch

__all__ = ["MAX_ROWS", "OVERLAPPING", "TABLE", "Config", "Limits", "choose", "launch_shape"]

Design = Literal["registers", "bulk"]
Weights = Literal["half", "int8"]

MAX_ROWS = 8
"""Rows of x: what a tensor-core instruction takes beside 8 rows of weight."""
FIXED_ROWS = 2
"""The same where a row takes four columns, one for each of its digits."""
TILE = 16
LOADERS = 4
STEP_BYTES = 64
RESERVED = 1024
"""Bytes of an SM's shared memory that each block on it takes for itself."""
SUMS_BYTES = 32 * 1024
"""Shared memory for sums of tiles; more tiles than fit are added up in phases."""
MANY_LOADS = 16
"""With fewer a block, the last ones are a large part of all."""
MAX_SHARED = 227 * 1024
"""Bytes of shared memory a block can have on a Hopper."""


@dataclass(frozen=True, slots=True)
class Config:
    """One compiled form.

    Attributes:
        design: Where loads wait: see cuda/matvec_registers.cu and cuda/matvec_bulk.cu.
        warps: That multiply, a block.
        span: Steps of 64 bytes of each of 16 rows that are loaded together.
        depth: Loads of that size in flight: a warp's (registers), or a block's (bulk).
        blocks: Blocks an SM.
        overlap: The kernel loads its weights while the one before it on the stream still runs.
        fixed: x is made a fixed-point number of its row, for the integers' tensor core: int8 weights need no
            conversion then. For at most two rows of x.
    """

    design: Design
    warps: int
    span: int
    depth: int
    blocks: int = 1
    overlap: bool = False
    fixed: bool = False

    @property
    def source(self) -> str:
        """The file it is compiled from."""
        return f"matvec_{self.design}.cu"

    @property
    def threads(self) -> int:
        """Threads a block; a few warps of the bulk design load."""
        return 32 * (self.warps + (LOADERS if self.design == "bulk" else 0))

    def options(self, dtype: torch.dtype, weights: Weights) -> tuple[str, ...]:
        """What the compiler is told, for activations of ``dtype``."""
        macros = {
            "BF16": int(dtype == torch.bfloat16),
            "INT8": int(weights == "int8"),
            "FIXED": int(self.fixed),
            "WARPS": self.warps,
            "SPAN": self.span,
            "DEPTH" if self.design == "registers" else "STAGES": self.depth,
            # a kernel that begins early shares the SM with the one before it
            "BLOCKS": self.blocks * (2 if self.overlap else 1),
        }
        return tuple(f"-D{name}={value}" for name, value in macros.items())

    def why_not(self, weights: Weights, m: int, n: int, k: int, device: Limits) -> str | None:
        """Why this form cannot multiply x ``[m, k]`` by weight ``[n, k]`` on a device, or None."""
        least = (9, 0) if self.design == "bulk" or self.overlap else (8, 0)
        if device.capability < least:
            (need, _), (major, minor) = least, device.capability
            return f"needs compute capability {need}.0 or later, got {major}.{minor}"
        if self.fixed and (weights != "int8" or m > FIXED_ROWS):
            return f"fixed-point x is for int8 weights and at most {FIXED_ROWS} rows, got {weights} and {m}"
        shared = launch_shape(self, weights, m, n, k, device.sms).shared
        if shared > device.shared:
            return f"{m} rows of k={k} need {shared} bytes of shared memory, a block has {device.shared}"
        return None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a device has for a kernel.

    Attributes:
        capability: Compute capability, ``(major, minor)``.
        sms: Multiprocessors.
        shared: Bytes of shared memory that a block can have.
    """

    capability: tuple[int, int]
    sms: int
    shared: int


@dataclass(frozen=True, slots=True)
class LaunchShape:
    """How a form is launched for one problem.

    Attributes:
        grid: Blocks.
        loads: Of a block, each of a tile's rows and the form's span.
        phase: Tiles of a block after which its warps add up.
        slots: Tiles whose sums there is room for.
        shared: Bytes of shared memory a block.
    """

    grid: int
    loads: int
    phase: int
    slots: int
    shared: int


def launch_shape(config: Config, weights: Weights, m: int, n: int, k: int, sms: int) -> LaunchShape:
    """How ``config`` is launched for x ``[m, k]`` and weight ``[n, k]`` on ``sms`` multiprocessors."""
    step = STEP_BYTES // (1 if weights == "int8" else 2)
    grid = min(config.blocks * sms, n)
    tiles = _ceil(_ceil(n, grid), TILE)
    pieces = _ceil(k, config.span * step)
    x_bytes = 2 * m * (pieces * config.span * step + (8 if weights == "int8" else 32))
    if config.fixed:
        # digits, and a word for each warp's largest
        x_bytes = 4 * m * (pieces * config.span * step + 64) + 4 * m * (config.threads // 32)
    slot_bytes = 4 * config.warps * m * TILE
    phase = min(tiles, max(1, SUMS_BYTES // slot_bytes))
    shared, slots = x_bytes, phase
    if config.design == "bulk":
        shared += config.depth * (TILE * (config.span + 1) * STEP_BYTES + 16)
    else:
        # a warp may be past the end of a phase by what it has in flight
        slots = min(tiles, phase + _ceil(config.depth * config.warps, pieces) + 1)
    return LaunchShape(grid, tiles * pieces, phase, slots, shared + slots * slot_bytes)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


# the first are the fastest at the shapes of Llama-2-7B on an H200; the last runs on Ampere too, and leaves nearly all
# shared memory to x
TABLE: dict[Weights, tuple[Config, ...]] = {
    "half": (
        Config("bulk", warps=16, span=32, depth=5),
        Config("bulk", warps=8, span=16, depth=6),
        Config("registers", warps=8, span=4, depth=2),
    ),
    "int8": (
        Config("bulk", warps=16, span=32, depth=5, fixed=True),
        Config("bulk", warps=8, span=16, depth=6),
        Config("registers", warps=8, span=4, depth=2),
    ),
}

# for callers who know that the kernel before does not write the weights; the fastest at those shapes, too
OVERLAPPING: dict[Weights, tuple[Config, ...]] = {
    "half": (
        Config("bulk", warps=8, span=32, depth=2, overlap=True),
        Config("bulk", warps=8, span=16, depth=5, overlap=True),
    ),
    "int8": (
        Config("bulk", warps=8, span=16, depth=5, overlap=True, fixed=True),
        Config("bulk", warps=8, span=16, depth=5, overlap=True),
    ),
}


@functools.cache
def choose(weights: Weights, m: int, n: int, k: int, device: Limits, *, overlap: bool = False) -> Config:
    """The first form in the table that a device can run for x ``[m, k]`` and weight ``[n, k]``; else the last.

    Of forms that overlap the first of which an SM has room for two, since the next kernel's block begins beside the
    last's, and of these the first whose loads are not too long for so small a weight.
    """
    table = (OVERLAPPING if overlap else TABLE)[weights]
    able = [c for c in table if c.why_not(weights, m, n, k, device) is None] or [table[-1]]
    if not overlap:
        return able[0]
    room = device.shared + RESERVED  # an SM has what a block can have, and what it takes for itself
    shapes = {c: launch_shape(c, weights, m, n, k, device.sms) for c in able}
    beside = [c for c in able if 2 * (shapes[c].shared + RESERVED) <= room]
    return next((c for c in beside if shapes[c].loads >= MANY_LOADS), (beside or able)[0])
