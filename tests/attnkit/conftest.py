"""Without a GPU kernels run in Triton's interpreter."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import torch

from perfgate import assembler
from tests.attnkit import interpreter

if not torch.cuda.is_available() and importlib.util.find_spec("triton"):
    interpreter.install()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What needs NVRTC can be chosen by its mark: CI has it after the other tests alone."""
    from attnkit import nvrtc  # here, for what plants bugs imports this module before it has an attnkit

    if item.get_closest_marker("needs_nvrtc") and (reason := nvrtc.absent()):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where laws are put to the test: a GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _compiled_as_if_alone() -> Iterator[None]:
    """Whether a variant that torch.compile makes was tested before decides for no other which assembler it gets."""
    with assembler.as_before():
        yield
