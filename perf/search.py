"""What a search for the fastest form of a kernel has in common with any other: options, screening, losing nothing.

A form that crashes takes the device from its process, so each is compiled and checked in a process of its own, which
leaves what it compiled in the compiler's cache. What was timed by then is written whatever ends the search.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

__all__ = ["add_options", "apart", "recorded", "run", "screened"]

SCREEN_SECONDS = 150
"""For one form."""

T = TypeVar("T")


def add_options(parse: argparse.ArgumentParser, *, seconds: float) -> None:
    """Declare the options that every search has; how many seconds it takes if none are given."""
    parse.add_argument("--seconds", type=float, default=seconds, help="time limit of what comes after the screen")
    jobs = max(1, (os.cpu_count() or 2) - 2)
    parse.add_argument("--jobs", type=int, default=jobs, help="candidates screened at a time")
    parse.add_argument("--out", type=Path, help="write every result there, as JSON")
    parse.add_argument("--screen", help=argparse.SUPPRESS)


def run(
    module: str,
    arguments: argparse.Namespace,
    screen: Callable[[str], str | None],
    search: Callable[[list[dict[str, Any]]], object],
) -> int:
    """Run the command: the search, or in one of its processes the screen of one form; the exit code."""
    if not torch.cuda.is_available():
        print(f"{module} needs a CUDA device and found none", file=sys.stderr)
        return 2
    if arguments.screen is not None:
        print(json.dumps({"out": screen(arguments.screen)}))
    else:
        recorded(search, arguments.out)
    return 0


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
