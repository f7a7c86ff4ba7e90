"""The workers of both sides, a fresh one each for every block.

Workers import and collect, which takes seconds, before they are told to begin; those of the next block do so during the
last cases of this one. Until then they should leave the device alone, so that it is seen whether others use it. Where
one says that it does not, or the device is found in use, they are stopped and started again once it was seen that it
is free, and later ones not before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from perfgate.ab.evidence import Evidence
from perfgate.ab.refusals import Over, Refused, must_be_free, not_its_own
from perfgate.ab.trees import Trees, fingerprint, undisturbed
from perfgate.ab.workers import Worker, WorkerDied
from perfgate.contest import Side
from perfgate.gate import Exit

__all__ = ["Crew", "cores", "other_side"]

T = TypeVar("T")

CORES = 4
"""Cores from which on workers that import disturb none that times."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""What a container may use of the CPU: microseconds, or "max", of so many."""


def cores() -> int:
    """Cores that this process and its children may use, whole ones."""
    found = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        share, _, period = QUOTA.read_text().partition(" ")
        found = min(found, int(share) // int(period))
    return found


class Crew:
    """Starts, asks and ends the workers.

    Args:
        trees: Both sides' files.
        arguments: pytest's, as given for the head.
        evidence: Gets where the sides measure, and notes.
        logs: Directory for the workers' output.
    """

    def __init__(self, trees: Trees, arguments: Sequence[str], evidence: Evidence, logs: Path) -> None:
        self._trees, self._arguments, self._evidence, self._logs = trees, list(arguments), evidence, logs
        self._workers: dict[Side, Worker] = {}
        self._next: dict[Side, Worker] = {}
        self._early = False  # the suites may use the device while they are collected
        self._fingerprint = fingerprint(trees.head)

    def __getitem__(self, side: Side) -> Worker:
        return self._workers[side]

    def begin(self, number: int) -> dict[Side, Mapping[str, Any]]:
        """Fresh workers of both sides; what each found to time. The first head's looks whether the device is free.

        Args:
            number: Of the block.

        Raises:
            Over: If the working tree was changed.
            Refused: If there is nothing to compare, or others use the device.
        """
        try:
            return self._begin(number)
        except Refused as refused:
            if refused.code != Exit.UNFIT or self._early:
                raise
        self._early = True  # it may be a worker of ours that uses the device
        self.stop(at_once=True)
        return self._begin(number)

    def launch(self, number: int) -> None:
        """Start a later block's workers while this one's are at work, where that disturbs nobody."""
        head = self._evidence.environments.get("head")
        on_a_gpu = head is not None and "uuid" in head.facts
        if on_a_gpu and not self._early and not self._next and cores() >= CORES:
            self._launch(self._next, number, ["head", "base"])

    def _begin(self, number: int) -> dict[Side, Mapping[str, Any]]:
        known = self._evidence.environments.get("head")
        look = known if "--perf-allow-busy" not in self._arguments else None
        if look and self._early:
            must_be_free(look)
        if any(worker.code is not None for worker in self._next.values()):
            self.close()
        self._workers, self._next = self._next, {}
        found: dict[Side, Mapping[str, Any]] = {}
        together: list[list[Side]] = [["head"], ["base"]] if known is None and self._early else [["head", "base"]]
        for sides in together:
            self._launch(self._workers, number, [side for side in sides if side not in self._workers])
            waiting = [side for side in sides if side in self._workers]
            for side in waiting:
                if self._asked(side, self._workers[side].waits, "had collected its tests") and not self._early:
                    raise Refused(f"the {side}'s suite uses the GPU while it is collected", Exit.UNFIT)
            if fingerprint(self._trees.head) != self._fingerprint:
                raise Over("the working tree was changed while it was compared: what follows would be of another head")
            if look and not self._early:
                must_be_free(look)
            if known is not None and number % 2:
                waiting.reverse()  # who begins first gets its memory first
            for side in waiting:
                found[side] = self._hello(side)
        if "base" not in found:
            self._evidence.add(note="the base has no suite at these paths")
        if known is None:
            self._learn(found)
        return found

    def _launch(self, workers: dict[Side, Worker], number: int, sides: Sequence[Side]) -> None:
        for side in sides:
            arguments, there = self._trees[side].arguments(self._arguments, self._trees.head)
            if side == "base" and not there:
                continue
            if side == "base" or "head" in self._evidence.environments:
                arguments.append("--perf-allow-busy")  # by our own other worker
            workers[side] = Worker(side, self._trees, arguments, self._logs / f"{side}-{number + 1}.log")

    def _hello(self, side: Side) -> Mapping[str, Any]:
        found = self._asked(side, self._workers[side].hello, "said what there is to time")
        if found["errors"]:
            said = "\n".join(f"    {line}" for line in found["errors"])
            raise Refused(f"the {side}'s suite cannot be collected:\n{said}", Exit.INCOMPLETE)
        return found

    def _asked(self, side: Side, what: Callable[[], T], until: str) -> T:
        """What a worker answers before it is told to time anything."""
        try:
            return what()
        except WorkerDied as error:
            worker = self._workers[side]
            usage = side == "head" and worker.code == Exit.USAGE
            code = Exit.USAGE if usage else Exit.INCOMPLETE
            why = f"{error} before it {until}; the end of its log:\n{worker.log}"
            raise Refused(why, code) from None

    def _learn(self, found: Mapping[Side, Mapping[str, Any]]) -> None:
        """Keep where the sides measure, and refuse what cannot be compared."""
        for side, said in found.items():
            if said["environment"] is not None:
                self._evidence.add(environment=said["environment"], side=side)
            if side == "head":
                for note in said["notes"]:
                    self._evidence.add(note=note)
        keys = {environment.key for environment in self._evidence.environments.values()}
        if len(keys) > 1:
            raise Refused(f"the sides measure in different environments: {' and '.join(sorted(keys))}", Exit.REFUSED)

    def look_where_code_is_from(self) -> WorkerDied | None:
        """Sides that run the same code would be compared with themselves; returns how a worker ended, if one did.

        Raises:
            Refused: If a side runs what is not its own.
        """
        found: dict[Side, Mapping[str, Any]] = {}
        died: WorkerDied | None = None
        for answers in (False, True):  # all are asked before any answer is waited for
            for side, worker in self._workers.items():
                tree, other = self._trees[side], other_side(side)
                try:
                    if answers:
                        found[side] = worker.receive()
                        continue
                    worker.send(
                        other=str(self._trees[other].root),
                        root=str(tree.root),
                        places=[str(place) for place in tree.places],
                        head=str(self._trees.head.root),
                    )
                except WorkerDied as error:
                    died = error
        for side, said in found.items():
            if why := not_its_own(side, other_side(side), said):
                raise Refused(why, Exit.REFUSED)
        return died

    def stop(self, *, at_once: bool) -> None:
        """Have this block's workers end their sessions; or at once."""
        with undisturbed():
            workers, self._workers = list(self._workers.values()), {}
            for worker in workers:
                worker.dismiss()  # all of them, before any is waited for
            for worker in workers:
                worker.stop(at_once=at_once)

    def close(self) -> None:
        """End the workers of a block that does not come."""
        with undisturbed():
            workers, self._next = list(self._next.values()), {}
            for worker in workers:
                worker.stop(at_once=True)


def other_side(side: Side) -> Side:
    """The one it is compared with."""
    return "head" if side == "base" else "base"
