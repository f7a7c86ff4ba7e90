"""All that was seen, entry by entry: what is in the journal is what is judged, now and from the file later.

Of durations one thing is changed: taken off a window is what both sides' processes found that it takes for itself.

{"ab": 1, "started": ..., "argv": [...], "seed": ..., "base": words, "head": words, "blocks": ..., "confirm": ...}
{"environment": {...}, "side": ...}                    {"pairs": cases that both sides have}
{"only": side, "case": name}                           new or missing
{"canary": name}                                       a control by birth
{"block": 0, "stage": 1, "at": 9.1}                    fresh workers, 9.1 s after the begin; visits that follow are its
{"visit": {...record...}, "side": ..., "at": 9.62}
{"suspects": [name, ...]}                              what stage 1 picked when it ended
{"void": case}                                         its visits in this block so far do not count
{"ended": how, "reason": ..., "case": name, "side": ...}    it came to nothing on this side
{"note": sentence}
{"end": "complete"}                                    or why not, with "exit", the exit code, where that says more
                                                       than that not all was compared; absent if the process died
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from perfgate import journal
from perfgate.ab.channel import OUT_OF_MEMORY
from perfgate.case import Case
from perfgate.clock import Samples
from perfgate.contest import Block, ContestRule, Side, Visit
from perfgate.controls import same_kernels
from perfgate.environment import Environment
from perfgate.record import Record

__all__ = ["COMPLETE", "INTERRUPTED", "SCHEMA", "SIDES", "Evidence", "read", "rule_of"]

SCHEMA = 1
SIDES: tuple[Side, Side] = ("base", "head")
COMPLETE, INTERRUPTED = "complete", "interrupted"
VISITS = 2
"""Visits a side in a block."""
WINDOWS = {"window_seconds", "calls_per_window"}
"""What is known of durations that something was taken off."""


@dataclass(slots=True)
class Evidence:
    """What is known so far.

    Attributes:
        header: The journal's first line.
        environments: Where each side measured.
        pairs: How many cases both sides have.
        only: The side that alone has a case, by the case's name.
        canaries: Controls that are in neither revision.
        ended: How and why a case came to nothing, by side and name.
        notes: What must be said.
        suspects: The cases that the first stage picked; None if it did not come to that.
        end: How the run ended; None if it did not come to say.
        exit: The exit code that goes with that, if it is one of its own.
        write: Gets each entry before it counts, to keep it.
    """

    header: Mapping[str, Any]
    environments: dict[str, Environment] = field(default_factory=dict)
    pairs: int = 0
    only: dict[str, str] = field(default_factory=dict)
    canaries: set[str] = field(default_factory=set)
    ended: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    suspects: tuple[str, ...] | None = None
    end: str | None = None
    exit: int | None = None
    write: Callable[[Mapping[str, object]], object] = lambda entry: None
    _cases: dict[str, Case] = field(default_factory=dict)
    _blocks: list[tuple[int, dict[str, list[Visit]]]] = field(default_factory=list)
    _adjusted: list[tuple[int, dict[str, list[Visit]]]] | None = None

    def add(self, **entry: Any) -> None:
        """Keep an entry, then count it.

        Raises:
            JournalError: If it could not be kept.
        """
        self.write(entry)
        self.take(entry)

    def take(self, entry: Mapping[str, Any]) -> None:
        """Count an entry."""
        self._adjusted = None
        if "visit" in entry:
            record = Record.from_json(entry["visit"])
            self._cases[record.case.name] = record.case
            visit = Visit(side=entry["side"], samples=record.processes[0])
            self._blocks[-1][1].setdefault(record.case.name, []).append(visit)
        elif "void" in entry:
            self._blocks[-1][1].pop(entry["void"], None)
        elif "block" in entry:
            self._blocks.append((entry["stage"], {}))
        elif "ended" in entry:
            self.ended[entry["side"], entry["case"]] = entry["ended"], entry["reason"]
        elif "only" in entry:
            self.only[entry["case"]] = entry["only"]
        elif "environment" in entry:
            self.environments[entry["side"]] = Environment.from_json(entry["environment"])
        elif "canary" in entry:
            self.canaries.add(entry["canary"])
        elif "pairs" in entry:
            self.pairs = entry["pairs"]
        elif "note" in entry:
            self.notes.append(entry["note"])
        elif "suspects" in entry:
            self.suspects = tuple(entry["suspects"])
        else:
            self.end, self.exit = entry["end"], entry.get("exit")

    @property
    def blocks(self) -> list[Block]:
        """The blocks with the cases that were visited in full there, and whose tests passed on both sides."""
        found = []
        for stage, visits in self._at_one_window():
            whole = {name: tuple(seen) for name, seen in visits.items() if self._whole(name, seen)}
            if whole:
                found.append(Block(stage=stage, visits=whole))
        return found

    @property
    def compared(self) -> set[str]:
        """The cases of the suites that at least one block holds in full."""
        return {name for block in self.blocks for name in block.visits} - self.canaries

    @property
    def dropped(self) -> set[str]:
        """The cases that were visited before they came to nothing: what was known of them is lost."""
        return {case for _, case in self.ended if any(visits.get(case) for _, visits in self._blocks)} - self.canaries

    @property
    def controls(self) -> set[str]:
        """Canaries that some block holds in full, and the cases whose kernels are the same on both sides."""
        blocks = self.blocks
        visited = {name for block in blocks for name in block.visits}
        return self.canaries & visited | same_kernels(blocks)

    def methods(self, name: str) -> dict[str, str]:
        """How each side timed a case, if they did so differently; else nothing."""
        seen = [v for _, visits in self._blocks for v in visits.get(name, [])]
        said: dict[str, str] = {v.side: str(v.samples.method) for v in seen}
        return said if len({v.samples.method for v in seen}) > 1 else {}

    @property
    def differently(self) -> list[str]:
        """The cases that the sides timed by different methods."""
        return [name for name in self._cases if self.methods(name)]

    def records(self, side: Side) -> dict[str, Record]:
        """What a side gave: a process a block, in which the visits are one after the other."""
        found: dict[str, Record] = {}
        visited = self._at_one_window()
        for name, case in self._cases.items():
            if name in self.canaries or any((s, name) in self.ended for s in SIDES) or self.methods(name):
                continue
            blocks = ([v.samples for v in visits.get(name, []) if v.side == side] for _, visits in visited)
            if processes := tuple(_joined(visits) for visits in blocks if visits):
                found[name] = Record(case=case, processes=processes)
        return found

    @property
    def out_of_memory(self) -> dict[str, str]:
        """What did not fit on the head's side."""
        return {case: why for (side, case), (how, why) in self.ended.items() if side == "head" and how == OUT_OF_MEMORY}

    def _at_one_window(self) -> list[tuple[int, dict[str, list[Visit]]]]:
        """The visits, with the same taken off all windows of a block: the median of what its processes measured.

        What a window takes for itself is a matter of the machine. Processes measure different amounts by chance, and
        each would carry its own into all of its cases.
        """
        if self._adjusted is None:
            self._adjusted = [(stage, _at_one_window(visits)) for stage, visits in self._blocks]
        return self._adjusted

    def _whole(self, name: str, visits: Sequence[Visit]) -> bool:
        enough = all(sum(v.side == side for v in visits) == VISITS for side in SIDES)
        return enough and not any((side, name) in self.ended for side in SIDES) and not self.methods(name)


def rule_of(header: Mapping[str, Any]) -> ContestRule:
    """The rule that a run is timed for, by its header or by options of which some may be left out."""
    floor = header["floor"]
    return ContestRule(
        floor=floor,
        screen_effect=min(ContestRule().screen_effect, floor),
        screen_blocks=header.get("blocks", ContestRule().screen_blocks),
        confirm_blocks=header.get("confirm", ContestRule().confirm_blocks),
    )


def read(path: Path) -> Evidence:
    """Read a journal, also that of a run that was killed.

    Raises:
        JournalError: If it is not one, or is damaged elsewhere than at its end.
    """

    def understand(header: dict[str, Any], entries: list[dict[str, Any]]) -> Evidence:
        evidence = Evidence(header)
        for entry in entries:
            evidence.take(entry)
        return evidence

    return journal.read_lines(path, "ab", understand)


def _at_one_window(visits: Mapping[str, Sequence[Visit]]) -> dict[str, list[Visit]]:
    """A block's visits, adjusted."""
    measured: dict[tuple[str, int, str], set[tuple[Side, float]]] = {}
    for visit in itertools.chain.from_iterable(visits.values()):
        if visit.samples.counters.keys() >= WINDOWS:
            measured.setdefault(_kind(visit), set()).add((visit.side, visit.samples.counters["window_seconds"]))
    common = {kind: statistics.median(window for _, window in found) for kind, found in measured.items()}

    def adjusted(visit: Visit) -> Visit:
        if not visit.samples.counters.keys() >= WINDOWS:
            return visit
        return replace(visit, samples=visit.samples.at_window(common[_kind(visit)]))

    return {name: [adjusted(visit) for visit in seen] for name, seen in visits.items()}


def _kind(visit: Visit) -> tuple[str, int, str]:
    """Of which windows are alike."""
    method = visit.samples.method
    return method.clock, method.version, method.launch


def _joined(visits: Sequence[Samples]) -> Samples:
    return Samples(
        seconds=tuple(s for samples in visits for s in samples.seconds),
        method=visits[-1].method,
        counters=visits[-1].counters,
        notes=tuple(dict.fromkeys(note for samples in visits for note in samples.notes)),
        kernels=visits[-1].kernels,
    )
