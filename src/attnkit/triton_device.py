"""Where a Triton kernel of ours runs: on a CUDA device from Ampere on, or on the CPU in Triton's interpreter."""

from __future__ import annotations

import contextlib
import importlib.util

import torch

__all__ = ["absent", "current", "rejects"]


def absent() -> str | None:
    """Say that there is no Triton, and how to have it; None if there is."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed: pip install 'triton>=3.6' (Linux)"
    return None


NARROW = (torch.bfloat16, torch.float8_e4m3fn)
REPAIRED = "reads_narrow"
"""What whoever repairs Triton's interpreter sets on its builder; as it comes, bits of these dtypes are integers to it
(triton#11584)."""


def rejects(device: torch.device, dtype: torch.dtype | None = None, *, least: tuple[int, int] = (8, 0)) -> str | None:
    """Say why no kernel runs on this device; None if it does. Triton must not be absent.

    Args:
        device: The device.
        dtype: What is computed with; None for a kernel that computes nothing.
        least: The compute capability that the kernel needs.
    """
    if device.type == "cuda":
        found = torch.cuda.get_device_capability(device)
        return None if found >= least else "needs compute capability {}.{} or later, got {}.{}".format(*least, *found)
    import triton

    if not triton.knobs.runtime.interpret:
        return f"runs on a CUDA device, got {device.type}: set TRITON_INTERPRET=1 for Triton's interpreter"
    from triton.runtime.interpreter import InterpreterBuilder

    if dtype in NARROW and not getattr(InterpreterBuilder, REPAIRED, False):
        return f"would be wrong in Triton's interpreter, which misreads {dtype}: take float16 or float32 there"
    return None


def current(device: torch.device, dtype: torch.dtype | None = None) -> contextlib.AbstractContextManager[object]:
    """Make it the device where Triton launches.

    Raises:
        ValueError: If it is no CUDA device, and there is no interpreter for it, or none for what is computed with.
    """
    if device.type == "cuda":
        return torch.cuda.device(device)
    if reason := rejects(device, dtype):
        raise ValueError(f"a Triton kernel {reason}")
    return contextlib.nullcontext()
