"""NVRTC, told what a launch would have told it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attnkit import nvrtc
from attnkit.ahead.build import REMEDY, Binary
from attnkit.products.matvec_tiles import Limits

__all__ = ["DEVICES", "absent", "compile_kernel"]

DEVICES = {
    80: Limits((8, 0), sms=108, shared=163 * 1024),
    90: Limits((9, 0), sms=132, shared=227 * 1024),
    100: Limits((10, 0), sms=148, shared=227 * 1024),
}
"""An A100, an H200 and a B200: how keys are split and what a block keeps in shared memory depend on how many
multiprocessors there are."""


def absent() -> str | None:
    """Why NVRTC is not here, with the remedy, or None if it is."""
    return nvrtc.absent(REMEDY)


def compile_kernel(
    source: Path, function: str, arch: int, options: Sequence[str], *, threads: int, shared: int
) -> Binary:
    """Compile a .cu file for an architecture and take one kernel of it.

    Args:
        source: The file.
        function: The kernel's name.
        arch: The architecture's number, such as 90.
        options: NVRTC's: sizes, as macros.
        threads: Of a block.
        shared: Bytes of a block that a launch asks for.

    Raises:
        RuntimeError: If NVRTC is not here, or refuses the source.
    """
    if reason := absent():
        raise RuntimeError(reason)
    compiled = nvrtc.cubin(source.read_text(), nvrtc.target(arch), tuple(options))
    return Binary(compiled.code, function, threads // 32, shared, compiled.compiler, compiled.ptx)
