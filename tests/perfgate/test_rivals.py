"""Others' rules on cases whose answer can be worked out by hand."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfgate.trust.rivals import RIVALS, Call, asv, criterion, google_benchmark, nvbench, nvbench_robust, percent

Rule = Callable[[Sequence[float], Sequence[float]], Call]
SLOWER, FASTER, NEITHER = Call.SLOWER, Call.FASTER, Call.NEITHER


def around(centre: float, width: float, n: int = 41) -> list[float]:
    """Evenly from one end to the other, so that median and mean are the centre."""
    return [centre * (1 + width * (2 * i / (n - 1) - 1)) for i in range(n)]


@pytest.mark.parametrize(("now", "call"), [(1.049, NEITHER), (1.051, SLOWER), (0.96, NEITHER), (0.94, FASTER)])
def test_a_fixed_percentage_looks_at_medians_alone(now: float, call: Call) -> None:
    assert percent(around(1, 0.2), around(now, 0.001)) is call


def test_a_u_test_calls_what_differs_however_little() -> None:
    old = around(1, 0.001)
    assert google_benchmark(old, [x * 1.001 for x in old]) is SLOWER
    assert google_benchmark(old, [x * 0.999 for x in old]) is FASTER
    assert google_benchmark(old, [x * 1.0001 for x in old]) is NEITHER


def test_three_samples_a_side_are_too_few_for_a_u_test() -> None:
    """The least p of three against three is 2 / 20."""
    assert google_benchmark([1, 2, 3], [10, 11, 12]) is NEITHER
    assert google_benchmark([1, 2, 3, 4], [10, 11, 12, 13]) is SLOWER


def test_criterion_wants_the_whole_interval_beyond_its_noise() -> None:
    """Uniform over ±1 %, 41 samples: the change's error is 1.02 * sqrt(2) * 0.591 % / sqrt(41) = 0.13 %, t is 1.99."""
    old = around(1, 0.01)
    assert criterion(old, around(1.0120, 0.01)) is NEITHER
    assert criterion(old, around(1.0130, 0.01)) is SLOWER
    assert criterion(old, around(0.9870, 0.01)) is FASTER
    assert criterion(old, around(0.9880, 0.01)) is NEITHER


def test_criterion_knows_nothing_of_one_sample_and_all_of_equal_ones() -> None:
    assert criterion([1], [2]) is NEITHER
    assert criterion([1, 1], [1.02, 1.02]) is SLOWER
    assert criterion([1, 1], [1.005, 1.005]) is NEITHER


def test_asv_wants_a_factor_and_a_small_p() -> None:
    old = around(1, 0.01)
    assert asv(old, [x * 1.11 for x in old]) is SLOWER
    assert asv(old, [x * 1.09 for x in old]) is NEITHER
    assert asv(old, [x / 1.11 for x in old]) is FASTER
    assert asv(around(1, 0.9, 9), around(1.2, 0.9, 9)) is NEITHER


def test_asv_is_exact_for_few_samples() -> None:
    """The least two-sided p is 2 / 252 of five and five, 2 / 924 of six and six, 2 / 3432 of seven and seven."""
    assert asv([1.0] * 5, [2.0] * 5) is NEITHER
    assert asv([1, 1.1, 1.2, 1.3, 1.4, 1.5], [2, 2.1, 2.2, 2.3, 2.4, 2.5]) is NEITHER
    assert asv([1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6], [2, 2.1, 2.2, 2.3, 2.4, 2.5, 2.6]) is SLOWER


def test_asv_counts_equal_durations_for_no_difference() -> None:
    """Thirty of forty are equal: tie breaking that favours no difference leaves none."""
    assert asv([1.0] * 30 + [0.5] * 10, [1.0] * 30 + [2.0] * 10) is NEITHER


def test_nvbench_takes_the_smaller_deviation_for_the_noise() -> None:
    """Two samples at 1 ± w have a standard deviation of w * sqrt(2): 1.41 % and 14.1 %."""
    steady, noisy = [0.99, 1.01], [0.9, 1.1]
    assert nvbench(steady, [x * 1.013 for x in noisy]) is NEITHER
    assert nvbench(steady, [x * 1.015 for x in noisy]) is SLOWER
    assert nvbench(steady, [x * 0.985 for x in noisy]) is FASTER
    assert nvbench([1.0, 1.0], [1.0001, 1.0001]) is SLOWER


def test_nvbench_robust_wants_a_gap_between_least_and_third_quartile() -> None:
    """Of five the third quartile by the nearest rank is the fourth; the fifth may lie anywhere."""
    old = [1.00, 1.01, 1.02, 1.03, 9.0]
    assert nvbench_robust(old, [1.034, 1.04, 1.05, 1.06, 1.07]) is NEITHER
    assert nvbench_robust(old, [1.036, 1.04, 1.05, 1.06, 1.07]) is SLOWER
    assert nvbench_robust([1.036, 1.04, 1.05, 1.06, 1.07], old) is FASTER


durations = st.lists(st.floats(1e-6, 1e-2), min_size=2, max_size=30)


@pytest.mark.parametrize("rule", [rival.rule for rival in RIVALS], ids=[rival.name for rival in RIVALS])
@given(durations, st.floats(1e-3, 1e3), st.randoms())
def test_a_sequence_never_differs_from_itself_in_another_order(
    rule: Rule, xs: list[float], unit: float, order: random.Random
) -> None:
    again = list(xs)
    order.shuffle(again)
    assert rule(xs, again) is NEITHER


@pytest.mark.parametrize("rule", [rival.rule for rival in RIVALS], ids=[rival.name for rival in RIVALS])
def test_a_tenfold_time_is_called_by_all(rule: Rule) -> None:
    old = around(1e-3, 0.01)
    assert rule(old, [10 * x for x in old]) is SLOWER
    assert rule([10 * x for x in old], old) is FASTER


def test_rules_that_look_into_one_process_take_its_placement_for_a_change() -> None:
    """Two processes of the same code whose medians lie 2 % apart, each steady to 0.3 %: what perfgate is there for."""
    rng = random.Random(3)
    old, new = ([c * (1 + 0.003 * rng.gauss(0, 1)) for _ in range(40)] for c in (1.00, 1.02))
    called = {rival.rule for rival in RIVALS if rival.rule(old, new) is SLOWER}
    assert called == {google_benchmark, criterion, nvbench, nvbench_robust}
