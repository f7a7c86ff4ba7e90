"""How far starts of machines of one kind differ, though the code is the same: what a committed baseline cannot know.

    runs of unchanged code -> a case's median at each start -> its sd over the starts -> nine in ten cases are below
      -> what two starts differ by: the square root of two times as much

A start is one of a machine with one GPU, mostly another one than before, so what GPUs of one kind differ by is in it.
What short calls differ by in seconds are terms of their own (`device` and `fill` of `perfgate.verdict.Rule`), and are
taken off, the second where it is known which calls fill memory. If the code changed between the starts, that is in it,
too. The sd of few starts is known little; what nine in ten of many cases are below has the scatter of these estimates
in it, which makes it larger rather than smaller.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from perfgate import stats
from perfgate.trust.data import Contest
from perfgate.verdict import Rule

__all__ = ["Starts", "apart"]

FEWEST = 5
"""Starts of which an sd is taken."""
SHARE = 0.9
SHORT = 10e-6
"""Seconds up to which it is of interest what calls differ by in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Starts:
    """What starts differ by.

    Attributes:
        count: How many there were.
        cases: Relative sd between them, by case.
        session: Relative sd of two starts' difference that nine in ten cases are below, without what short calls
            differ by in seconds.
        seconds: Between the slowest and the fastest start of each call of up to `SHORT`, by whether it fills memory.
    """

    count: int
    cases: Mapping[str, float]
    session: float
    seconds: Mapping[bool, Sequence[float]]

    def to_json(self) -> dict[str, float]:
        """What a baseline keeps."""
        return {"sd": self.session, "starts": self.count, "cases": len(self.cases)}


def apart(runs: Iterable[Contest], key: str) -> Starts | None:
    """What starts differ by in runs of unchanged code in environments of this key; None of fewer than five starts."""
    runs = list(runs)
    medians: dict[str, dict[tuple[str, str], list[float]]] = {}
    for run in runs:
        if run.what != "aa" or run.unfit is not None or run.origin.environment.key != key:
            continue
        start = run.origin.occasion, run.origin.environment.facts.get("uuid", "")
        for block in run.blocks:
            for name in block.visits.keys() & run.verdicts.keys():  # canaries have no verdict
                logs = [math.log(visit.samples.median) for visit in block.visits[name]]
                medians.setdefault(name, {}).setdefault(start, []).extend(logs)
    filling = {name for run in runs for name in run.fills or ()}
    cases, shares = {}, []
    late: dict[bool, list[float]] = {True: [], False: []}
    for name, starts in sorted(medians.items()):
        if len(starts) >= FEWEST:
            centres = [stats.quantile(logs, 0.5) for logs in starts.values()]
            variance = stats.variance(centres)
            cases[name] = math.sqrt(variance)
            seconds = math.exp(math.fsum(centres) / len(centres))
            if seconds <= SHORT:
                late[name in filling].append(math.exp(max(centres)) - math.exp(min(centres)))
            short = math.hypot(Rule().device, Rule().fill * (name in filling)) / seconds
            shares.append(math.sqrt(max(0.0, variance - short**2 / 2)))
    if not cases:
        return None
    count = max(map(len, medians.values()))
    return Starts(count=count, cases=cases, session=math.sqrt(2) * stats.quantile(shares, SHARE), seconds=late)
