"""Blocks: every case visited in turn by fresh workers of both sides.

    prepare both   ->   base head head base   (the next block: head base base head)   ->   release both

Both sides prepare a case at the same time, since nothing is timed then. Who is visited first is also told first, and so
mostly gets its memory first, which may be the faster or the slower: it is the other side in the next block. If they do
not fit into memory together, the case is prepared anew for each visit, one side after the other. If one's work led the
other's clock to another plan, they prepare it again, one after the other. What a worker says goes into the evidence at
once. A worker that ends costs the case it was at, and is replaced once.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfgate.ab.channel import FAILED, OUT_OF_MEMORY, PASSED, SKIPPED
from perfgate.ab.crew import Crew, other_side
from perfgate.ab.evidence import SIDES, Evidence
from perfgate.ab.refusals import Over
from perfgate.ab.trees import Trees
from perfgate.ab.workers import WorkerDied
from perfgate.contest import Side

__all__ = ["DIED", "Blocks", "Pair"]

DIED = "died"
RESTARTS = 1
AHEAD = 8
"""Cases before the end of a block at which the next one's workers are started."""
ORDERS: tuple[tuple[Side, ...], ...] = (("base", "head", "head", "base"), ("head", "base", "base", "head"))
NOT_TIMED = "its test passed without calling gpu_benchmark"

Visited = Callable[[int, int, int], object]
"""``visited(block, done, of)``: called after each case."""


class Came(Exception):
    """A case came to nothing on a side; carries how, why, and whether it was its check."""

    def __init__(self, side: Side, said: Mapping[str, Any]) -> None:
        super().__init__(said["reason"])
        self.side, self.how, self.reason, self.case = side, str(said["ended"]), str(said["reason"]), said["case"]
        self.checking = bool(said["checking"])
        if self.how == PASSED:
            self.how, self.reason = SKIPPED, NOT_TIMED


@dataclass(frozen=True, slots=True)
class Pair:
    """One case: the test that times it on each side (they may have different names)."""

    base: str
    head: str

    def __getitem__(self, side: Side) -> str:
        return self.base if side == "base" else self.head


class Blocks:
    """Conducts the blocks of one comparison.

    Args:
        trees: Both sides' files.
        arguments: pytest's, as given for the head.
        evidence: Gets all that is seen.
        seed: Of the order of cases.
        logs: Directory for the workers' output.
        visited: Gets the progress.

    Attributes:
        took: Seconds that each case's last visits took, but for a check with the first calls for it, in which kernels
            are compiled: what a later block does not do again.
    """

    def __init__(
        self,
        trees: Trees,
        arguments: Sequence[str],
        evidence: Evidence,
        *,
        seed: int,
        logs: Path,
        visited: Visited = lambda block, done, of: None,
    ) -> None:
        self._evidence, self._crew = evidence, Crew(trees, arguments, evidence, logs)
        self._random, self._visited = random.Random(seed), visited
        self.took: dict[str, float] = {}
        self._once, self._beside, self._begin = 0.0, 0.0, time.monotonic()
        self._number = -1
        self._restarts = 0
        self._names: dict[Pair, str] = {}
        self._lost: set[Pair] = set()
        self._alone: set[Pair] = set()
        self._ready: dict[Side, str] = {}

    @property
    def names(self) -> set[str]:
        """The cases that can be visited again."""
        return {name for pair, name in self._names.items() if pair not in self._lost}

    def run(
        self, stage: int, names: set[str] | None = None, *, check: Collection[str] | None, last: bool = False
    ) -> None:
        """One block of the named cases, or of all.

        Args:
            stage: Of the comparison.
            names: Cases; None for all.
            check: Those of them whose results are checked before they are timed; None for all.
            last: Whether no other block will follow.

        Raises:
            Over: If the run must end with what is known.
            Refused: If there is nothing to compare.
            JournalError: If what is seen cannot be kept.
        """
        self._number += 1
        at_once, begin, self._once, cases = True, time.monotonic(), 0.0, 0.0
        try:
            found = self._crew.begin(self._number)
            if self._number == 0:
                self._look_where_code_is_from()
            self._evidence.add(block=self._number, stage=stage, at=self._now())
            pairs = self._pairs(found) if names is None else [p for p, n in self._names.items() if n in names]
            pairs = [pair for pair in pairs if pair not in self._lost]
            self._random.shuffle(pairs)
            for i, pair in enumerate(pairs):
                if not last and i == max(0, len(pairs) - AHEAD):
                    self._crew.launch(self._number + 1)
                self._visited(self._number, i, len(pairs))
                begun, once = time.monotonic(), self._once
                try:
                    self._visit(pair, check is None or self._names.get(pair) in check)
                except WorkerDied as error:
                    self._bury(error, pair)
                if pair in self._names:
                    self.took[self._names[pair]] = took = time.monotonic() - begun - (self._once - once)
                    cases += took
            self._visited(self._number, len(pairs), len(pairs))
            self._look_where_code_is_from()
            at_once = False
        finally:
            self._crew.stop(at_once=at_once)
        self._beside = time.monotonic() - begin - self._once - cases

    def expected(self, names: Collection[str]) -> float:
        """Seconds that another block of these cases should take, from what they and the last block's workers took."""
        return self._beside + math.fsum(self.took.get(name, 0.0) for name in names)

    def close(self) -> None:
        """End the workers of a block that does not come."""
        self._crew.close()

    # Workers

    def _look_where_code_is_from(self) -> None:
        if died := self._crew.look_where_code_is_from():
            self._bury(died, None)

    def _bury(self, error: WorkerDied, pair: Pair | None) -> None:
        """A worker ended: its case is lost, and there are new workers, once."""
        worker = self._crew[error.side]
        name = self._names.get(pair, pair.head) if pair else None
        self._evidence.add(note=f"{error}{f' at {name}' if name else ''}; the end of its log:\n{worker.log}")
        if pair is not None and name is not None:
            self._lose(pair, name, error.side, DIED, str(error))
        self._crew.stop(at_once=True)
        if self._restarts == RESTARTS:
            raise Over(f"workers ended {RESTARTS + 1} times")
        self._restarts += 1
        self._crew.begin(self._number)

    # Cases

    def _pairs(self, found: Mapping[Side, Mapping[str, Any]]) -> list[Pair]:
        """The cases that both sides have; what one alone has is asked for its name, by which it may be found again."""
        if self._names or self._lost:
            return list(self._names)
        nodes = {side: list(found[side]["collected"]) if side in found else [] for side in SIDES}
        both = set(nodes["base"]) & set(nodes["head"])
        alone = {side: [n for n in nodes[side] if n not in both] for side in SIDES}
        ask = all(nodes.values())  # where one side has nothing, there is no need to know names
        named = {side: {self._ask_name(side, n) if ask else n: n for n in alone[side]} for side in SIDES}
        pairs = [Pair(node, node) for node in nodes["head"] if node in both]
        pairs += [Pair(node, named["head"][name]) for name, node in named["base"].items() if name in named["head"]]
        for side, other in zip(SIDES, reversed(SIDES), strict=True):
            for name in named[side].keys() - named[other].keys():
                self._evidence.add(only=side, case=name)
        self._evidence.add(pairs=len(pairs))
        canaries = [set(said["canaries"]) for said in found.values()]
        for name in sorted(set.intersection(*canaries)) if len(canaries) == len(SIDES) and pairs else []:
            self._evidence.add(canary=name)
            pairs.append(Pair(name, name))
        return pairs

    def _ask_name(self, side: Side, node: str) -> str:
        """The name of the case that a test times; the test's own if it does not come to say."""
        try:
            self._prepare(side, node, check=side == "head")
            self._release(side)
        except Came as came:
            if came.how == FAILED:
                self._evidence.add(ended=FAILED, reason=came.reason, case=came.case or node, side=side)
            return came.case or node
        except WorkerDied as error:
            self._bury(error, None)
            return node
        return self._ready[side]

    def _visit(self, pair: Pair, check: bool) -> None:
        """All of a block's visits to a case."""
        order = ORDERS[self._number % 2]
        try:
            if pair not in self._alone and self._together(pair, order, check):
                return
            self._alone.add(pair)
            for i, side in enumerate(order):
                self._prepare(side, pair[side], check=check and side not in order[:i])
                self._time(side)
                self._release(side)
            self._called(pair)
        except Came as came:
            how = FAILED if came.how == OUT_OF_MEMORY and came.checking else came.how
            reason = f"its check ran out of memory: {came.reason}" if how != came.how else came.reason
            name = self._names.get(pair) or came.case or pair[came.side]
            self._lose(pair, name, came.side, how, reason)
            if how != FAILED:
                self._other_side(pair, name, came.side, check)

    def _together(self, pair: Pair, order: Sequence[Side], check: bool) -> bool:
        """Visit a case that both sides hold ready; False if they must do so one after the other."""
        came, plans = self._prepare_both(pair, order, check=check, at_once=True)
        if not came and plans["base"] != plans["head"]:
            # perhaps each side's work misled the other's clock; if they still differ, so does the code
            came, plans = self._release_all(*SIDES), {}
            if not came:
                came, plans = self._prepare_both(pair, order, check=False, at_once=False)
        names = [*(self._ready[side] for side in plans), *(ended.case for ended in came.values() if ended.case)]
        name = next(iter(names), pair.head)
        if came:
            came |= self._release_all(*plans)
            if all(ended.how == OUT_OF_MEMORY for ended in came.values()):
                return False
        elif not self._called(pair):
            self._release_all(*SIDES)
        else:
            try:
                for side in order:
                    self._time(side)
                came = self._release_all(*SIDES)
            except Came as ended:
                came = {ended.side: ended} | self._release_all(other_side(ended.side))
                if ended.how == OUT_OF_MEMORY:
                    self._evidence.add(void=name)
                    return False
        for lost in came.values():
            self._lose(pair, name, lost.side, lost.how, lost.reason)
        return True

    def _other_side(self, pair: Pair, name: str, side: Side, check: bool) -> None:
        """What came to nothing on one side: find out whether it does on the other."""
        other = other_side(side)
        try:
            self._prepare(other, pair[other], check=check)
            self._release(other)
        except Came as came:
            self._lose(pair, name, other, came.how, came.reason)

    def _called(self, pair: Pair) -> bool:
        """Learn the case's name; False if the test times another case on each side."""
        base, head = self._ready["base"], self._ready["head"]
        if base == head:
            self._names[pair] = head
            return True
        self._lost.add(pair)
        self._evidence.add(only="base", case=base)
        self._evidence.add(only="head", case=head)
        return False

    def _lose(self, pair: Pair, name: str, side: Side, how: str, reason: str) -> None:
        self._lost.add(pair)
        self._evidence.add(ended=how, reason=reason, case=name, side=side)

    def _now(self) -> float:
        """Seconds since the run began."""
        return round(time.monotonic() - self._begin, 2)

    # Words to a worker

    def _prepare_both(
        self, pair: Pair, order: Sequence[Side], *, check: bool, at_once: bool
    ) -> tuple[dict[Side, Came], dict[Side, object]]:
        """Have both sides prepare a case; return what came to nothing, and the plans of those that are ready."""
        sides = list(dict.fromkeys(order))
        came: dict[Side, Came] = {}
        plans: dict[Side, object] = {}
        checked: list[float] = []
        if at_once:
            for side in sides:
                self._crew[side].send(run=pair[side], check=check)
        for side in sides:
            try:
                if not at_once:
                    self._crew[side].send(run=pair[side], check=check)
                plans[side], seconds = self._await_ready(side)
                checked.append(seconds)
            except Came as error:
                came[side] = error
        self._once += max(checked, default=0.0) if at_once else sum(checked)
        return came, plans

    def _prepare(self, side: Side, node: str, *, check: bool) -> None:
        self._crew[side].send(run=node, check=check)
        _, checked = self._await_ready(side)
        self._once += checked

    def _await_ready(self, side: Side) -> tuple[object, float]:
        """Wait for a side to be ready; return the clock's plan, and how long a check took before."""
        begin = time.monotonic()
        said = self._crew[side].receive()
        if "ended" in said:
            self._once += time.monotonic() - begin
            raise Came(side, said)
        self._ready[side] = said["ready"]
        return said["plan"], said["checked"]

    def _time(self, side: Side) -> None:
        said = self._crew[side].ask(time=True)
        if "ended" in said:
            raise Came(side, said)
        self._evidence.add(visit=said["record"], side=side, at=self._now())

    def _release_all(self, *sides: Side) -> dict[Side, Came]:
        """Release each side; return those whose test did not pass after all."""
        came: dict[Side, Came] = {}
        for side in sides:
            try:
                self._release(side)
            except Came as error:
                came[side] = error
        return came

    def _release(self, side: Side) -> None:
        said = self._crew[side].ask(release=True)
        if said["ended"] != PASSED:
            raise Came(side, said)
