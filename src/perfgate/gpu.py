"""The GPU that this process computes on: whether it may, what it is, what it does at best, and its one stream.

All work goes to one stream. After enough kernels on a second one every kernel of every graph of the process starts a
fraction of a microsecond later (seen on an H200). `use_one_stream` makes the clock's stream the current one for good,
so that a test's own work goes there too.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import time
from collections.abc import Callable

import torch

from perfgate import nvml
from perfgate.clock import Clock, Inputs
from perfgate.environment import Environment

__all__ = [
    "OUT_OF_MEMORY",
    "available",
    "busy",
    "canaries",
    "ceilings",
    "environment",
    "give_back",
    "held",
    "let_go",
    "stream",
    "use_one_stream",
    "uuid",
]

OUT_OF_MEMORY: tuple[type[BaseException], ...] = (torch.OutOfMemoryError,)
CLEARING = 4e11
"""Bytes a second that an H200 clears of what was given back, at least."""


def available() -> str | None:
    """Why there is no CUDA device to time on, with the remedy, or None if there is one."""
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA: install a CUDA build"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device: check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES"
    return None


def busy() -> list[str]:
    """Who else computes on the device, a sentence each; ask before anything has used the device."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if visible.isdigit():
        return nvml.busy(int(visible))
    return nvml.busy(visible) if visible.startswith("GPU-") else []


@functools.cache
def stream(device: int) -> torch.cuda.Stream:
    """The one stream of a device, on which its clock times."""
    return torch.cuda.Stream(device)


def use_one_stream() -> None:
    """Make the clock's stream the current one of this thread, for good; call it before much other work is done."""
    torch.cuda.synchronize()  # nothing orders the streams: what was begun on another must be done
    torch.cuda.set_stream(stream(torch.cuda.current_device()))


def held() -> int:
    """Bytes of the current device that tensors of this process hold."""
    return torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0


def let_go() -> None:
    """Give the driver what torch keeps for later, so that another process can have it; nothing if it keeps nothing."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        give_back()


def give_back() -> None:
    """Give the driver what torch keeps for later, and wait as long as an H200 takes to clear it.

    Meanwhile kernels that are bound by memory are a tenth slower there, those of other processes too.
    """
    before = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    time.sleep(max(0, before - torch.cuda.memory_reserved()) / CLEARING)


def environment() -> Environment:
    """The current device and the software that decides its speed."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    versions = {
        "cuda": str(torch.version.cuda),
        "torch": torch.__version__,
        "cudnn": str(torch.backends.cudnn.version()),
    }
    try:
        versions["triton"] = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        versions["triton"] = "absent"
    if version := nvml.driver():
        versions["driver"] = version
    facts = {
        "uuid": str(properties.uuid),
        "sm_count": str(properties.multi_processor_count),
        "memory_bytes": str(properties.total_memory),
        "l2_bytes": str(properties.L2_cache_size),
    }
    if watts := nvml.power_limit(uuid()):
        facts["power_limit_watts"] = f"{watts:g}"
    return Environment(device=properties.name, versions=versions, facts=facts)


def ceilings(clock: Clock) -> dict[str, float]:
    """What this device does at best now: copy and read bandwidth, and the rate of an 8192 x 8192 x 8192 matrix product.

    The copy counts bytes read and written. The product runs on normally distributed numbers, float32 without TF32.
    """
    elements = 2**28
    source, target = torch.randn(elements, device="cuda"), torch.empty(elements, device="cuda")
    found = {
        "copy_bytes_per_second": 2 * source.nbytes / clock.measure(_copy, [(source, target)]).median,
        "read_bytes_per_second": source.nbytes / clock.measure(torch.sum, [(source,)]).median,
    }
    del source, target
    n = 8192
    for name, dtype in {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}.items():
        a, b = (torch.randn(n, n, device="cuda", dtype=dtype) for _ in range(2))
        found[f"flops_per_second.{name}"] = 2 * n**3 / clock.measure(torch.mm, [(a, b)]).median
    return found


def canaries() -> dict[str, tuple[Callable[..., object], Inputs]]:
    """Work that no revision brings along, about 60 and 190 us on an H200: a copy, and a bfloat16 matrix product."""

    def drawn(i: int, count: int, *shape: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator("cuda").manual_seed(i)
        return tuple(torch.randn(shape, generator=generator, device="cuda", dtype=dtype) for _ in range(count))

    def buffers(i: int) -> tuple[torch.Tensor, ...]:
        return drawn(i, 2, 2**25, dtype=torch.float32)

    def factors(i: int) -> tuple[torch.Tensor, ...]:
        return drawn(i, 2, 4096, 4096, dtype=torch.bfloat16)

    return {"canary/copy": (_copy, buffers), "canary/matmul": (torch.mm, factors)}


def uuid() -> str:
    """The current device, as the driver names it."""
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    torch.mul(source, 1.0, out=target)  # a kernel: in a graph, `copy_` may run on a copy engine, far slower
