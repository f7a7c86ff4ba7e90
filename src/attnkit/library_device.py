"""What every CUDA library of attention in 16 bits asks of a problem and of a device, and how it is told a window."""

from __future__ import annotations

import torch

from attnkit.problem import Mask, Problem, Window

__all__ = ["NO_BOUND", "rejects", "too_old", "window"]

NO_BOUND = -1
"""What FlashAttention and its like are told for a side of a window that has no bound."""


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


def window(mask: Mask) -> tuple[int, int]:
    """Return the keys that a window shows before and behind the diagonal; no bounds for any other mask."""
    left, right = (mask.left, mask.right) if isinstance(mask, Window) else (None, None)
    return NO_BOUND if left is None else left, NO_BOUND if right is None else right
