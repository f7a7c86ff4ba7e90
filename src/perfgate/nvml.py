"""What the driver reports of a GPU: clock, power, temperature, throttle reasons, who else computes on it.

Reads only, through NVIDIA's own bindings (package nvidia-ml-py). Without them every reading is empty and `absent` says
why; nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["HEAT", "absent", "busy", "capped", "driver", "hot", "power_limit", "telemetry"]

HEAT = 0x20 | 0x40
"""NVML's clock event reasons that mean heat: software and hardware thermal slowdown (the power cap, 0x4, is normal)."""


POWER_CAP = 0x4
"""The one for a GPU at its power limit."""


def absent() -> str | None:
    """Why there are no readings, with the remedy, or None if there are."""
    try:
        _nvml()
    except ImportError:
        return "nvidia-ml-py is not installed (pip install nvidia-ml-py): no clock, power and temperature readings"
    except Exception as error:  # a driver that is not there raises NVML's own, untyped errors
        return f"the driver does not answer ({error}): no clock, power and temperature readings"
    return None


def _nvml() -> Any:
    import pynvml

    pynvml.nvmlInit()  # counted by NVML itself: calling it again is cheap
    return pynvml


def _handle(nvml: Any, uuid: str) -> Any:
    return nvml.nvmlDeviceGetHandleByUUID(uuid)


def driver() -> str | None:
    """The driver's version, e.g. ``"580.159.04"``."""
    if absent():
        return None
    version = _nvml().nvmlSystemGetDriverVersion()
    return version.decode() if isinstance(version, bytes) else str(version)


def power_limit(uuid: str) -> float | None:
    """The enforced power limit in watts."""
    if absent():
        return None
    nvml = _nvml()
    try:
        return float(nvml.nvmlDeviceGetEnforcedPowerLimit(_handle(nvml, uuid))) / 1e3
    except nvml.NVMLError:
        return None


def telemetry(uuid: str) -> dict[str, float]:
    """One reading: ``sm_hz``, ``watts``, ``celsius`` and ``throttle_reasons`` (NVML's bits); empty without NVML."""
    if absent():
        return {}
    nvml = _nvml()
    try:
        gpu = _handle(nvml, uuid)
    except nvml.NVMLError:  # a MIG slice or a virtual GPU has no handle of its own
        return {}
    sources: dict[str, Callable[[], float]] = {
        "sm_hz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM) * 1e6,
        "watts": lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
        "celsius": lambda: float(nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
        "throttle_reasons": lambda: float(nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu)),
    }
    reading = {}
    for name, source in sources.items():
        with contextlib.suppress(nvml.NVMLError):  # not every board answers every question
            reading[name] = source()
    return reading


def capped(reading: Mapping[str, float]) -> bool:
    """Whether a reading says that the power limit lowered the clock."""
    return bool(int(reading.get("throttle_reasons", 0)) & POWER_CAP)


def hot(reading: Mapping[str, float]) -> bool:
    """Whether a reading says that the GPU slowed down for heat."""
    return bool(int(reading.get("throttle_reasons", 0)) & HEAT)


def busy(which: int | str) -> list[str]:
    """Who else computes on a GPU, by NVML's number or by UUID, a sentence each; ask before creating a CUDA context.

    A container may show this process under another number, so afterwards nobody can be told apart.
    """
    if absent():
        return []
    nvml = _nvml()
    try:
        by_uuid = isinstance(which, str)
        gpu = nvml.nvmlDeviceGetHandleByUUID(which) if by_uuid else nvml.nvmlDeviceGetHandleByIndex(which)
        running = nvml.nvmlDeviceGetComputeRunningProcesses(gpu)
    except nvml.NVMLError:  # a virtual GPU does not tell
        return []
    return [f"process {p.pid} computes on GPU {which}" for p in running if p.pid != os.getpid()]
