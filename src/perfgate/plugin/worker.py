"""A worker of `perfgate ab`: a pytest session that times what it is told to, when it is told to.

It collects, and then takes node ids from a channel (`perfgate.ab.channel` has the words) instead of running all tests
in a row. Inside the test, `gpu_benchmark` prepares the case and then waits for its turns, since the other revision's
worker has prepared the same case and is timed between them. Nothing is written: no cache, no JSON, no journal.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest

import perfgate
from perfgate import assembler, price
from perfgate.ab.channel import FAILED, OUT_OF_MEMORY, PASSED, SKIPPED, Channel, Gone
from perfgate.case import Case
from perfgate.clock import Clock, Inputs, MeasureError, Prepared
from perfgate.gate import Exit
from perfgate.plugin import imports
from perfgate.plugin.fixture import Asked, GpuBenchmark, errors_of
from perfgate.plugin.memory import first_line, in_use, let_go, out_of_memory
from perfgate.plugin.state import environment_of, run_of
from perfgate.record import Record

__all__ = ["Worker"]

T = TypeVar("T")
Wrapper = Generator[None, T, T]

QUIET: dict[str, object] = {
    "benchmark_autosave": False,
    "benchmark_compare": None,
    "benchmark_disable": False,
    "benchmark_histogram": None,
    "benchmark_json": None,
    "benchmark_only": False,
    "benchmark_save": None,
    "benchmark_skip": False,
    "dist": "no",
    "maxfail": 0,
    "numprocesses": None,
    "tx": [],
}
"""Options that a project may have set for its own runs, and that have no meaning here: one process, nothing saved."""


class Worker:
    """The session's hooks and its `gpu_benchmark`.

    Args:
        config: pytest's.
        descriptor: The channel's.

    Raises:
        pytest.UsageError: If there is no channel.
    """

    def __init__(self, config: pytest.Config, descriptor: int) -> None:
        try:
            end = socket.socket(fileno=descriptor)
            end.set_inheritable(False)
        except OSError:
            raise pytest.UsageError("--perf-worker is for the processes that `perfgate ab` starts") from None
        for name, value in QUIET.items():
            if hasattr(config.option, name):
                setattr(config.option, name, value)
        self.config, self._channel = config, Channel(end)
        self._clock: Clock | None = None
        self._errors: list[str] = []
        self._canaries: dict[str, tuple[Callable[..., object], Inputs]] = {}
        self._claims: dict[str, str] = {}
        self._found: dict[str, dict[str, float]] = {}
        self._held = -1
        self._check = True
        self._case: str | None = None
        self._checking, self._checked = False, 0.0
        self._ended: tuple[str, str] = (PASSED, "")
        self._over = False

    # Collecting

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Remember what could not be collected."""
        if report.failed:
            said = [line for line in str(report.longrepr).splitlines() if line.strip()]
            self._errors.append(f"{report.nodeid or 'collection'}: {said[-1].strip() if said else 'failed'}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Say what there is to time, and then serve."""
        items = {i.nodeid: i for i in session.items if "gpu_benchmark" in getattr(i, "fixturenames", ())}
        try:
            self._channel.send(used=in_use())
            self._channel.receive()
            try:
                environment = environment_of(self.config).to_json() if items else None
            except (pytest.UsageError, pytest.exit.Exception) as error:
                code = getattr(error, "returncode", None)
                self._channel.send(refused=str(error), code=int(Exit.USAGE if code is None else code))
                return True
            if items:
                self._canaries = dict(self.config.hook.pytest_perf_canaries(config=self.config) or {})
            self._channel.send(
                collected=list(items),
                canaries=list(self._canaries),
                environment=environment,
                errors=self._errors,
                harness=str(Path(perfgate.__file__).parent),
                notes=run_of(self.config).notes,
            )
            self._serve(items)
        except Gone:
            self._over = True  # nobody asks any more: that is how a worker ends
        return True

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """End the process, if its session is over: nobody asks more, and Python's own way out takes seconds on a GPU.

        The compilers that torch keeps running are asked to end in it, one by one; whoever asked kills them all. What
        is registered with `atexit` is not called. An error of the session's end is still to be written.
        """
        if self._over and sys.exc_info()[0] is None:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def _serve(self, items: dict[str, pytest.Item]) -> None:
        while True:
            message = self._channel.receive()
            if "other" in message:
                self._say_what_was_loaded(message)
                continue
            node = message["run"]
            self._check, self._case, self._checking, self._ended = message["check"], None, False, (PASSED, "")
            self._checked = 0.0
            if node in self._canaries:
                self._sing(node)
            else:
                # the session stands for a next test of which nothing is known: its own fixtures stay, others end
                item = items[node]
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=item.session)
                self._held = let_go(self._held)
            how, reason = self._ended
            self._channel.send(ended=how, reason=reason, case=self._case, checking=self._checking)

    def _say_what_was_loaded(self, message: Mapping[str, Any]) -> None:
        root, head, other = (Path(message[name]) for name in ("root", "head", "other"))
        ours = Path(perfgate.__file__).resolve().parents[1]
        self._channel.send(
            foreign=imports.loaded_from(other),
            astray=imports.astray(root, [Path(place) for place in message["places"]], ours),
            installed=imports.installed_from(head),
        )

    # Timing

    @pytest.fixture
    def gpu_benchmark(self, request: pytest.FixtureRequest) -> Iterator[GpuBenchmark]:
        """Prepare one case, and time it when it is asked for; see `perfgate.plugin.GpuBenchmark`."""
        with assembler.as_before():
            yield GpuBenchmark(request.node.nodeid, self._visits)

    def _visits(self, asked: Asked[T]) -> T:
        case, node = asked.case, asked.node
        self._case = case.name
        if (other := self._claims.setdefault(case.name, node)) != node:
            pytest.fail(f"case {case.name!r} is timed by two tests, {other} and {node}", pytrace=False)
        begin = time.monotonic()
        if asked.check is not None and self._check:
            result = asked.once()
            self._checking = True
            self._found[case.name] = errors_of(case, asked.check(result))
            self._checking = False
            del result
        self._checked = time.monotonic() - begin
        self._take_turns(case, asked.call, asked.inputs, asked.l2)
        return asked.once()

    def _take_turns(self, case: Case, call: Callable[..., object], inputs: Inputs, l2: str) -> None:
        """Prepare a case and time it until it is released."""
        if self._clock is None:
            self._clock = self.config.hook.pytest_perf_clock(config=self.config)
        try:
            with self._clock.prepare(call, inputs, l2=l2) as prepared:
                plan = getattr(prepared, "plan", None)
                self._channel.send(ready=case.name, plan=plan, checked=self._checked)
                while self._turn(case, prepared):
                    pass
            return
        except MeasureError as error:
            sentence = f"{case.name}: {error}"
        except Gone:
            pytest.exit("nobody asks any more", 0)
        pytest.fail(sentence, pytrace=False)

    def _turn(self, case: Case, prepared: Prepared) -> bool:
        """Do the next thing asked; say whether there is more to do."""
        if "time" not in self._channel.receive():
            return False
        record = Record(case=case, processes=(prepared.time(),))
        # of a case that is prepared again and not checked again, the errors are known from before
        self._channel.send(record=price.with_errors(record, self._found.get(case.name, {})).to_json())
        return True

    def _sing(self, name: str) -> None:
        """Time a canary: the harness's own work, the same on both sides, in no test."""
        self._case = name
        try:
            call, inputs = self._canaries[name]
            self._take_turns(Case(name=name), call, inputs, "cold")
        except pytest.exit.Exception:
            raise
        except out_of_memory() as error:
            self._ended = OUT_OF_MEMORY, first_line(error)
        except (Exception, pytest.fail.Exception) as error:
            self._ended = FAILED, first_line(error)

    # How a test ended

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Wrapper[object]:
        """Inputs may not fit into memory."""
        return (yield from self._within_memory())

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Wrapper[object]:
        """Nor may the call."""
        return (yield from self._within_memory())

    def _within_memory(self) -> Wrapper[object]:
        try:
            return (yield)
        except out_of_memory() as error:
            reason = first_line(error)
        self._ended = OUT_OF_MEMORY, reason
        pytest.skip(f"out of memory: {reason}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Wrapper[pytest.TestReport]:
        """Remember the worst of a test's phases."""
        report = yield
        how, _ = self._ended
        error = call.excinfo.value if call.excinfo is not None else None
        if report.failed and how != FAILED:
            said = first_line(error) if error is not None else str(report.longrepr).partition("\n")[0]
            plain = error is None or isinstance(error, pytest.fail.Exception | AssertionError)
            self._ended = FAILED, said if plain else f"{type(error).__name__}: {said}"
        elif report.skipped and how == PASSED:
            self._ended = SKIPPED, first_line(error) if error is not None else "skipped"
        return report
