"""The weights of Llama-2-7B, in 16 bits and in int8, times one row, eight rows and a prompt, in every way there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from attnkit.agreement import Agreement, agreement
from attnkit.product import Product
from attnkit.products import TABLE, product, rounds
from perf.conftest import kind
from perf.tune_matvec import SHAPES
from perf.tune_product import on_steps
from perfgate import Work
from perfgate.plugin import GpuBenchmark

Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
ROUNDING = ("torch_dynamic", "triton_dynamic")
"""What rounds x to int8, which a layer does for many rows alone."""
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class Case:
    """x ``[m, k]`` and weight ``[n, k]``."""

    m: int
    n: int
    k: int
    dtype: str
    int8: bool

    @property
    def name(self) -> str:
        """What a case of it is called by."""
        return f"m{self.m}-n{self.n}-k{self.k}-{self.dtype}" + ("-int8" if self.int8 else "")

    @property
    def work(self) -> Work:
        """Operations, and the bytes of operands and result."""
        wide = DTYPES[self.dtype].itemsize
        weight = self.n * self.k * (1 if self.int8 else wide) + 4 * self.n * self.int8
        moved = weight + self.m * (self.k + self.n) * wide
        return Work(flops=2 * self.m * self.n * self.k, bytes=moved, tokens=self.m, dtype=self.dtype)

    def operands(self, device: torch.device, seed: int) -> Operands:
        """Inputs such that results are about one. No two rows have one scale: another's is seen."""
        make = torch.Generator(device).manual_seed(seed)
        x = torch.randn(self.m, self.k, generator=make, device=device).to(DTYPES[self.dtype])
        if not self.int8:
            weight = torch.randn(self.n, self.k, generator=make, device=device) * self.k**-0.5
            return x, weight.to(x.dtype), None
        weight = torch.randint(-127, 128, (self.n, self.k), generator=make, device=device, dtype=torch.int8)
        scale = torch.rand(self.n, generator=make, device=device) + 0.5
        return x, weight, scale * (self.k**-0.5 / 73)


def cases(device: str, suite: str) -> Iterator[Case]:
    """What is timed on a kind of device."""
    if device == "cpu":
        for int8 in (False, True):
            yield Case(1, 1024, 1024, "fp32", int8)
        yield Case(64, 1024, 1024, "fp32", True)
        return
    full = suite == "full"
    for int8 in (False, True):
        for n, k in SHAPES.values() if full else [SHAPES[name] for name in ("o", "gate_up", "down")]:
            for m in (1, 2, 4, 8, 128, 512, 2048) if full else (1,):
                yield Case(m, n, k, "bf16", int8)
        if not full:
            yield Case(512, *SHAPES["qkv"], "bf16", int8)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device, suite = kind(metafunc.config), metafunc.config.getoption("perf_suite")
    found = [
        pytest.param(case, way.name, id=f"{way.name}-{case.name}")
        for case in cases(device, suite)
        for way in TABLE
        if way.name not in ROUNDING or rounds("int8", case.m)
    ]
    metafunc.parametrize(("case", "product_name"), found)


def compared(way: Product, given: Operands) -> Agreement:
    """How a product agrees with float64."""
    found = agreement(way.multiply(*given), *given, explained=way.explains(*given, None) if way.explains else None)
    if found.wrong or way.name not in ROUNDING:
        return found
    # rounding explains so much that a product off by a twentieth passes: so it is asked for one without rounding, too
    x, weight, scale = given
    steps = on_steps(x)
    exact = agreement(way.multiply(steps, weight, scale), steps, weight, scale)
    return exact if exact.wrong else found


def test_linear(gpu_benchmark: GpuBenchmark, case: Case, product_name: str, device: torch.device) -> None:
    way = product(product_name)
    if reason := way.rejects(*case.operands(device, 0), None):
        pytest.skip(f"{product_name} cannot: {reason}")

    def check(_: object) -> dict[str, float]:
        given = case.operands(device, 0)
        found = compared(way, given)
        if found.wrong:
            pytest.fail(
                f"{product_name} is wrong at {case.name}: {found.wrong} elements, the worst off by "
                f"{found.largest:.1f} times what rounding explains",
                pytrace=False,
            )
        return {"out": found.mean_error}

    gpu_benchmark(
        way.multiply,
        inputs=lambda i: case.operands(device, i),
        work=case.work,
        name=f"linear/{product_name}/{case.name}",
        group=f"linear/{case.name}",
        reference=product_name == "torch",
        check=check,
    )
