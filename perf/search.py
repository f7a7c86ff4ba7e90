"""What a search for the fastest form of a kernel has in common with any other: screening apart, and losing nothing.

A form that crashes takes the device from its process, so each is compiled and checked in a process of its own, which
leaves what it compiled in the compiler's cache. What was timed by then is written whatever ends the search.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

__all__ = ["apart", "recorded", "screened"]

SCREEN_SECONDS = 150
"""For one form."""

T = TypeVar("T")


def apart(module: str, *options: str) -> str | None:
    """Why a form is out, or None: what ``python -m module options`` prints last, as ``{"out": ...}``."""
    command = [sys.executable, "-m", module, *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SCREEN_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer in {SCREEN_SECONDS} s"
    if done.returncode == 0:
        out: str | None = json.loads(done.stdout.splitlines()[-1])["out"]
        return out
    lines = [line for line in done.stderr.splitlines() if "Error" in line] or done.stderr.splitlines() or [""]
    return f"exit {done.returncode}: {lines[-1][:200]}"


def screened(forms: Sequence[T], screen: Callable[[T], str | None], jobs: int) -> dict[T, str | None]:
    """Why each form is out, or None; so many are screened at a time, and what is out is printed."""
    with ThreadPoolExecutor(jobs) as pool:
        verdicts = dict(zip(forms, pool.map(screen, forms), strict=True))
    for form, reason in verdicts.items():
        if reason is not None:
            print(f"{form}: {reason}", flush=True)
    print(f"{sum(reason is None for reason in verdicts.values())} of {len(forms)} compile and are right", flush=True)
    return verdicts


def recorded(search: Callable[[list[dict[str, Any]]], object], out: Path | None) -> None:
    """Search; what the search has put into its list by its end goes to a file, if there is one, with GPU and torch."""
    record: list[dict[str, Any]] = []
    try:
        search(record)
    finally:
        if out is not None:
            gpu = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
            out.write_text(json.dumps({**gpu, "record": record}, indent=1))
