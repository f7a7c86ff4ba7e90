"""What triton_splitkv's kernels are compiled for, and how many parts keys are split into.

Nothing is searched for at run time: ``python -m perf.tune_splitkv`` times forms and splits on a GPU.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["MAX_SPLITS", "Form", "choose_form", "choose_splits"]

MAX_SPLITS = 128
LARGE_TILES = 160 * 1024
"""Bytes of shared memory that suffice for tiles of 128 keys in flight."""


@dataclass(frozen=True, slots=True)
class Form:
    """One compiled form.

    Attributes:
        block_n: Keys a tile.
        warps: A program.
        stages: Tiles in flight, and one.
        again: Queries are loaded with each tile, so that the first keys need not wait for them.
        apart: A kernel of its own combines what the splits found, not the program that finishes last: a program a row
            there, one row after the other here.
    """

    block_n: int = 64
    warps: int = 4
    stages: int = 3
    again: bool = True
    apart: bool = True


def choose_form(dtype: torch.dtype, heads: int, rows: int, d: int, dv: int, device: torch.device) -> Form:
    """The form for key heads of all sequences, rows of a tile and head dims.

    Few heads are split, and time goes by waiting: queries and keys are asked for together, and where a head has several
    rows a kernel of its own combines each in a program. Heads enough for all processors are read in large tiles.
    """
    wide = dtype == torch.float32 or max(d, dv) > 128
    if heads >= processors(device) and rows <= 16 and not wide and has_room(device):
        return Form(block_n=128, again=False)
    return Form(stages=2 if wide else 3, again=rows <= 16, apart=rows > 1)


@functools.cache
def processors(device: torch.device) -> int:
    """How many the device has; an H200's where there is no GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


@functools.cache
def has_room(device: torch.device) -> bool:
    """Whether a block may have the shared memory that large tiles in flight take; so where there is no GPU."""
    if device.type != "cuda":
        return True
    properties: Any = torch.cuda.get_device_properties(device)
    return bool(properties.shared_memory_per_block_optin >= LARGE_TILES)


def choose_splits(heads: int, longest: int, device: torch.device, block_n: int = Form().block_n) -> int:
    """Splits for which the slowest processor has the least to do.

    Programs come in waves, one a processor: two share what a processor can have in flight. A program begins, which
    takes as long as a tile, walks over its tiles, then leaves a record that takes about as long as two. Combining reads
    all records, sixteen of them in about the time of a tile.

    Args:
        heads: Key heads of all sequences.
        longest: Keys that a sequence may have.
        device: Where it runs.
        block_n: Keys a tile.
    """
    slots = processors(device)
    tiles = -(-longest // block_n)

    def cost(splits: int) -> int:
        combining = 2 + -(-splits // 16) if splits > 1 else 0
        return -(-heads * splits // slots) * (1 + -(-tiles // splits)) + combining

    return min(range(1, min(tiles, MAX_SPLITS) + 1), key=lambda splits: (cost(splits), splits))
