"""Quantiles, intervals and shared variances against tables, closed forms and simulated truth."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfgate import stats

numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


def test_a_quantile_is_linear_between_two_numbers() -> None:
    assert stats.quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert stats.quantile([1.0, 2.0, 4.0], 0.75) == 3.0
    assert stats.quantile(range(101), 0.95) == pytest.approx(95)


@given(numbers, st.floats(0, 1), st.randoms())
def test_a_quantile_lies_inside_and_forgets_the_order(xs: list[float], q: float, rng: random.Random) -> None:
    found = stats.quantile(xs, q)
    assert min(xs) <= found <= max(xs)
    rng.shuffle(xs)
    assert stats.quantile(xs, q) == found


@pytest.mark.parametrize(("xs", "q"), [([], 0.5), ([1.0], -0.1), ([1.0], 1.1), ([1.0], math.nan)])
def test_a_quantile_of_nothing_or_outside_is_an_error(xs: list[float], q: float) -> None:
    with pytest.raises(ValueError, match="got"):
        stats.quantile(xs, q)


@pytest.mark.parametrize(
    ("n", "low", "high"), [(6, 1, 6), (8, 1, 8), (9, 2, 8), (20, 6, 15), (50, 18, 33), (100, 40, 61)]
)
def test_the_medians_interval_has_the_tabulated_ranks(n: int, low: int, high: int) -> None:
    """Ranks of David and Nagaraja, Order Statistics (2003), section 7.1, at 95 %."""
    assert stats.median_half_width([float(i) for i in range(1, n + 1)]) == pytest.approx((high - low) / (n + 1))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_too_few_samples_know_no_median(n: int) -> None:
    assert stats.median_half_width([1.0] * n) == math.inf


@given(st.lists(st.floats(1e-6, 1.0), min_size=6, max_size=40), st.floats(1e-3, 1e3))
def test_the_medians_relative_width_has_no_unit(xs: list[float], unit: float) -> None:
    scaled = stats.median_half_width([x * unit for x in xs])
    assert scaled == pytest.approx(stats.median_half_width(xs), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("n", [20, 60])
def test_the_medians_interval_covers_a_skewed_truth_at_least_95_times_in_100(n: int) -> None:
    rng = random.Random(n)
    between = round(stats.median_half_width([float(i) for i in range(1, n + 1)]) * (n + 1))
    low = (n + 1 - between) // 2
    hits = 0
    for _ in range(3000):
        xs = sorted(rng.lognormvariate(0, 1) for _ in range(n))
        assert stats.median_half_width(xs) * stats.quantile(xs, 0.5) * 2 == pytest.approx(xs[-low] - xs[low - 1])
        hits += xs[low - 1] <= 1 <= xs[-low]
    assert hits / 3000 >= 0.95


TABLE = [
    (0.975, 1, 12.706),
    (0.995, 1, 63.657),
    (0.975, 4, 2.776),
    (0.995, 4, 4.604),
    (0.975, 10, 2.228),
    (0.995, 10, 3.169),
    (0.95, 30, 1.697),
    (0.999, 120, 3.160),
    (0.975, math.inf, 1.960),
    (0.995, math.inf, 2.576),
]


@pytest.mark.parametrize(("p", "df", "t"), TABLE)
def test_students_t_is_the_tables(p: float, df: float, t: float) -> None:
    assert stats.t_quantile(p, df) == pytest.approx(t, abs=5e-4)
    assert stats.t_quantile(1 - p, df) == -stats.t_quantile(p, df)


@given(st.floats(-50, 50))
def test_students_t_has_its_closed_forms(x: float) -> None:
    assert stats.t_cdf(x, 1) == pytest.approx(0.5 + math.atan(x) / math.pi, abs=1e-12)
    assert stats.t_cdf(x, 2) == pytest.approx(0.5 + x / (2 * math.sqrt(2 + x * x)), abs=1e-12)


@given(st.floats(0.01, 0.99), st.floats(0.5, 1e4))
def test_the_quantile_inverts_the_distribution(p: float, df: float) -> None:
    assert stats.t_cdf(stats.t_quantile(p, df), df) == pytest.approx(p, abs=1e-9)


@pytest.mark.parametrize(("p", "df"), [(0.0, 4), (1.0, 4), (0.5, 0), (math.nan, 4), (0.9, -1)])
def test_an_impossible_t_is_an_error(p: float, df: float) -> None:
    with pytest.raises(ValueError, match="expected 0 < p < 1"):
        stats.t_quantile(p, df)


def test_digamma_and_trigamma_have_their_known_values() -> None:
    euler = 0.57721566490153286
    assert stats.digamma(1) == pytest.approx(-euler, abs=1e-13)
    assert stats.digamma(0.5) == pytest.approx(-euler - 2 * math.log(2), abs=1e-13)
    assert stats.trigamma(1) == pytest.approx(math.pi**2 / 6, rel=1e-12)
    assert stats.trigamma(0.5) == pytest.approx(math.pi**2 / 2, rel=1e-12)


@given(st.floats(0.05, 1e3))
def test_digamma_and_trigamma_are_derivatives(x: float) -> None:
    h = 1e-4 * x
    slope = (math.lgamma(x + h) - math.lgamma(x - h)) / (2 * h)
    assert stats.digamma(x) == pytest.approx(slope, rel=1e-6, abs=1e-6)
    slope = (stats.digamma(x + h) - stats.digamma(x - h)) / (2 * h)
    assert stats.trigamma(x) == pytest.approx(slope, rel=1e-6, abs=1e-9)


def drawn_variances(rng: random.Random, n: int, df: int, prior: stats.Prior) -> list[float]:
    """Variances of `df` degrees of freedom around truths drawn from the prior."""
    found = []
    for _ in range(n):
        truth = prior.variance
        if math.isfinite(prior.df):
            truth *= prior.df / (2 * rng.gammavariate(prior.df / 2, 1))
        found.append(truth * 2 * rng.gammavariate(df / 2, 1) / df)
    return found


@pytest.mark.parametrize("df", [2.0, 6.0, 10.0])
def test_a_prior_is_found_again_in_what_was_drawn_from_it(df: float) -> None:
    """Within a quarter in df, and a tenth in variance, from 4000 cases of 4 degrees of freedom."""
    prior = stats.Prior(2.5e-5, df)
    found = stats.fit_prior(drawn_variances(random.Random(7), 4000, 4, prior), [4.0] * 4000)
    assert found.df == pytest.approx(df, rel=0.25)
    assert found.variance == pytest.approx(prior.variance, rel=0.1)


def test_variances_that_differ_only_by_chance_are_one() -> None:
    rng = random.Random(3)
    drawn = drawn_variances(rng, 300, 4, stats.Prior(1.0, math.inf))
    found = stats.fit_prior(drawn, [4.0] * 300)
    assert found.df > 50
    assert found.variance == pytest.approx(1.0, rel=0.1)
    assert stats.fit_prior([1.0, 1.0, 1.0], [4.0] * 3).df == math.inf


def test_a_lucky_variance_is_drawn_to_the_others_and_a_zero_does_not_decide_alone() -> None:
    rng = random.Random(5)
    drawn = drawn_variances(rng, 100, 4, stats.Prior(1.0, 8.0))
    prior = stats.fit_prior(drawn, [4.0] * 100)
    moderated, df = stats.moderate(1e-6, 4.0, prior)
    assert moderated > 0.3
    assert df == prior.df + 4
    with_zero = stats.fit_prior([*drawn, 0.0], [4.0] * 101)
    assert with_zero.variance == pytest.approx(prior.variance, rel=0.5)


@given(st.floats(0, 10), st.floats(1, 30), st.floats(0, 10), st.floats(0, 30))
def test_a_moderated_variance_lies_between(s2: float, df: float, typical: float, weight: float) -> None:
    moderated, total = stats.moderate(s2, df, stats.Prior(typical, weight))
    assert min(s2, typical) - 1e-12 <= moderated <= max(s2, typical) + 1e-12
    assert total == df + weight


def test_an_infinite_prior_overrules_the_case() -> None:
    assert stats.moderate(9.0, 4.0, stats.Prior(1.0, math.inf)) == (1.0, math.inf)


def test_two_cases_share_no_weight() -> None:
    assert stats.fit_prior([1.0, 4.0], [2.0, 4.0]) == stats.Prior(3.0, 0.0)
    assert stats.fit_prior([0.0, 0.0, 0.0], [4.0] * 3) == stats.Prior(0.0, 0.0)


@pytest.mark.parametrize(("variances", "dfs"), [([], []), ([1.0], [])])
def test_a_prior_of_nothing_is_an_error(variances: list[float], dfs: list[float]) -> None:
    with pytest.raises(ValueError, match="as many variances"):
        stats.fit_prior(variances, dfs)


@pytest.mark.parametrize("df", [1.5, 3.0, 8.0])
def test_a_spread_is_found_again_in_single_draws(df: float) -> None:
    """Within a quarter in 1/df + 1/20, and a tenth in variance, from 20000 cases of one draw each."""
    rng = random.Random(9)
    draws = [rng.gauss(0, 0.3) * math.sqrt(df / (2 * rng.gammavariate(df / 2, 1))) for _ in range(20000)]
    found = stats.fit_spread(draws)
    assert 1 / found.df + 0.05 == pytest.approx(1 / df + 0.05, rel=0.25)
    assert found.variance == pytest.approx(0.09, rel=0.1)


def test_a_spread_of_one_variance_has_many_degrees_of_freedom() -> None:
    rng = random.Random(10)
    found = stats.fit_spread([rng.gauss(0, 0.3) for _ in range(20000)])
    assert found.df > 20
    assert found.variance == pytest.approx(0.09, rel=0.05)


def test_a_few_that_are_not_around_zero_hardly_widen_a_spread() -> None:
    rng = random.Random(12)
    draws = [rng.gauss(0, 1) for _ in range(160)]
    alone = stats.fit_spread(draws)
    found = stats.fit_spread([*draws, *[50.0] * 8])
    assert math.sqrt(found.variance) < 1.15 * math.sqrt(alone.variance)
    assert stats.t_quantile(0.9, found.df) < 1.25 * stats.t_quantile(0.9, alone.df)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.floats(1e-3, 1e3))
def test_a_spread_has_the_draws_unit(xs: list[float], unit: float) -> None:
    here, there = stats.fit_spread(xs), stats.fit_spread([x * unit for x in xs])
    assert there.variance == pytest.approx(here.variance * unit**2, rel=1e-6, abs=1e-30)


def test_a_spread_of_equal_numbers_is_none() -> None:
    assert stats.fit_spread([0.0] * 20) == stats.Prior(0.0, stats.EFFICIENCY * 20)
    assert stats.fit_spread([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]).variance > 0


def test_holms_values_are_those_of_his_example() -> None:
    """Wright, Biometrics 48 (1992), on adjusted p-values: the products 4p, 3p, 2p and p, and none below one before."""
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.5, 0.9]) == [1.0, 1.0]
    assert stats.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.001, 0.5))
def test_holm_rejects_what_his_steps_reject(ps: list[float], alpha: float) -> None:
    rejected = set()
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        if (len(ps) - rank) * ps[i] > alpha:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(stats.holm(ps)) if p <= alpha} == rejected


def test_holm_keeps_its_alpha_whatever_is_true() -> None:
    """Fifteen true hypotheses among five plainly false ones: any true one is rejected in 5 % of families at most."""
    rng = random.Random(4)
    families = [[*(rng.random() for _ in range(15)), *([1e-9] * 5)] for _ in range(4000)]
    false = sum(min(stats.holm(ps)[:15]) <= 0.05 for ps in families)
    assert 0.04 <= false / 4000 <= 0.06


def test_the_lower_end_of_the_median_is_one_of_the_numbers() -> None:
    xs = [float(i) for i in range(1, 21)]
    assert stats.median_low(xs) == 6.0
    assert stats.median_low(xs, 0.999) < 6.0
    assert stats.median_low([1.0] * 5) == -math.inf


def test_moderated_intervals_cover_as_often_as_they_say() -> None:
    """A 99 % interval of a mean of 5, in 60 families of 100 cases whose variances differ with 3 degrees of freedom."""
    rng, misses = random.Random(11), 0
    for _ in range(60):
        sds = [math.sqrt(3 / (2 * rng.gammavariate(1.5, 1))) for _ in range(100)]
        families = [[rng.gauss(0, sd) for _ in range(5)] for sd in sds]
        fitted = stats.fit_prior([stats.variance(xs) for xs in families], [4.0] * 100)
        for xs in families:
            s2, df = stats.moderate(stats.variance(xs), 4.0, fitted)
            misses += abs(sum(xs) / 5) > stats.t_quantile(0.995, df) * math.sqrt(s2 / 5)
    assert 0.006 <= misses / 6000 <= 0.014


def test_a_spread_is_known_no_better_than_its_draws_can_tell() -> None:
    rng = random.Random(14)
    for n in (8, 24, 160):
        assert stats.fit_spread([rng.gauss(0, 1) for _ in range(n)]).df <= stats.EFFICIENCY * n
    assert stats.fit_spread([0.0] * 8 + [1.0]).df == pytest.approx(stats.EFFICIENCY * 9)
