"""Rates of base against head where the truth is simulated."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from perfgate.contest import Block, ContestRule, Findings, judge, suspects, unsettled
from perfgate.trust.stages import confirmed
from perfgate.verdict import State
from tests.perfgate.simulate import Kernel, contest_blocks, kernels, samples

RULE = ContestRule()


def run(
    rng: random.Random,
    cases: Mapping[str, Kernel],
    *,
    rule: ContestRule = RULE,
    ratios: Mapping[str, float] | None = None,
    controls: int | None = 20,
    screens: int = RULE.screen_blocks,
    room: int | None = None,
) -> tuple[list[Block], list[str], list[str]]:
    """The blocks of both stages, the controls, and what was picked.

    Where fewer blocks screen all cases than should, another one screens what these leave unsettled, as far as there is
    room. In stage 2 there are at most twenty controls, of those that stage 1 found nothing about. Two visits a block
    stand for four: their noise is that of two visits' mean.

    Args:
        rng: Makes it reproducible.
        cases: All of them.
        rule: Decides.
        ratios: Head's true median over base's, where it is not one.
        controls: How many of the others there are; None if all cases are, those of `ratios` too.
        screens: Blocks of all cases.
        room: Cases that the second block has time for, if it is not of all: the first of them.
    """
    ratios = ratios or {}
    same = [*cases] if controls is None else [name for name in cases if name not in ratios][:controls]
    about: dict[str, Any] = {"ratios": ratios, "within": 0.0007, "visits": "AB"}
    first = contest_blocks(rng, cases, blocks=screens, **about)
    if screens < rule.screen_blocks and (open_ := unsettled(first, rule, same)):
        settled = [name for name in same if name not in open_]
        beside = (settled if len(settled) >= 20 else [n for n in same if n not in suspects(first, rule, same)])[:20]
        again = {name: cases[name] for name in [*open_[:room], *beside]}
        first += contest_blocks(rng, again, blocks=1, **about)
    picked = suspects(first, rule, same)
    beside = [name for name in same if name not in picked][:20]

    def fresh(number: int, left: Sequence[str]) -> Block:
        again = {name: cases[name] for name in [*left, *beside]}
        (block,) = contest_blocks(rng, again, stage=2, blocks=1, **about)
        return block

    return confirmed(first, rule, same, picked, fresh), same, picked


def contest(rng: random.Random, cases: Mapping[str, Kernel], *, rule: ContestRule = RULE, **about: Any) -> Findings:
    """What is said of such a run."""
    blocks, same, picked = run(rng, cases, rule=rule, **about)
    return judge(blocks, rule, same, picked)


def only(block: Block, names: Sequence[str]) -> Block:
    """A block in which no other cases were visited."""
    return replace(block, visits={name: block.visits[name] for name in names})


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
    runs, slower, faster, unfit, confirming = 350, 0, 0, 0, 0
    states: Counter[State] = Counter()
    for _ in range(runs):
        found = contest(rng, kernels(rng))
        slower += bool(called(found, State.REGRESSED))
        faster += bool(called(found, State.IMPROVED))
        unfit += found.unfit is not None
        confirming += sum(shift.stage == 2 for shift in found.shifts)
        states.update(v.state for v in found.verdicts)
    hold(f"unchanged code, {runs} runs: called slower", slower / runs, most=0.01)
    hold("called faster", faster / runs, most=0.01)
    hold("unfit", unfit / runs, most=0.005)
    hold("cases that are unchanged", states[State.UNCHANGED] / runs / 168, least=0.75)
    hold("blocks of stage 2 that it took, of all there may be", confirming / runs / RULE.confirm_blocks, most=0.80)


def test_one_block_of_screening_calls_no_more_and_leaves_more_open() -> None:
    rng, runs, slower = random.Random(3), 900, 0
    states: Counter[State] = Counter()
    for _ in range(runs):
        found = contest(rng, kernels(rng), screens=1)
        slower += bool(called(found, State.REGRESSED))
        states.update(v.state for v in found.verdicts)
    hold(f"one block of screening, {runs} runs: called slower", slower / runs, most=0.01)
    hold("cases that are unchanged", states[State.UNCHANGED] / states.total(), least=0.6)


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


def planted(seed: int, ratio: float, runs: int, sd: float | None, screens: int = 2) -> tuple[float, float]:
    """Shares of planted slowdowns called, and of runs in which another case was called: five a run, of 25 us and more.

    Their process sd is `sd`, or as `kernels` draws it below 0.6 %.
    """
    rng, hits, others = random.Random(seed), 0, 0
    for _ in range(runs):
        cases = kernels(rng)
        steady = [name for name, k in cases.items() if k.seconds >= 25e-6 and k.sd <= 0.006][-5:]
        if sd is not None:
            cases |= {name: replace(cases[name], sd=sd) for name in steady}
        red = called(contest(rng, cases, screens=screens, ratios=dict.fromkeys(steady, ratio)), State.REGRESSED)
        hits += len(set(red) & set(steady))
        others += bool(set(red) - set(steady))
    return hits / runs / 5, others / runs


@pytest.mark.parametrize(("percent", "least"), [(1.0, 0.30), (1.5, 0.90), (2.0, 0.97), (3.0, 0.98), (5.0, 0.99)])
def test_slowdowns_of_steady_kernels_are_found(percent: float, least: float) -> None:
    """Steady: an sd between processes of at most 0.6 %. And what was not slowed is not called."""
    found, others = planted(8, 1 + percent / 100, 200, None)
    hold(f"{percent:g} % planted in five steady kernels, 200 runs: found", found, least=least)
    hold("runs with another case called", others, most=0.015)


@pytest.mark.parametrize(("percent", "least"), [(1.0, 0.12), (2.0, 0.90), (3.0, 0.97), (5.0, 0.99)])
def test_slowdowns_of_the_least_steady_of_them_are_found(percent: float, least: float) -> None:
    """An sd of 0.6 %: half of what is slowed by 1 % is estimated below the floor, and a third was not picked."""
    found, _ = planted(9, 1 + percent / 100, 150, 0.006)
    hold(f"{percent:g} % planted, an sd of 0.6 %, 150 runs: found", found, least=least)


@pytest.mark.parametrize(("percent", "least"), [(2.0, 0.93), (3.0, 0.97), (5.0, 0.99)])
def test_one_block_of_screening_still_finds_what_it_must(percent: float, least: float) -> None:
    found, _ = planted(10, 1 + percent / 100, 150, None, screens=1)
    hold(f"{percent:g} % planted, one block of screening, 150 runs: found", found, least=least)


def test_slower_controls_among_what_is_screened_again_neither_hide_nor_spoil_the_shift() -> None:
    """All of 168 cases are controls, sixteen are 3 % slower, and are most of what the second block has room for."""
    rng, runs, unfit, found, off = random.Random(18), 120, 0, 0, 0.0
    for _ in range(runs):
        cases = kernels(rng)
        slow = [name for name, k in cases.items() if k.seconds >= 25e-6 and k.sd <= 0.006][:16]
        cases = {name: cases[name] for name in dict.fromkeys([*slow, *cases])}
        ratios = dict.fromkeys(slow, 1.03)
        blocks, same, picked = run(rng, cases, ratios=ratios, controls=None, screens=1, room=20)
        findings = judge(blocks, RULE, same, picked)
        unfit += findings.unfit is not None
        found += len(set(called(findings, State.REGRESSED)) & set(slow))
        off += math.log(findings.shifts[1].ratio)
    hold(f"sixteen of 168 controls 3 % slower, {runs} runs: unfit", unfit / runs, most=0.02)
    hold("mean shift of the second block", abs(off) / runs, most=0.0008)
    hold("found, of the fifteen that there is room for", found / runs / 15, least=0.92)


def test_what_was_screened_twice_for_what_it_showed_is_covered_too() -> None:
    rng, twice, once = random.Random(19), [0, 0], [0, 0]
    for _ in range(150):
        findings = contest(rng, kernels(rng), screens=1, controls=168)
        for v in findings.verdicts:
            if v.low is not None and v.high is not None and v.case not in findings.suspects:
                (twice if " of 2 blocks" in v.reason else once)[v.low <= 1 <= v.high] += 1
    hold("intervals of cases screened twice that cover the truth, 150 runs", twice[1] / sum(twice), least=0.93)
    hold("of cases screened once", once[1] / sum(once), least=0.93)


def test_what_is_at_its_floor_is_seldom_unchanged_for_having_been_looked_at_twice() -> None:
    """Slower by 1 % with an sd of 1 %, more than the others scatter by: which one block, or two, cannot know."""
    rates = []
    for screens in (2, 1):
        rng, same = random.Random(20), 0
        for _ in range(150):
            cases = kernels(rng)
            noisy = [name for name, k in cases.items() if k.seconds >= 25e-6][-5:]
            cases |= {name: replace(cases[name], sd=0.01) for name in noisy}
            found = contest(rng, cases, ratios=dict.fromkeys(noisy, 1.01), screens=screens)
            same += len(set(called(found, State.UNCHANGED)) & set(noisy))
        rates.append(same / 150 / 5)
    hold("1 % slower, sd 1 %, two blocks of all: unchanged", rates[0], most=0.16)
    hold("one block and one of what is unsettled: unchanged", rates[1], most=rates[0] + 0.02)


@pytest.mark.parametrize("blocks", [6, 10])
def test_two_modes_are_not_called_either_where_time_was_short(blocks: int) -> None:
    """Twenty unchanged suspects with modes 4 % apart and hardly any other scatter: the worst for so few blocks."""
    rng, runs, slower, faster = random.Random(21), 1500, 0, 0
    cases = {f"k{i}": Kernel(sd=0.001, mode=0.04 if i < 20 else 0.0) for i in range(40)}
    picked, same = [f"k{i}" for i in range(20)], [f"k{i}" for i in range(20, 40)]
    for _ in range(runs):
        drawn = contest_blocks(rng, cases, stage=2, blocks=blocks, within=0.0007, visits="AB")
        found = judge(drawn, RULE, same, picked)
        slower += bool(called(found, State.REGRESSED))
        faster += bool(called(found, State.IMPROVED))
    hold(f"twenty suspects with two modes, {blocks} blocks, {runs} runs: called slower", slower / runs, most=0.02)
    hold("called faster", faster / runs, most=0.02)


def test_what_scatters_among_many_slowdowns_is_not_left_alone_too_soon() -> None:
    """Of twenty suspects nineteen are 5 % slower, and one 2 %, with an sd of 1.8 %: Holm asks it by his last step."""
    rng, runs, whole, lost, left_alone = random.Random(5), 400, 0, 0, 0
    cases = {f"k{i}": Kernel(sd=0.018 if i == 0 else 0.003) for i in range(40)}
    picked, same = [f"k{i}" for i in range(20)], [f"k{i}" for i in range(20, 40)]
    ratios = {name: 1.02 if name == "k0" else 1.05 for name in picked}
    for _ in range(runs):
        drawn = contest_blocks(rng, cases, stage=2, blocks=10, ratios=ratios, within=0.0007, visits="AB")
        seen = confirmed([], RULE, same, picked, lambda i, left, drawn=drawn: only(drawn[i], [*left, *same]))
        found, all_ten = (
            "k0" in called(judge(blocks, RULE, same, picked), State.REGRESSED) for blocks in (seen, drawn)
        )
        whole += all_ten
        lost += all_ten and not found
        left_alone += found and "k0" not in seen[-1].visits
    hold(f"called in all ten blocks, {runs} runs", whole / runs, 0.3, 0.7)
    hold("of these left alone before", lost / whole, most=0.06)
    hold("called although it was left alone", left_alone / runs, most=0.005)


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


def test_intervals_of_a_small_suites_screen_cover_the_truth() -> None:
    """What 24 cases share is known little, which is in their intervals."""
    rng, found = random.Random(15), []
    for _ in range(300):
        cases = dict(rng.sample(sorted(kernels(rng).items()), 24))
        found.append(judge(contest_blocks(rng, cases, blocks=2), RULE, cases))
    hold("intervals of 24 cases, stage 1 of 2 blocks, that cover the truth, 300 runs", coverage(found, {}), 0.93, 0.97)


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
        hits += "k15" in called(judge(seen, RULE, own), State.REGRESSED)
    hold(f"found, planted as large as the smallest that could be seen, {n} runs", hits / n, 0.4, 0.6)
