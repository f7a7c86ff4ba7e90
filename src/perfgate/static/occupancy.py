"""How many blocks of a kernel fit on one multiprocessor (CUDA C++ Programming Guide, "Compute Capabilities").

Registers and shared memory are handed out in units, so most changes of them change nothing, and some take a step: the
multiprocessor then holds a block fewer, and hides less.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LIMITS", "Limits", "blocks", "limits"]

REGISTERS = 64 * 1024
WARP = 32
REGISTER_UNIT = 256
"""Registers are handed out to a warp in this unit, from one of four equal parts of the file."""
PARTS = 4
SHARED_UNIT = 128
RESERVED = 1024
"""Bytes of shared memory that the system keeps for itself in each block."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one multiprocessor has.

    Attributes:
        warps: Resident at once.
        blocks: Resident at once.
        shared: Bytes of shared memory.
        block_shared: Bytes of it that one block can ask for.
    """

    warps: int
    blocks: int
    shared: int
    block_shared: int


LIMITS = {
    80: Limits(64, 32, 164 * 1024, 163 * 1024),
    86: Limits(48, 16, 100 * 1024, 99 * 1024),
    89: Limits(48, 24, 100 * 1024, 99 * 1024),
    90: Limits(64, 32, 228 * 1024, 227 * 1024),
    100: Limits(64, 32, 228 * 1024, 227 * 1024),
}


def limits(arch: int) -> Limits:
    """What a multiprocessor of an architecture has, by its number, such as 90.

    Raises:
        ValueError: If that is not known here.
    """
    if arch not in LIMITS:
        raise ValueError(f"expected an architecture of {sorted(LIMITS)}, got {arch}: add its limits to {__name__}")
    return LIMITS[arch]


def blocks(arch: int, *, registers: int, shared: int, warps: int) -> int:
    """How many blocks fit on one multiprocessor; 0 for a block that cannot run at all.

    Args:
        arch: The architecture's number.
        registers: Of a thread.
        shared: Bytes of a block, without what the system reserves.
        warps: Of a block.
    """
    has = limits(arch)
    if shared > has.block_shared:
        return 0
    of_a_warp = _up(max(registers, 1) * WARP, REGISTER_UNIT)
    resident = min(REGISTERS // PARTS // of_a_warp * PARTS, has.warps)
    by_shared = has.shared // _up(shared + RESERVED, SHARED_UNIT)
    return min(resident // warps, by_shared, has.blocks)


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
