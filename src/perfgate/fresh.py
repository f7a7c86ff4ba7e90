"""pytest in a fresh process that writes what it says to a log. Nothing here imports pytest: it is run."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["Child", "plugin_arguments", "start", "tail"]

Child = subprocess.Popen[bytes]

TAIL = 20
"""Lines of a log that are shown."""


def plugin_arguments() -> list[str]:
    """What makes pytest load the plugin if it is not installed; by name and by entry point pytest would refuse it."""
    installed = importlib.metadata.entry_points(group="pytest11", name="perfgate")
    named = os.environ.get("PYTEST_PLUGINS", "").split(",")
    return [] if installed or "perfgate.plugin" in named else ["-p", "perfgate.plugin"]


def start(arguments: Sequence[str], log: Path, *, python: Sequence[str] = (), **options: Any) -> Child:
    """Start pytest with the plugin.

    Args:
        arguments: pytest's.
        log: Where its output goes, behind what is there.
        python: Python's own options.
        options: Those of `subprocess.Popen`.
    """
    command = [sys.executable, *python, "-m", "pytest", *plugin_arguments(), *arguments]
    with log.open("ab") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, **options)


def tail(log: Path) -> str:
    """The last lines of a log, indented."""
    lines = log.read_text(errors="replace").rstrip().splitlines() if log.exists() else []
    return "\n".join(f"    {line}" for line in lines[-TAIL:]) or "    (it said nothing)"
