"""How far processes differ by perfgate's clock and by a plain one, and why: the page's tables of it."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections.abc import Sequence

from perfgate import stats
from perfgate.trust.data import Spread
from perfgate.trust.table import table

__all__ = ["render"]


def render(runs: Sequence[Spread], *, steady: float, named: int) -> str:
    """The tables.

    Args:
        runs: What was collected.
        steady: Relative sd up to which cases are counted as steady.
        named: How many of the noisiest are named.
    """
    if not runs:
        return "Processes were not timed by perfgate's clock and a plain one yet."
    squares: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for case, found in run.seconds.items():
            for clock, medians in found.items():
                variance = stats.variance([math.log(seconds) for seconds in medians])
                squares.setdefault(clock, {}).setdefault(case, []).append(variance)
    rows = []
    for clock, cases in sorted(squares.items(), key=lambda item: item[0] != "perfgate"):
        sds = sorted(math.sqrt(math.fsum(them) / len(them)) for them in cases.values())
        quiet = sum(sd <= steady for sd in sds)
        shares = [f"{stats.quantile(sds, q):.2%}" for q in (0.1, 0.5, 0.9, 1.0)]
        rows.append([clock, str(len(sds)), *shares, str(quiet)])
    processes = sorted({len(medians) for run in runs for found in run.seconds.values() for medians in found.values()})
    count = " and ".join(map(str, processes))
    titles = ["clock", "cases", "10 % below", "half below", "90 % below", "the worst", f"at most {steady:.1%}"]
    return (
        f"Relative standard deviation between {count} processes of the same code that timed each case by one clock and "
        "by the other. The plain one is perfgate's with one set of inputs, so that each call has a window of its own, "
        f"and without rest.\n\n{table(titles, rows, left=1)}\n\n{_windows(runs, named)}"
    )


def _windows(runs: Sequence[Spread], named: int) -> str:
    """What is left of where memory came to lie, of the cases whose processes differ most by perfgate's clock."""
    between: dict[str, list[float]] = {}
    lasting: dict[str, list[float]] = {}
    shared: dict[str, list[float]] = {}
    windows: dict[str, int] = {}
    for run in runs:
        for case, found in run.seconds.items():
            between.setdefault(case, []).append(stats.variance([math.log(seconds) for seconds in found["perfgate"]]))
            logs = [[[math.log(s) for s in two] for two in process] for process in run.windows[case]]
            windows[case] = min(windows.get(case, sys.maxsize), *map(len, logs))
            means = [[math.fsum(two) / 2 for two in process] for process in logs]
            lasting.setdefault(case, []).extend(_covariance(*zip(*process, strict=True)) for process in logs)
            alike = [(a, b) for a, b in itertools.combinations(means, 2) if len(a) == len(b)]
            shared.setdefault(case, []).extend(_covariance(a, b) for a, b in alike)
    rows = []
    for case in sorted(between, key=lambda case: (-_mean(between[case]), case))[:named]:
        own = _mean(lasting[case]) - max(0.0, _mean(shared[case]))
        variances = (_mean(lasting[case]), _mean(shared[case]), own / windows[case])
        said = [f"{math.sqrt(max(0.0, v)):.2%}" if windows[case] > 1 else "-" for v in variances]
        rows.append([case, f"{math.sqrt(_mean(between[case])):.2%}", str(windows[case]), *said])
    titles = [
        "the noisiest cases",
        "between processes",
        "windows",
        "windows of one",
        "of another, too",
        "of that alone",
    ]
    return (
        "Sets of inputs lie where they came to lie as long as their process lives, and each window of perfgate's clock "
        "has sets of its own. What windows of one process differ by for good is known from medians of every other of "
        "their samples. As far as windows of another process do not differ likewise, it was drawn with the process: of "
        "that alone processes would differ by about as much over the root of the windows.\n\n"
        + table(titles, rows, left=1)
    )


def _covariance(a: Sequence[float], b: Sequence[float]) -> float:
    """Of two sequences of one length; of a single pair, none."""
    return statistics.covariance(a, b) if len(a) > 1 else 0.0


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0
