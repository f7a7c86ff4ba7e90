"""A pytest session as perfgate sees it: from the tests that time something to the exit code.

`pytest_sessionfinish` wraps around pytest-benchmark's, which saves, and stands inside the terminal reporter's, which
prints the summary: its object is registered after the one and before the other. The exit code is set there and not in
the terminal summary, which ``--no-summary`` leaves out.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from perfgate import assembler, price
from perfgate.baseline import rule_for
from perfgate.case import Case
from perfgate.clock import Clock, MeasureError
from perfgate.gate import Exit, Outcome
from perfgate.journal import JournalError
from perfgate.plugin.again import time_again
from perfgate.plugin.fixture import Asked, GpuBenchmark, errors_of, untimed
from perfgate.plugin.memory import first_line, out_of_memory
from perfgate.plugin.state import ALONE, disabled, environment_of, idle, processes, run_of
from perfgate.plugin.storage import Storage
from perfgate.record import Record
from perfgate.replay import ReplayClock, hand_over
from perfgate.report import terminal
from perfgate.roofline import saved
from perfgate.verdict import Rule

__all__ = ["Session"]

T = TypeVar("T")
Wrapper = Generator[None, T, T]

TIMER = pytest.StashKey[ReplayClock]()
"""A test's timer, which its ``benchmark`` marker gives to pytest-benchmark."""
PARALLEL = "perfgate_parallel"
TIMES = 3
"""How often a case is timed that looks slower than its baseline; all of it counts."""
SELECTING = ("keyword", "markexpr", "deselect", "lf", "ignore", "ignore_glob", "pyargs")
"""Options of pytest by which tests are not collected, or not where their paths say."""
SUMMARISED = {0, 1, 2, 4, 5}
"""Exit codes with which pytest prints its summary."""


class Session:
    """The hooks around the tests of one session.

    Args:
        config: pytest's.
        storage: What is saved and compared.
    """

    def __init__(self, config: pytest.Config, storage: Storage) -> None:
        self.config, self.run, self._storage = config, run_of(config), storage
        self._clock: Clock | None = None
        self._benchmarks: dict[str, Any] = {}
        self._refused_parallel = False
        self._outcome: Outcome | None = None
        self._shown = False

    # Collecting

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Give each test that times a case its timer, beside what its own ``benchmark`` markers say."""
        for item in _timing(items):
            own = item.get_closest_marker("benchmark")
            item.stash[TIMER] = ReplayClock()
            settings = {**(own.kwargs if own else {}), "timer": item.stash[TIMER]}
            item.add_marker(pytest.mark.benchmark(**settings), append=False)

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Remember what was left out, so that it is not called missing."""
        self.run.deselected.update(item.nodeid for item in items)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Find the device before the first case is timed."""
        self.run.selected = {item.nodeid for item in _timing(session.items)}
        if self.run.selected and not idle(self.config):
            environment_of(self.config)

    def pytest_report_collectionfinish(self) -> list[str]:
        """Say where it is measured, and where baseline and finished cases are."""
        if self.run.environment is None or not self.run.selected or self.config.option.verbose < 0:
            return []
        compared = f", compared with {self.run.baseline.path}" if self.run.baseline else ""
        return [f"perfgate: {self.run.environment.key}{compared}", f"perfgate: journal {self.run.journal_path}"]

    # Testing

    @pytest.fixture
    def gpu_benchmark(self, request: pytest.FixtureRequest, benchmark: Any) -> Iterator[GpuBenchmark]:
        """Time one case on the device; see `perfgate.plugin.GpuBenchmark`."""
        with assembler.as_before():
            yield self._benchmark(request, benchmark)

    def _benchmark(self, request: pytest.FixtureRequest, benchmark: Any) -> GpuBenchmark:
        self._benchmarks[request.node.nodeid] = benchmark
        if benchmark.disabled and not disabled(self.config):
            self._refused_parallel = True
            pytest.fail(ALONE.format(processes(self.config)), pytrace=False)
        if benchmark.disabled:
            return GpuBenchmark(request.node.nodeid, lambda asked: benchmark.pedantic(lambda: untimed(asked)))
        timer = request.node.stash[TIMER]
        return GpuBenchmark(request.node.nodeid, lambda asked: self._time(asked, benchmark, timer))

    def _time(self, asked: Asked[T], benchmark: Any, timer: ReplayClock) -> T:
        """Check and time a case, and hand its durations to pytest-benchmark."""
        case = asked.case
        self.run.claim(case.name, asked.node)
        errors = self._errors(case, asked.check, asked.once()) if asked.check is not None else {}
        record = price.with_errors(self._measure(asked), errors)
        if case.group is not None:
            benchmark.group = case.group
        benchmark.extra_info.update(saved(record, self.run.ceilings))
        self.run.measure(record, asked.node)
        return hand_over(benchmark, timer, record.processes[0].seconds, asked.once)

    def _errors(self, case: Case, check: Callable[[T], object], result: T) -> dict[str, float]:
        """Check a result, and return the errors that the check found.

        Without the memory for a check nothing is known of the case, and it is not timed.
        """
        try:
            return errors_of(case, check(result))
        except out_of_memory() as error:
            sentence = f"{case.name} was not timed, for its check ran out of memory ({first_line(error)}): check less"
        del result
        gc.collect()
        pytest.skip(sentence)

    def _measure(self, asked: Asked[T]) -> Record:
        """Time a case; what cannot be timed honestly fails the test with one line."""
        case, hook = asked.case, self.config.hook
        if self._clock is None:
            self._clock = hook.pytest_perf_clock(config=self.config)
        clock = self._clock
        try:
            if case.work is not None:
                self.run.measure_ceilings(lambda: self._ceilings(clock))
            record = Record(case=case, processes=(clock.measure(asked.call, asked.inputs, l2=asked.l2),))
            for _ in range(TIMES - 1):
                if not self.run.suspicious(record, self._rule):
                    break
                samples = record.processes[0].followed_by(clock.measure(asked.call, asked.inputs, l2=asked.l2))
                record = Record(case=case, processes=(samples,))
            return record
        except MeasureError as error:
            sentence = f"{case.name}: {error}"
        pytest.fail(sentence, pytrace=False)

    def _ceilings(self, clock: Clock) -> dict[str, float]:
        try:
            return self.config.hook.pytest_perf_ceilings(config=self.config, clock=clock) or {}
        except out_of_memory():
            self.run.notes.append("there was too little memory to measure the ceilings")
            return {}

    @property
    def _rule(self) -> Rule:
        rule = Rule(floor=self.config.getoption("perf_floor") / 100)
        return rule_for(self.run.baseline, self.run.environment, rule)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Wrapper[object]:
        """Inputs may not fit into memory."""
        if item.nodeid in self.run.selected:
            self.run.reached.add(item.nodeid)
        return (yield from self._within_memory(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Wrapper[object]:
        """Nor may the call; caught so far inside that pytest does not keep the error, and with it what it had taken."""
        return (yield from self._within_memory(pyfuncitem))

    def _within_memory(self, item: pytest.Item) -> Wrapper[object]:
        """Running out of memory is a result: the test is skipped with the reason."""
        try:
            return (yield)
        except out_of_memory() as error:
            if item.nodeid not in self.run.selected or idle(self.config):
                raise
            reason = first_line(error)
        self._keep(item, lambda: self.run.run_out(item.nodeid, reason))
        pytest.skip(f"out of memory: {reason}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Wrapper[pytest.TestReport]:
        """Keep the case of a test that passed, and no other."""
        report = yield
        if item.nodeid in self.run.selected:
            if not report.passed:
                self._discard(item.nodeid)
                self._keep(item, lambda: self.run.void(item.nodeid, report.outcome))
            elif report.when == "call":
                self._keep(item, lambda: self.run.finish(item.nodeid))
            if report.skipped:
                self.run.skipped.add(item.nodeid)
            if report.when == "teardown" and self.run.ran_out(item.nodeid):
                gc.collect()  # errors in fixtures leave cycles, which would hold their memory for long
            if self._refused_parallel:
                setattr(report, PARALLEL, True)  # travels to xdist's controller
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A worker of xdist tells that it refused to time."""
        self._refused_parallel |= getattr(report, PARALLEL, False)

    def _discard(self, node: str) -> None:
        """Keep a case out of pytest-benchmark's table, JSON and comparisons."""
        if (benchmark := self._benchmarks.get(node)) is not None:
            benchmark.has_error = True
            benchmark.skipped = True  # or it warns of a fixture that was not used: an error where warnings are
            if benchmark.stats is not None:
                benchmark.stats.stats.data.clear()

    def _keep(self, item: pytest.Item, write: Callable[[], None]) -> None:
        """Write to the journal; if that cannot be, the run ends after this test."""
        try:
            write()
        except JournalError as error:
            item.session.shouldstop = str(error)

    # The end

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> Wrapper[object]:
        """Let pytest-benchmark save what is to be kept, judge it, and set the exit code."""
        self.run.exitstatus = int(exitstatus)
        for node in self.run.unfinished:
            self._discard(node)
            self.run.forget(node)
        if self.run.selected:
            self._storage.guard_saving()
        self._time_again(session)
        try:
            return (yield)
        finally:
            self._conclude(session)

    def _judge(self) -> Outcome | None:
        due = self.run.reached or any(map(self._gone, self.run.baseline_nodes.values()))
        if not due or idle(self.config) or not self.config.getoption("benchmark_compare"):
            return None
        return self.run.judge(rule=self._rule, strict=self.config.getoption("perf_strict"), gone=self._gone)

    def _time_again(self, session: pytest.Session) -> None:
        """Time what would be called slower again in fresh processes, before anything is saved or called."""
        outcome = self._judge()
        if outcome is not None and self.run.exitstatus in (0, 1):
            self._clock = None  # with the memory that it holds
            if not time_again(self.config, outcome, self._benchmarks):
                self.run.exitstatus = session.exitstatus = pytest.ExitCode.INTERRUPTED

    def _conclude(self, session: pytest.Session) -> None:
        self._outcome = self._judge()
        self.run.close()
        if self._refused_parallel:
            session.exitstatus = Exit.USAGE
        elif self.run.lost is not None:
            session.exitstatus = Exit.LOST
        elif session.exitstatus == Exit.OK and self._outcome is not None:
            session.exitstatus = self._outcome.exit
            if self._outcome.exit == Exit.OK and not self.run.complete:  # ended early, and said that all was well
                session.exitstatus = Exit.INCOMPLETE
        reporter = self.config.pluginmanager.getplugin("terminalreporter")
        if reporter is not None and (
            self.run.exitstatus not in SUMMARISED or self.config.getoption("no_summary", False)
        ):
            reporter.write_line("")
            self._show(reporter)  # pytest prints no summary that it could be part of

    def _gone(self, node: str) -> bool:
        """Whether the test would have been collected here, and was not: it was removed or renamed.

        Only what lies below the command's paths can be said to be gone, and nothing where an option leaves out tests or
        files: nobody knows what it would have made of a test that is not there.
        """
        option = self.config.option
        if any(getattr(option, name, None) for name in SELECTING):
            return False
        if node in self.run.selected or node in self.run.deselected:
            return False
        root, here = self.config.rootpath, self.config.invocation_params.dir
        for argument in self.config.args:
            path, _, inside = argument.partition("::")
            prefix = Path(os.path.relpath(here / path, root)).as_posix() + (f"::{inside}" if inside else "")
            if prefix == "." or node == prefix or node.startswith((f"{prefix}/", f"{prefix}::", f"{prefix}[")):
                return True
        return False

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Wrapper[object]:
        """Print our section after pytest-benchmark's table, also where that ends with an error of its own."""
        try:
            return (yield)
        finally:
            self._show(terminalreporter)

    def _show(self, reporter: pytest.TerminalReporter) -> None:
        """Print the section, once."""
        results = None if idle(self.config) or self._shown else self.run.results(self._outcome)
        if results is None:
            return
        self._shown = True
        writer = self.config.get_terminal_writer()

        def paint(text: str, *markup: str) -> str:
            return writer.markup(text, **dict.fromkeys(markup, True))

        reporter.section("perfgate")
        for line in terminal.render(results, width=terminal.room(), paint=paint):
            reporter.write_line(line)


def _timing(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    return [item for item in items if "gpu_benchmark" in getattr(item, "fixturenames", ())]
