"""Before a case is called slower, fresh processes time it again: which cases, and with which options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from perfgate import again
from perfgate.gate import Outcome
from perfgate.journal import Contents, JournalError
from perfgate.plugin.memory import let_go
from perfgate.plugin.state import run_of
from perfgate.roofline import saved
from perfgate.verdict import Quantity, State

__all__ = ["time_again"]


def time_again(config: pytest.Config, outcome: Outcome, benchmarks: Mapping[str, Any]) -> bool:
    """Add to the cases that would be called slower what fresh processes time of them; False if it was interrupted.

    Args:
        config: pytest's.
        outcome: What the run would come to.
        benchmarks: pytest-benchmark's fixture by node id, which has what is saved of a case.
    """
    run, times = run_of(config), config.getoption("perf_again")
    slower = [v.case for v in outcome.verdicts if v.state is State.REGRESSED and v.quantity is Quantity.TIME]
    slower = [case for case in slower if case in run.records]
    cases = slower[: again.MOST]
    if not (times and cases) or run.lost is not None:
        return True
    if len(slower) > len(cases):
        run.notes.append(
            f"{len(slower)} cases looked slower: the {len(cases)} slowest were timed again in fresh processes, "
            "the others were not"
        )
    let_go()
    for i in range(1, times + 1):
        _say(config, f"{_cases(len(cases))} looked slower, timed again in fresh process {i} of {times}")
        try:
            without = run.add(_process(config, cases), cases)
        except (again.NotTimed, JournalError) as error:
            run.notes.append(f"what looked slower was not timed again: {error}")
            return True
        except KeyboardInterrupt:
            run.notes.append("interrupted while what looked slower was timed again: not all of it was")
            return False
        if without:
            run.notes.append(f"a fresh process had nothing comparable of {', '.join(without)}")
        for case in cases:
            benchmarks[run.node(case)].extra_info.update(saved(run.records[case], run.ceilings))
    return True


def _process(config: pytest.Config, cases: Sequence[str]) -> Contents:
    run, params = run_of(config), config.invocation_params
    options = again.arguments([str(argument) for argument in params.args], config.option.file_or_dir)
    return again.process(
        [*options, f"--rootdir={config.rootpath}"],
        [f"{config.rootpath}/{run.node(case)}" for case in cases],
        directory=run.journal_path.absolute().with_suffix(".again"),
        cwd=params.dir,
    )


def _say(config: pytest.Config, what: str) -> None:
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(f"\nperfgate: {what}")  # dots may stand on the line


def _cases(n: int) -> str:
    return f"{n} case{'' if n == 1 else 's'}"
