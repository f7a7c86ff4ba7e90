"""Builds the decoder's kernels for the host (see grid_on_host.h); they are launched like those that NVRTC compiles."""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from attnkit.nvrtc import SOURCES
from tests.attnkit.host_build import build

OF_THE_DEVICE = ("ptx.cuh", "llama/device.cuh")
HEADER = Path(__file__).with_name("grid_on_host.h")
HEADERS = (HEADER, HEADER.parents[1] / "device_on_host.h")

SIZE = """
extern "C" int shared_bytes() { return Shared::BYTES; }
"""

LAUNCH = """
extern "C" const char* launch_KERNEL(const Model* model, int number, Sampling sampling,
                                     int grid, int block, int shared_bytes, unsigned seed) {
  host::readable.clear();
  for (int i = 0; i < KINDS; ++i) {
    const long long rows = 2LL * PAIRS[i] * (i == HEAD ? 1 : LAYERS);
    host::readable.push_back({model->weights[i], model->weights[i] + rows * WIDTH[i] * WEIGHT_BYTES});
  }
  static std::string said;
  said = host::run(grid, block, shared_bytes, seed, [&] { KERNEL(*model, number, sampling); });
  return said.c_str();
}
"""


def text(name: str) -> str:
    """A source with the headers it includes in it, but for those that the host has its own of."""
    body = (SOURCES / name).read_text().replace("#pragma once", "")
    return re.sub(r'#include "(.*)"', lambda found: "" if found[1] in OF_THE_DEVICE else text(found[1]), body)


@functools.cache
def library(name: str, kernels: tuple[str, ...], options: tuple[str, ...]) -> ctypes.CDLL:
    """The kernels as a shared library."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to run kernels on the host")
    code = f'#include "{HEADER}"\n{text(name)}\n{SIZE}' + "".join(
        LAUNCH.replace("KERNEL", kernel) for kernel in kernels
    )
    flags = ["-std=c++20", "-O1", "-w", "-shared", "-fPIC", *options]
    return ctypes.CDLL(str(build(code, [header.read_text() for header in HEADERS], flags)))


class Kernel:
    """A kernel of the library, called as `attnkit.nvrtc.Kernel` is."""

    seed = 0
    """Of the order in which threads run; each launch has its own."""

    def __init__(self, function: object) -> None:
        self.function = function

    def __call__(
        self, grid: int, block: int, *arguments: object, shared: int = 0, overlap: bool = False, together: bool = False
    ) -> None:
        model, number, sampling = arguments
        Kernel.seed += 1
        self.function.restype = ctypes.c_char_p  # type: ignore[attr-defined]
        said = self.function(  # type: ignore[operator]
            ctypes.byref(model), number, sampling, grid, block, shared, Kernel.seed
        )
        assert not said, said.decode()


def compile(
    source: Path, kernels: Sequence[str], options: Sequence[str] = (), device: object = None
) -> Mapping[str, Kernel]:
    """Stand in for `attnkit.nvrtc.compile`."""
    built = library(str(source.relative_to(SOURCES)), tuple(kernels), tuple(options))
    return {name: Kernel(getattr(built, f"launch_{name}")) for name in kernels}
