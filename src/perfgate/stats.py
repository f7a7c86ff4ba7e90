"""Numbers in, numbers out: quantiles, intervals, variances shared between cases.

Knows nothing of cases, clocks or verdicts. Standard library only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = [
    "Prior",
    "digamma",
    "fit_prior",
    "fit_spread",
    "holm",
    "median_half_width",
    "median_low",
    "moderate",
    "quantile",
    "t_cdf",
    "t_quantile",
    "trigamma",
    "variance",
]

EFFICIENCY = 0.37
"""Of a normal's scale by the median of absolute values (Rousseeuw and Croux, J. Am. Stat. Assoc. 88, 1993)."""


def quantile(xs: Sequence[float], q: float) -> float:
    """The q-quantile, linear between the two nearest order statistics (Hyndman and Fan 1996, type 7).

    Raises:
        ValueError: For no numbers, or q outside [0, 1].
    """
    if not xs:
        raise ValueError("a quantile needs at least one number, got none")
    if not 0 <= q <= 1:
        raise ValueError(f"q must lie in [0, 1], got {q!r}")
    ordered = sorted(xs)
    place = q * (len(ordered) - 1)
    i = int(place)
    low, high = ordered[i], ordered[min(i + 1, len(ordered) - 1)]
    return low + (place - i) * (high - low)


def median_half_width(xs: Sequence[float], confidence: float = 0.95) -> float:
    """Relative half width of the median's interval between two order statistics; infinite if there are too few.

    The ranks are the binomial's, so no distribution is assumed (Thompson 1936; David and Nagaraja, Order Statistics,
    2003, section 7.1). Independence is: neighbours in time that resemble each other make the interval too narrow.
    """
    ordered = sorted(xs)
    rank = _median_rank(len(ordered), confidence)
    if rank == 0:
        return math.inf
    return (ordered[-rank] - ordered[rank - 1]) / 2 / quantile(ordered, 0.5)


def median_low(xs: Sequence[float], confidence: float = 0.95) -> float:
    """The lower end of the same interval, as it is; minus infinity if there are too few."""
    rank = _median_rank(len(xs), confidence)
    return sorted(xs)[rank - 1] if rank else -math.inf


@functools.cache
def _median_rank(n: int, confidence: float) -> int:
    """Largest k such that [x_(k), x_(n+1-k)] covers the median with at least this probability; 0 if none does."""
    miss, k = 0.0, 0
    while k <= n // 2:
        miss += 2 * math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
        if miss > 1 - confidence:
            break
        k += 1
    return k


def variance(xs: Sequence[float]) -> float:
    """Unbiased variance of at least two numbers."""
    mean = math.fsum(xs) / len(xs)
    return math.fsum((x - mean) ** 2 for x in xs) / (len(xs) - 1)


@dataclass(frozen=True, slots=True)
class Prior:
    """What all cases together say of the variance of one of them: as much as `df` further degrees of freedom would.

    Attributes:
        variance: The typical variance.
        df: Its weight; zero if the cases have nothing in common, infinite if they have one variance.
    """

    variance: float
    df: float


def fit_prior(variances: Sequence[float], dfs: Sequence[float]) -> Prior:
    """Fit a scaled inverse chi-squared prior to variances by the moments of their logarithms.

    Smyth, Linear models and empirical Bayes methods, Statist. Appl. Genet. Mol. Biol. 3 (2004), section 6.2. Variances
    below a hundredth of the median one are raised to it: where a clock ticks, equal medians come by accident, and the
    logarithm of a zero would decide alone.

    Raises:
        ValueError: For no variances, or lengths that differ.
    """
    if not variances or len(variances) != len(dfs):
        raise ValueError(f"expected as many variances as degrees of freedom, got {len(variances)} and {len(dfs)}")
    if len(variances) < 3:  # the spread of two logarithms says nothing: average, and lend no weight beyond it
        return Prior(math.fsum(v * d for v, d in zip(variances, dfs, strict=True)) / math.fsum(dfs), 0.0)
    least = 0.01 * quantile(variances, 0.5)
    if least == 0:
        return Prior(math.fsum(variances) / len(variances), 0.0)
    logs = [math.log(max(v, least)) - digamma(d / 2) + math.log(d / 2) for v, d in zip(variances, dfs, strict=True)]
    mean = math.fsum(logs) / len(logs)
    excess = variance(logs) - math.fsum(trigamma(d / 2) for d in dfs) / len(dfs)
    if excess <= 0:
        return Prior(math.exp(mean), math.inf)
    half = _trigamma_inverse(excess)
    return Prior(math.exp(mean + digamma(half) - math.log(half)), 2 * half)


def moderate(s2: float, df: float, prior: Prior) -> tuple[float, float]:
    """A case's variance drawn towards the prior's, and the degrees of freedom that it then has (Smyth 2004, eq. 4)."""
    if math.isinf(prior.df):
        return prior.variance, math.inf
    total = prior.df + df
    return (prior.df * prior.variance + df * s2) / total, total


def fit_spread(xs: Sequence[float]) -> Prior:
    """Fit the same prior as `fit_prior` to single draws, each of its own variance around zero: one a case.

    Such draws follow Student's t with the prior's df, scaled. Scale and df are those whose quantiles of the absolute
    value at 50 % and at 90 % are the draws' own (McCulloch's way, Commun. Statist. Simul. Comput. 15, 1986): where a
    tenth of the draws are not around zero, for something was changed there, it hardly matters.

    A scale from the middle of n draws is itself known no better than one of `EFFICIENCY` n degrees of freedom. The
    variances of the two logarithms add, and are each about 2 / df: the prior's df is that of both.

    Raises:
        ValueError: For no draws.
    """
    sizes = [abs(x) for x in xs]
    half, tail = quantile(sizes, 0.5), quantile(sizes, 0.9)
    known = EFFICIENCY * len(xs)
    if half == 0:  # most are equal to the last digit: all that there is to see of the spread is in the tail
        return Prior((tail / t_quantile(0.95, math.inf)) ** 2, known)
    table = _tail_ratios()
    ratio = min(max(tail / half, table[0][0]), table[-1][0])
    for (low, one), (high, two) in pairwise(table):
        if ratio <= high:
            inverse = one + (two - one) * (ratio - low) / (high - low)
            break
    df = 1 / inverse if inverse > 0.01 else math.inf
    return Prior((half / t_quantile(0.75, df)) ** 2, 1 / (inverse + 1 / known))


@functools.cache
def _tail_ratios() -> list[tuple[float, float]]:
    """Student's quantile at 95 % over that at 75 %, and the reciprocal df; from the normal's down to df 1."""
    inverses = [0.0, *(i / 20 for i in range(1, 21))]
    dfs = [1 / i if i else math.inf for i in inverses]
    return [(t_quantile(0.95, df) / t_quantile(0.75, df), i) for df, i in zip(dfs, inverses, strict=True)]


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the order given (Holm, Scand. J. Statist. 6, 1979).

    To reject where the adjusted value is at most alpha rejects any true hypothesis with probability alpha at most,
    however the tests depend on each other.
    """
    adjusted, running = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        running = max(running, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = running
    return adjusted


def t_cdf(x: float, df: float) -> float:
    """Probability that Student's t is at most x; an infinite df is the normal distribution."""
    if math.isinf(df):
        return math.erfc(-x / math.sqrt(2)) / 2
    square = x * x
    if square < df:  # near the middle the tail is a half to all digits
        return 0.5 + math.copysign(_beta(0.5, df / 2, square / (df + square)) / 2, x)
    tail = _beta(df / 2, 0.5, df / (df + square)) / 2
    return 1 - tail if x > 0 else tail


@functools.lru_cache(maxsize=4096)
def t_quantile(p: float, df: float) -> float:
    """The x that Student's t does not exceed with probability p, by Newton's steps on `t_cdf`.

    Right of its middle `t_cdf` is concave: from a point below the quantile no step goes beyond it.

    Raises:
        ValueError: For p outside (0, 1) or df that is not positive.
    """
    if not (0 < p < 1 and df > 0):
        raise ValueError(f"expected 0 < p < 1 and df > 0, got p={p!r} and df={df!r}")
    if p < 0.5:
        return -t_quantile(1 - p, df)
    x, high = 0.0, 1.0
    while t_cdf(high, df) < p:
        x, high = high, 2 * high
    while True:
        step = (p - t_cdf(x, df)) / _t_density(x, df)
        x += step
        if step <= 1e-12 * x:  # what rounding makes of the last may be negative
            return x


def _t_density(x: float, df: float) -> float:
    """Derivative of `t_cdf`."""
    if math.isinf(df):
        return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    log = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - (df + 1) / 2 * math.log1p(x * x / df)
    return math.exp(log) / math.sqrt(df * math.pi)


def _beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function, by its continued fraction (DLMF 8.17.22) after Lentz."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly, the mirror image does not
        return 1 - _beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    value, c, d = 1.0, 1.0, 0.0
    for i in range(1000):
        m = i // 2
        if i == 0:
            term = 1.0
        elif i % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / (1 + term * d)
        c = 1 + term / c
        value *= c * d
        if i and abs(c * d - 1) < 1e-15:
            break
    return front * (value - 1)


def digamma(x: float) -> float:
    """Derivative of log gamma for x > 0: the recurrence up to 10, then the asymptotic series (DLMF 5.5.2, 5.11.2)."""
    shift = 0.0
    while x < 10:
        shift -= 1 / x
        x += 1
    y = 1 / (x * x)
    return shift + math.log(x) - 1 / (2 * x) - y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y / 132))))


def trigamma(x: float) -> float:
    """Derivative of `digamma` for x > 0 (DLMF 5.15.5, 5.15.8)."""
    shift = 0.0
    while x < 10:
        shift += 1 / (x * x)
        x += 1
    y = 1 / (x * x)
    return shift + 1 / x + y / 2 + y / x * (1 / 6 - y * (1 / 30 - y * (1 / 42 - y * (1 / 30 - y * 5 / 66))))


def _trigamma_inverse(y: float) -> float:
    """The x > 0 with trigamma(x) = y, by bisection in the logarithm; trigamma falls from infinity to zero."""
    low, high = 1e-8, 1e8
    while high / low > 1 + 1e-12:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if trigamma(middle) > y else (low, middle)
    return math.sqrt(low * high)
