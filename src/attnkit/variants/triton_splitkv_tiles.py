"""What triton_splitkv's kernels are compiled for, and how many parts keys are split into.

Nothing is searched for at run time: ``python -m perf.tune_splitkv`` times forms and splits on a GPU.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

__all__ = ["MAX_SPLITS", "Form", "choose", "choose_splits", "split_form", "whole_form"]

MAX_SPLITS = 128
FEW_ROWS = 16
"""Rows of a tile that may be loaded with each tile of keys."""
HOPPER = 9
"""The architecture on which forms were timed; larger tiles need its shared memory."""


@dataclass(frozen=True, slots=True)
class Form:
    """One compiled form.

    Attributes:
        block_n: Keys a tile.
        warps: A program.
        stages: Tiles in flight, and one.
        again: Queries are loaded with each tile, so that the first keys need not wait for them.
        apart: A kernel of its own combines what the splits found, not the program that finishes last.
    """

    block_n: int = 64
    warps: int = 4
    stages: int = 3
    again: bool = True
    apart: bool = True


def split_form(dtype: torch.dtype, rows: int, d: int, dv: int) -> Form:
    """The form where keys are split, for a dtype, rows of a tile and head dims.

    Wide heads leave less room for tiles in flight, and many queries are loaded once. One program that combines all rows
    of a key head takes longer than a second kernel with a program for each.
    """
    return Form(stages=2 if _wide(dtype, d, dv) else 3, again=rows <= FEW_ROWS)


def whole_form(dtype: torch.dtype, rows: int, d: int, dv: int, arch: int) -> Form | None:
    """The form where heads and sequences are enough for the device, and no key is split; None: as where they are."""
    return None if _wide(dtype, d, dv) or rows > FEW_ROWS or arch != HOPPER else Form(block_n=128)


def choose(
    dtype: torch.dtype, rows: int, d: int, dv: int, heads: int, longest: int, device: torch.device
) -> tuple[Form, int]:
    """The form and the number of splits.

    Args:
        dtype: Of q, k and v.
        rows: Queries and heads that read a key head.
        d: Of q and k.
        dv: Of v.
        heads: Key heads of all sequences.
        longest: Keys that a sequence may have.
        device: Where it runs.
    """
    arch = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0
    whole = whole_form(dtype, rows, d, dv, arch)
    if whole is not None and choose_splits(heads, longest, device, whole.block_n) == 1:
        return whole, 1
    form = split_form(dtype, rows, d, dv)
    return form, choose_splits(heads, longest, device, form.block_n)


def _wide(dtype: torch.dtype, d: int, dv: int) -> bool:
    return dtype == torch.float32 or max(d, dv) > 128


@functools.cache
def processors(device: torch.device) -> int:
    """How many the device has; an H200's where there is no GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


@functools.lru_cache(maxsize=1024)
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

    return min(range(1, max(1, min(tiles, MAX_SPLITS)) + 1), key=lambda splits: (cost(splits), splits))
