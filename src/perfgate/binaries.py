"""Device code that was compiled in this process: what it is, whoever loaded it.

    Triton, torch.compile    found among the objects that are alive, by the handle of the function
    cuda.core                likewise, by the names in the binary
    any other compiler       says so: `register`
    libraries                have no code of their own here; `perfgate.libraries` has the files they come from

What is none of these surely is unknown: a plain name that no library is known to give, as NVRTC, an extension in C and
a Triton kernel whose owner was collected have.

A kernel's code is a digest of what the device executes. Debug lines are left out, for they hold the path of the source:
the same kernel in two checkouts has two binaries, and one code.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import mmap
import re
import struct
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "DIGITS",
    "LIBRARY",
    "MANGLED",
    "OURS",
    "UNKNOWN",
    "Binaries",
    "codes",
    "fingerprint",
    "loaded",
    "register",
    "sections",
]

LIBRARY = ""
"""The code of a kernel that a library brings along: known by the library's file."""
UNKNOWN = "?"
"""The code of a kernel that something in this process may have compiled, nobody knows from what."""

DIGITS = 12
"""Hexadecimal digits of a digest: 48 bits, of which a suite has some thousand."""
EXECUTED = (
    ".text",
    ".rel.text",
    ".rela.text",
    ".nv.info",
    ".nv.constant",
    ".nv.global",
    ".nv.shared",
    ".nv.local",
)
"""How the sections of a cubin begin that decide what runs: instructions, constants, registers, memory."""
NOBITS = 8

STRANGERS = ("cupy", "cutlass", "jax", "numba.cuda", "pycuda", "tilelang", "tvm", "warp")
"""Packages that compile kernels and do not say so: where one was imported, a kernel of unknown code may be its."""
OURS = (
    "_ZN2at",
    "_ZN3c10",
    "_ZN13pytorch_flash",
    "ampere_",
    "cublas",
    "cudnn",
    "cutlass_",
    "nvjet_",
    "sm80_xmma_",
    "sm90_xmma_",
)
"""How names begin that only torch, cuBLAS and cuDNN give."""

MANGLED = "_Z"
"""How names of C++ begin, as those in a library's files are; what a process compiles is mostly plain C."""
SURELY_MANGLED = re.compile(r"_ZN?\d")
"""How they begin where no identifier of Python is meant: with the length of what follows."""

COMPILED = (
    ("triton.compiler.compiler", "CompiledKernel"),
    ("torch._inductor.runtime.static_triton_launcher", "StaticallyLaunchedCudaKernel"),
    ("torch._inductor.runtime.static_cuda_launcher", "StaticallyLaunchedCudaKernel"),
)
"""Where the objects are found that own a loaded function."""

CUDA_CORE = "cuda.core._module"
"""Where cuda.core has its binaries (``ObjectCode``) and what was taken from them (``Kernel``)."""
FUNCTION = ".text."
"""How the section of a function begins in a cubin; its name follows."""

_registered: dict[int, str] = {}
_owned: dict[int, tuple[weakref.ref[Any], str]] = {}
"""Owner and code by the function's handle, as they were found last."""
_answers: dict[tuple[int, str], tuple[str, Callable[[], bool]]] = {}
"""The code of a function of this handle and name, and whether that still holds."""


def register(function_handle: int, image: bytes) -> None:
    """Tell which binary a loaded function was compiled to, so that two revisions of it can be told apart.

    Args:
        function_handle: The driver's ``CUfunction`` as an integer. A later call for the same handle replaces this one.
        image: The cubin; of anything else (a fatbin, PTX) all bytes count.

    Raises:
        TypeError: If the handle is no integer or the image holds no bytes.
        ValueError: If the handle is null or the image is empty.
    """
    if not isinstance(function_handle, int) or not isinstance(image, bytes | bytearray | memoryview):
        got = f"{type(function_handle).__name__} and {type(image).__name__}"
        raise TypeError(f"expected a CUfunction as an int and its binary as bytes, got {got}: pass int(function)")
    if not function_handle or not len(image):
        raise ValueError(
            f"expected a loaded function and its binary, got handle {function_handle} and {len(image)} bytes"
        )
    _registered[function_handle] = fingerprint(bytes(image))


@dataclass(frozen=True, slots=True)
class Binaries:
    """The functions that are loaded now.

    Attributes:
        codes: Code by the function's handle.
        named: Code by name, of functions whose handle is not known.
        names: Names of the functions whose owner was found.
        strangers: Packages here that may have compiled others.
    """

    codes: Mapping[int, str]
    named: Mapping[str, str] = field(default_factory=dict)
    names: frozenset[str] = frozenset()
    strangers: tuple[str, ...] = ()

    def code(self, function: int, name: str) -> str:
        """The code of a function: a digest, `LIBRARY`, or `UNKNOWN`."""
        if function in self.codes:
            return self.codes[function]
        if name in self.named:
            return self.named[name]
        if name in self.names:  # with another handle: it was compiled too, and its owner is gone
            return UNKNOWN
        return LIBRARY if name.startswith(OURS if self.strangers else (*OURS, MANGLED)) else UNKNOWN


def codes() -> Callable[[int, str], str]:
    """What tells the code of a function, given its handle and its name.

    To look through all objects of the process takes as long as to time a small case. So it is done once at most, and
    only if there is a function of which nothing is known yet, or whose owner is gone: its handle may be another's now.
    A mangled name of C++ says enough where no stranger compiles: what is found by looking is named in Python.
    """
    look = functools.cache(loaded)

    def code(function: int, name: str) -> str:
        if SURELY_MANGLED.match(name) and function not in _registered and not _strangers() and not _has_cuda_core():
            return LIBRARY
        said, holds = _answers.get((function, name), ("", None))
        if holds is None or not holds():
            said = look().code(function, name)
            if still := _lasting(function, said):
                _answers[function, name] = said, still
            else:
                _answers.pop((function, name), None)
        return said

    return code


def _lasting(function: int, code: str) -> Callable[[], bool] | None:
    """What tells whether the code of a function is still this one; None if nobody can tell."""
    if function in _owned:
        owner = _owned[function][0]
        return lambda: getattr(owner(), "function", None) == function
    # functions of cuda.core are known by their names, which it may give again
    if function in _registered:
        return lambda: _registered.get(function) == code and not _has_cuda_core()
    strangers = _strangers()
    return None if code == UNKNOWN else lambda: _strangers() == strangers and not _has_cuda_core()


def loaded() -> Binaries:
    """Look for all functions that were compiled in this process and are loaded."""
    kinds = {getattr(sys.modules.get(module), name, None) for module, name in COMPILED} - {None}
    names = set()
    before = dict(_owned)
    _owned.clear()
    for owner in (o for o in gc.get_objects() if type(o) in kinds) if kinds else ():
        function = getattr(owner, "function", None)
        if isinstance(function, int) and function:
            known, code = before.get(function, (None, ""))
            if known is None or known() is not owner:
                known, code = weakref.ref(owner), _code_of(owner)
            _owned[function] = known, code
            names.add(str(getattr(owner, "name", "")))
    named, whole = _of_cuda_core()
    found = _registered | {function: code for function, (_, code) in _owned.items()}
    return Binaries(found, named, frozenset(names), (*_strangers(), *([] if whole else ["cuda.core"])))


def _has_cuda_core() -> bool:
    return CUDA_CORE in sys.modules


def _strangers() -> tuple[str, ...]:
    return tuple(name for name in STRANGERS if name in sys.modules)


def _of_cuda_core() -> tuple[dict[str, str], bool]:
    """Code by name of what cuda.core loaded, and whether that is all: a kernel may outlive the binary's object."""
    module = sys.modules.get(CUDA_CORE)
    binary, kernel = getattr(module, "ObjectCode", None), getattr(module, "Kernel", None)
    if binary is None:
        return {}, True
    alive = gc.get_objects()
    named: dict[str, str] = {}
    readable = True
    for image in (o.code for o in alive if type(o) is binary):
        try:
            names = [name.removeprefix(FUNCTION) for name, _, _ in sections(image) if name.startswith(FUNCTION)]
        except (TypeError, ValueError):  # PTX, or a path
            readable = False
            continue
        code = fingerprint(image)
        for name in names:
            named[name] = code if named.get(name, code) == code else UNKNOWN
    return named, readable and sum(type(o) is kernel for o in alive) <= len(named)


def _code_of(owner: object) -> str:
    """Triton's objects keep the binary; torch's keep the digest of all that it was compiled from."""
    image = getattr(owner, "kernel", None)
    if isinstance(image, bytes):
        return fingerprint(image)
    key = getattr(owner, "hash", None)
    return hashlib.sha256(str(key).encode()).hexdigest()[:DIGITS] if key else UNKNOWN


def fingerprint(image: bytes) -> str:
    """The code in a binary: for a cubin of the sections that decide what runs, else of all bytes."""
    digest = hashlib.sha256()
    try:
        executed = sorted((name, size, offset) for name, size, offset in sections(image) if name.startswith(EXECUTED))
    except ValueError:
        executed = []
    for name, size, offset in executed:
        digest.update(f"{name} {size}\n".encode())
        digest.update(image[offset : offset + size] if offset else b"")
    if not executed:
        digest.update(image)
    return digest.hexdigest()[:DIGITS]


def sections(image: bytes | mmap.mmap) -> Iterator[tuple[str, int, int]]:
    """Name, size and offset of the sections of a 64-bit ELF file; a section without contents has offset 0.

    Raises:
        ValueError: If it is none, or is cut off.
    """
    if image[:5] != b"\x7fELF\x02":
        raise ValueError(f"expected a 64-bit ELF file, got one that begins with {bytes(image[:5])!r}")
    try:
        (start,) = struct.unpack_from("<Q", image, 0x28)
        step, count, strings = struct.unpack_from("<HHH", image, 0x3A)
        headers = [struct.unpack_from("<IIQQQQ", image, start + i * step) for i in range(count)]
        names = headers[strings][4] if headers else 0
        for name, kind, _, _, offset, size in headers:
            at = names + name
            yield image[at : image.find(b"\0", at)].decode("latin-1"), size, 0 if kind == NOBITS else offset
    except (struct.error, IndexError, OverflowError) as error:
        raise ValueError(f"an ELF file that is cut off: {error}") from error
