"""Which blocks a comparison is made of, and when they are enough.

    stage 1   screens all cases, and again in a second block: all of them or, where there is no time for that, those
              that the first left unsettled, with controls
    stage 2   confirms, in fresh blocks, what looked different, with controls

What is decided, and on what, is `perfgate.contest`'s.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Mapping, Sequence

from perfgate.ab.blocks import Blocks
from perfgate.ab.evidence import COMPLETE, INTERRUPTED, Evidence
from perfgate.ab.outcome import Rules, doubted
from perfgate.ab.progress import Progress
from perfgate.ab.refusals import Over

__all__ = ["CONFIRMING", "CONTROLS", "LEAST", "SCREENING", "Stages"]

CONTROLS = 20
"""Controls that are visited again with what is confirmed, besides the canaries, at most."""
CHECKS = 4
"""Fresh blocks that check again what may have got less accurate, if nothing is to be confirmed of time."""
SCREENING = 280.0
"""Seconds after which no further visits are to screen, where their number is left to us: five minutes, less what is
done before the first block and what the time of a block was estimated too short by."""
CONFIRMING = 300.0
"""Seconds that confirming may take besides what screening left of its own, likewise."""
LEAST = 6
"""Blocks that confirm however long they take: by fewer, kernels with two modes are called slower too often, for in n
blocks they show the same one on each side by chance once in 4 ** n."""


class Stages:
    """Runs the blocks of one comparison.

    Args:
        blocks: Runs one block.
        evidence: Gets what was picked, and notes.
        rules: Decide which cases are visited again, from the blocks alone.
        progress: Is told how many blocks there will be.
        seed: Of the choice of controls.
        screens: Blocks of stage 1 that were asked for; None for the evidence's number, or as many as there is time for.
        confirms: The same of stage 2.
        check_always: Whether results are checked in every block.
    """

    def __init__(
        self,
        blocks: Blocks,
        evidence: Evidence,
        rules: Rules,
        progress: Progress,
        *,
        seed: int,
        screens: int | None,
        confirms: int | None,
        check_always: bool,
    ) -> None:
        self._blocks, self._evidence, self._rules, self._progress = blocks, evidence, rules, progress
        self._seed, self._screens, self._confirms, self._check_always = seed, screens, confirms, check_always
        self._begin = 0.0

    def run(self) -> str:
        """Screen, then confirm; return how it ended.

        Raises:
            Refused: If there is nothing to compare.
            JournalError: If what is seen cannot be kept.
        """
        self._begin = time.monotonic()
        try:
            self._screen()
            if self._evidence.compared:  # else there is nothing that another block could add
                self._confirm()
        except Over as error:
            return str(error)
        except KeyboardInterrupt:
            return INTERRUPTED
        return COMPLETE

    def _screen(self) -> None:
        most = self._evidence.header["blocks"]
        for i in range(most):
            again: set[str] | None = None
            if i and self._screens is None and self._until(self._blocks.names) > SCREENING:
                again = self._unsettled(most)
                if not again:
                    self._progress.extend(i - most)
                    return
            self._blocks.run(1, again, check=None if i == 0 else self._checked())
            if again or not self._evidence.compared:
                return

    def _unsettled(self, most: int) -> set[str]:
        """What a second block screens that has no time for all cases, the quickest first; nothing if nothing does."""
        evidence, names = self._evidence, self._blocks.names
        seen = evidence.blocks, evidence.controls
        open_ = set(self._rules.unsettled(*seen)) & names - evidence.canaries
        beside = self._controls(self._rules.suspects(*seen), open_)
        visited = {*evidence.canaries, *beside, *(doubted(evidence) & names)}
        for name in sorted(open_ - visited, key=lambda name: (self._blocks.took[name], name)):
            if self._until(visited | {name}) > SCREENING:
                break
            visited.add(name)
        if self._until(visited) > SCREENING:
            visited = set()
        chosen = len(open_ & visited)
        note = f"1 block screened all cases, for {most} would have taken more than {_minutes(SCREENING)}"
        if open_:
            second = f"a second one {chosen} of" if chosen else "there was no time for any of"
            note += f"; {second} the {len(open_)} that it left unsettled"
        evidence.add(note=note)
        return visited if chosen else set()

    def _confirm(self) -> None:
        blocks, evidence, rules = self._blocks, self._evidence, self._rules
        limit = max(SCREENING, time.monotonic() - self._begin) + CONFIRMING
        picked = [name for name in rules.suspects(evidence.blocks, evidence.controls) if name in blocks.names]
        if rules.judge(evidence.blocks, evidence.controls, None).unfit:
            picked = []  # whatever more blocks show, nothing will be called
        inaccurate = doubted(evidence) & blocks.names
        unsettled = rules.unsettled(evidence.blocks, evidence.controls)
        beside = {*evidence.canaries, *self._controls({*picked, *inaccurate}, unsettled)}
        if self._confirms is None:
            picked = self._in_time(picked, beside | inaccurate, limit)
        evidence.add(suspects=picked)
        slow = set(picked) - evidence.canaries
        if count := len(slow | inaccurate):
            fresh = evidence.header["confirm"] if slow else min(CHECKS, evidence.header["confirm"])
            self._progress.clear()
            print(f"{count} case{'' if count == 1 else 's'} to confirm in at most {fresh} fresh blocks", flush=True)
            self._progress.extend(fresh)
            self._visit_again(picked, inaccurate, beside, fresh, limit)

    def _visit_again(
        self, picked: Sequence[str], inaccurate: set[str], beside: set[str], fresh: int, limit: float
    ) -> None:
        """Blocks of stage 2, until nothing is open or the time is over."""
        blocks, evidence = self._blocks, self._evidence
        checks = 0
        for i in range(fresh):
            left = {*self._rules.undecided(evidence.blocks, evidence.controls, picked)} & blocks.names
            left -= evidence.canaries
            unsure = doubted(evidence)
            checks += not left
            if not left and (not unsure or checks > CHECKS):
                return
            visited = left | (inaccurate & unsure) | beside
            if self._confirms is None and i >= (LEAST if left else 1) and self._until(visited) > limit:
                evidence.add(note=f"{i} blocks confirmed, and {fresh} would have taken more than {_minutes(limit)}")
                return
            blocks.run(2, visited, check=self._checked(), last=i + 1 == fresh)

    def _checked(self) -> set[str] | None:
        """The cases whose results are checked again; None for all."""
        return None if self._check_always else doubted(self._evidence)

    def _until(self, names: Collection[str]) -> float:
        """Seconds since the first block began at which another one of these cases should end."""
        return time.monotonic() - self._begin + self._blocks.expected(names)

    def _in_time(self, picked: Sequence[str], beside: set[str], limit: float) -> list[str]:
        """Those that can be confirmed in time by the fewest blocks, the first of them first, one case at least."""
        cases = [name for name in picked if name not in beside]  # the others are visited anyway
        chosen = set(cases[:1])
        for name in cases[1:]:
            if time.monotonic() - self._begin + LEAST * self._blocks.expected(chosen | {name} | beside) <= limit:
                chosen.add(name)
        if left := len(cases) - len(chosen):
            why = f"all {len(cases)} would have taken more than {_minutes(limit)}: --confirm=N takes the time"
            self._evidence.add(note=f"{left} suspicious case{'' if left == 1 else 's'} not confirmed, for {why}")
        return [name for name in picked if name in chosen | beside]

    def _controls(self, others: Collection[str], unsettled: Collection[str]) -> list[str]:
        """The controls that keep these cases company; settled ones, if they are enough."""
        evidence = self._evidence
        controls = (evidence.controls - set(others) - evidence.canaries) & self._blocks.names
        settled = controls.difference(unsettled)
        some = settled if len(settled) >= CONTROLS else controls
        return few(sorted(some), self._blocks.took, random.Random(self._seed))


def few(controls: Sequence[str], took: Mapping[str, float], chance: random.Random) -> list[str]:
    """Some of the controls, by chance among those that are soon visited.

    The quarter that takes longest is left out, if enough are left: calls of tens of milliseconds, and what is compiled
    in each process, take as long as dozens of others.
    """
    quick = sorted(controls, key=lambda name: (took[name], name))[: max(CONTROLS, 3 * len(controls) // 4)]
    return chance.sample(quick, min(CONTROLS, len(quick)))


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes"
