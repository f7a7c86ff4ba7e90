"""A block in every variant over the length of the sequence, and the rungs from the textbook's block to int8 throughout.

Time, peak memory and tokens a second, all sides in the same dtype. A CUDA graph changes when kernels begin and not what
they do: what it saves is seen by ``python -m perf.block_latency``, from outside.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from attnkit.products import Activations
from attnkit.variants import TABLE, variant
from perf.blocks import Shape, error, made
from perf.conftest import kind
from perfgate.plugin import GpuBenchmark, absent

CPU = [Shape(1, s, 256, 4, "fp32") for s in (64, 256)]
LADDER = [Shape(b, s) for b in (1, 16) for s in (128, 512, 2048)]
INT8 = ("int8", "int8_dynamic")
FAST = (
    "sdpa_flash",
    "sdpa_cudnn",
    "triton_flash",
    "flash_attn",
    "flash_attn_3",
    "flash_attn_4",
    "flashinfer",
    "transformer_engine",
)


def cases(device: str, suite: str) -> Iterator[tuple[Shape, str, str]]:
    """Shape, variant and how its projections are: separate, fused, int8, or int8 times x in int8."""
    if device == "cpu":
        for shape in CPU:
            yield shape, "naive", "separate"
            yield from ((shape, "sdpa_flash", projections) for projections in ("fused", *INT8))
        return
    full = suite == "full"
    for s in [128, 256, 512, 1024, 2048, 4096, 8192, 16384] if full else [1024, 4096]:
        names = [way.name for way in TABLE] if full else ["naive", *FAST]
        yield from ((Shape(4, s, 2048, 16), name, "separate") for name in names)
    for shape in LADDER if full else LADDER[:2]:
        yield shape, "naive", "separate"
        for name in FAST if full else FAST[1:]:
            yield from ((shape, name, projections) for projections in ("fused", *INT8))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    found = []
    for shape, name, projections in cases(kind(metafunc.config), metafunc.config.getoption("perf_suite")):
        if reason := variant(name).absent():
            absent(metafunc.config, name, reason)
        else:
            found.append(pytest.param(shape, name, projections, id=f"{name}-{projections}-{shape.name}"))
    metafunc.parametrize(("shape", "variant_name", "projections"), found)


def test_block(
    gpu_benchmark: GpuBenchmark, shape: Shape, variant_name: str, projections: str, device: torch.device
) -> None:
    way = variant(variant_name)
    if reason := way.why_not(shape.problem, device, "fwd"):
        pytest.skip(f"{variant_name} cannot: {reason}")
    int8 = projections in INT8
    activations: Activations = "int8" if projections == "int8_dynamic" else None
    fused = projections != "separate"
    block = made(shape, device, way.attention, fused=fused, int8=int8, activations=activations)

    def check(_: object) -> dict[str, float]:
        x = shape.x(device)
        off, may = error(block, block(x), x)
        if not off <= may:
            pytest.fail(
                f"the block with {variant_name} is wrong at {shape.name}: off by {off:.2e}, "
                f"and rounding explains {may:.2e}",
                pytrace=False,
            )
        return {"out": off}

    gpu_benchmark(
        block,
        inputs=lambda i: (shape.x(device, i),),
        work=shape.work(int8),
        name=f"block/{variant_name}/{projections}-{shape.name}",
        group=f"block/{shape.name}",
        reference=(variant_name, projections) == ("naive", "separate"),
        check=check,
    )
