"""Which form of the CUDA matrix-vector kernels is used for which weights, and what a form needs.

A form is looked up, never searched for at run time: ``TABLE`` is what ``python -m perf.tune_matvec`` measured on an
H200. A call that wants another one passes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

__all__ = ["MAX_ROWS", "TABLE", "Config", "choose", "launch_shape"]

Design = Literal["registers", "bulk"]
Weights = Literal["half", "int8"]

MAX_ROWS = 8
"""Rows of x: what a tensor-core instruction takes beside 8 rows of weight."""
TILE = 8
STEP_BYTES = 64
LANE_BYTES = 16
SUMS_BYTES = 32 * 1024
"""Shared memory for sums of tiles; more tiles than fit are added up in phases."""
MAX_SHARED = 227 * 1024
"""Bytes of shared memory a block can have on a Hopper."""


@dataclass(frozen=True, slots=True)
class Config:
    """One compiled form.

    Attributes:
        design: Where loads wait: see cuda/matvec_registers.cu and cuda/matvec_bulk.cu.
        warps: That multiply, a block.
        span: Steps of 64 bytes of each of 8 rows that are loaded together.
        depth: Loads of that size in flight: a warp's (registers), or a block's (bulk).
        blocks: Blocks an SM.
        overlap: The kernel loads its weights while the one before it on the stream still runs.
    """

    design: Design
    warps: int
    span: int
    depth: int
    blocks: int = 1
    overlap: bool = False

    @property
    def source(self) -> str:
        """The file it is compiled from."""
        return f"matvec_{self.design}.cu"

    @property
    def threads(self) -> int:
        """Threads a block; one warp of the bulk design loads."""
        return 32 * (self.warps + (self.design == "bulk"))

    def options(self, dtype: torch.dtype, weights: Weights) -> tuple[str, ...]:
        """What the compiler is told, for activations of ``dtype``."""
        macros = {
            "BF16": int(dtype == torch.bfloat16),
            "INT8": int(weights == "int8"),
            "WARPS": self.warps,
            "SPAN": self.span,
            "DEPTH" if self.design == "registers" else "STAGES": self.depth,
            # a kernel that begins early shares the SM with the one before it
            "BLOCKS": self.blocks * (2 if self.overlap else 1),
        }
        return tuple(f"-D{name}={value}" for name, value in macros.items())


@dataclass(frozen=True, slots=True)
class LaunchShape:
    """How a form is launched for one problem.

    Attributes:
        grid: Blocks.
        phase: Tiles of a block after which its warps add up.
        slots: Tiles whose sums there is room for.
        shared: Bytes of shared memory a block.
    """

    grid: int
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
    slot_bytes = 4 * config.warps * m * TILE
    phase = min(tiles, max(1, SUMS_BYTES // slot_bytes))
    shared, slots = x_bytes, phase
    if config.design == "bulk":
        shared += config.depth * (TILE * (config.span + 1) * STEP_BYTES + 16)
    else:
        # a warp may be past the end of a phase by what it has in flight
        slots = min(tiles, phase + _ceil(config.depth * config.warps, pieces) + 1)
    return LaunchShape(grid, phase, slots, shared + slots * slot_bytes)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


# Weights -> (bytes of weight up to which a form is used, the form), for Hopper
TABLE: dict[Weights, tuple[tuple[float, Config], ...]] = {
    "half": ((float("inf"), Config("registers", warps=8, span=4, depth=4)),),
    "int8": ((float("inf"), Config("registers", warps=8, span=4, depth=4)),),
}


def choose(weights: Weights, n: int, k: int) -> Config:
    """The form for weight ``[n, k]``."""
    bytes_ = n * k * (1 if weights == "int8" else 2)
    return next(config for most, config in TABLE[weights] if bytes_ <= most)
