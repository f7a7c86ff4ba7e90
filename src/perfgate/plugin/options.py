"""The options, each with a default that needs no thought, and an expert's with its reason."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pytest

from perfgate.clock import Budget
from perfgate.gate import Exit
from perfgate.verdict import Rule

__all__ = ["pytest_addoption"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    group = parser.getgroup("perfgate", "perfgate: device timings and their gate")
    group.addoption(
        "--perf-device",
        choices=["auto", "cuda", "cpu"],
        default="auto",
        help="What gpu_benchmark times on. Default: auto, a CUDA device if there is one, else the CPU.",
    )
    group.addoption(
        "--perf-strict",
        action="store_true",
        help=f"With --benchmark-compare: new cases fail the run (exit code {Exit.INCOMPLETE:d}, as missing ones always "
        f"do), and cases of which it cannot be said whether they got slower ({Exit.UNRESOLVED:d}).",
    )
    group.addoption(
        "--perf-again",
        metavar="N",
        type=_count,
        default=2,
        help="With --benchmark-compare: in how many fresh processes what looks slower is timed again before it is "
        "called; 0 to believe this process. Default: %(default)s.",
    )
    group.addoption(
        "--perf-floor",
        metavar="PERCENT",
        type=_percent,
        default=100 * Rule().floor,
        help="With --benchmark-compare: the least change of a case's time that matters. Default: %(default)g.",
    )
    group.addoption(
        "--perf-max-time",
        metavar="SECONDS",
        type=_seconds,
        default=Budget().max_seconds,
        help="Time bound for the samples of one case; where it is hit, that is said. Default: %(default)g.",
    )
    group.addoption(
        "--perf-min-samples",
        metavar="N",
        type=_samples,
        default=Budget().min_samples,
        help="Samples of one case before its median may be known well enough; at --perf-max-time "
        f"{Budget.LEAST} are enough. Fewer than those are for `perfgate ab` alone. Default: %(default)s.",
    )
    group.addoption(
        "--perf-warmup",
        metavar="SECONDS",
        type=_seconds,
        default=Budget().warmup_seconds,
        help="How long the device works before the first sample of a case; longer until it is steady. Less only where "
        "it has been at the same work just before, as in `perfgate ab`. Default: %(default)g.",
    )
    group.addoption(
        "--perf-journal",
        metavar="PATH",
        type=Path,
        help="Where each finished case is kept at once. Default: <rootdir>/.perfgate/journal-<time>-<pid>.jsonl.",
    )
    group.addoption(
        "--perf-allow-busy",
        action="store_true",
        help="Time although another process computes on the GPU: to try things out, its numbers are not to be trusted.",
    )
    group.addoption("--perf-fresh", action="store_true", help=argparse.SUPPRESS)  # what --perf-again starts
    group.addoption("--perf-receipt", metavar="PATH", type=Path, help=argparse.SUPPRESS)  # for `perfgate gate`
    group.addoption("--perf-worker", metavar="FD", type=int, help=argparse.SUPPRESS)  # what `perfgate ab` starts


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number of processes, 0 or more, got {text!r}")
    return int(text)


def _samples(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= Budget().max_samples:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {Budget().max_samples}, got {text!r}")
    return int(text)


def _percent(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 100:  # false for NaN too, which would switch the gate off
        raise argparse.ArgumentTypeError(f"expected a percentage from 0 to 100, got {text!r}")
    return value


def _seconds(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
