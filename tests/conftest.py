"""What all tests share: how kernels run, and how many examples hypothesis draws.

    dev         the default: other examples each time
    ci          where CI is set: the same examples each time
    gpu_long    fifty times as many, for a GPU

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
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))

pytest_plugins = ["pytester"]

USE_A_GPU = (
    "test_cuda",
    "test_cuda_matvec",
    "test_graph",
    "test_kernels",
    "test_laws",
    "test_parity",
    "test_products",
    "test_triton_flash",
    "test_triton_scores",
    "test_triton_splitkv",
    "test_triton_unfused",
    "test_tune",
)


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in the same hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that use a GPU keep out of each other's way: under xdist (--dist=loadgroup) one process runs them all."""
    if torch.cuda.is_available() and config.pluginmanager.hasplugin("xdist"):
        for item in items:
            if item.path.stem in USE_A_GPU:
                item.add_marker(pytest.mark.xdist_group("gpu"))
