"""The rules by which others decide, as functions of two sequences of durations to what is called.

Written from their descriptions, each with its source and version, so that the same samples can go through all of them.
None of these tools measures in several processes and tells them apart: where there are several, their samples are
pooled. What a tool does beside its decision (how it times, what it prints) is not here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from perfgate import stats
from perfgate.trust import chance

__all__ = ["RIVALS", "Call", "Rival", "asv", "criterion", "google_benchmark", "nvbench", "nvbench_robust", "percent"]


class Call(StrEnum):
    """What a rule says of new against old."""

    SLOWER = "slower"
    FASTER = "faster"
    NEITHER = "neither"


Rule = Callable[[Sequence[float], Sequence[float]], Call]


@dataclass(frozen=True, slots=True)
class Rival:
    """A tool and its rule.

    Attributes:
        name: The tool's, with the options that matter.
        rule: From old and new durations to a call.
    """

    name: str
    rule: Rule


def percent(old: Sequence[float], new: Sequence[float], *, limit: float = 0.05) -> Call:
    """pytest-benchmark 5.2.3, ``--benchmark-compare-fail=median:5%``: the medians differ by more than a fixed share.

    The tool fails on a slowdown alone; the mirrored call is what its table would show.
    """
    ratio = statistics.median(new) / statistics.median(old)
    if ratio - 1 > limit:
        return Call.SLOWER
    return Call.FASTER if 1 / ratio - 1 > limit else Call.NEITHER


def google_benchmark(old: Sequence[float], new: Sequence[float], *, alpha: float = 0.05) -> Call:
    """Google Benchmark's ``compare.py`` (docs/tools.md, 1.9): a two-sided Mann-Whitney U test at 5 %, and no floor.

    The tool says that the two differ; which is slower is read off its medians.
    """
    return _direction(old, new) if chance.mann_whitney(old, new) < alpha else Call.NEITHER


def criterion(
    old: Sequence[float], new: Sequence[float], *, alpha: float = 0.05, noise: float = 0.01, confidence: float = 0.95
) -> Call:
    """criterion.rs 0.5 (its book, "Analysis Process"): a t-test at 5 %, and a change that is beyond 1 % of noise.

    The tool draws the distribution of t, and of the relative change of the means, by 100,000 bootstrap samples. Here
    Welch's t (Biometrika 34, 1947) and the delta method stand in: what the bootstrap tends to at dozens of samples. The
    change counts if its whole interval lies beyond the noise threshold.
    """
    if min(len(old), len(new)) < 2:
        return Call.NEITHER
    before, after = statistics.fmean(old), statistics.fmean(new)
    errors = stats.variance(old) / len(old), stats.variance(new) / len(new)
    total = sum(errors)
    if total == 0:
        return _beyond(after / before - 1, after / before - 1, noise)
    df = total**2 / (errors[0] ** 2 / (len(old) - 1) + errors[1] ** 2 / (len(new) - 1))
    if 2 * stats.t_cdf(-abs(after - before) / math.sqrt(total), df) >= alpha:
        return Call.NEITHER
    error = after / before * math.sqrt(errors[0] / before**2 + errors[1] / after**2)
    margin = stats.t_quantile((1 + confidence) / 2, round(df, 1)) * error
    return _beyond(after / before - 1 - margin, after / before - 1 + margin, noise)


def asv(old: Sequence[float], new: Sequence[float], *, alpha: float = 0.002, factor: float = 1.1) -> Call:
    """airspeed velocity 0.6 (``asv compare``, ``asv continuous``): Mann-Whitney at 0.2 %, and medians a factor apart.

    Exact up to 20 samples a side, normal beyond; equal durations count for whichever side makes the two less different.
    Of too few samples for the test the tool compares 99 % intervals, which so few samples do not have.
    """
    m, n = len(old), len(new)
    if 1 / math.comb(m + n, m) >= alpha:
        return Call.NEITHER
    larger, equal = chance.wins(new, old)
    nearest = min(max(m * n / 2, larger), larger + equal)
    u = math.floor(min(nearest, m * n - nearest))
    if max(m, n) > 20:
        p = math.erfc((m * n / 2 - u) / math.sqrt(m * n * (m + n + 1) / 6))
    else:
        p = chance.exact_two_sided(u, m, n)
    ratio = statistics.median(new) / statistics.median(old)
    if p >= alpha:
        return Call.NEITHER
    return Call.SLOWER if ratio > factor else Call.FASTER if ratio < 1 / factor else Call.NEITHER


def nvbench(old: Sequence[float], new: Sequence[float]) -> Call:
    """NVBench's ``nvbench-compare-legacy`` (2026-08): the means differ by more than the smaller relative deviation."""
    before, after = statistics.fmean(old), statistics.fmean(new)
    noise = min(_deviation(old) / before, _deviation(new) / after)
    if abs(after - before) / before <= noise:
        return Call.NEITHER
    return Call.SLOWER if after > before else Call.FASTER


def nvbench_robust(old: Sequence[float], new: Sequence[float], *, gap: float = 0.005) -> Call:
    """NVBench's ``nvbench-compare-robust`` (2026-08, docs/nvbench_compare_robust.md, default preset).

    The intervals from the least duration to the third quartile (by the nearest rank) must lie at least 0.5 % apart. The
    tool asks the same of SM cycles, sample by sample; at a clock that stands still that is the same question.
    """
    (low, high), (least, most) = ((min(xs), sorted(xs)[round(0.75 * (len(xs) - 1))]) for xs in (old, new))
    if least > high and least / high - 1 >= gap:
        return Call.SLOWER
    return Call.FASTER if most < low and low / most - 1 >= gap else Call.NEITHER


RIVALS = (
    Rival("pytest-benchmark, `median:5%`", percent),
    Rival("Google Benchmark, `compare.py`", google_benchmark),
    Rival("criterion", criterion),
    Rival("asv", asv),
    Rival("NVBench, legacy", nvbench),
    Rival("NVBench, robust", nvbench_robust),
)
"""All of them, by their defaults."""


def _direction(old: Sequence[float], new: Sequence[float]) -> Call:
    before, after = statistics.median(old), statistics.median(new)
    return Call.SLOWER if after > before else Call.FASTER if after < before else Call.NEITHER


def _beyond(low: float, high: float, noise: float) -> Call:
    return Call.SLOWER if low > noise else Call.FASTER if high < -noise else Call.NEITHER


def _deviation(xs: Sequence[float]) -> float:
    return math.sqrt(stats.variance(xs)) if len(xs) > 1 else 0.0
