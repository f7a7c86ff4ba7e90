"""What every CUDA library of attention in 16 bits asks of a problem and of a device."""

from __future__ import annotations

import torch

from attnkit.problem import Problem

__all__ = ["rejects", "too_old"]


def rejects(problem: Problem, device: torch.device) -> str | None:
    """Say what of a problem or a device no such library takes; None if it may."""
    if device.type != "cuda":
        return f"runs on a CUDA device, got {device.type}"
    if problem.dtype == "fp32":
        return "takes fp16 and bf16, got fp32"
    if problem.scale is not None and problem.scale <= 0:
        return f"scale must be positive (a key is hidden by a score of -inf, which is then scaled), got {problem.scale}"
    return None


def too_old(device: torch.device) -> str | None:
    """Say that a device came before the kernels, which want Ampere; None if it did not."""
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"needs compute capability 8.0 or later, got {major}.{minor}"
