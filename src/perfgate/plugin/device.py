"""The default answers to perfgate's hooks: a CUDA device if there is one that nobody else computes on, else the CPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable

import pytest

from perfgate.clock import Budget, Clock, HostClock, Inputs
from perfgate.environment import Environment, host
from perfgate.gate import Exit
from perfgate.plugin.state import run_of

__all__ = ["pytest_perf_canaries", "pytest_perf_ceilings", "pytest_perf_clock", "pytest_perf_environment"]

DEVICE = pytest.StashKey[str]()


@pytest.hookimpl(trylast=True)
def pytest_perf_clock(config: pytest.Config) -> Clock:
    """The clock of the device that ``--perf-device`` says."""
    option = config.getoption
    budget = Budget(
        max_seconds=option("perf_max_time"),
        min_samples=option("perf_min_samples"),
        warmup_seconds=option("perf_warmup"),
    )
    if _device(config) == "cpu":
        return HostClock(budget)
    from perfgate import cuda

    return cuda.CudaClock(budget)


@pytest.hookimpl(trylast=True)
def pytest_perf_environment(config: pytest.Config) -> Environment:
    """The device that ``--perf-device`` says, with its software."""
    if _device(config) == "cuda":
        from perfgate import gpu

        return gpu.environment()
    try:
        return host({"torch": importlib.metadata.version("torch")})
    except importlib.metadata.PackageNotFoundError:
        return host()


@pytest.hookimpl(trylast=True)
def pytest_perf_ceilings(config: pytest.Config, clock: Clock) -> dict[str, float]:
    """Those of a CUDA device; none are measured on the CPU."""
    if config.stash.get(DEVICE, "cpu") == "cuda":
        from perfgate import cuda, gpu

        if isinstance(clock, cuda.CudaClock):
            return gpu.ceilings(clock)
    return {}


@pytest.hookimpl(trylast=True)
def pytest_perf_canaries(config: pytest.Config) -> dict[str, tuple[Callable[..., object], Inputs]]:
    """A copy and a matrix product on a CUDA device, on the CPU a copy and a sum; none for another's clock."""
    device = config.stash.get(DEVICE, None)
    if device == "cuda":
        from perfgate import gpu

        return gpu.canaries()
    if device == "cpu":
        source = bytes(range(256)) * 2**16
        return {"canary/copy": (bytearray, [(source,)]), "canary/sum": (sum, [(range(10**5),)])}
    return {}


def _device(config: pytest.Config) -> str:
    """``"cuda"`` or ``"cpu"``, decided once. A GPU that others compute on ends the run."""
    if DEVICE not in config.stash:
        wanted = config.getoption("perf_device")
        why_not = "--perf-device says so" if wanted == "cpu" else _without_cuda()
        if why_not and wanted == "cuda":
            raise pytest.UsageError(f"--perf-device cuda: {why_not}")
        if why_not:
            run_of(config).notes.append(f"timed on the CPU by the host's clock: {why_not}")
        else:
            _take(config)
        config.stash[DEVICE] = "cpu" if why_not else "cuda"
    return config.stash[DEVICE]


def _without_cuda() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed, and perfgate times a GPU through it"
    from perfgate import gpu

    return gpu.available()


def _take(config: pytest.Config) -> None:
    """Take the GPU for this process, unless others compute on it.

    They are asked for before this process does anything there: in a container it might not know itself afterwards.
    """
    from perfgate import gpu

    others = gpu.busy()
    if others and not config.getoption("perf_allow_busy"):
        pytest.exit(f"the GPU is busy: {'; '.join(others)}. Wait, or give --perf-allow-busy", Exit.UNFIT)
    run_of(config).notes.extend(f"timed although {other}" for other in others)
    gpu.use_one_stream()
