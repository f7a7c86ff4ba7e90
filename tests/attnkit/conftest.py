"""Without a GPU kernels run in Triton's interpreter."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tests.attnkit import interpreter

if not torch.cuda.is_available() and importlib.util.find_spec("triton"):
    interpreter.install()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where laws are put to the test: a GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
