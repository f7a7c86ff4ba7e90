"""A variant: one way to compute attention, and what it can and cannot do.

Every variant has the same call, is differentiable by autograd unless it says that it is forward only, and can be
captured in a CUDA graph after one call that warms it up. Knows problems; knows nothing of the oracle and of other
variants.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch

from attnkit.problem import TRAINED, Boolean, Documents, Pass, Prefix, Problem, Window

__all__ = ["FEATURES", "FOR_PROMPTS", "Attention", "Feature", "Variant", "features"]

Feature = Literal[
    "causal-top-left",
    "window",
    "prefix",
    "documents",
    "boolean",
    "softcap",
    "alibi",
    "sink",
    "varlen",
    "cache",
    "paged",
    "fp8",
]
"""What a problem may ask for beyond full and causal attention in 16 and 32 bits."""

FEATURES: tuple[Feature, ...] = get_args(Feature)
FOR_PROMPTS: dict[Feature, str] = {
    "cache": "made for prompts: a cache is read by triton_splitkv",
    "paged": "made for prompts: pages are read by triton_paged",
}
"""What variants of ours lack that are made for prompts."""


def none_of_them() -> Mapping[Feature, str]:
    """Return what a variant lacks that says nothing of features."""
    return dict.fromkeys(FEATURES, "not built into this variant")


def features(problem: Problem) -> list[Feature]:
    """Return what this problem asks for beyond full and causal attention in 16 and 32 bits."""
    asked: dict[Feature, bool] = {
        "causal-top-left": problem.mask == "causal-top-left",
        "window": isinstance(problem.mask, Window),
        "prefix": isinstance(problem.mask, Prefix),
        "documents": isinstance(problem.mask, Documents),
        "boolean": isinstance(problem.mask, Boolean),
        "softcap": problem.softcap is not None,
        "alibi": problem.alibi,
        "sink": problem.sink,
        "varlen": problem.varlen is not None,
        "cache": problem.cache is not None and problem.cache.page is None,
        "paged": problem.cache is not None and problem.cache.page is not None,
        "fp8": problem.dtype == "fp8",
    }
    return [feature for feature in FEATURES if asked[feature]]


class Attention(Protocol):
    """The call of every variant: q [b, sq, hq, d], k [b, skv, hkv, d], v [b, skv, hkv, dv] to out [b, sq, hq, dv].

    The keywords are those of `Options`, of which a variant knows `mask` (full unless given), `scale` (1 / sqrt(d) when
    None) and the modifiers that it does not lack. Rows without a live key give 0.
    """

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        """Compute attention."""
        ...


def here() -> str | None:
    """Say that nothing is missing: torch alone is enough."""
    return None


def rejects(
    lacks: Mapping[Feature, str],
    forward_only: str,
    otherwise: Callable[[Problem, torch.device, Pass], str | None],
    problem: Problem,
    device: torch.device,
    pass_: Pass,
) -> str | None:
    """Say what of a problem a variant lacks, and of a problem without it what the variant says."""
    for feature in features(problem):
        if feature in lacks:
            return f"{feature}: {lacks[feature]}"
    if problem.cache is not None and pass_ != "fwd":
        return "what is cached has no gradient: backward is for packed sequences (varlen)"
    if problem.dtype not in TRAINED and pass_ != "fwd":
        return f"{problem.dtype} is forward only"
    if forward_only and pass_ != "fwd":
        return forward_only
    return otherwise(problem, device, pass_)


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to compute attention.

    Attributes:
        name: Stable; it is part of the name of every case that times it.
        summary: What it is, in one line.
        attention: The call. It is made for problems that `rejects` does not reject.
        rejects: Why this variant cannot do this pass of this problem on this device, or None. The function given for it
            is asked only of problems that need nothing of what the variant lacks.
        absent: Why the variant is not here at all (a package is missing: which, and what to do), or None.
        lacks: Features that no size and no device makes it do, each with the reason; all of them unless given.
        forward_only: Why no size and no device gives it a backward; empty if it has one.
        blur: How many times as far as float32 leaves it open a result of float32 inputs may be off: more than 1
            where a product of two of them is made of several in TF32.
    """

    name: str
    summary: str
    attention: Attention
    rejects: Callable[[Problem, torch.device, Pass], str | None]
    absent: Callable[[], str | None] = here
    lacks: Mapping[Feature, str] = field(default_factory=none_of_them, hash=False)
    forward_only: str = ""
    blur: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rejects", functools.partial(rejects, self.lacks, self.forward_only, self.rejects))

    def why_not(self, problem: Problem, device: torch.device, pass_: Pass) -> str | None:
        """Return why this pass of this problem cannot be computed here, or None if it can."""
        return self.absent() or self.rejects(problem, device, pass_)
