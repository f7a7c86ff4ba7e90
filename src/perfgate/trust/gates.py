"""What `nox -s perf` would say from start to start: one start's runs as a baseline, and another's held against it.

    start A: a process of each side and block, five at most -> a baseline
    start B: a case's first process -> slower? -> with two others -> its verdict

It is less than the gate does: a process's visits all count at once, the other processes need not be fresh, there is no
limit of how many cases are timed again, and nothing is known of heat. If the code changed between the starts, that is
in it, too. Runs of which it is not known which calls fill memory (`perfgate.verdict.Rule.fill`) are left out.
"""

from __future__ import annotations

import itertools
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
"""Processes of a baseline at most, and others after which a case is called, as by default."""
FILLING = Kernels.of([Kernel(name="fill")])


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """What was said.

    Attributes:
        starts: How many there were.
        pairs: In how many orders two of them have a case in common.
        called: The pairs in which a case was called slower or faster, by which of them.
        states: How often each verdict was given.
        cases: The cases that were called slower.
    """

    starts: int
    pairs: int
    called: Mapping[State, int]
    states: Mapping[State, int]
    cases: frozenset[str]


def between(runs: Iterable[Contest], key: str) -> Gates | None:
    """Hold starts in environments of this key against each other; None if no two have a case in common."""
    starts: dict[tuple[str, str], dict[str, list[Samples]]] = {}
    for run in runs:
        environment = run.origin.environment
        if run.what == "aa" and run.unfit is None and run.fills is not None and environment.key == key:
            start = starts.setdefault((run.origin.occasion, environment.facts.get("uuid", "")), {})
            for name, processes in _processes(run, run.fills).items():
                start.setdefault(name, []).extend(processes)
    pairs = 0
    called, states = Counter[State](), Counter[State]()
    cases: set[str] = set()
    for there, here in itertools.permutations(starts, 2):
        elsewhere = there[1] != here[1] or not here[1]
        found = _gate(starts[there], starts[here], Rule() if elsewhere else Rule(device=0.0, fill=0.0))
        pairs += bool(found)
        called.update({*found.values()} & {State.REGRESSED, State.IMPROVED})
        states.update(found.values())
        cases |= {name for name, state in found.items() if state is State.REGRESSED}
    if not pairs:
        return None
    return Gates(starts=len(starts), pairs=pairs, called=called, states=states, cases=frozenset(cases))


def _gate(old: Mapping[str, list[Samples]], new: Mapping[str, list[Samples]], rule: Rule) -> dict[str, State]:
    """The verdicts on the cases that both timed by one method."""
    baseline = {name: _record(name, processes[:PROCESSES]) for name, processes in old.items()}
    noise = Noise.of(baseline.values())
    states = {}
    for name in baseline.keys() & new.keys():
        if baseline[name].method == new[name][0].method:
            for count in (1, 1 + AGAIN):
                states[name] = judge(_record(name, new[name][:count]), baseline[name], rule, noise).state
                if states[name] is not State.REGRESSED:
                    break
    return states


def _processes(run: Contest, fills: frozenset[str]) -> dict[str, list[Samples]]:
    """A case's processes, one a side and block, each with all of its visits."""
    found: dict[str, list[Samples]] = {}
    for block in run.blocks:
        for name in block.visits.keys() & run.verdicts.keys():  # canaries have no verdict
            by_side: dict[Side, list[Samples]] = {}
            for visit in block.visits[name]:
                by_side.setdefault(visit.side, []).append(visit.samples)
            for visits in by_side.values():
                seconds = tuple(s for samples in visits for s in samples.seconds)
                launched = FILLING if name in fills else None
                found.setdefault(name, []).append(replace(visits[0], seconds=seconds, kernels=launched))
    return found


def _record(name: str, processes: list[Samples]) -> Record:
    """Those of the first one's method."""
    return Record(case=Case(name=name), processes=tuple(p for p in processes if p.method == processes[0].method))
