"""The rules for static profiles: what fails, what is only listed, and what the run ends with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from perfgate.gate import Exit
from perfgate.static import judge as rules
from perfgate.static import occupancy, table
from perfgate.static.judge import State, Verdict, exit_code, judge, judge_all
from perfgate.static.profile import Profile

GOOD = Profile(
    compiler="c 1",
    registers=168,
    stack=0,
    shared=98304,
    warps=4,
    counts={"HGMMA": 48, "MUFU.EX2": 136, "UTMALDG": 4, "UBLKCP": 2, "WARPGROUP.DEPBAR": 3, "BAR": 9},
    loop={"HGMMA": 24, "MUFU.EX2": 32, "WARPGROUP.DEPBAR": 2, "BAR": 3},
    order="HGMMA*8 MUFU.EX2*32 WARPGROUP.DEPBAR*1",
    covered=32,
)


def became(**changes: Any) -> Verdict:
    return judge("k", 90, GOOD, replace(GOOD, **changes))


def test_a_profile_never_differs_from_itself() -> None:
    assert became().state is State.UNCHANGED
    assert became().why == ()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stack": 8}, "spills: 8 bytes"),
        ({"counts": {**GOOD.counts, "STL": 2}}, "spills: 0 bytes a thread and 2 loads and stores"),
        ({"counts": {**GOOD.counts, "HGMMA": 0, "HMMA": 500}}, "lost HGMMA (48 before); matrix instructions now: HMMA"),
        ({"counts": {**GOOD.counts, "UTMALDG": 0}}, "lost UTMALDG (4 before)"),
        ({"counts": {**GOOD.counts, "UBLKCP": 0}}, "lost UBLKCP (2 before)"),
        (
            {"covered": 0},
            "a wait moved before the exponentials: 0 of 32 run under a product in flight, 32 of 32 before",
        ),
        ({"loop": {**GOOD.loop, "WARPGROUP.DEPBAR": 24}}, "the main loop waits more often: 24 waits for 24 products"),
        ({"shared": 131072}, "shared memory 98304 to 131072"),
        ({"shared": 240000}, "asks for 240000 bytes of shared memory, a block can have 232448"),
        ({"unset": "UR18 UR19"}, "reads UR18 UR19, which nothing has written: the compiler is wrong"),
    ],
)
def test_each_rule_fails_what_it_is_for(changes: dict[str, Any], says: str) -> None:
    verdict = became(**changes)
    assert verdict.state is State.REGRESSED
    assert says in verdict.why[0]


def test_a_register_more_fails_where_it_costs_a_block() -> None:
    old = replace(GOOD, shared=1024)
    assert judge("k", 90, old, replace(old, registers=168 - 1)).state is State.CHANGED
    verdict = judge("k", 90, old, replace(old, registers=169))
    assert verdict.state is State.REGRESSED
    assert "8 warps fit on a multiprocessor, 12 before: registers 168 to 169" in verdict.why[0]


def test_spills_that_were_there_fail_when_they_double_or_enter_the_loop() -> None:
    old = replace(GOOD, stack=40, counts={**GOOD.counts, "LDL": 10})
    assert judge("k", 90, old, replace(old, stack=72)).state is State.CHANGED
    assert judge("k", 90, old, replace(old, stack=80)).state is State.REGRESSED
    assert judge("k", 90, old, replace(old, loop={**old.loop, "LDL": 1})).state is State.REGRESSED
    assert judge("k", 90, old, replace(old, counts={**old.counts, "STL": 9})).state is State.CHANGED
    verdict = judge("k", 90, old, replace(old, counts={**old.counts, "STL": 10}))
    assert verdict.state is State.REGRESSED
    assert verdict.why[0] == "spills: 20 loads and stores of local memory, 10 before"


@pytest.mark.parametrize(
    "changes",
    [
        {"registers": 160},
        {"registers": 162},
        {"covered": 30},
        {"order": "another"},
        {"counts": {**GOOD.counts, "BAR": 12}},
        {"counts": {**GOOD.counts, "HGMMA": 32}},
        {"shared": 90000},
    ],
)
def test_other_changes_are_listed_and_fail_nothing(changes: dict[str, Any]) -> None:
    verdict = became(**changes)
    assert verdict.state is State.CHANGED
    assert verdict.why
    assert exit_code([verdict]) is Exit.OK


def test_what_gets_better_is_no_regression() -> None:
    bad = replace(GOOD, stack=100, registers=255, covered=0, counts={"HMMA": 9, "LDL": 4}, loop={"HMMA": 3})
    assert judge("k", 90, bad, replace(GOOD, counts={**GOOD.counts, "HMMA": 9})).state is State.CHANGED


def test_new_missing_broken_and_foreign_builds_are_said() -> None:
    new = {"new": GOOD, "broken": "it aborted", "foreign": replace(GOOD, compiler="c 2")}
    verdicts = judge_all(90, {"gone": GOOD, "broken": GOOD, "foreign": GOOD}, new)
    assert [(v.name, str(v.state)) for v in verdicts] == [
        ("broken", "regressed"),
        ("foreign", "refused"),
        ("gone", "missing"),
        ("new", "new"),
    ]
    assert verdicts[0].why == ("does not compile: it aborted",)
    assert "c 2, the baseline by c 1" in verdicts[1].why[0]


def test_a_wrong_compiler_is_not_forgiven_for_it_was_before() -> None:
    wrong = replace(GOOD, unset="UR18")
    assert judge("k", 90, wrong, wrong).state is State.REGRESSED
    assert judge("k", 90, None, wrong).state is State.REGRESSED
    assert judge("k", 90, wrong, GOOD).state is not State.REGRESSED


def test_a_new_build_must_fit() -> None:
    assert judge("k", 90, None, GOOD).state is State.NEW
    assert judge("k", 90, None, replace(GOOD, shared=240000)).state is State.REGRESSED


def of(*states: State) -> list[Verdict]:
    return [Verdict(name="k", arch=90, state=state) for state in states]


def test_the_worst_decides_the_exit_code() -> None:
    assert exit_code(of(*State)) is Exit.REGRESSED
    assert exit_code(of(State.REFUSED, State.UNCHANGED)) is Exit.REFUSED
    assert exit_code(of(State.UNCHANGED, State.NEW, State.MISSING)) is Exit.OK
    assert exit_code(of(State.UNCHANGED, State.NEW), strict=True) is Exit.INCOMPLETE
    assert exit_code(of(State.UNCHANGED, State.MISSING), strict=True) is Exit.INCOMPLETE
    assert exit_code(of(State.NEW)) is Exit.INCOMPLETE
    assert exit_code([]) is Exit.INCOMPLETE


def test_every_rule_is_applied() -> None:
    named = {rules.unset, rules.lost, rules.spills, rules.exposed, rules.serialised, rules.crowded}
    assert set(rules.RULES) == named


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "blocks"),
    [
        (32, 0, 8, 8),  # 64 warps
        (168, 0, 4, 3),  # 65536 / (168 · 32) = 12 warps
        (169, 0, 4, 2),  # handed out as 176: 11 warps, in four parts 8
        (255, 0, 8, 1),
        (32, 98304, 4, 2),  # 228 KiB / 97 KiB
        (32, 232448, 4, 1),
        (32, 232449, 4, 0),
        (16, 0, 1, 32),
    ],
)
def test_blocks_on_a_hopper(registers: int, shared: int, warps: int, blocks: int) -> None:
    assert occupancy.blocks(90, registers=registers, shared=shared, warps=warps) == blocks


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected an architecture of .*got 75"):
        occupancy.blocks(75, registers=32, shared=0, warps=4)


def test_the_table_shows_both_values_and_the_reason() -> None:
    verdicts = [became(stack=8), judge("same", 90, GOOD, GOOD)]
    lines = "\n".join(table.render(90, verdicts))
    assert "0 > 8" in lines
    assert "spills: 8 bytes" in lines
    assert "same" not in lines
    assert "same" in "\n".join(table.render(90, verdicts, every=True))
    assert table.summary(90, verdicts) == "sm_90: 2 builds, compiled and not run: 1 regressed, 1 unchanged"
