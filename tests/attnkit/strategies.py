"""The problems that our own variants are fuzzed with; on a GPU longer than several tiles of any kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st

from attnkit import testing
from attnkit.problem import Problem
from attnkit.variant import FEATURES, Feature

__all__ = ["problems"]


def problems(features: Sequence[Feature] = FEATURES) -> st.SearchStrategy[Problem]:
    """Draw a problem of every kind there is, or with these features alone."""
    if torch.cuda.is_available():
        return testing.problems(features=features, head_dims=testing.HEAD_DIMS, longest=600)
    return testing.problems(features=features)
