"""Where a Triton kernel of ours runs: on a CUDA device from Ampere on, or on the CPU in Triton's interpreter."""

from __future__ import annotations

import importlib.util

import torch

__all__ = ["absent", "rejects"]


def absent() -> str | None:
    """Say that there is no Triton, and how to have it; None if there is."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed: pip install 'triton>=3.6' (Linux)"
    return None


def rejects(device: torch.device) -> str | None:
    """Say why no kernel runs on this device; None if it does. Triton must not be absent."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return None if major >= 8 else f"needs compute capability 8.0 or later, got {major}.{minor}"
    import triton

    if not triton.knobs.runtime.interpret:
        return f"runs on a CUDA device, got {device.type}: set TRITON_INTERPRET=1 for Triton's interpreter"
    return None
