"""What a build is, and what it compiles to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["REMEDY", "Binary", "Build"]

REMEDY = "pip install --no-deps --group kernels"
"""What to do where a compiler is not here: the newest is not that of the committed profiles."""


@dataclass(frozen=True, slots=True)
class Binary:
    """A compiled kernel.

    Attributes:
        cubin: The binary for one architecture.
        function: The kernel's name in it.
        warps: Of a block.
        shared: Bytes of a block that a launch asks for.
        compiler: What compiled it, with its version.
        ptx: What the assembler was given, where that is known.
    """

    cubin: bytes
    function: str
    warps: int
    shared: int
    compiler: str
    ptx: str = ""


@dataclass(frozen=True, slots=True)
class Build:
    """One kernel as one architecture gets it, not compiled yet.

    Attributes:
        name: Its identity among the builds of its architecture: ``variant/kernel/dtype-and-sizes``.
        arch: The architecture's number, such as 90.
        compile: Makes the binary.
        absent: Why its compiler is not here, with the remedy, or None.
    """

    name: str
    arch: int
    compile: Callable[[], Binary]
    absent: Callable[[], str | None]
