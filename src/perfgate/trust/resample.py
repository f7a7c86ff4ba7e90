"""The same samples through perfgate's rule and through those of others, at the same time on the GPU.

    a source draws blocks of unchanged code -> in each block the sides are swapped or not, by chance
      -> a few cases of head are made slower by a known factor -> the rules decide -> counted

Under unchanged code the two processes of a block are exchangeable, so each swap is a run that could have been. A source
is what was recorded on GPUs (`recorded`), or what single processes left, with an assumed spread between processes
(`synthetic`). perfgate screens all cases and confirms the suspects; a rival gets the samples of the first visit of one
process a side, as its documents have it, and apart from that all samples of as many processes as perfgate's run took.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from perfgate import contest
from perfgate.ab.blocks import ORDERS
from perfgate.ab.stages import CONTROLS
from perfgate.clock import Samples
from perfgate.contest import Block, ContestRule, Side, Visit
from perfgate.record import Record
from perfgate.trust.data import Contest
from perfgate.trust.rivals import RIVALS, Call
from perfgate.trust.stages import confirmed
from perfgate.verdict import State

__all__ = ["OURS", "SIZES", "Plan", "Row", "compare", "recorded", "synthetic"]

OURS = "perfgate"
SIZES = (0.01, 0.015, 0.02, 0.03, 0.05)
"""Relative slowdowns that are planted."""

Source = Callable[[random.Random, int], Sequence[Block]]
"""Draws that many blocks of unchanged code, all of the same cases, and independent of each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How often what is drawn.

    Attributes:
        unchanged: Runs in which nothing is slower.
        made_up: Runs of unchanged code that are drawn from its spreads alone (`perfgate.trust.suites`).
        rivals: In one of so many of these the rivals decide too; they are slow, and their alarms are no rare events.
        planted: Runs with planted slowdowns.
        a_size: Cases a run that are slower by each size.
        rule: perfgate's.
    """

    unchanged: int = 200
    made_up: int = 2000
    rivals: int = 10
    planted: int = 60
    a_size: int = 2
    rule: ContestRule = field(default_factory=ContestRule)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a rule did. Shares are pairs of how often, and of how many.

    Attributes:
        rule: Its name.
        processes: How many processes a side it had, in words.
        alarms: Unchanged cases that were called slower.
        red: Unchanged runs in which any case was called slower.
        found: Slower cases that were called slower, by size.
    """

    rule: str
    processes: str
    alarms: tuple[int, int]
    red: tuple[int, int]
    found: Mapping[float, tuple[int, int]]


def recorded(runs: Sequence[Contest], rule: ContestRule) -> Source | None:
    """A source of the screening blocks of unchanged code; None if no GPU at one start of a machine has enough of them.

    Blocks of one GPU at one start stay among themselves: they share what a start draws, and no rule is made for samples
    of several GPUs.
    """
    pools: dict[tuple[str, str, str], list[Block]] = {}
    for run in runs:
        if run.what == "aa" and run.unfit is None:
            device = run.origin.environment.facts.get("uuid", "")
            pool = pools.setdefault((run.suite, run.origin.occasion, device), [])
            pool += [block for block in run.blocks if block.stage == 1]
    needed = rule.screen_blocks + rule.confirm_blocks
    enough = [alike for _, pool in sorted(pools.items()) if pool and len(alike := _alike(pool)) >= needed]
    if not enough:
        return None
    return lambda rng, n: rng.sample(rng.choice(enough), n)


def _alike(pool: Sequence[Block]) -> list[Block]:
    """The blocks with the set of cases that most of them have: a suite may have grown, or a case died in one."""
    ((cases, _),) = Counter(frozenset(block.visits) for block in pool).most_common(1)
    return [block for block in pool if block.visits.keys() == cases]


def synthetic(records: Mapping[str, Record], between: float) -> Source:
    """A source of processes whose samples are drawn from those of recorded ones.

    Args:
        records: Cases, of which the first process counts.
        between: Median over the cases of the relative sd between processes; the cases' own are log-normal around it,
            by a factor of two.
    """
    cases = {
        name: (record.processes[0], between * 2 ** random.Random(name).gauss(0, 1)) for name, record in records.items()
    }

    def draw(rng: random.Random, n: int) -> list[Block]:
        blocks = []
        for i in range(n):
            visits = {}
            for name, (samples, sd) in cases.items():
                centre = {side: math.exp(rng.gauss(0, sd)) for side in ("base", "head")}
                visits[name] = tuple(
                    Visit(side=side, samples=_again(rng, samples, centre[side])) for side in ORDERS[i % 2]
                )
            blocks.append(Block(stage=1, visits=visits))
        return blocks

    return draw


def _again(rng: random.Random, samples: Samples, factor: float) -> Samples:
    seconds = tuple(factor * s for s in rng.choices(samples.seconds, k=len(samples.seconds)))
    return replace(samples, seconds=seconds, counters={}, notes=())


def compare(source: Source, plan: Plan, seed: int) -> list[Row]:
    """What perfgate and the rivals make of the source's unchanged code, and of slowdowns planted in it."""
    rng = random.Random(seed)
    alarms: Counter[tuple[str, str]] = Counter()
    judged: Counter[tuple[str, str]] = Counter()
    red: Counter[tuple[str, str]] = Counter()
    runs: Counter[tuple[str, str]] = Counter()
    found: Counter[tuple[str, str, float]] = Counter()
    tried: Counter[tuple[str, str, float]] = Counter()
    keys = [(OURS, "its own")] + [(rival.name, words) for words in ("one", "as many") for rival in RIVALS]
    for number in range(plan.unchanged + plan.planted):
        unchanged = number < plan.unchanged
        blocks = [_swapped(rng, block) for block in source(rng, plan.rule.screen_blocks + plan.rule.confirm_blocks)]
        names = sorted(blocks[0].visits)
        planted: dict[str, float] = {}
        if not unchanged:
            long_enough = [name for name in names if _floor(blocks[0], name, plan.rule) == plan.rule.floor]
            chosen = rng.sample(long_enough, min(len(long_enough), len(names) // 2, plan.a_size * len(SIZES)))
            planted = {name: SIZES[i % len(SIZES)] for i, name in enumerate(chosen)}
            blocks = [_slower(block, planted) for block in blocks]
        called, taken = _ours(blocks, plan.rule, planted)
        calls = {(OURS, "its own"): called}
        if not unchanged or number % plan.rivals == 0:
            calls |= _rivals(blocks[:taken], planted or names)
        for key, slower in calls.items():
            for name, size in planted.items():
                tried[(*key, size)] += 1
                found[(*key, size)] += name in slower
            if unchanged:
                runs[key] += 1
                red[key] += bool(slower)
                judged[key] += len(names)
                alarms[key] += len(slower)
    return [
        Row(
            rule=key[0],
            processes=key[1],
            alarms=(alarms[key], judged[key]),
            red=(red[key], runs[key]),
            found={size: (found[(*key, size)], tried[(*key, size)]) for size in SIZES if tried[(*key, size)]},
        )
        for key in keys
    ]


def _floor(block: Block, name: str, rule: ContestRule) -> float:
    """A case's floor: that of a short call is larger than what is planted, so it is not to be called."""
    return rule.band(min(visit.samples.median for visit in block.visits[name]))


def _swapped(rng: random.Random, block: Block) -> Block:
    """All cases of a block with their sides exchanged, or none: what a process does to all it does here too."""
    if rng.random() < 0.5:
        return block
    other: dict[Side, Side] = {"base": "head", "head": "base"}
    visits = {name: tuple(replace(v, side=other[v.side]) for v in found) for name, found in block.visits.items()}
    return replace(block, visits=visits)


def _slower(block: Block, planted: Mapping[str, float]) -> Block:
    visits = dict(block.visits)
    for name, size in planted.items():
        visits[name] = tuple(
            replace(v, samples=replace(v.samples, seconds=tuple((1 + size) * s for s in v.samples.seconds)))
            if v.side == "head"
            else v
            for v in visits[name]
        )
    return replace(block, visits=visits)


def _ours(blocks: Sequence[Block], rule: ContestRule, planted: Collection[str]) -> tuple[set[str], int]:
    """The cases that perfgate calls slower, and how many blocks of all cases take as long as its run."""
    controls = {name for name in blocks[0].visits if name not in planted}
    screen = [replace(block, stage=1) for block in blocks[: rule.screen_blocks]]
    suspects = contest.suspects(screen, rule, controls)
    beside = sorted(controls - set(suspects))[:CONTROLS]

    def fresh(number: int, left: Sequence[str]) -> Block:
        block = blocks[rule.screen_blocks + number]
        return replace(block, stage=2, visits={name: block.visits[name] for name in {*left, *beside}})

    seen = confirmed(screen, rule, controls, suspects, fresh)
    verdicts = contest.judge(seen, rule, controls, suspects).verdicts
    visits = sum(len(block.visits) for block in seen if block.stage == 2)
    taken = rule.screen_blocks + math.ceil(visits / len(blocks[0].visits))
    return {v.case for v in verdicts if v.state is State.REGRESSED}, taken


def _rivals(blocks: Sequence[Block], names: Collection[str]) -> dict[tuple[str, str], set[str]]:
    """The cases that each rival calls slower, with one process a side and with as many as there are."""
    calls: dict[tuple[str, str], set[str]] = {
        (rival.name, words): set() for words in ("one", "as many") for rival in RIVALS
    }
    for name in names:
        once = {visit.side: visit.samples.seconds for visit in reversed(blocks[0].visits[name])}
        pooled: dict[Side, list[float]] = {"base": [], "head": []}
        for block in blocks:
            for visit in block.visits[name]:
                pooled[visit.side] += visit.samples.seconds
        for rival in RIVALS:
            if rival.rule(once["base"], once["head"]) is Call.SLOWER:
                calls[rival.name, "one"].add(name)
            if rival.rule(pooled["base"], pooled["head"]) is Call.SLOWER:
                calls[rival.name, "as many"].add(name)
    return calls
