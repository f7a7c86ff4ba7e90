"""Laws of the rule by which base and head are told apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfgate import stats
from perfgate.contest import Block, ContestRule, Findings, Side, Visit, judge, suspects, undecided
from perfgate.contrast import Contrasts
from perfgate.verdict import State, Verdict
from tests.perfgate.simulate import samples

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
        (0.009, 0.004, 3, ["case"]),
        (0.008, 0.001, 5, []),
        (-0.02, 0.002, 9, ["case"]),
        # far from sure to be below its floor, and far from what it would take to be called
        (0.0, 0.02, 3, ["case"]),
        (0.0, 0.02, 6, []),
        (0.015, 0.04, 3, ["case"]),
        (-0.015, 0.04, 8, []),
        (0.03, 0.04, 8, ["case"]),
    ],
)
def test_what_is_surely_below_its_floor_or_will_not_be_called_is_not_visited_again(
    d: float, scatter: float, n: int, left: list[str]
) -> None:
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


def test_what_could_be_seen_is_that_of_the_blocks_there_were() -> None:
    """One case is open after seven blocks, so there were no more; another was settled after three."""
    blocks = [block(i, {"open": 0.012 + 0.006 * (-1) ** i, "case": 0.002 * (-1) ** i}) for i in range(3)]
    blocks += [block(i, {"open": 0.012 + 0.006 * (-1) ** i}) for i in range(3, 7)]
    assert undecided(blocks, RULE, CONTROLS, ["open", "case"]) == ["open"]
    cut = judge(blocks, RULE, CONTROLS, ["open", "case"])
    whole = judge(blocks, replace(RULE, confirm_blocks=7), CONTROLS, ["open", "case"])
    assert verdict(cut).visible == verdict(whole).visible
    lost = [Block(stage=2, visits={n: v for n, v in b.visits.items() if n != "open"}) for b in blocks[:3]]
    asked = ["open", "case"]
    assert verdict(judge(lost, RULE, CONTROLS, asked)).visible == pytest.approx(0.01)  # as in ten: the rest was settled


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
