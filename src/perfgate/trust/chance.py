"""Probabilities that the rivals' rules and the page need. Numbers in, numbers out; standard library only."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Callable, Sequence

__all__ = ["binomial_interval", "mann_whitney", "wins"]


def binomial_interval(hits: int, tries: int, confidence: float = 0.95) -> tuple[float, float]:
    """The probabilities that a share does not contradict (Clopper and Pearson, Biometrika 26, 1934): conservative.

    Raises:
        ValueError: For no tries, or more hits than tries.
    """
    if not 0 <= hits <= tries or tries == 0:
        raise ValueError(f"expected 0 <= hits <= tries and tries > 0, got {hits} of {tries}")
    tail = (1 - confidence) / 2
    # the least p with P(at least so many) = tail, and the largest with P(at most so many) = tail
    low = _root(lambda p: 1 - _at_most(hits - 1, tries, p), tail) if hits else 0.0
    high = 1 - _root(lambda p: 1 - _at_most(tries - hits - 1, tries, p), tail) if hits < tries else 1.0
    return low, high


def _at_most(hits: int, tries: int, p: float) -> float:
    if p in (0.0, 1.0):
        return float(p == 0 or hits >= tries)
    logs = (
        math.lgamma(tries + 1)
        - math.lgamma(k + 1)
        - math.lgamma(tries - k + 1)
        + k * math.log(p)
        + (tries - k) * math.log1p(-p)
        for k in range(hits + 1)
    )
    return min(1.0, math.fsum(map(math.exp, logs)))


def _root(rising: Callable[[float], float], value: float) -> float:
    """The p in [0, 1] at which a rising function has this value."""
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < value else (low, middle)
    return high


def wins(a: Sequence[float], b: Sequence[float]) -> tuple[int, int]:
    """In how many pairs the first is larger, and in how many they are equal."""
    ordered = sorted(b)
    below = [(bisect.bisect_left(ordered, x), bisect.bisect_right(ordered, x)) for x in a]
    return sum(left for left, _ in below), sum(right - left for left, right in below)


def mann_whitney(a: Sequence[float], b: Sequence[float], *, exact_up_to: int = 8) -> float:
    """Two-sided p-value that either is as likely to be larger (Mann and Whitney, Ann. Math. Stat. 18, 1947).

    Exact where neither has more numbers than `exact_up_to` and none are equal; else the normal approximation, with the
    correction for ties and for continuity.

    Raises:
        ValueError: If either is empty.
    """
    m, n = len(a), len(b)
    if not (m and n):
        raise ValueError(f"expected numbers on both sides, got {m} and {n}")
    larger, equal = wins(a, b)
    if not equal and max(m, n) <= exact_up_to:
        return exact_two_sided(min(larger, m * n - larger), m, n)
    ties = math.fsum(t**3 - t for t in (len(list(g)) for _, g in itertools.groupby(sorted([*a, *b]))))
    variance = m * n / 12 * (m + n + 1 - ties / ((m + n) * (m + n - 1)))
    if variance <= 0:
        return 1.0
    distance = abs(larger + equal / 2 - m * n / 2) - 0.5
    return min(1.0, math.erfc(distance / math.sqrt(2 * variance)))


def exact_two_sided(u: int, m: int, n: int) -> float:
    """Probability of a U at least as far from its mean as the smaller one, `u`, if no numbers are equal."""
    counts = _orderings(m, n)
    return min(1.0, 2 * sum(counts[: u + 1]) / math.comb(m + n, m))


@functools.cache
def _orderings(m: int, n: int) -> list[int]:
    """How many orderings of m and n numbers have each U: the coefficients of a Gaussian binomial."""
    counts = [1] + [0] * (m * n)
    for i in range(1, m + 1):
        for u in range(m * n, n + i - 1, -1):  # times 1 - q**(n + i)
            counts[u] -= counts[u - n - i]
        for u in range(i, m * n + 1):  # over 1 - q**i
            counts[u] += counts[u - i]
    return counts
