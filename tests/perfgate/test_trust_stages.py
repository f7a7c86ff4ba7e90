"""Stage 2 of recorded and drawn blocks is as a rule asks for it, whatever another one once asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from perfgate.contest import Block, ContestRule
from perfgate.trust.data import Contest
from perfgate.trust.stages import confirmed, judged_again
from perfgate.verdict import State
from tests.perfgate.simulate import Kernel, contest_blocks
from tests.perfgate.test_trust_data import collected

RULE = ContestRule()
CASES = {f"k{i:02}": Kernel(sd=0.002) for i in range(40)}
SLOW = {"k00": 1.05}


def recorded(ratios: dict[str, float], *, blocks: int = 10, screens: int = 2) -> Contest:
    """A run in which stage 2 visited every case in every block."""
    rng, some = random.Random(1), collected()
    seen = contest_blocks(rng, CASES, blocks=screens, ratios=ratios)
    seen += contest_blocks(rng, CASES, stage=2, blocks=blocks, ratios=ratios)
    verdicts = {name: replace(some.verdicts["a"], case=name) for name in CASES}
    return replace(some, blocks=tuple(seen), verdicts=verdicts, controls=tuple(sorted(CASES.keys() - SLOW.keys())))


def state(run: Contest, rule: ContestRule = RULE) -> State:
    return {verdict.case: verdict.state for verdict in judged_again(run, rule).verdicts}["k00"]


@pytest.mark.parametrize("screens", [1, 2])
def test_a_recorded_run_is_judged_by_the_rule_that_is_given(screens: int) -> None:
    assert state(recorded(SLOW, screens=screens)) is State.REGRESSED
    assert state(recorded({}, screens=screens)) is not State.REGRESSED
    assert state(recorded(SLOW, screens=screens), replace(RULE, floor=0.08)) is State.UNCHANGED
    assert state(recorded(SLOW, blocks=0)) is State.UNRESOLVED


def test_of_stage_2_no_more_is_seen_than_the_rule_would_have_asked_for() -> None:
    """What came after a case was settled is not seen, be it what it may."""
    screen, calm, slow = recorded(SLOW).blocks[:2], recorded({}).blocks[2:6], recorded({"k00": 1.5}).blocks[6:]
    run = replace(recorded(SLOW), blocks=(*screen, *calm, *slow))
    whole, early = (replace(RULE, settle_blocks=blocks) for blocks in (10, 4))
    assert [sum(s.stage == 2 for s in judged_again(run, rule).shifts) for rule in (whole, early)] == [10, 4]
    found = [{v.case: v.ratio for v in judged_again(run, rule).verdicts}["k00"] for rule in (whole, early)]
    assert found == [pytest.approx(1.5**0.6, rel=0.01), pytest.approx(1.0, rel=0.01)]


def test_a_control_that_was_picked_and_settled_keeps_no_company() -> None:
    """It is a case like any other: of its later visits a run would have had none."""
    picked = "k07"
    run = recorded({picked: 1.02, **SLOW})
    calm = recorded(SLOW)
    run = replace(run, blocks=(*run.blocks[:2], *calm.blocks[2:]))
    assert picked in run.controls
    (verdict,) = (v for v in judged_again(run, replace(RULE, settle_blocks=4)).verdicts if v.case == picked)
    assert " of 4 blocks" in verdict.reason


def test_blocks_end_where_nothing_is_undecided_or_none_is_left() -> None:
    asked: list[Sequence[str]] = []
    rule, run = replace(RULE, settle_blocks=9), recorded(SLOW)
    screen = [block for block in run.blocks if block.stage == 1]

    def fresh(number: int, left: Sequence[str]) -> Block | None:
        asked.append(left)
        return run.blocks[2 + number] if number < 4 else None

    assert confirmed(screen, rule, run.controls, ["k00"], fresh) == list(run.blocks[:6])
    assert asked == [["k00"]] * 5
    assert confirmed(screen, rule, run.controls, [], fresh) == screen
