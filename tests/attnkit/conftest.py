"""Without a GPU kernels run in Triton's interpreter; how many problems are drawn is hypothesis' profile.

    dev         the default: other problems each time
    ci          where CI is set: the same problems each time
    gpu_long    fifty times as many, for a GPU

HYPOTHESIS_PROFILE takes another one than the default.
"""

from __future__ import annotations

import importlib.util
import os

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, Phase

from tests.attnkit import interpreter

SHARED = hypothesis.settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
hypothesis.settings.register_profile("dev", SHARED)
hypothesis.settings.register_profile("ci", SHARED, derandomize=True)
# a variant that is wrong is wrong on most problems: at thousands of them shrinking is the time that counts
hypothesis.settings.register_profile("gpu_long", SHARED, max_examples=5000, phases=set(Phase) - {Phase.explain})
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))

if not torch.cuda.is_available() and importlib.util.find_spec("triton"):
    interpreter.install()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where laws are put to the test: a GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
