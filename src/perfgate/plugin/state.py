"""What the plugin's parts share: the run, where it measures, and whether it times anything at all."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import pytest

from perfgate.environment import Environment
from perfgate.run import Run

__all__ = ["ALONE", "disabled", "environment_of", "idle", "processes", "run_of"]

RUN = pytest.StashKey[Run]()
ALONE = "perf needs the device to itself: run without -n (got -n {}), or with --benchmark-disable"


def run_of(config: pytest.Config) -> Run:
    """The run of this pytest session."""
    if RUN not in config.stash:
        started = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        default = config.rootpath / ".perfgate" / f"journal-{started}-{os.getpid()}.jsonl"
        path = config.getoption("perf_journal") or default
        config.stash[RUN] = Run(journal_path=path, argv=tuple(map(str, config.invocation_params.args)))
    return config.stash[RUN]


def environment_of(config: pytest.Config) -> Environment:
    """Where this run measures; the hook is asked when somebody first needs to know."""
    run = run_of(config)
    if run.environment is None:
        run.environment = config.hook.pytest_perf_environment(config=config)
    return run.environment


def disabled(config: pytest.Config) -> bool:
    """Whether it was asked that calls run once and are not timed."""
    return bool(config.getoption("benchmark_disable") and not config.getoption("benchmark_enable"))


def processes(config: pytest.Config) -> str | None:
    """How many processes of xdist share the device, or None if this is the only one."""
    if workers := getattr(config, "workerinput", {}).get("workercount"):
        return str(workers)
    asked = config.getoption("numprocesses", None)
    return str(asked) if asked and config.getoption("dist", "no") != "no" else None


def idle(config: pytest.Config) -> bool:
    """Whether this session times nothing, whatever its tests are."""
    skipped = config.getoption("benchmark_skip") and not config.getoption("benchmark_only")
    return bool(disabled(config) or processes(config) or skipped or config.option.collectonly)
