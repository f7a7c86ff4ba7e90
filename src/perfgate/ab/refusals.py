"""What makes a run no comparison of base with head: a side that runs what is not its own, somebody else on the GPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from perfgate import nvml
from perfgate.contest import Side
from perfgate.environment import Environment
from perfgate.gate import Exit

__all__ = ["Over", "Refused", "must_be_free", "not_its_own"]

FORGETTING = 3.0
"""Seconds that the driver may take to forget the last block's processes."""


class Over(Exception):
    """The run ends here, with what is known."""


class Refused(Exception):
    """There is nothing to compare, and another try would not help; `code` is the exit code."""

    def __init__(self, why: str, code: int) -> None:
        super().__init__(why)
        self.code = code


def not_its_own(side: Side, other: Side, found: Mapping[str, Any]) -> str | None:
    """What a side runs that is not its tree's alone, and the remedy; None if there is nothing of the kind."""
    if files := found["foreign"]:
        return (
            f"the {side} runs code of the {other}: {', '.join(files[:3])}. Put the packages' directory on "
            "PYTHONPATH, so that each tree's own is found first"
        )
    if astray := found["astray"]:
        return (
            f"the {side} would be timed with code that is not its tree's: expected {', '.join(list(astray)[:3])} from "
            f"the tree, got {', '.join(list(astray.values())[:3])}. Uninstall that, or install it editable"
        )
    if installed := found["installed"]:
        return (
            f"both sides would run one installed copy of the tree's code: expected {', '.join(list(installed)[:3])} "
            f"from each tree, got {', '.join(list(installed.values())[:3])}. Uninstall it, put the packages' directory "
            "on PYTHONPATH, and have --build build each tree in place"
        )
    return None


def must_be_free(environment: Environment) -> None:
    """Between blocks no worker of ours is on the device, so nobody should be.

    Raises:
        Refused: If somebody is.
    """
    uuid = environment.facts.get("uuid")
    if not uuid:
        return
    deadline = time.monotonic() + FORGETTING
    while others := nvml.busy(f"GPU-{uuid}"):
        if time.monotonic() > deadline:
            raise Refused(f"the GPU is busy: {'; '.join(others)}", Exit.UNFIT)
        time.sleep(0.1)
