"""Laws of the verdict, and its rates of false alarms and of findings on suites whose truth is known."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfgate.clock import Method
from perfgate.kernels import Kernel, Kernels
from perfgate.record import Record
from perfgate.stats import Prior
from perfgate.verdict import Noise, Rule, State, Verdict, judge, visible
from tests.perfgate.simulate import Suite, record

QUIET = Noise(prior=Prior(0.002**2, 6.0))
SAME_DEVICE = Rule(device=0.0, fill=0.0)
SAME_SESSION = Rule(session=0.0, device=0.0, fill=0.0)
MIRROR = {State.REGRESSED: State.IMPROVED, State.IMPROVED: State.REGRESSED}

medians = st.lists(st.floats(0.9e-3, 1.1e-3), min_size=1, max_size=6)
widths = st.floats(0, 0.02)


@given(medians, widths)
def test_a_record_never_differs_from_itself(ms: list[float], width: float) -> None:
    me = record("me", ms, half_width=width)
    found = judge(me, me, Rule(), Noise.of([me]))
    assert found.state in (State.UNCHANGED, State.UNRESOLVED)
    assert found.ratio == 1


@given(medians, medians, widths, widths)
def test_swapping_old_and_new_mirrors(a: list[float], b: list[float], wa: float, wb: float) -> None:
    rule = Rule(floor_seconds=0.0, device=0.0, fill=0.0)
    one, two = record("x", a, half_width=wa), record("x", b, half_width=wb)
    there, back = judge(one, two, rule, QUIET), judge(two, one, rule, QUIET)
    assert back.state is MIRROR.get(there.state, there.state)
    assert there.low is not None
    assert back.high is not None
    assert back.high * there.low == pytest.approx(1)


@given(medians, medians, st.floats(1e-3, 1e3))
def test_the_unit_does_not_matter(a: list[float], b: list[float], unit: float) -> None:
    rule = Rule()
    scaled = replace(rule, floor_seconds=rule.floor_seconds * unit, device=rule.device * unit)
    here = judge(record("x", a), record("x", b), rule, QUIET)
    there = judge(record("x", [m * unit for m in a]), record("x", [m * unit for m in b]), scaled, QUIET)
    assert there.ratio == pytest.approx(here.ratio)
    assert (there.low, there.high) == (pytest.approx(here.low), pytest.approx(here.high))
    assert there.floor == pytest.approx(here.floor)


@given(medians, st.floats(1.0, 2.0), st.floats(1.0, 2.0))
def test_slower_is_never_judged_better(ms: list[float], a: float, b: float) -> None:
    order = [State.IMPROVED, State.UNCHANGED, State.UNRESOLVED, State.REGRESSED]
    old = record("x", ms)
    fast, slow = (judge(record("x", [1e-3 * k]), old, Rule(), QUIET) for k in sorted((a, b)))
    if State.UNCHANGED in (fast.state, slow.state):  # unresolved lies on both sides of unchanged
        assert slow.state is not State.IMPROVED
        assert fast.state is not State.REGRESSED
    else:
        assert order.index(fast.state) <= order.index(slow.state)


@given(medians, medians, widths)
def test_the_state_is_the_picture(a: list[float], b: list[float], width: float) -> None:
    v = judge(record("x", a, half_width=width), record("x", b), Rule(), QUIET)
    assert v.low is not None
    assert v.high is not None
    assert v.floor is not None
    below, above = 1 / (1 + v.floor), 1 + v.floor
    expected = (
        State.REGRESSED
        if v.low > above
        else State.IMPROVED
        if v.high < below
        else State.UNCHANGED
        if v.low >= below and v.high <= above
        else State.UNRESOLVED
    )
    assert v.state is expected


def verdict(new: float, *old: float, rule: Rule = SAME_SESSION, noise: Noise = QUIET) -> Verdict:
    return judge(record("x", [new]), record("x", old), rule, noise)


STEADY = (1.000e-3, 1.001e-3, 0.999e-3, 1.0005e-3, 0.9995e-3)


def test_each_state_has_its_example() -> None:
    assert verdict(1.10e-3, *STEADY).state is State.REGRESSED
    assert verdict(0.90e-3, *STEADY).state is State.IMPROVED
    assert verdict(1.003e-3, *STEADY).state is State.UNCHANGED
    assert verdict(1.022e-3, *STEADY).state is State.UNRESOLVED


def test_the_reason_shows_interval_and_floor() -> None:
    found = verdict(1.10e-3, *STEADY)
    assert str(found) == f"x regressed: new/old in [{found.low:.3f}, {found.high:.3f}], floor 2.0 %".replace(" %", "%")


@pytest.mark.parametrize(
    ("new", "why"), [([1.1], ("k: code changed",)), ([0.9], ("k: code changed",)), ([1.0], ()), ([1.01], ())]
)
def test_a_case_that_got_slower_or_faster_says_what_became_of_its_kernels(new: list[float], why: tuple[str]) -> None:
    then, now = (
        replace(r, processes=tuple(replace(s, kernels=Kernels.of([k])) for s in r.processes))
        for r, k in (
            (record("case", [1.0] * 5), Kernel(name="k", grid=(1, 1, 1), code="a")),
            (record("case", new), Kernel(name="k", grid=(1, 1, 1), code="b")),
        )
    )
    assert judge(now, then, Rule(session=0.0), Noise.of([then])).why == why
    assert judge(now, record("case", [1.0] * 5), Rule(session=0.0), Noise.of([then])).why == ()


def test_another_method_is_refused_and_both_are_named() -> None:
    old = record("x", STEADY, method=Method(clock="cuda-events", l2="cold", launch="graph"))
    new = record("x", STEADY, method=Method(clock="host"))
    found = judge(new, old, Rule(), QUIET)
    assert found.state is State.REFUSED
    assert found.ratio is None
    assert str(old.method) in found.reason
    assert str(new.method) in found.reason


def test_a_lucky_small_spread_does_not_cry_wolf() -> None:
    lucky, new = record("x", [1e-3] * 4 + [1.00001e-3]), record("x", [1.025e-3])
    assert judge(new, lucky, SAME_SESSION, Noise()).state is State.REGRESSED
    others = Suite(0).run(5).values()
    assert judge(new, lucky, SAME_SESSION, Noise.of([lucky, *others])).state is State.UNRESOLVED


def test_a_baseline_of_one_process_finds_only_what_is_huge_and_never_vouches() -> None:
    old, rule, noise = record("x", [1e-3]), Rule(), Noise.of([record("x", [1e-3]), record("y", [1e-3])])
    same = judge(record("x", [1e-3]), old, rule, noise)
    assert same.state is State.UNRESOLVED
    assert "no case has several processes" in same.reason
    assert judge(record("x", [1.5e-3]), old, rule, noise).state is State.REGRESSED
    assert judge(record("x", [1.05e-3]), old, rule, noise).state is State.UNRESOLVED


def test_a_case_of_one_process_borrows_from_the_others() -> None:
    noise = Noise.of([record("x", [1e-3]), *(record(f"c{i}", STEADY) for i in range(20))])
    assert verdict(1.002e-3, 1e-3, noise=noise).state is State.UNCHANGED


def test_an_uncertain_median_widens_the_interval() -> None:
    sure = judge(record("x", [1e-3]), record("x", STEADY), Rule(), QUIET)
    unsure = judge(record("x", [1e-3], half_width=0.05), record("x", STEADY), Rule(), QUIET)
    assert sure.state is State.UNCHANGED
    assert unsure.state is State.UNRESOLVED


def test_an_error_that_the_baseline_has_too_is_not_counted_twice() -> None:
    both = judge(record("x", [1e-3], half_width=0.01), record("x", STEADY, half_width=0.01), Rule(), QUIET)
    neither = judge(record("x", [1e-3]), record("x", STEADY), Rule(), QUIET)
    assert both.high == pytest.approx(neither.high)


def test_five_samples_are_too_few_and_said_so() -> None:
    few = Record(
        case=record("x", [1]).case, processes=(replace(record("x", [1e-3]).processes[0], seconds=(1e-3,) * 5),)
    )
    found = judge(few, record("x", STEADY), Rule(), QUIET)
    assert found.state is State.UNRESOLVED
    assert "5 samples are too few" in found.reason


def test_a_tiny_kernel_has_the_floor_of_its_clock() -> None:
    small = [m * 4e-3 for m in STEADY]
    assert verdict(4.15e-6, *small).state is State.UNCHANGED
    assert verdict(4.15e-6, *small).floor == pytest.approx(0.2 / 4, rel=1e-3)
    assert verdict(1.0375e-3, *STEADY).state is State.REGRESSED


def test_a_tiny_kernel_may_be_slower_on_another_device_of_the_kind() -> None:
    """Each is seen on the device that the baseline is of; on another only what devices do not differ by."""
    old = record("x", [5.2e-6 * m / 1e-3 for m in STEADY])
    slower, much_slower = record("x", [5.45e-6]), record("x", [6.0e-6])
    assert [judge(new, old, SAME_DEVICE, QUIET).state for new in (slower, much_slower)] == [State.REGRESSED] * 2
    elsewhere = [judge(new, old, Rule(), QUIET) for new in (slower, much_slower)]
    assert [v.state for v in elsewhere] == [State.UNCHANGED, State.REGRESSED]
    assert elsewhere[0].floor == pytest.approx(3 * math.hypot(0.0125, 0.1 / 5.2), rel=0.01)


def filling(name: str, medians: Sequence[float], fills: Sequence[bool]) -> Record:
    """A case that launches one kernel, and in some processes fills memory before."""
    flash, fill = Kernel(name="flash", grid=(1,), block=(32,)), Kernel(name="memset", bytes=4)
    plain = record(name, medians)
    launched = [Kernels.of([fill] * 3 + [flash] if it else [flash]) for it in fills]
    processes = zip(plain.processes, launched, strict=True)
    return replace(plain, processes=tuple(replace(process, kernels=kernels) for process, kernels in processes))


def test_what_fills_memory_may_take_longer_on_another_device_of_the_kind() -> None:
    old = [m * 6e-6 / 1e-3 for m in STEADY]
    later = record("x", [6.8e-6])
    plain, last = filling("x", old, [False] * 5), filling("x", old, [False] * 4 + [True])
    assert judge(later, plain, Rule(), QUIET).state is State.REGRESSED
    found = judge(later, last, Rule(), QUIET)
    assert found.state is State.UNCHANGED
    assert found.floor == pytest.approx(3 * math.hypot(0.0125, 0.1 / 6, 0.3 / 6), rel=0.01)
    assert judge(filling("x", [6.8e-6], [True]), plain, Rule(), QUIET).state is State.REGRESSED, (
        "it is the head's alone"
    )
    assert judge(later, last, SAME_DEVICE, QUIET).state is State.REGRESSED
    assert visible(last, Rule(), QUIET) > 0.16 > 0.1 > visible(last, SAME_DEVICE, QUIET)


@pytest.mark.parametrize("name", ["floor", "floor_seconds", "session", "device", "fill"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -0.01])
def test_a_number_that_switches_the_gate_off_is_an_error(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Rule(**{name: value})


@pytest.mark.parametrize("confidence", [0.0, 1.0, math.nan, 99.0])
def test_a_confidence_is_a_probability(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        Rule(confidence=confidence)


def test_in_one_session_the_interval_covers_the_truth_99_times_in_100() -> None:
    """Over cases of widely differing sd, and for small and large changes alike (18 suites of 150 cases)."""
    misses = 0
    for seed in range(18):
        suite, truth = Suite(seed), random.Random(seed).choice([0.8, 1.0, 1.1])
        old, new = suite.run(5), suite.run(1, seconds=1e-3 * truth)
        noise = Noise.of(old.values())
        for name in old:
            v = judge(new[name], old[name], Rule(), noise)
            misses += not (v.low is not None and v.high is not None and v.low <= truth <= v.high)
    assert 0.006 <= misses / (18 * 150) <= 0.014


COMMON, OWN = NormalDist(0, 0.010), 0.005
"""What a session moves: 1 % sd in all cases alike, which the tests integrate over exactly, and 0.5 % in each."""


def room(v: Verdict) -> float:
    """The logarithm of how much slower a case must still become to be called regressed."""
    assert v.low is not None
    assert v.floor is not None
    return math.log((1 + v.floor) / v.low)


def false_alarms(suites: int, **kind: float) -> float:
    """Share of suites of unchanged code, in another session, in which at least one case is called regressed."""
    share = 0.0
    for seed in range(suites):
        suite = Suite(seed, **kind)  # type: ignore[arg-type]
        old, new = suite.run(5), suite.run(1, own=OWN)
        noise = Noise.of(old.values())
        share += 1 - COMMON.cdf(min(room(judge(new[name], old[name], Rule(), noise)) for name in old))
    return share / suites


def test_unchanged_code_in_another_session_is_red_in_fewer_than_1_suite_of_100() -> None:
    """Suites of 150 cases whose process sd is typically 0.4 %, and above 1.2 % in one case of twenty."""
    assert false_alarms(100) < 0.01


def test_unchanged_code_is_red_in_fewer_than_5_suites_of_100_where_processes_differ_twice_as_much() -> None:
    """Process sd typically 0.8 %: five processes cannot be as sure."""
    assert false_alarms(100, typical=0.008) < 0.05


@pytest.mark.parametrize(
    ("sd", "processes", "least"),
    [(0.005, 1, 0.99), (0.010, 1, 0.85), (0.015, 1, 0.55), (0.020, 1, 0.35), (0.020, 3, 0.70)],
)
def test_a_case_slowed_by_10_percent_is_called_in_this_share_of_runs(sd: float, processes: int, least: float) -> None:
    """15 such cases in each of 50 suites; the shares fall with the sd between processes."""
    share = 0.0
    for seed in range(50):
        suite = Suite(seed)
        suite.sds[:15] = [sd] * 15
        old, new = suite.run(5), suite.run(processes, own=OWN, seconds=1.1e-3)
        noise = Noise.of(old.values())
        found = [judge(new[f"case{i}"], old[f"case{i}"], Rule(), noise) for i in range(15)]
        assert all(v.state is not State.UNCHANGED for v in found)
        share += sum(1 - COMMON.cdf(room(v)) for v in found) / 15 / 50
    assert share >= least


def test_a_slowdown_just_visible_is_called_in_every_other_run() -> None:
    """In one session, at an sd that is known because all cases share it."""
    calls = 0
    for seed in range(20):
        suite = Suite(seed, typical=0.01, factor=0.0)
        old = suite.run(5)
        noise = Noise.of(old.values())
        least = sum(visible(r, Rule(), noise) for r in old.values()) / 150
        new = suite.run(1, seconds=1e-3 * (1 + least))
        calls += sum(judge(new[name], old[name], Rule(), noise).state is State.REGRESSED for name in old)
    assert calls / (20 * 150) == pytest.approx(0.5, abs=0.04)


def test_what_is_visible_beforehand_is_what_the_verdict_says_afterwards() -> None:
    old = record("x", STEADY)
    assert visible(old, Rule(), QUIET) == pytest.approx(judge(record("x", [2e-3]), old, Rule(), QUIET).visible)
