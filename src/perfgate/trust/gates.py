"""What `nox -s perf` would say of unchanged code: one start's runs as a baseline, and another's held against it.

    start A: a process of each side and block -> a baseline
    start B: a case's first process -> slower? -> with two others, which stand for fresh ones -> its verdict

Runs that were kept before it was known which calls fill memory (`perfgate.verdict.Rule.fill`) say nothing here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from perfgate.case import Case
from perfgate.clock import Samples
from perfgate.contest import Side
from perfgate.kernels import Kernel, Kernels
from perfgate.record import Record
from perfgate.trust.data import Contest
from perfgate.verdict import Noise, Rule, State, judge

__all__ = ["Gates", "between"]

PROCESSES, AGAIN = 5, 2
"""Processes of a baseline at most, and fresh ones after which a case is called, as by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """What was said.

    Attributes:
        starts: How many there were; each was a baseline of the others.
        states: How often each verdict was given.
        slower: The cases that were called slower.
    """

    starts: int
    states: Mapping[State, int]
    slower: frozenset[str]


def between(runs: Iterable[Contest], key: str) -> Gates | None:
    """Hold starts in environments of this key against each other; None of fewer than two."""
    starts: dict[tuple[str, str], dict[str, list[Samples]]] = {}
    for run in runs:
        environment = run.origin.environment
        if run.what == "aa" and run.unfit is None and run.fills is not None and environment.key == key:
            start = starts.setdefault((run.origin.occasion, environment.facts.get("uuid", "")), {})
            for name, processes in _processes(run, run.fills).items():
                start.setdefault(name, []).extend(processes)
    if len(starts) < 2:
        return None
    states: Counter[State] = Counter()
    slower: set[str] = set()
    for there, old in starts.items():
        baseline = {name: _record(name, processes[:PROCESSES]) for name, processes in old.items()}
        noise = Noise.of(baseline.values())
        for here, new in starts.items():
            rule = Rule() if there[1] != here[1] or not here[1] else Rule(device=0.0, fill=0.0)
            for name in baseline.keys() & new.keys() if here != there else ():
                state = judge(_record(name, new[name][:1]), baseline[name], rule, noise).state
                if state is State.REGRESSED:
                    state = judge(_record(name, new[name][: 1 + AGAIN]), baseline[name], rule, noise).state
                states[state] += 1
                slower |= {name} if state is State.REGRESSED else set()
    return Gates(starts=len(starts), states=states, slower=frozenset(slower))


def _processes(run: Contest, fills: Mapping[str, int]) -> dict[str, list[Samples]]:
    """A case's processes, one a side and block, each with all of its visits."""
    found: dict[str, list[Samples]] = {}
    for block in run.blocks:
        for name in block.visits.keys() & run.verdicts.keys():  # canaries have no verdict
            by_side: dict[Side, list[Samples]] = {}
            for visit in block.visits[name]:
                by_side.setdefault(visit.side, []).append(visit.samples)
            launched = Kernels.of([Kernel(name="fill")] * fills.get(name, 0))
            for visits in by_side.values():
                seconds = tuple(s for samples in visits for s in samples.seconds)
                found.setdefault(name, []).append(replace(visits[0], seconds=seconds, kernels=launched))
    return found


def _record(name: str, processes: list[Samples]) -> Record:
    return Record(case=Case(name=name), processes=tuple(processes))
