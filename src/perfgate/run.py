"""A run: what becomes of the cases of one pytest session.

    claimed  ->  measured  ->  finished        its test passed, it is in the journal
                    `------->  void            its test failed or did not come to its end: it is kept nowhere
    claimed  ->  out of memory                 a result, not an error

A run knows node ids and case names as text, and nothing of pytest; `perfgate.plugin` tells it what happens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perfgate.accept import Acceptance
from perfgate.baseline import Baseline
from perfgate.environment import Environment
from perfgate.gate import Outcome, decide
from perfgate.journal import Contents, Journal, JournalError
from perfgate.record import Record
from perfgate.report.rows import Results
from perfgate.verdict import Noise, Rule, State, judge

__all__ = ["Run"]


@dataclass(slots=True, kw_only=True)
class Run:
    """The cases of one session, in the order in which they finished.

    Attributes:
        journal_path: Where the journal goes; the file is created when the first case finishes.
        argv: The command's arguments, for the journal.
        environment: Where this run measures, once somebody has asked.
        ceilings: What the machine does at best, once measured.
        records: Finished cases by name.
        out_of_memory: Cases that the device had no memory for, with the reason.
        absent: Alternatives that are not here, with the reason.
        notes: What else must be said, a sentence each.
        selected: Node ids of the tests that were to time something in this run.
        deselected: Node ids of tests that somebody left out.
        reached: Those of the selected that were begun.
        skipped: Those of them that were skipped; each gave a reason.
        baseline: What this run is compared with, if it is.
        accepted: Slowdowns that somebody accepted, as the file beside that baseline has them.
        baseline_nodes: Node id by the name of the baseline's case.
        exitstatus: What pytest makes of the tests.
        lost: Why results could not be kept, if so.
    """

    journal_path: Path
    argv: tuple[str, ...] = ()
    environment: Environment | None = None
    ceilings: dict[str, float] | None = None
    records: dict[str, Record] = field(default_factory=dict)
    out_of_memory: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    selected: set[str] = field(default_factory=set)
    deselected: set[str] = field(default_factory=set)
    reached: set[str] = field(default_factory=set)
    skipped: set[str] = field(default_factory=set)
    baseline: Baseline | None = None
    accepted: tuple[Acceptance, ...] = ()
    baseline_nodes: dict[str, str] = field(default_factory=dict)
    exitstatus: int = 0
    lost: str | None = None
    _claims: dict[str, str] = field(default_factory=dict)
    _measured: dict[str, Record] = field(default_factory=dict)
    _journal: Journal | None = None
    _noise: Noise | None = None

    def claim(self, case: str, node: str) -> None:
        """This test times this case.

        Raises:
            ValueError: If another test of this run has that name.
        """
        other = self._claims.setdefault(case, node)
        if other != node:
            raise ValueError(
                f"case {case!r} is timed by two tests, {other} and {node}: a name is the identity of one case"
            )

    def suspicious(self, record: Record, rule: Rule) -> bool:
        """Whether what was timed so far would be called regressed: it is then timed again."""
        old = self.baseline.records.get(record.case.name) if self.baseline else None
        if self.baseline is None or old is None:
            return False
        if self._noise is None:
            self._noise = Noise.of(self.baseline.records.values())
        return judge(record, old, rule, self._noise).state is State.REGRESSED

    def measure(self, record: Record, node: str) -> None:
        """The case was timed; it is kept once its test has passed."""
        self._measured[node] = record

    @property
    def unfinished(self) -> list[str]:
        """Tests whose case was timed, and of which it is not known how they ended."""
        return list(self._measured)

    def finish(self, node: str) -> None:
        """The test passed: its case, if it timed one, goes to disk before the next begins.

        Raises:
            JournalError: If it could not be written; the run has lost it and should end.
        """
        record = self._measured.pop(node, None)
        if record is None:
            return
        self._keep(record, node)

    def _keep(self, record: Record, node: str) -> None:
        self._write(lambda journal: journal.add(record, node))
        self.records[record.case.name] = record

    def forget(self, node: str) -> None:
        """The test did not come to its end, so its case is kept nowhere."""
        self._measured.pop(node, None)

    def void(self, node: str, reason: str) -> None:
        """The test failed: its case is kept nowhere, also if only its teardown failed.

        Raises:
            JournalError: As `finish`.
        """
        self._measured.pop(node, None)
        kept = [case for case in self.records if self._claims.get(case) == node]
        for case in kept:
            del self.records[case]
        if kept:
            self._write(lambda journal: journal.void(node, reason))

    def run_out(self, node: str, reason: str) -> None:
        """The device had no memory for the case of this test, perhaps before the case was named.

        Raises:
            JournalError: As `finish`.
        """
        named = {n: case for case, n in (*self.baseline_nodes.items(), *self._claims.items())}
        case = named.get(node, node)
        self._measured.pop(node, None)
        self._claims[case] = node
        self.out_of_memory[case] = reason
        self._write(lambda journal: journal.add_out_of_memory(case, reason))

    def ran_out(self, node: str) -> bool:
        """Whether the device had no memory for the case of this test."""
        return any(self._claims[case] == node for case in self.out_of_memory)

    def measure_ceilings(self, ceilings: Callable[[], Mapping[str, float]]) -> None:
        """Ask once what the machine does at best.

        Raises:
            JournalError: As `finish`.
        """
        if self.ceilings is None:
            self.ceilings = dict(ceilings())
            self._write(lambda journal: journal.add_ceilings(self.ceilings or {}))

    @property
    def complete(self) -> bool:
        """Whether every selected test gave a number, ran out of memory or was skipped, and nothing failed."""
        accounted = {self._claims[case] for case in (*self.records, *self.out_of_memory)} | self.skipped
        return self.exitstatus == 0 and self.lost is None and self.selected <= accounted

    def part(self) -> dict[str, Any]:
        """This run's part of pytest-benchmark's document."""
        return {
            "schema": 1,
            "complete": self.complete,
            "exitstatus": self.exitstatus,
            "collected": len(self.selected),
            "measured": len(self.records),
            "processes": 1,
            "ceilings": self.ceilings or {},
            "out_of_memory": self.out_of_memory,
            "absent": self.absent,
            "deselected": sorted(self.deselected),
        }

    def judge(self, *, rule: Rule, strict: bool, gone: Callable[[str], bool]) -> Outcome:
        """Hold what finished against the baseline.

        A case of the baseline is missing if its test was begun in this run and gave no number, or is gone.

        Args:
            rule: When a difference counts.
            strict: Whether new and unresolved cases fail.
            gone: Whether a test of this node id would have been in this run, if it still existed.
        """
        due = {case for case, node in self.baseline_nodes.items() if node in self.reached or gone(node)}
        return decide(
            self.records,
            self.baseline,
            selected=due | self.records.keys() | self.out_of_memory.keys(),
            out_of_memory=self.out_of_memory,
            strict=strict,
            rule=rule,
            accepted=self.accepted,
        )

    def add(self, fresh: Contents, cases: Collection[str]) -> list[str]:
        """Add what a fresh process timed to these cases, and return those that it has nothing comparable of.

        Raises:
            JournalError: As `finish`.
        """
        if self.environment is None or fresh.environment.key != self.environment.key:
            return list(cases)
        without = []
        for case in cases:
            here, there = self.records[case], fresh.records.get(case)
            if there is None or there.method != here.method:
                without.append(case)
                continue
            self._keep(Record(case=here.case, processes=(*here.processes, *there.processes)), self.node(case))
        return without

    def node(self, case: str) -> str:
        """The node id of the test that times this case."""
        return self._claims[case]

    def results(self, outcome: Outcome | None) -> Results | None:
        """What there is to report, or None if nothing was to be timed and nothing was judged."""
        if self.environment is None or not (self.reached or outcome):
            return None
        notes = [f"results were lost: {self.lost}"] if self.lost else []
        if not self.complete:
            counts = f"{len(self.records)} of {len(self.selected)} cases were measured"
            notes.append(f"this run is incomplete ({counts}): what it saved is refused as a baseline")
        return Results.of(
            self.records,
            self.environment,
            ceilings=self.ceilings,
            outcome=outcome,
            out_of_memory=self.out_of_memory,
            absent=self.absent,
            notes=[*notes, *self.notes],
        )

    def lose(self, why: str) -> None:
        """Results could not be kept; the first reason counts."""
        kept = f"; the finished cases are in {self._journal.path}" if self._journal else ""
        self.lost = self.lost or f"{why}{kept}"

    def close(self) -> None:
        """Write the journal's end; without it the journal is that of an incomplete run."""
        if self._journal is not None:
            with contextlib.suppress(JournalError):  # it has set `lost`
                self._write(lambda journal: journal.close(exitstatus=self.exitstatus, complete=self.complete))
            self._journal.abandon()

    def _write(self, write: Callable[[Journal], None]) -> None:
        if self.lost is not None:
            return
        try:
            if self._journal is None:
                if self.environment is None:
                    raise RuntimeError("a case finished before anybody asked where it was measured")
                self._journal = Journal.open(self.journal_path, self.environment, self.argv)
            write(self._journal)
        except JournalError as error:
            self.lost = str(error)
            if self._journal is not None:
                self._journal.abandon()
            raise
