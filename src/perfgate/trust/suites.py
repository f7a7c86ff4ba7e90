"""How often a suite is red though nothing is slower: suites drawn from the spreads that were measured.

    runs of unchanged code -> each case's sd between processes and within one, and the sd of what a process does to all
      -> as many cases, drawn from these with replacement -> normal processes of both sides -> both stages -> counted

Recorded blocks can be drawn again in so many ways only; an event that happens once in a hundred runs is not seen in
them. What is drawn here has no end, but has the tails of a normal distribution: the two belong together.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from perfgate import contest, stats
from perfgate.ab.blocks import ORDERS
from perfgate.ab.stages import CONTROLS
from perfgate.clock import Method, Samples
from perfgate.contest import Block, ContestRule, Findings, Side, Visit
from perfgate.trust.data import Contest
from perfgate.trust.stages import confirmed
from perfgate.verdict import State

__all__ = ["Alarms", "Noise", "Suite", "false_alarms", "measured"]

METHOD = Method(clock="drawn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How one case scatters.

    Attributes:
        seconds: What it takes.
        between: Relative sd between processes, of what other cases do not share.
        within: Relative sd of a visit's median within its process.
    """

    seconds: float
    between: float
    within: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """What was measured.

    Attributes:
        cases: Those that were timed in several processes.
        common: Relative sd of what a process does to all of its cases.
        size: Cases of the largest run.
        screens: Blocks in which it screened all of them; a large suite has no time for two.
    """

    cases: tuple[Noise, ...]
    common: float
    size: int
    screens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarms:
    """What became of the drawn runs.

    Attributes:
        runs: How many there were.
        red: Those in which a case was called slower.
        green: Those in which a case was called faster.
        unfit: Those in which nothing was called, for the machine seemed unfit.
        unresolved: Cases of all runs that were unresolved.
        intervals: How many intervals of head/base there were.
        held: Those that held 1.
    """

    runs: int
    red: int
    green: int
    unfit: int
    unresolved: int
    intervals: int
    held: int


def measured(runs: Iterable[Contest]) -> Suite | None:
    """The spreads of unchanged code; None if no two processes timed the same cases."""
    within: dict[str, list[tuple[float, int]]] = {}
    between: dict[str, list[tuple[float, int]]] = {}
    seconds: dict[str, list[float]] = {}
    common: list[tuple[float, int]] = []
    size = screens = 0
    for run in runs:
        if run.what != "aa" or run.unfit is not None:
            continue
        whole = sum(block.stage == 1 and run.verdicts.keys() <= block.visits.keys() for block in run.blocks)
        size, screens = max((size, screens), (len(run.verdicts), whole))
        logs: dict[str, dict[tuple[int, Side], list[float]]] = {}
        for i, block in enumerate(run.blocks):
            for name, visits in block.visits.items():
                for visit in visits:
                    logs.setdefault(name, {}).setdefault((i, visit.side), []).append(math.log(visit.samples.median))
        apart: dict[tuple[int, Side], dict[str, float]] = {}
        for name, processes in logs.items():
            means = {process: math.fsum(them) / len(them) for process, them in processes.items()}
            centre = math.fsum(means.values()) / len(means)
            seconds.setdefault(name, []).append(math.exp(centre))
            several = [visits for visits in processes.values() if len(visits) > 1]
            within.setdefault(name, []).extend((stats.variance(visits), len(visits) - 1) for visits in several)
            for process, mean in means.items():
                apart.setdefault(process, {})[name] = mean - centre
        shared = {process: stats.quantile(list(them.values()), 0.5) for process, them in apart.items()}
        if len(shared) > 1:
            common.append((stats.variance(list(shared.values())), len(shared) - 1))
        for name, processes in logs.items():
            own = [apart[process][name] - shared[process] for process in processes]
            visits_each = sum(map(len, processes.values())) / len(processes)
            if len(own) > 1:
                noise = _pooled(within[name]) / visits_each
                between.setdefault(name, []).append((max(0.0, stats.variance(own) - noise), len(own) - 1))
    cases = tuple(
        Noise(
            seconds=stats.quantile(seconds[name], 0.5),
            between=math.sqrt(_pooled(found)),
            within=math.sqrt(_pooled(within[name])),
        )
        for name, found in sorted(between.items())
    )
    return Suite(cases=cases, common=math.sqrt(_pooled(common)), size=size, screens=screens) if cases else None


def _pooled(variances: Sequence[tuple[float, int]]) -> float:
    freedom = sum(df for _, df in variances)
    return math.fsum(variance * df for variance, df in variances) / freedom if freedom else 0.0


def false_alarms(suite: Suite, rule: ContestRule, runs: int, seed: int) -> Alarms:
    """Draw runs of unchanged code and have the rule decide; all cases are controls, as they are of unchanged code.

    Runs screen all cases in as many blocks as the suite's largest run did. If these are fewer than the rule's, another
    one screens what they leave unsettled.
    """
    rng = random.Random(seed)
    red = green = unfit = unresolved = intervals = held = 0
    for _ in range(runs):
        found = _run(rng, suite, rule)
        states = [verdict.state for verdict in found.verdicts]
        red += State.REGRESSED in states
        green += State.IMPROVED in states
        unfit += found.unfit is not None
        unresolved += states.count(State.UNRESOLVED)
        ends = [(v.low, v.high) for v in found.verdicts if v.low is not None and v.high is not None]
        intervals += len(ends)
        held += sum(low <= 1 <= high for low, high in ends)
    return Alarms(runs=runs, red=red, green=green, unfit=unfit, unresolved=unresolved, intervals=intervals, held=held)


def _run(rng: random.Random, suite: Suite, rule: ContestRule) -> Findings:
    """What the rule says of one run of unchanged code."""
    cases = {f"case{i}": rng.choice(suite.cases) for i in range(suite.size)}
    screen = [_block(rng, cases, suite.common, 1, i) for i in range(suite.screens)]
    if suite.screens < rule.screen_blocks and (again := contest.unsettled(screen, rule, cases)):
        some = {name: cases[name] for name in [*again, *_others(rng, cases, again)]}
        screen.append(_block(rng, some, suite.common, 1, suite.screens))
    suspects = contest.suspects(screen, rule, cases)
    beside = _others(rng, cases, suspects)

    def fresh(number: int, left: Sequence[str]) -> Block:
        return _block(rng, {name: cases[name] for name in [*left, *beside]}, suite.common, 2, number)

    return contest.judge(confirmed(screen, rule, cases, suspects, fresh), rule, cases, suspects)


def _others(rng: random.Random, cases: Iterable[str], names: Iterable[str]) -> list[str]:
    """Some that keep these cases company."""
    others = sorted(set(cases).difference(names))
    return rng.sample(others, min(CONTROLS, len(others)))


def _block(rng: random.Random, cases: Mapping[str, Noise], common: float, stage: int, number: int) -> Block:
    shared: dict[Side, float] = {side: rng.gauss(0, common) for side in ("base", "head")}
    visits = {}
    for name, noise in cases.items():
        centre = {side: shared[side] + rng.gauss(0, noise.between) for side in shared}
        visits[name] = tuple(
            Visit(side=side, samples=_sample(noise.seconds * math.exp(centre[side] + rng.gauss(0, noise.within))))
            for side in ORDERS[number % 2]
        )
    return Block(stage=stage, visits=visits)


def _sample(seconds: float) -> Samples:
    return Samples(seconds=(seconds,), method=METHOD)
