"""Probabilities against tables and closed forms."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfgate.trust.chance import binomial_interval, exact_two_sided, mann_whitney, wins


@pytest.mark.parametrize(
    ("hits", "tries", "low", "high"),
    [
        (8, 10, 0.4439, 0.9748),
        (0, 10, 0.0, 0.3085),
        (10, 10, 0.6915, 1.0),
        (0, 300, 0.0, 0.01222),
        (5, 20, 0.0866, 0.4910),
    ],
)
def test_a_shares_interval_is_the_tables(hits: int, tries: int, low: float, high: float) -> None:
    assert binomial_interval(hits, tries) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("hits", "tries"), [(0, 0), (3, 2), (-1, 2)])
def test_a_share_of_nothing_is_an_error(hits: int, tries: int) -> None:
    with pytest.raises(ValueError, match="hits"):
        binomial_interval(hits, tries)


def test_a_shares_interval_covers_at_least_as_often_as_it_says() -> None:
    rng = random.Random(1)
    for p in (0.02, 0.5, 0.9):
        hits = [sum(rng.random() < p for _ in range(30)) for _ in range(400)]
        covered = sum(low <= p <= high for low, high in (binomial_interval(h, 30) for h in hits))
        assert covered >= 0.93 * len(hits)


def test_two_groups_that_do_not_overlap_have_the_least_p() -> None:
    assert mann_whitney([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(2 / math.comb(10, 5))


def test_a_worked_example() -> None:
    """Ages of nine patients: U = 17 (or 3), exact p = 1/9, normal with continuity p = 0.1113."""
    a, b = [19, 22, 16, 29, 24], [20, 11, 17, 12]
    assert wins(a, b) == (17, 0)
    assert mann_whitney(a, b) == pytest.approx(1 / 9)
    assert mann_whitney(a, b, exact_up_to=0) == pytest.approx(0.1113, abs=1e-4)


def test_ties_take_from_the_variance_what_they_take_over_all_orderings() -> None:
    a, b = [1.0, 1.0, 1.0, 2.0], [1.0, 2.0, 2.0, 2.0, 3.0]
    every = [*a, *b]

    def score(chosen: tuple[int, ...]) -> float:
        larger, equal = wins([every[i] for i in chosen], [every[i] for i in range(9) if i not in chosen])
        return larger + equal / 2

    variance = statistics.pvariance(map(score, itertools.combinations(range(9), 4)))
    distance = abs(score((0, 1, 2, 3)) - 10) - 0.5
    assert mann_whitney(a, b) == pytest.approx(math.erfc(distance / math.sqrt(2 * variance)))


def test_p_is_exact_where_neither_side_has_many() -> None:
    many = [float(i) for i in range(9)]
    assert mann_whitney([-1.0, -2.0], many[:8]) == pytest.approx(2 / math.comb(10, 2))
    assert mann_whitney([-1.0, -2.0], many) != pytest.approx(2 / math.comb(11, 2))


def test_numbers_that_are_all_equal_do_not_differ() -> None:
    assert mann_whitney([1.0] * 9, [1.0] * 9) == 1.0


def test_one_side_alone_is_an_error() -> None:
    with pytest.raises(ValueError, match="both sides"):
        mann_whitney([], [1.0])


@given(st.integers(1, 7), st.integers(1, 7))
def test_all_orderings_are_counted(m: int, n: int) -> None:
    assert exact_two_sided(m * n // 2, m, n) == 1.0
    assert exact_two_sided(0, m, n) == pytest.approx(min(1.0, 2 / math.comb(m + n, m)))


groups = st.lists(st.integers(0, 9).map(float), min_size=1, max_size=12)


@given(groups, groups)
def test_swapping_the_sides_changes_no_p(a: list[float], b: list[float]) -> None:
    assert mann_whitney(a, b) == pytest.approx(mann_whitney(b, a))
    assert 0 < mann_whitney(a, b) <= 1


@given(groups, groups)
def test_every_pair_is_won_lost_or_equal(a: list[float], b: list[float]) -> None:
    won, equal = wins(a, b)
    assert won + wins(b, a)[0] + equal == len(a) * len(b)


def test_a_p_below_5_percent_comes_in_5_percent_of_equals() -> None:
    rng = random.Random(2)
    ps = [mann_whitney([rng.gauss(0, 1) for _ in range(15)], [rng.gauss(0, 1) for _ in range(12)]) for _ in range(2000)]
    assert 0.035 < sum(p < 0.05 for p in ps) / len(ps) < 0.065
