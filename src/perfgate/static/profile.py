"""What is kept of a build: its profile, read off the binary by the disassembler."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from perfgate.static import occupancy, sass

__all__ = ["Binary", "Build", "Profile", "disassembler", "read"]

LISTS_RESERVED = 90
"""From this architecture on a listing's shared memory includes what the system reserves."""


class Binary(Protocol):
    """What a build compiles to."""

    @property
    def cubin(self) -> bytes:
        """The binary for one architecture."""

    @property
    def function(self) -> str:
        """The kernel's name in it."""

    @property
    def warps(self) -> int:
        """Of a block."""

    @property
    def shared(self) -> int:
        """Bytes of a block that a launch asks for, beside what the binary has by itself."""

    @property
    def compiler(self) -> str:
        """What compiled it, with its version: profiles of two compilers are not compared."""


class Build(Protocol):
    """One kernel as one architecture gets it, not compiled yet."""

    @property
    def name(self) -> str:
        """Its identity among the builds of its architecture: ``kernel/dtype-and-sizes``."""

    @property
    def arch(self) -> int:
        """The architecture's number, such as 90."""

    def absent(self) -> str | None:
        """Why its compiler is not here, with the remedy, or None: asked before anything is compiled."""

    def compile(self) -> Binary:
        """Compile it; whatever is raised is why it cannot be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a binary says of itself.

    Attributes:
        compiler: What compiled it, with its version.
        registers: Of a thread.
        stack: Bytes of a thread in local memory.
        shared: Bytes of a block, without what the system reserves.
        warps: Of a block.
        counts: Instructions by kind (`sass.KINDS`), in the whole kernel.
        loop: Instructions by kind, in the main loop.
        order: What follows what in the main loop.
        covered: Exponentials of the main loop that are issued while an asynchronous product is in flight.
        unset: Uniform registers that are read where nothing has written them, with spaces between.
    """

    compiler: str
    registers: int
    stack: int
    shared: int
    warps: int
    counts: Mapping[str, int]
    loop: Mapping[str, int]
    order: str
    covered: int
    unset: str = ""

    @classmethod
    def of(cls, function: sass.Function, arch: int, *, warps: int, shared: int, compiler: str) -> Profile:
        """The profile of a listing; `shared` is what a launch asks for."""
        reserved = occupancy.RESERVED if arch >= LISTS_RESERVED else 0
        loop = function.main_loop()
        return cls(
            compiler=compiler,
            registers=function.registers,
            stack=function.stack,
            shared=shared + max(0, function.shared - reserved),
            warps=warps,
            counts=function.counts(),
            loop=sass.count(loop),
            order=sass.order(loop),
            covered=sass.covered(loop),
            unset=" ".join(function.unset()),
        )

    @property
    def local(self) -> int:
        """Loads and stores of local memory in the whole kernel."""
        return sum(self.counts.get(kind, 0) for kind in sass.LOCAL)

    def blocks(self, arch: int) -> int:
        """How many blocks fit on one multiprocessor."""
        return occupancy.blocks(arch, registers=self.registers, shared=self.shared, warps=self.warps)

    def to_json(self) -> dict[str, Any]:
        """For a baseline."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Any) -> Profile:
        """From a baseline.

        Raises:
            ValueError: If it is none.
        """
        try:
            profile = cls(**document)
            numbers = (profile.registers, profile.stack, profile.shared, profile.warps, profile.covered)
            if not all(isinstance(n, int) for n in (*numbers, *profile.counts.values(), *profile.loop.values())):
                raise TypeError("a number is none")
            if not isinstance(profile.unset, str):
                raise TypeError("unset is no text")
        except (TypeError, AttributeError) as error:
            raise ValueError(f"expected a profile, got {str(document)[:80]} ({error})") from None
        return profile


def disassembler() -> Path:
    """The ``cuobjdump`` that comes with Triton, or else the one on PATH.

    Raises:
        FileNotFoundError: If there is neither.
    """
    spec = importlib.util.find_spec("triton")
    wheels = (
        [Path(p) / "backends/nvidia/bin/cuobjdump" for p in (spec.submodule_search_locations or [])] if spec else []
    )
    for path in (*wheels, shutil.which("cuobjdump")):
        if path and os.access(path, os.X_OK):
            return Path(path)
    raise FileNotFoundError("expected cuobjdump beside Triton or on PATH, found none: pip install 'triton>=3.6'")


def read(binary: Binary, arch: int) -> Profile:
    """Disassemble a binary and read its profile.

    Raises:
        ValueError: If the binary cannot be disassembled or does not hold the function.
    """
    functions = listed(binary.cubin, arch)
    if binary.function not in functions:
        raise ValueError(f"expected the function {binary.function} in the binary, got {sorted(functions)}")
    function = functions[binary.function]
    return Profile.of(function, arch, warps=binary.warps, shared=binary.shared, compiler=binary.compiler)


@functools.lru_cache(maxsize=1)
def listed(cubin: bytes, arch: int) -> dict[str, sass.Function]:
    """The functions of a binary, disassembled; the last one's are kept, for its other functions are mostly asked next.

    Raises:
        ValueError: If it cannot be disassembled.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(disassembler()), "-sass", "-res-usage", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"expected a binary for sm_{arch}, and cuobjdump says: {done.stderr.strip()}")
    return sass.parse(done.stdout)
