"""Builds a .cu file of attnkit for the host (see cuda_on_host.h) and calls its kernel on CPU tensors."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from attnkit.nvrtc import SOURCES
from attnkit.products.matvec_tiles import Config, Weights, launch_shape
from tests.attnkit.host_build import build

HEADER = Path(__file__).with_name("cuda_on_host.h")
FLAGS = ("-std=c++20", "-O1", "-w")
MAIN = """
#include <string>
// argv: seed, threads, grid, shared, and the kernel's numbers in order; then files: weight x scale bias out
static std::vector<char> contents(const char* path) {
  std::vector<char> bytes;
  FILE* file = fopen(path, "rb");
  char buffer[65536];
  for (size_t n; file && (n = fread(buffer, 1, sizeof buffer, file)) > 0;)
    bytes.insert(bytes.end(), buffer, buffer + n);
  if (file) fclose(file);
  return bytes;
}
int main(int argc, char** argv) {
  int v[14];
  for (int i = 1; i <= 13; ++i) v[i] = atoi(argv[i]);
  auto weight = contents(argv[14]), x = contents(argv[15]), scale = contents(argv[16]), bias = contents(argv[17]);
  std::vector<half_bits> out((size_t)v[5] * v[7], 0x7fff);
  host::random.seed(v[1]);
  char* aligned = (char*)aligned_alloc(64, (weight.size() + 63) / 64 * 64);
  memcpy(aligned, weight.data(), weight.size());
  host::global_begin = aligned;
  host::global_end = aligned + weight.size();
  for (int block = 0; block < v[3]; ++block)
    run_block(v[2], block, v[3], v[4], [&] {
      matvec(aligned, (half_bits*)x.data(), scale.empty() ? nullptr : (float*)scale.data(),
             bias.empty() ? nullptr : (half_bits*)bias.data(), out.data(), v[5], v[6], v[7], v[8], v[9], v[10], v[11],
             v[12], v[13]);
    });
  FILE* file = fopen(argv[18], "wb");
  fwrite(out.data(), 2, out.size(), file);
  return fclose(file);
}
"""


def absent() -> str | None:
    """Why nothing can be built here."""
    return None if shutil.which("g++") else "needs g++"


def text(source: str) -> str:
    """A source with the package's headers in it, but for ptx.cuh, which the host has its own of."""
    body = (SOURCES / source).read_text().replace("#pragma once", "").replace('#include "ptx.cuh"', "")
    return re.sub(r'#include "(matvec.cuh)"', lambda found: text(found[1]), body)


@functools.cache
def program(source: str, options: tuple[str, ...]) -> Path:
    """The executable."""
    code = f'#include "{HEADER.name}"\n{text(source)}\n{MAIN}'
    headers = [header.read_text() for header in sorted(HEADER.parent.glob("*_on_host.h"))]
    return build(code, headers, [*FLAGS, *options], include=HEADER.parent)


def matvec(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    config: Config,
    sms: int = 3,
    seed: int = 0,
) -> torch.Tensor:
    """What `attnkit.products.cuda_matvec.matvec` would give on a device of so many multiprocessors."""
    weights: Weights = "int8" if weight.dtype == torch.int8 else "half"
    (m, k), n = x.shape, weight.shape[0]
    shape = launch_shape(config, weights, m, n, k, sms)
    built = program(config.source, config.options(x.dtype, weights))
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name, tensor in {"weight": weight, "x": x, "scale": scale, "bias": bias}.items():
            files.append(f"{folder}/{name}")
            Path(files[-1]).write_bytes(b"" if tensor is None else _bytes(tensor))
        numbers: Sequence[int] = (
            seed, config.threads, shape.grid, shape.shared, n, k, m, weight.stride(0), x.stride(0),
            n // shape.grid, n % shape.grid, shape.phase, shape.slots,
        )  # fmt: skip
        command = [str(built), *map(str, numbers), *files, f"{folder}/out"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise AssertionError(done.stderr or f"exit {done.returncode}")
        bits = bytearray(Path(f"{folder}/out").read_bytes())
    return torch.frombuffer(bits, dtype=x.dtype).view(m, n)


def _bytes(tensor: torch.Tensor) -> bytes:
    """What lies from its first element to its last, gaps between rows included."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((extent,), (1,)).view(torch.uint8).numpy().tobytes()
