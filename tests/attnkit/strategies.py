"""The problems that our own variants are fuzzed with; on a GPU longer than several tiles of any kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import example
from hypothesis import strategies as st

from attnkit import testing
from attnkit.problem import Problem
from attnkit.variant import FEATURES, Feature

__all__ = ["UNCACHED", "kept", "problems"]

UNCACHED: tuple[Feature, ...] = tuple(feature for feature in FEATURES if feature not in ("cache", "paged"))
"""Features of problems whose keys and values are [b, skv, hkv, d], each a number."""


def problems(features: Sequence[Feature] = FEATURES) -> st.SearchStrategy[Problem]:
    """Draw a problem of every kind there is, or with these features alone."""
    if torch.cuda.is_available():
        return testing.problems(features=features, head_dims=testing.HEAD_DIMS, longest=600)
    return testing.problems(features=features)


def kept(chosen: Sequence[Problem], **others: object) -> Callable[[Any], Any]:
    """Let hypothesis try these problems before it draws any."""

    def decorated(test: Any) -> Any:
        for problem in reversed(chosen):
            test = example(problem=problem, **others)(test)
        return test

    return decorated
