"""Laws of base against head, and its rates of false alarms and of findings where the truth is known."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfgate import stats
from perfgate.contest import Block, ContestRule, Findings, Side, Visit, judge, suspects, undecided
from perfgate.contrast import Contrasts
from perfgate.verdict import State, Verdict
from tests.perfgate.simulate import Kernel, contest_blocks, kernels, samples

RULE = ContestRule()
CONTROLS = [f"control{i}" for i in range(9)]
CONTROLS2 = [f"more{i}" for i in range(9)]
NOISE = [0.001, -0.002, 0.0, 0.002, -0.001, 0.0015, -0.0015, 0.0005, -0.0005]
"""Log-ratios of nine controls around zero; each block turns them by one."""


def block(
    number: int,
    ds: Mapping[str, float],
    *,
    stage: int = 2,
    shift: float = 0.0,
    seconds: float = 1e-3,
    hz: Mapping[Side, float] | None = None,
    controls: Sequence[str] = CONTROLS,
) -> Block:
    """A block whose controls' head/base is exp(shift), and whose cases' is that times exp(their d)."""
    all_ = {name: NOISE[(i + number) % len(NOISE)] for i, name in enumerate(controls)} | dict(ds)
    order: tuple[Side, ...] = ("base", "head", "head", "base") if number % 2 else ("head", "base", "base", "head")
    clock = {side: {"sm_hz": hz[side]} if hz else {} for side in ("base", "head")}
    visits = {}
    for name, d in all_.items():
        median = {"base": seconds, "head": seconds * math.exp(d + shift)}
        visits[name] = tuple(Visit(side=side, samples=samples(median[side], **clock[side])) for side in order)
    return Block(stage=stage, visits=visits)


def confirmed(d: float, *, scatter: float = 0.002, n: int = 10, name: str = "case", **about: object) -> list[Block]:
    """Blocks of stage 2 in which a case's d alternates around the given one."""
    return [block(i, {name: d + scatter * (-1) ** i}, **about) for i in range(n)]  # type: ignore[arg-type]


def verdict(findings: Findings, name: str = "case") -> Verdict:
    return next(v for v in findings.verdicts if v.case == name)


@pytest.mark.parametrize(
    ("d", "scatter", "state"),
    [
        (0.02, 0.002, State.REGRESSED),
        (-0.02, 0.002, State.IMPROVED),
        (0.0, 0.002, State.UNCHANGED),
        (0.007, 0.001, State.UNCHANGED),
        (0.0, 0.03, State.UNRESOLVED),
        (0.009, 0.003, State.UNRESOLVED),
        (-0.02, 0.04, State.UNRESOLVED),
    ],
)
def test_the_state_is_that_of_the_rule(d: float, scatter: float, state: State) -> None:
    found = verdict(judge(confirmed(d, scatter=scatter), RULE, CONTROLS))
    assert found.state is state, found
    assert found.ratio == pytest.approx(math.exp(d), rel=5e-4)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.ratio < found.high
    assert found.visible is not None
    assert found.visible >= 0.01


@pytest.mark.parametrize(
    ("d", "scatter", "n", "left"),
    [
        (0.0, 0.002, 2, ["case"]),
        (0.0, 0.002, 3, []),
        (-0.004, 0.001, 3, []),
        (0.009, 0.001, 10, ["case"]),
        (-0.02, 0.002, 10, ["case"]),
        (0.0, 0.02, 3, ["case"]),
    ],
)
def test_what_is_surely_below_its_floor_is_not_visited_again(d: float, scatter: float, n: int, left: list[str]) -> None:
    assert undecided(confirmed(d, scatter=scatter, n=n), RULE, CONTROLS, ["case"]) == left
    assert undecided([], RULE, CONTROLS, ["case"]) == ["case"]


def test_a_change_below_its_floor_makes_no_other_one_surer() -> None:
    """Were it a rejection of Holm's, the other would be asked by a weaker level."""

    def state(**others: float) -> State:
        sway = [1, -1] * 5
        ds = [{"case": 0.0125 * (1 + s), **{name: d * (1 + 0.04 * s) for name, d in others.items()}} for s in sway]
        found = judge([block(i, d) for i, d in enumerate(ds)], RULE, CONTROLS, ["case", *others])
        return verdict(found).state

    assert state() is State.REGRESSED
    assert state(small=0.005) is State.UNRESOLVED


def test_what_was_left_alone_could_have_been_seen_as_well_as_in_all_blocks() -> None:
    early, whole = (verdict(judge(confirmed(0.0, n=n), RULE, CONTROLS)) for n in (3, 10))
    assert early.state is whole.state is State.UNCHANGED
    assert early.visible == pytest.approx(0.01)
    assert whole.visible == pytest.approx(0.01)
    broken_off = verdict(judge(confirmed(0.0, n=2), RULE, CONTROLS))
    assert broken_off.visible is not None
    assert broken_off.visible > 0.02


@pytest.mark.parametrize(("seconds", "floor"), [(1e-3, 0.01), (20e-6, 0.01), (4e-6, 0.05)])
def test_the_floor_is_one_per_cent_or_a_fifth_of_a_microsecond(seconds: float, floor: float) -> None:
    found = verdict(judge(confirmed(0.03, scatter=0.001, seconds=seconds), RULE, CONTROLS))
    assert found.floor == pytest.approx(floor)
    assert (found.state is State.REGRESSED) == (floor < 0.03)


@given(st.floats(-0.05, 0.05), st.floats(0.0005, 0.02))
def test_swapping_the_sides_mirrors(d: float, scatter: float) -> None:
    there = judge(confirmed(d, scatter=scatter), RULE, CONTROLS)
    other: dict[Side, Side] = {"base": "head", "head": "base"}
    back = judge(
        [
            replace(
                b, visits={name: tuple(replace(v, side=other[v.side]) for v in vs) for name, vs in b.visits.items()}
            )
            for b in confirmed(d, scatter=scatter)
        ],
        RULE,
        CONTROLS,
    )
    mirror = {State.REGRESSED: State.IMPROVED, State.IMPROVED: State.REGRESSED}
    one, two = verdict(there), verdict(back)
    assert one.high is not None
    assert two.low is not None
    assert one.high * two.low == pytest.approx(1)
    if one.state in mirror or two.state in mirror:
        assert two.state is mirror[one.state]


@given(st.floats(-0.03, 0.03), st.floats(1e-2, 1e2))
def test_the_unit_does_not_matter(d: float, unit: float) -> None:
    rule = replace(RULE, floor_seconds=RULE.floor_seconds * unit)
    here = verdict(judge(confirmed(d, seconds=1e-5), RULE, CONTROLS))
    there = verdict(judge(confirmed(d, seconds=1e-5 * unit), rule, CONTROLS))
    assert there.ratio == pytest.approx(here.ratio)
    assert there.high == pytest.approx(here.high)
    assert there.floor == pytest.approx(here.floor)


@given(st.lists(st.floats(-0.009, 0.009), min_size=10, max_size=10))
@settings(max_examples=30)
def test_what_all_controls_share_is_taken_off(shifts: list[float]) -> None:
    plain = judge(confirmed(0.02), RULE, CONTROLS)
    moved = judge([block(i, {"case": 0.02 + 0.002 * (-1) ** i}, shift=s) for i, s in enumerate(shifts)], RULE, CONTROLS)
    assert verdict(moved).ratio == pytest.approx(verdict(plain).ratio)
    assert verdict(moved).state is State.REGRESSED
    assert [math.log(s.ratio) for s in moved.shifts] == pytest.approx(shifts, abs=1e-9)


def test_a_shift_beyond_the_limit_means_that_nothing_is_called() -> None:
    blocks = confirmed(0.05)
    blocks[3] = block(3, {"case": 0.05}, shift=0.011)
    found = judge(blocks, RULE, CONTROLS)
    assert found.unfit is not None
    assert "block 4 of stage 2" in found.unfit
    assert {v.state for v in found.verdicts} == {State.UNRESOLVED}
    assert "not fit" in verdict(found).reason


def test_a_stage_2_that_asks_nothing_of_time_leaves_stage_1_as_it_was() -> None:
    """It may be there for accuracy alone; that the machine drifted meanwhile says nothing of what was timed before."""
    screen = [block(i, {"case": 0.0}, stage=1) for i in range(2)]
    drifted = [block(i, {"case": 0.0}, shift=0.05) for i in range(4)]
    found = judge([*screen, *drifted], RULE, CONTROLS, picked=[])
    assert found.unfit is None
    assert verdict(found).state is State.UNCHANGED
    assert judge([*screen, *drifted], RULE, CONTROLS, picked=["case"]).unfit is not None


def test_controls_that_disagree_mean_that_nothing_is_called() -> None:
    wild = [Block(stage=2, visits={**b.visits, **block(i, _wild(i)).visits}) for i, b in enumerate(confirmed(0.05))]
    found = judge(wild, RULE, CONTROLS)
    assert found.unfit is not None
    assert "disagree" in found.unfit
    assert verdict(found).state is State.UNRESOLVED


def _wild(number: int) -> dict[str, float]:
    return {name: 0.008 * (-1) ** i * (1 if i else 0) for i, name in enumerate(CONTROLS)} | {
        "case": 0.05 + number * 1e-4
    }


@pytest.mark.parametrize("count", [0, 1])
def test_without_controls_nothing_is_called(count: int) -> None:
    found = judge(confirmed(0.05, controls=CONTROLS[:count]), RULE, CONTROLS)
    assert found.unfit is not None
    assert verdict(found).state is State.UNRESOLVED


def test_a_control_does_not_hide_in_the_shift() -> None:
    """Of three controls one is slower: the shift of the others is that of two, its own without itself."""
    sides: tuple[Side, ...] = ("base", "head")
    visits = {
        name: tuple(Visit(side=side, samples=samples(1e-3 * math.exp(d * (side == "head")))) for side in sides)
        for name, d in {"a": 0.0, "b": 0.001, "c": 0.05, "case": 0.0}.items()
    }
    found = judge([Block(stage=1, visits=visits)] * 2, RULE, ["a", "b", "c"])
    ratios = {v.case: math.log(v.ratio) for v in found.verdicts if v.ratio}
    assert ratios["case"] == pytest.approx(-0.001)
    assert ratios["c"] == pytest.approx(0.05 - 0.0005)
    assert ratios["a"] == pytest.approx(0.0 - 0.0255)


@given(st.lists(st.floats(-0.1, 0.1) | st.sampled_from([0.0, 0.01]), min_size=1, max_size=9))
def test_a_controls_shift_is_the_others_median(ds: list[float]) -> None:
    names = [f"control{i}" for i in range(len(ds))]
    blocks = [block(0, dict(zip(names, ds, strict=True)), controls=[])]
    found = Contrasts.of(blocks, names, lambda seconds: 0.01).seen
    measured = {name: difference.time for name, difference in blocks[0].differences.items()}
    for name in names:
        others = [d for other, d in measured.items() if other != name] or [measured[name]]
        assert found[name].time == [measured[name] - stats.quantile(others, 0.5)]


def test_suspicious_controls_are_none_where_suspicions_are_confirmed() -> None:
    """More controls got slower than stayed: against those that stage 1 found nothing about, they are called."""
    slow = [f"slow{i}" for i in range(12)]
    first = [block(i, dict.fromkeys(slow, 0.03), stage=1, controls=[*CONTROLS, *CONTROLS2]) for i in range(2)]
    found = judge(
        [*first, *(block(i, dict.fromkeys(slow, 0.03)) for i in range(10))], RULE, [*CONTROLS, *CONTROLS2, *slow]
    )
    assert found.unfit is None
    assert {v.case for v in found.verdicts if v.state is State.REGRESSED} == set(slow)


def test_a_block_that_was_cut_short_tells_nothing() -> None:
    whole = confirmed(0.02)
    short = Block(stage=2, visits={"case": block(0, {"case": 0.5}).visits["case"]})
    assert judge([*whole, short], RULE, CONTROLS) == judge(whole, RULE, CONTROLS)


@pytest.mark.parametrize(("d", "machine"), [(0.03, ("case",)), (-0.03, ())])
def test_a_change_that_is_none_in_cycles_is_the_machines(d: float, machine: tuple[str, ...]) -> None:
    """The case alone ran at another clock in head: as much slower or faster in time, and not at all in cycles."""
    blocks = []
    for b in confirmed(d):
        slow: dict[Side, float] = {"base": 1.98e9, "head": 1.98e9 * math.exp(-d)}
        even: dict[Side, float] = {"base": 1.98e9, "head": 1.98e9}
        visits = {
            name: tuple(
                replace(v, samples=replace(v.samples, counters={"sm_hz": (slow if name == "case" else even)[v.side]}))
                for v in vs
            )
            for name, vs in b.visits.items()
        }
        blocks.append(replace(b, visits=visits))
    findings = judge(blocks, RULE, CONTROLS)
    found = verdict(findings)
    assert found.state is State.UNRESOLVED
    assert "the machine's" in found.reason
    assert f"{math.expm1(-d):+.1%}" in found.reason
    assert findings.machine == machine  # what is faster for it makes no run red


@pytest.mark.parametrize("head", [1.98e9, 1.95e9, 1.97e9])
def test_a_slowdown_in_time_and_in_cycles_is_the_codes(head: float) -> None:
    """A clock that all cases share is in the shift, and no excuse."""
    found = verdict(judge(confirmed(0.03, hz={"base": 1.98e9, "head": head}), RULE, CONTROLS))
    assert found.state is State.REGRESSED


def test_cases_of_one_side_are_new_or_missing() -> None:
    whole = block(0, {"case": 0.0, "old": 0.0, "new": 0.0}, stage=1)
    kept = {"old": "base", "new": "head"}
    visits = {
        name: tuple(v for v in vs if name not in kept or v.side == kept[name]) for name, vs in whole.visits.items()
    }
    found = judge([Block(stage=1, visits=visits)], RULE, CONTROLS)
    assert verdict(found, "old").state is State.MISSING
    assert verdict(found, "new").state is State.NEW
    assert verdict(found, "case").state in (State.UNCHANGED, State.UNRESOLVED)


def test_a_case_whose_sides_were_never_timed_in_one_block_is_unresolved() -> None:
    first, second = (block(i, {"case": 0.0}, stage=1) for i in range(2))
    halves = [
        Block(stage=1, visits={**b.visits, "case": tuple(v for v in b.visits["case"] if v.side == side)})
        for b, side in ((first, "base"), (second, "head"))
    ]
    assert verdict(judge(halves, RULE, CONTROLS)).state is State.UNRESOLVED


def test_stage_1_calls_nothing() -> None:
    blocks = [block(i, {"case": 0.5, "other": -0.5}, stage=1) for i in range(2)]
    found = judge(blocks, RULE, CONTROLS)
    assert found.suspects[:2] == ("case", "other")
    assert verdict(found).state is verdict(found, "other").state is State.UNRESOLVED
    assert "not confirmed" in verdict(found).reason


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("cases", [1, 20])
def test_the_screen_fires_at_the_floor_however_little_was_seen(blocks: int, cases: int) -> None:
    ds = {f"case{i}": 0.0101 for i in range(cases)}
    seen = [block(i, ds, stage=1, controls=CONTROLS[:2]) for i in range(blocks)]
    assert set(suspects(seen, RULE, CONTROLS)) == set(ds)


def test_slower_cases_come_first_and_leave_room_for_faster_ones() -> None:
    slow = {f"slow{i:02}": 0.03 + i * 1e-3 for i in range(30)}
    fast = {f"fast{i:02}": -0.03 - i * 1e-3 for i in range(30)}
    found = suspects([block(0, slow | fast, stage=1)], RULE, CONTROLS)
    assert len(found) == RULE.most_suspects
    assert found[:4] == ["slow29", "slow28", "slow27", "fast29"]
    assert sum(name.startswith("slow") for name in found) == 15
    only = suspects([block(0, slow, stage=1)], RULE, CONTROLS)
    assert len(only) == RULE.most_suspects


@given(st.floats(0.02, 0.5))
def test_stage_1_picks_and_says_no_more_of_what_is_confirmed(d: float) -> None:
    first = [block(i, {"case": d}, stage=1) for i in range(2)]
    found = judge([*first, *confirmed(0.02)], RULE, CONTROLS)
    assert verdict(found) == verdict(judge(confirmed(0.02), RULE, CONTROLS))
    assert verdict(found).ratio == pytest.approx(math.exp(0.02))


def test_a_control_that_only_keeps_company_in_stage_2_is_judged_by_stage_1() -> None:
    first = [block(i, {"case": 0.03}, stage=1) for i in range(2)]
    found = judge([*first, *confirmed(0.03)], RULE, CONTROLS)
    assert "2 blocks" in verdict(found, "control0").reason
    assert "10 blocks" in verdict(found).reason


def test_what_was_picked_is_judged_by_stage_2_whatever_became_of_stage_1_since() -> None:
    """A case that is lost in stage 2 takes its visits of stage 1 with it, and what they said of all variances."""
    screen = [block(i, {"case": 0.003}, stage=1) for i in range(2)]
    assert suspects(screen, RULE, CONTROLS) == []
    blocks = [*screen, *confirmed(0.02)]
    assert verdict(judge(blocks, RULE, CONTROLS)).state is State.UNCHANGED
    found = judge(blocks, RULE, CONTROLS, ["case"])
    assert verdict(found).state is State.REGRESSED
    assert found.suspects == ("case",)


@pytest.mark.parametrize(("others", "state"), [(0, State.REGRESSED), (19, State.UNRESOLVED)])
def test_the_family_is_what_was_picked_also_where_some_of_it_came_to_nothing(others: int, state: State) -> None:
    blocks = confirmed(0.02, scatter=0.014)
    found = verdict(judge(blocks, RULE, CONTROLS, ["case", *(f"lost{i}" for i in range(others))]))
    assert found.state is state, found


def test_nothing_seen_is_nothing_said() -> None:
    found = judge([], RULE, CONTROLS)
    assert found == Findings(verdicts=(), suspects=(), machine=(), shifts=(), unfit=None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"floor": math.nan},
        {"floor": 0.0},
        {"floor_seconds": -1.0},
        {"alpha": 0.0},
        {"confidence": 1.0},
        {"screen_p": 0.6},
        {"screen_effect": 0.02},
        {"screen_blocks": 0},
        {"settle_blocks": 1},
        {"settle_p": 0.0},
        {"confirm_blocks": 1},
        {"most_suspects": 0},
        {"shift_limit": math.inf},
        {"disagreement_limit": math.nan},
        {"clock_limit": -0.1},
    ],
)
def test_a_rule_that_would_switch_the_gate_off_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        ContestRule(**wrong)  # type: ignore[arg-type]


def contest(
    rng: random.Random,
    cases: Mapping[str, Kernel],
    *,
    rule: ContestRule = RULE,
    ratios: Mapping[str, float] | None = None,
    controls: int = 20,
) -> Findings:
    """Both stages; in the second at most twenty controls, of those that the first found nothing about.

    Two visits a block stand for four: their noise is that of two visits' mean.
    """
    ratios = ratios or {}
    same = [name for name in cases if name not in ratios][:controls]
    about = {"ratios": ratios, "within": 0.0007, "visits": "AB"}
    first = contest_blocks(rng, cases, blocks=rule.screen_blocks, **about)  # type: ignore[arg-type]
    picked = suspects(first, rule, same)
    beside = [name for name in same if name not in picked][:20]
    blocks = list(first)
    for _ in range(rule.confirm_blocks):
        if not (left := undecided(blocks, rule, same, picked)):
            break
        again = {name: cases[name] for name in [*left, *beside]}
        blocks += contest_blocks(rng, again, stage=2, blocks=1, **about)  # type: ignore[arg-type]
    return judge(blocks, rule, same, picked)


def hold(what: str, rate: float, least: float = 0.0, most: float = 1.0) -> None:
    """Hold a simulated rate to its bounds; docs/deciding.md has what is printed."""
    print(f"{what}: {rate:.2%}")
    assert least <= rate <= most


def called(findings: Findings, state: State) -> list[str]:
    return [v.case for v in findings.verdicts if v.state is state]


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_unchanged_code_has_a_case_called_in_less_than_one_run_of_a_hundred(seed: int) -> None:
    """1400 runs of 168 cases, by quarters. As many are called faster; and hardly any machine is called unfit."""
    rng = random.Random(seed)
    runs, slower, faster, unfit = 350, 0, 0, 0
    states: Counter[State] = Counter()
    for _ in range(runs):
        found = contest(rng, kernels(rng))
        slower += bool(called(found, State.REGRESSED))
        faster += bool(called(found, State.IMPROVED))
        unfit += found.unfit is not None
        states.update(v.state for v in found.verdicts)
    hold(f"unchanged code, {runs} runs: called slower", slower / runs, most=0.01)
    hold("called faster", faster / runs, most=0.01)
    hold("unfit", unfit / runs, most=0.005)
    hold("cases that are unchanged", states[State.UNCHANGED] / runs / 168, least=0.75)


def test_one_block_of_screening_calls_no_more_and_leaves_more_open() -> None:
    rng, slower = random.Random(3), 0
    rule = replace(RULE, screen_blocks=1)
    states: Counter[State] = Counter()
    for _ in range(300):
        found = contest(rng, kernels(rng), rule=rule)
        slower += bool(called(found, State.REGRESSED))
        states.update(v.state for v in found.verdicts)
    hold("one block of screening, 300 runs: called slower", slower / 300, most=0.01)
    hold("cases that are unchanged", states[State.UNCHANGED] / states.total(), 0.25, 0.5)


@pytest.mark.parametrize(("typical", "most"), [(2.0, 0.05), (0.5, 0.005)])
def test_machines_that_are_noisier_or_quieter_call_no_more(typical: float, most: float) -> None:
    """The noisier is called unfit in some runs: the median of its controls is beyond the limit of a shift."""
    rng, slower, unfit = random.Random(44), 0, 0
    for _ in range(400):
        cases = {name: replace(k, sd=k.sd * typical) for name, k in kernels(rng).items()}
        found = contest(rng, cases)
        slower += bool(called(found, State.REGRESSED))
        unfit += found.unfit is not None
    hold(f"processes that scatter {typical:g} times as much, 400 runs: called slower", slower / 400, most=0.01)
    hold("unfit", unfit / 400, most=most)


@pytest.mark.parametrize(("controls", "most"), [(2, 0.35), (8, 0.02)])
def test_few_controls_call_no_more_but_are_more_often_unfit(controls: int, most: float) -> None:
    rng, slower, unfit = random.Random(45), 0, 0
    for _ in range(200):
        found = contest(rng, kernels(rng), controls=controls)
        slower += bool(called(found, State.REGRESSED))
        unfit += found.unfit is not None
    hold(f"{controls} controls, 200 runs: called slower", slower / 200, most=0.01)
    hold("unfit", unfit / 200, most=most)


def test_a_suite_whose_cases_are_all_controls_calls_no_more() -> None:
    rng, slower = random.Random(5), 0
    for _ in range(250):
        slower += bool(called(contest(rng, kernels(rng), controls=168), State.REGRESSED))
    hold("all cases are controls, 250 runs: called slower", slower / 250, most=0.01)


def test_kernels_with_two_modes_are_not_called() -> None:
    """Twenty cases whose every other process is 2 to 3 % slower."""
    rng, slower = random.Random(6), 0
    for _ in range(300):
        cases = kernels(rng)
        for name in list(cases)[-20:]:
            cases[name] = replace(cases[name], mode=rng.uniform(0.02, 0.03))
        slower += bool(called(contest(rng, cases), State.REGRESSED))
    hold("twenty cases with two modes, 300 runs: called slower", slower / 300, most=0.01)


def test_a_stranger_on_the_gpu_makes_nothing_red() -> None:
    """In three blocks of ten, a fifth of the visits are slowed by 2 to 30 %."""
    rng, slower = random.Random(7), 0
    for _ in range(200):
        cases = {f"k{i}": Kernel() for i in range(30)}
        blocks = contest_blocks(rng, cases, stage=2, blocks=10)
        for i in (3, 4, 5):
            visits = {
                name: tuple(
                    replace(v, samples=samples(v.samples.median * (1 + rng.uniform(0.02, 0.3) * (rng.random() < 0.2))))
                    for v in vs
                )
                for name, vs in blocks[i].visits.items()
            }
            blocks[i] = replace(blocks[i], visits=visits)
        slower += bool(called(judge(blocks, RULE, list(cases)[:10]), State.REGRESSED))
    hold("a stranger on the GPU, 200 runs: called slower", slower / 200, most=0.01)


def planted(seed: int, ratio: float, runs: int, sd: float | None, rule: ContestRule = RULE) -> tuple[float, float]:
    """Shares of planted slowdowns called, and of runs in which another case was called: five a run, of 25 us and more.

    Their process sd is `sd`, or as `kernels` draws it below 0.6 %.
    """
    rng, hits, others = random.Random(seed), 0, 0
    for _ in range(runs):
        cases = kernels(rng)
        steady = [name for name, k in cases.items() if k.seconds >= 25e-6 and k.sd <= 0.006][-5:]
        if sd is not None:
            cases |= {name: replace(cases[name], sd=sd) for name in steady}
        red = called(contest(rng, cases, rule=rule, ratios=dict.fromkeys(steady, ratio)), State.REGRESSED)
        hits += len(set(red) & set(steady))
        others += bool(set(red) - set(steady))
    return hits / runs / 5, others / runs


@pytest.mark.parametrize(("percent", "least"), [(1.0, 0.30), (1.5, 0.90), (2.0, 0.97), (3.0, 0.98), (5.0, 0.99)])
def test_slowdowns_of_steady_kernels_are_found(percent: float, least: float) -> None:
    """Steady: an sd between processes of at most 0.6 %. And what was not slowed is not called."""
    found, others = planted(8, 1 + percent / 100, 200, None)
    hold(f"{percent:g} % planted in five steady kernels, 200 runs: found", found, least=least)
    hold("runs with another case called", others, most=0.015)


@pytest.mark.parametrize(("percent", "least"), [(1.0, 0.15), (2.0, 0.90), (3.0, 0.97), (5.0, 0.99)])
def test_slowdowns_of_the_least_steady_of_them_are_found(percent: float, least: float) -> None:
    """An sd of 0.6 %: half of what is slowed by 1 % is estimated below the floor, and a third was not picked."""
    found, _ = planted(9, 1 + percent / 100, 150, 0.006)
    hold(f"{percent:g} % planted, an sd of 0.6 %, 150 runs: found", found, least=least)


@pytest.mark.parametrize(("percent", "least"), [(2.0, 0.93), (3.0, 0.97), (5.0, 0.99)])
def test_one_block_of_screening_still_finds_what_it_must(percent: float, least: float) -> None:
    found, _ = planted(10, 1 + percent / 100, 150, None, replace(RULE, screen_blocks=1))
    hold(f"{percent:g} % planted, one block of screening, 150 runs: found", found, least=least)


def coverage(findings: Sequence[Findings], ratios: Mapping[str, float], names: Sequence[str] | None = None) -> float:
    hits = [
        v.low <= ratios.get(v.case, 1.0) <= v.high
        for found in findings
        for v in found.verdicts
        if v.low is not None and v.high is not None and (names is None or v.case in names)
    ]
    return sum(hits) / len(hits)


@pytest.mark.parametrize("blocks", [1, 2, 3, 6])
def test_intervals_of_stage_1_cover_the_truth(blocks: int) -> None:
    """Before any picking: of what was not picked they cover more often, for it lies near no change. Of one block,
    what was changed widens them."""
    rng, ratios = random.Random(11), {f"k{i}": 1.03 for i in range(100, 105 if blocks > 1 else 100)}
    found = []
    for _ in range(60):
        seen = contest_blocks(rng, kernels(rng), blocks=blocks, ratios=ratios)
        found.append(judge(seen, RULE, [f"k{i}" for i in range(20)]))
    hold(f"intervals of stage 1 of {blocks} blocks that cover the truth, 60 runs", coverage(found, ratios), 0.93, 0.97)


def test_intervals_of_stage_2_cover_the_truth() -> None:
    rng, ratios = random.Random(12), {f"k{i}": 1 + i / 1000 for i in range(100, 110)}
    found = [contest(rng, kernels(rng), ratios=ratios) for _ in range(200)]
    confirmed_ = [v for f in found for v in f.verdicts if v.case in f.suspects]
    covered = sum(v.low <= ratios.get(v.case, 1.0) <= v.high for v in confirmed_) / len(confirmed_)  # type: ignore[operator]
    hold("intervals of stage 2 that cover the truth, 200 runs", covered, 0.93, 0.97)


def test_the_smallest_slowdown_to_be_seen_is_seen_every_other_time() -> None:
    """Of noisy kernels, an sd of 1.5 %, confirmed alone: planted as large as they say that they could have seen."""
    rng, hits, n = random.Random(13), 0, 300
    cases = {f"k{i}": Kernel(sd=0.015 if i >= 12 else 0.003) for i in range(20)}
    own = [f"k{i}" for i in range(12)]
    quiet = [judge(contest_blocks(rng, cases, stage=2, blocks=10), RULE, own) for _ in range(100)]
    shown = sorted(v.visible for f in quiet for v in f.verdicts if v.case == "k15" and v.visible)[50]
    assert 0.015 < shown < 0.05
    for _ in range(n):
        seen = contest_blocks(rng, cases, stage=2, blocks=10, ratios={"k15": 1 + shown})
        hits += verdict(judge(seen, RULE, own), "k15").state is State.REGRESSED
    hold(f"found, planted as large as the smallest that could be seen, {n} runs", hits / n, 0.4, 0.6)
