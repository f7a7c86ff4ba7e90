"""A worker as `perfgate ab` sees it: a process of one side that is asked, and answers until it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perfgate import fresh
from perfgate.ab.channel import Channel, Gone
from perfgate.ab.refusals import Refused
from perfgate.ab.trees import Trees, undisturbed
from perfgate.contest import Side
from perfgate.gate import Exit

__all__ = ["Worker", "WorkerDied"]

PATIENCE = 900.0
"""Seconds without an answer after which a worker counts as dead: compiling and tuning one case may take minutes."""
GOING = 20.0
"""Seconds that a worker has to end its session's fixtures."""


class WorkerDied(Exception):
    """A worker ended, or stopped answering."""

    def __init__(self, side: Side, why: str) -> None:
        super().__init__(why)
        self.side = side


class Worker:
    """A pytest session over one side's suites, in a process of its own that no Ctrl-C reaches.

    Args:
        side: Which tree.
        trees: Both.
        arguments: pytest's.
        log: Where its output goes.
    """

    def __init__(self, side: Side, trees: Trees, arguments: Sequence[str], log: Path) -> None:
        self.side, self._log, self._harness = side, log, trees.harness
        ours, theirs = socket.socketpair()
        own = ["-p", "no:cacheprovider", f"--perf-worker={theirs.fileno()}"]
        with theirs:
            self._process = fresh.start(
                [*arguments, *own],
                log,
                python=["-P"],  # the working directory is behind the harness in PYTHONPATH, not before it
                cwd=trees[side].start,
                env=trees.environment(side),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._channel = Channel(ours)

    def waits(self) -> bool:
        """Wait until it has collected its tests and waits to begin; whether it has used the GPU for that, by torch.

        Raises:
            WorkerDied: If it ended before.
        """
        return bool(self.receive()["used"])

    def hello(self) -> Mapping[str, Any]:
        """Let it begin, that is, use the device; what it found to time.

        Raises:
            WorkerDied: If it ended before it could say.
            Refused: If it will not time anything, or would not measure with our code.
        """
        self.send(begin=True)
        found = self.receive()
        if "refused" in found:
            raise Refused(found["refused"], found["code"])
        if Path(found["harness"]) != self._harness / "perfgate":
            raise Refused(f"the {self.side} would measure with the perfgate in {found['harness']}", Exit.REFUSED)
        return found

    @property
    def code(self) -> int | None:
        """The process's exit code, if it ended."""
        return self._process.poll()

    @property
    def log(self) -> str:
        """The end of what it said."""
        return fresh.tail(self._log)

    def send(self, **message: object) -> None:
        """Tell the worker something.

        Raises:
            WorkerDied: If it is not there.
        """
        try:
            self._channel.send(**message)
        except Gone as error:
            raise self._died(error) from None

    def receive(self) -> Mapping[str, Any]:
        """Wait for the worker's answer.

        Raises:
            WorkerDied: If there is none.
        """
        try:
            return self._channel.receive(alive=lambda: self._process.poll() is None, patience=PATIENCE)
        except Gone as error:
            raise self._died(error) from None

    def ask(self, **message: object) -> Mapping[str, Any]:
        """Tell the worker something and wait for its answer.

        Raises:
            WorkerDied: If there is none.
        """
        self.send(**message)
        return self.receive()

    def dismiss(self) -> None:
        """Let it end its session."""
        self._channel.close()

    def stop(self, *, at_once: bool = False) -> None:
        """Have it end its session; at once, or if that takes too long, kill it with all that it started."""
        with undisturbed():
            self.dismiss()
            if not at_once:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(GOING)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _died(self, error: Gone) -> WorkerDied:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)  # its stream ends a moment before it does
        code = self._process.poll()
        how = str(error) if code is None else f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
        return WorkerDied(self.side, f"the {self.side}'s worker ended ({how})")
