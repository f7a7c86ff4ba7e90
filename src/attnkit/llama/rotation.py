"""Rotary positions (Su et al., RoFormer, 2021) as Llama has them: element i of a head turns with element i + d/2."""

from __future__ import annotations

import math

import torch

from attnkit.llama.config import Config

__all__ = ["rotate", "table"]


def table(config: Config, positions: int, device: torch.device | str) -> torch.Tensor:
    """Return cos and sin of every position's rotations, ``[positions, d/2, 2]`` in float32.

    Pair i turns by ``position · theta^(-2i/d)`` radians; with Llama 3.1's scaling slow rotations get slower.
    """
    exponents = torch.arange(0, config.d, 2, dtype=torch.float64) / config.d
    speeds = config.rope_theta**-exponents  # radians a position
    if (scaling := config.rope_scaling) is not None:
        rotations = scaling.original * speeds / (2 * math.pi)
        kept = ((rotations - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
        speeds = kept * speeds + (1 - kept) * speeds / scaling.factor
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * speeds
    return torch.stack((angles.cos(), angles.sin()), dim=-1).float().to(device)


def rotate(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn ``x [b, s, h, d]`` by ``turns [s, d/2, 2]``, in float32; the result has the dtype of x."""
    cos, sin = turns[:, None].unbind(-1)  # [s, 1, d/2]
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
