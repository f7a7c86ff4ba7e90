"""The pytest plugin: options, the fixture `gpu_benchmark`, hooks, exit code. The only import of pytest.

    options -> environment's key into --benchmark-storage -> the baseline is checked        before anything is timed
    gpu_benchmark(call) -> Clock.measure -> replayed into pytest-benchmark                   a test
    test passed -> journal                                                                   before the next begins
    pytest-benchmark saves -> judge -> exit code -> our section after its table              the end

A suite or another plugin changes what perfgate measures with by the hooks of `Hooks`. What is not there it
reports by `absent(config, name, reason)`, or by the fixture `perf_absent`, and the summary says it once.

Its modules: `options`; `device`, the default answers to the hooks; `fixture`, `gpu_benchmark`; `storage`, what is saved
and compared; `session`, the hooks around the tests; `again`, fresh processes at their end; `receipt`, that they came to
it; `worker`, fixture and hooks of a process of `perfgate ab`, and `imports`, where its code is from; `memory` and
`state`, what these share.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from perfgate.clock import Budget, Clock, Inputs
from perfgate.environment import Environment
from perfgate.plugin.device import (
    pytest_perf_canaries,
    pytest_perf_ceilings,
    pytest_perf_clock,
    pytest_perf_environment,
)
from perfgate.plugin.fixture import GpuBenchmark, WithoutBenchmark
from perfgate.plugin.options import pytest_addoption
from perfgate.plugin.receipt import Receipt
from perfgate.plugin.session import Session
from perfgate.plugin.state import ALONE, processes, run_of
from perfgate.plugin.storage import Storage
from perfgate.plugin.worker import Worker

__all__ = [
    "GpuBenchmark",
    "Hooks",
    "absent",
    "perf_absent",
    "pytest_addhooks",
    "pytest_addoption",
    "pytest_configure",
    "pytest_perf_canaries",
    "pytest_perf_ceilings",
    "pytest_perf_clock",
    "pytest_perf_environment",
]


class Hooks:
    """What a suite can choose. The first answer that is not None counts; each is asked once, when first needed."""

    @pytest.hookspec(firstresult=True)
    def pytest_perf_clock(self, config: pytest.Config) -> Clock | None:
        """What times the cases."""

    @pytest.hookspec(firstresult=True)
    def pytest_perf_environment(self, config: pytest.Config) -> Environment | None:
        """Which device and software this is."""

    @pytest.hookspec(firstresult=True)
    def pytest_perf_ceilings(self, config: pytest.Config, clock: Clock) -> dict[str, float] | None:
        """What the device does at best (keys: see `perfgate.report.rows.Results`)."""

    @pytest.hookspec(firstresult=True)
    def pytest_perf_canaries(self, config: pytest.Config) -> dict[str, tuple[Callable[..., object], Inputs]] | None:
        """Calls with their inputs that `perfgate ab` times in both revisions' processes, for they are in neither."""


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the hooks."""
    pluginmanager.add_hookspecs(Hooks)


def pytest_configure(config: pytest.Config) -> None:
    """Register what goes with pytest-benchmark, or its stand-in where that is switched off, or a worker's session."""
    if (path := config.getoption("perf_receipt")) is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Receipt(path), "perfgate-receipt")
    if (descriptor := config.getoption("perf_worker")) is not None:
        if config.getoption("benchmark_storage", None) is None:
            config.addinivalue_line("markers", "benchmark: settings of pytest-benchmark, which is switched off")
        config.pluginmanager.register(Worker(config, descriptor), "perfgate-worker")
        return
    if (few := config.getoption("perf_min_samples")) < Budget.LEAST:
        raise pytest.UsageError(
            f"--perf-min-samples: expected {Budget.LEAST} or more, for of fewer the error of a median is not known, "
            f"got {few}; fewer are for `perfgate ab`, whose error is that of processes"
        )
    if config.getoption("benchmark_storage", None) is None:
        config.addinivalue_line("markers", "benchmark: settings of pytest-benchmark, which is switched off")
        config.pluginmanager.register(WithoutBenchmark(), "perfgate-without-benchmark")
        return
    if config.getoption("benchmark_only") and (asked := processes(config)):  # pytest-benchmark names options of its own
        raise pytest.UsageError(ALONE.format(asked))
    storage = Storage(config)
    config.pluginmanager.register(storage, "perfgate-storage")
    config.pluginmanager.register(Session(config, storage), "perfgate-session")
    storage.configure()


def absent(config: pytest.Config, name: str, reason: str) -> None:
    """Have the summary say, once, that an alternative is not here, and why.

    Args:
        config: pytest's, e.g. that of ``pytest_generate_tests``.
        name: What is not here, e.g. the name of a variant.
        reason: Why, and how to get it.
    """
    run_of(config).absent[name] = reason


@pytest.fixture(scope="session")
def perf_absent(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``perf_absent(name, reason)``: have the summary say, once, that an alternative is not here, and why."""
    return lambda name, reason: absent(request.config, name, reason)
