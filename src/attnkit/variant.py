"""A variant: one way to compute attention, and what it can and cannot do.

Every variant has the same call, is differentiable by autograd, and can be captured in a CUDA graph after one call that
warms it up. Knows problems; knows nothing of the oracle and of other variants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from attnkit.problem import Mask, Pass, Problem

__all__ = ["Attention", "Variant"]


class Attention(Protocol):
    """The call of every variant: q [b, sq, hq, d], k [b, skv, hkv, d], v [b, skv, hkv, dv] to out [b, sq, hq, dv].

    `mask` is aligned bottom-right when causal; `scale` is 1 / sqrt(d) when None. Rows without a live key give 0.
    """

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, mask: Mask = "full", scale: float | None = None
    ) -> torch.Tensor:
        """Compute attention."""
        ...


def here() -> str | None:
    """Say that nothing is missing: torch alone is enough."""
    return None


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to compute attention.

    Attributes:
        name: Stable; it is part of the name of every case that times it.
        summary: What it is, in one line.
        attention: The call. It is made for problems that `rejects` does not reject.
        rejects: Why this variant cannot do this pass of this problem on this device, or None.
        absent: Why the variant is not here at all (a package is missing: which, and what to do), or None.
    """

    name: str
    summary: str
    attention: Attention
    rejects: Callable[[Problem, torch.device, Pass], str | None]
    absent: Callable[[], str | None] = here

    def why_not(self, problem: Problem, device: torch.device, pass_: Pass) -> str | None:
        """Return why this pass of this problem cannot be computed here, or None if it can."""
        return self.absent() or self.rejects(problem, device, pass_)
