"""Suites drawn from measured spreads: these are the ones that were there, and a rule that cries wolf is found out."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from perfgate import contest
from perfgate.contest import Block, ContestRule, Findings
from perfgate.trust.data import Contest
from perfgate.trust.suites import Noise, Suite, false_alarms, measured
from perfgate.verdict import State
from tests.perfgate.simulate import Kernel, contest_blocks, kernels
from tests.perfgate.test_trust_data import collected


def timed(cases: Mapping[str, Kernel], *, blocks: int, common: float, seed: int = 1) -> Contest:
    some = collected()
    found = contest_blocks(random.Random(seed), cases, blocks=blocks, within=0.002, common=common, visits="ABBA")
    verdicts = {name: replace(some.verdicts["a"], case=name) for name in cases}
    return replace(some, blocks=tuple(found), verdicts=verdicts, controls=())


def test_the_measured_spreads_are_those_that_were_there() -> None:
    cases = {f"k{i:02}": Kernel(seconds=1e-4, sd=0.001 if i < 20 else 0.01) for i in range(40)}
    found = measured([timed(cases, blocks=100, common=0.004, seed=seed) for seed in (1, 2)])
    assert found is not None
    assert (found.size, len(found.cases)) == (40, 40)
    assert found.common == pytest.approx(0.004, rel=0.15)
    assert [noise.seconds for noise in found.cases] == [pytest.approx(1e-4, rel=0.01)] * 40
    assert [noise.within for noise in found.cases] == [pytest.approx(0.002, rel=0.2)] * 40
    assert [noise.between for noise in found.cases[:20]] == [pytest.approx(0.001, rel=0.4)] * 20
    assert [noise.between for noise in found.cases[20:]] == [pytest.approx(0.01, rel=0.2)] * 20


def test_unchanged_code_on_a_fit_machine_alone_is_measured() -> None:
    run = timed({"a": Kernel(), "b": Kernel()}, blocks=2, common=0.001)
    assert measured([]) is None
    assert measured([replace(run, unfit="it was warm")]) is None
    assert measured([replace(run, what="drift", disturbance="the clock falls")]) is None
    assert measured([run]) is not None


@pytest.mark.parametrize(("screens", "open_", "last"), [(2, ["case0"], 30), (1, [], 30), (1, ["case0"], 1 + 20)])
def test_drawn_runs_screen_as_the_largest_run_did(
    monkeypatch: pytest.MonkeyPatch, screens: int, open_: list[str], last: int
) -> None:
    """Where it had no time for two blocks of all cases, another one is of what the first left unsettled."""
    small, large = (
        timed({f"k{i}": Kernel() for i in range(count)}, blocks=blocks, common=0.001)
        for count, blocks in ((2, 2), (30, screens))
    )
    part = replace(large.blocks[0], visits={"k0": large.blocks[0].visits["k0"]})
    suite = measured([small, replace(large, blocks=(*large.blocks, part)), small])
    assert suite is not None
    assert (suite.size, suite.screens) == (30, screens)
    seen = []

    def suspects(blocks: Sequence[Block], *_: object) -> list[str]:
        seen.append([len(block.visits) for block in blocks])
        return []

    monkeypatch.setattr(contest, "suspects", suspects)
    monkeypatch.setattr(contest, "unsettled", lambda *_: open_)
    false_alarms(suite, ContestRule(), 1, 1)
    assert seen == [[30] * screens + ([last] if open_ and screens == 1 else [])]


def test_the_size_of_a_suite_is_that_of_its_first_stage_without_what_perfgate_adds() -> None:
    some = timed({"a": Kernel(), "b": Kernel(), "canary/copy": Kernel()}, blocks=4, common=0.001)
    blocks = [replace(block, stage=1 if i < 3 else 2) for i, block in enumerate(some.blocks)]
    judged = {name: some.verdicts[name] for name in ("a", "b")}
    found = measured([replace(some, blocks=tuple(blocks), verdicts=judged, controls=("canary/copy",))])
    assert found is not None
    assert (found.size, found.screens) == (2, 3)


def test_a_case_takes_what_it_took_in_the_run_in_the_middle() -> None:
    runs = [timed({"a": Kernel(seconds=seconds, sd=0.0)}, blocks=2, common=0.0) for seconds in (9e-4, 1e-4, 2e-4)]
    found = measured(runs)
    assert found is not None
    assert [noise.seconds for noise in found.cases] == [pytest.approx(2e-4, rel=0.01)]


def test_what_is_drawn_has_the_spreads_that_it_is_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = Suite(cases=(Noise(seconds=1e-4, between=0.01, within=0.003),), common=0.02, size=12, screens=100)
    seen: list[Block] = []

    def suspects(blocks: Sequence[Block], *_: object) -> list[str]:
        seen.extend(blocks)
        return []

    monkeypatch.setattr(contest, "suspects", suspects)
    false_alarms(suite, ContestRule(), 1, 1)
    some = collected()
    verdicts = {name: replace(some.verdicts["a"], case=name) for name in seen[0].visits}
    found = measured([replace(some, blocks=tuple(seen), verdicts=verdicts, controls=())])
    assert found is not None
    assert len(found.cases) == 12
    assert found.common == pytest.approx(suite.common, rel=0.15)
    for noise in found.cases:
        assert noise.seconds == pytest.approx(1e-4, rel=0.01)
        assert (noise.between, noise.within) == (pytest.approx(0.01, rel=0.25), pytest.approx(0.003, rel=0.25))
    orders = ["".join(visit.side[0] for visit in block.visits["case0"]) for block in seen[:2]]
    assert orders == ["bhhb", "hbbh"]


def test_each_way_for_a_drawn_run_to_end_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = collected().verdicts["a"]
    fit = Findings(verdicts=(), suspects=(), machine=(), shifts=(), unfit=None)
    ends = [
        (State.REGRESSED, State.UNRESOLVED),
        (State.UNCHANGED,),
        (State.REGRESSED, State.IMPROVED),
        (*(State.REGRESSED,) * 2, *(State.UNRESOLVED,) * 2),
    ]
    findings = [replace(fit, verdicts=tuple(replace(verdict, state=state) for state in states)) for states in ends]
    apart = [
        replace(verdict, low=low, high=high) for low, high in ((0.99, 1.0), (1.01, 1.02), (0.97, 0.98), (1.0, 1.1))
    ]
    findings[1] = replace(fit, verdicts=tuple(apart))
    left = iter([*findings, *[replace(fit, unfit="the controls disagree")] * 2])
    monkeypatch.setattr(contest, "judge", lambda *_: next(left))
    found = false_alarms(Suite(cases=noises(1), common=0.001, size=4, screens=1), ContestRule(), 6, 1)
    assert (found.runs, found.red, found.green, found.unfit) == (6, 3, 1, 2)
    assert found.unresolved == 3 + len(apart)
    known = [v for one in findings for v in one.verdicts if v.low is not None]
    assert (found.intervals, found.held) == (len(known), len(known) - 2)


def noises(seed: int) -> tuple[Noise, ...]:
    found = kernels(random.Random(seed)).values()
    return tuple(Noise(seconds=one.seconds, between=one.sd, within=0.001) for one in found)


def test_a_suite_of_unchanged_code_is_hardly_ever_red() -> None:
    alarms = false_alarms(Suite(cases=noises(1), common=0.001, size=168, screens=2), ContestRule(), 60, 1)
    assert alarms.runs == 60
    assert alarms.red <= 2
    assert alarms.green <= 2
    assert alarms.unfit <= 2
    assert alarms.intervals == 60 * 168
    assert alarms.held / alarms.intervals >= 0.95  # more than 95 %, since what is far off is timed again


def test_a_rule_that_cries_wolf_is_found_out() -> None:
    lax = ContestRule(alpha=0.9, floor=1e-4, floor_seconds=0.0, screen_effect=1e-4)
    alarms = false_alarms(Suite(cases=noises(1), common=0.001, size=168, screens=2), lax, 10, 1)
    assert alarms.red >= 5


def test_a_machine_that_is_never_fit_is_no_quiet_one() -> None:
    alarms = false_alarms(Suite(cases=noises(1), common=0.05, size=40, screens=2), ContestRule(), 10, 1)
    assert alarms.unfit >= 8
    assert alarms.red == 0
