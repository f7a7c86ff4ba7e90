"""CUDA C++ from source to a kernel that can be launched, with nothing but the driver and NVRTC.

    module = compile(SOURCES / "matvec_registers.cu", ["matvec"], ["-DROWS=8"], device)
    module["matvec"](grid, block, weight, x, out, n, k, shared=4096)

`cubin` needs no GPU and no driver, so that every form can be compiled and disassembled anywhere; `compile` loads what
it made. Kernels run on torch's current stream and can be captured in CUDA graphs. The package is cuda-bindings, which
torch's CUDA builds bring along.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "SOURCES",
    "WATCHERS",
    "CompileError",
    "Cubin",
    "Kernel",
    "LaunchError",
    "absent",
    "architecture",
    "compile",
    "cubin",
    "target",
]

SOURCES = Path(__file__).with_name("cuda")
"""The folder of this package's .cu files; what they include is looked for there."""

WATCHERS: list[Callable[[int, bytes], object]] = []
"""Called with each kernel that is loaded: the driver's ``CUfunction`` as an integer, and the cubin that it comes from.
So whoever times kernels can tell two revisions of one apart."""

VERSION = re.compile(r"^// Cuda compilation tools, release [\d.]+, V([\d.]+)$", re.MULTILINE)
"""In the head of the PTX; the library itself answers with two numbers of the three."""

UNASKED_SHARED = 48 * 1024
"""Bytes of shared memory that a kernel may use without having asked for more."""

Argument = torch.Tensor | ctypes.Structure | int | float | None


class CompileError(RuntimeError):
    """NVRTC refused a source; the message is its log."""


class LaunchError(RuntimeError):
    """The driver refused to load or to launch a kernel."""


@dataclass(frozen=True, slots=True)
class Cubin:
    """Machine code for one architecture.

    Attributes:
        code: An ELF file.
        log: What the compiler said: warnings, and resources where ``--ptxas-options=-v`` asks for them.
        ptx: What the code was assembled from.
    """

    code: bytes
    log: str
    ptx: str

    @property
    def compiler(self) -> str:
        """NVRTC with its whole version: ``nvrtc 13.0.88``.

        Raises:
            CompileError: If the PTX does not say it.
        """
        if found := VERSION.search(self.ptx):
            return f"nvrtc {found[1]}"
        raise CompileError(f"expected NVRTC's version in the head of its PTX, got {self.ptx[:200]!r}")


@functools.cache
def absent(remedy: str = "pip install 'cuda-bindings[all]'") -> str | None:
    """Why kernels cannot be compiled here, with the remedy, or None if they can."""
    try:
        found = importlib.util.find_spec("cuda.bindings.nvrtc")
    except ModuleNotFoundError:
        found = None
    if found is None:
        return f"the package cuda-bindings is not installed: {remedy}"
    try:
        from cuda.bindings import nvrtc

        _checked(nvrtc.nvrtcVersion(), nvrtc)
    except (ImportError, RuntimeError) as error:  # the bindings look for the library when it is first called
        why = str(error).partition(":")[0]
        return f"cuda-bindings finds no NVRTC ({why}): {remedy}"
    return None


def architecture(device: torch.device) -> str:
    """What to compile for on a device: ``sm_90a`` for a Hopper."""
    major, minor = torch.cuda.get_device_capability(device)
    return target(10 * major + minor)


def target(arch: int) -> str:
    """What to compile for, by an architecture's number: ``sm_90a`` for 90."""
    return f"sm_{arch}" + ("a" if arch // 10 in (9, 10) else "")


@functools.cache
def cubin(source: str, arch: str, options: tuple[str, ...] = ()) -> Cubin:
    """Compile CUDA C++ text for ``arch`` (``"sm_90a"``); no GPU is needed.

    Raises:
        CompileError: If NVRTC refuses it.
    """
    from cuda.bindings import nvrtc

    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), b"attnkit.cu", 0, None, None), nvrtc)
    try:
        flags = [f"--gpu-architecture={arch}", "--std=c++17", f"--include-path={SOURCES}", *options]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
        size = _checked(nvrtc.nvrtcGetProgramLogSize(program), nvrtc)
        log = bytearray(size)
        _checked(nvrtc.nvrtcGetProgramLog(program, log), nvrtc)
        said = log.rstrip(b"\0").decode(errors="replace").strip()
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompileError(f"for {arch} with {' '.join(options) or 'no options'}: {said or status.name}")
        code = bytearray(_checked(nvrtc.nvrtcGetCUBINSize(program), nvrtc))
        _checked(nvrtc.nvrtcGetCUBIN(program, code), nvrtc)
        ptx = bytearray(_checked(nvrtc.nvrtcGetPTXSize(program), nvrtc))
        _checked(nvrtc.nvrtcGetPTX(program, ptx), nvrtc)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return Cubin(bytes(code), said, ptx.rstrip(b"\0").decode(errors="replace"))


class Kernel:
    """One kernel of a module, ready to be launched on the device it was loaded for.

    Args:
        function: The driver's ``CUfunction``.
        device: Where it runs.
        library: Keeps the code loaded.
    """

    def __init__(self, function: Any, device: torch.device, library: Any) -> None:
        self._function, self._device, self._library = function, device, library
        self._asked = UNASKED_SHARED

    def __call__(
        self,
        grid: int,
        block: int,
        *arguments: Argument,
        shared: int = 0,
        overlap: bool = False,
        together: bool = False,
    ) -> None:
        """Launch on torch's current stream.

        A tensor is passed as its address, None as a null pointer, an int as 32 bits with a sign, a float as 32 bits, a
        structure as it is.

        Args:
            grid: Blocks.
            block: Threads a block.
            arguments: The kernel's.
            shared: Bytes of dynamic shared memory a block.
            overlap: Let it begin while the kernel before it on the stream still runs (programmatic dependent launch).
                The kernel itself must wait, by ``griddepcontrol.wait``, before it touches what that one reads or
                writes.
            together: Run all blocks at the same time, so that they may wait for each other (cooperative launch).

        Raises:
            LaunchError: If the driver refuses, for example because so many blocks do not fit at the same time.
        """
        from cuda.bindings import driver

        if shared > self._asked:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _checked(driver.cuFuncSetAttribute(self._function, attribute, shared), driver)
            self._asked = shared
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = block, 1, 1
        config.sharedMemBytes = shared
        config.hStream = driver.CUstream(torch.cuda.current_stream(self._device).cuda_stream)
        attributes = []
        if overlap:
            attributes.append(driver.CUlaunchAttribute())
            attributes[-1].id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attributes[-1].value.programmaticStreamSerializationAllowed = 1
        if together:
            attributes.append(driver.CUlaunchAttribute())
            attributes[-1].id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
            attributes[-1].value.cooperative = 1
        config.attrs, config.numAttrs = attributes, len(attributes)
        values, types = zip(*map(_passed, arguments), strict=True) if arguments else ((), ())
        with torch.cuda.device(self._device):
            _checked(driver.cuLaunchKernelEx(config, self._function, (values, types), 0), driver)


def compile(
    source: Path, kernels: Sequence[str], options: Sequence[str] = (), device: torch.device | None = None
) -> Mapping[str, Kernel]:
    """Compile a .cu file and load it; the same again costs nothing. The first call must not be within a capture.

    Args:
        source: The file.
        kernels: Names of ``extern "C"`` kernels in it.
        options: NVRTC's, beside the architecture, the standard (C++17) and the include path.
        device: Where the kernels are to run; the current device if None.

    Raises:
        CompileError: If NVRTC refuses the source.
        LaunchError: If the driver refuses the code, or has no kernel of that name in it.
    """
    index = torch.cuda.current_device() if device is None or device.index is None else device.index
    return _load(source, tuple(kernels), tuple(options), index)


@functools.cache
def _load(source: Path, kernels: tuple[str, ...], options: tuple[str, ...], index: int) -> Mapping[str, Kernel]:
    from cuda.bindings import driver

    device = torch.device("cuda", index)
    code = cubin(source.read_text(), architecture(device), options).code
    with torch.cuda.device(device):
        torch.cuda.current_stream().synchronize()  # makes the device's context, where nothing has yet
        library = _checked(driver.cuLibraryLoadData(code, None, None, 0, None, None, 0), driver)
        found = {}
        for name in kernels:
            handle = _checked(driver.cuLibraryGetKernel(library, name.encode()), driver)
            function = _checked(driver.cuKernelGetFunction(handle), driver)
            found[name] = Kernel(function, device, library)
            for watcher in WATCHERS:
                watcher(int(function), code)
    return found


def _passed(argument: Argument) -> tuple[Any, Any]:
    """An argument as the driver takes it: its value and its C type."""
    if argument is None:
        return 0, ctypes.c_void_p
    if isinstance(argument, torch.Tensor):
        return argument.data_ptr(), ctypes.c_void_p
    if isinstance(argument, ctypes.Structure):
        return argument, None
    return (argument, ctypes.c_int32) if isinstance(argument, int) else (argument, ctypes.c_float)


def _checked(answer: tuple[Any, ...], library: Any) -> Any:
    """What a call of the bindings gave; its error, if there is one, as an exception."""
    status, *rest = answer
    if int(status) != 0:
        if isinstance(status, library.nvrtcResult if hasattr(library, "nvrtcResult") else ()):
            raise CompileError(status.name)
        raise LaunchError(f"the driver answers {status.name}")
    return rest[0] if rest else None
