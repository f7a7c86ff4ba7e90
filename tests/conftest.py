"""What all tests share: how kernels run, and how many examples hypothesis draws.

    dev         the default: other examples each time
    ci          where CI is set: the same examples each time
    gpu_long    fifty times as many, for a GPU
    few         the same ones each time, where other runs draw many and a kernel compiles for seconds

HYPOTHESIS_PROFILE takes another one than the default.
"""

from __future__ import annotations

import os

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, Phase

# Triton decides at its first import, whoever makes it, whether kernels are interpreted: without a GPU they are
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

SHARED = hypothesis.settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
hypothesis.settings.register_profile("dev", SHARED)
hypothesis.settings.register_profile("ci", SHARED, derandomize=True)
# a variant that is wrong is wrong on most problems: at thousands of them shrinking is the time that counts
hypothesis.settings.register_profile("gpu_long", SHARED, max_examples=5000, phases=set(Phase) - {Phase.explain})
hypothesis.settings.register_profile("few", SHARED, derandomize=True, max_examples=30)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))

pytest_plugins = ["pytester"]

TIME_A_GPU = ("test_cuda", "test_kernels")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that time a GPU can be chosen by a mark, so that nothing else uses it meanwhile."""
    for item in items:
        if item.path.stem in TIME_A_GPU:
            item.add_marker(pytest.mark.times_gpu)
