"""Bad input of each kind: one clear line and the right exit code. And where the device comes from."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import ClassVar

import pytest

from perfgate import Budget, Environment, FakeClock
from perfgate.gate import Exit

from .conftest import Suite


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--perf-floor=nan", "argument --perf-floor: expected a percentage from 0 to 100, got 'nan'"),
        ("--perf-floor=-1", "argument --perf-floor: expected a percentage from 0 to 100, got '-1'"),
        ("--perf-floor=101", "argument --perf-floor: expected a percentage from 0 to 100, got '101'"),
        ("--perf-floor=two", "argument --perf-floor: expected a number, got 'two'"),
        ("--perf-max-time=0", "argument --perf-max-time: expected a positive number of seconds, got '0'"),
        ("--perf-max-time=nan", "argument --perf-max-time: expected a positive number of seconds, got 'nan'"),
        ("--perf-max-time=inf", "argument --perf-max-time: expected a positive number of seconds, got 'inf'"),
        ("--perf-min-samples=0", "argument --perf-min-samples: expected a number from 1 to 1000, got '0'"),
        ("--perf-min-samples=1001", "argument --perf-min-samples: expected a number from 1 to 1000, got '1001'"),
        ("--perf-min-samples=few", "argument --perf-min-samples: expected a number from 1 to 1000, got 'few'"),
        ("--perf-device=tpu", "argument --perf-device: invalid choice: 'tpu' (choose from *"),
    ],
)
def test_a_wrong_option_is_one_clear_line(suite: Suite, option: str, message: str) -> None:
    result = suite.run(option)
    assert result.ret == Exit.USAGE
    result.stderr.fnmatch_lines([f"*: error: {message}"])


def test_a_journal_of_an_earlier_run_is_not_overwritten(suite: Suite) -> None:
    assert suite.run("--perf-journal=here.jsonl").ret == 0
    result = suite.run("--perf-journal=here.jsonl")
    assert result.ret == Exit.USAGE
    result.stderr.fnmatch_lines(["ERROR: --perf-journal: here.jsonl exists already: move it, or give another"])


def test_the_help_says_what_each_option_is_for(suite: Suite) -> None:
    text = " ".join(suite.run("--help").stdout.str().split())
    assert "new cases fail the run (exit code 11, as missing ones always do)" in text
    assert "the least change of a case's time that matters. Default: 2." in text


class CudaClock(FakeClock):
    """A fake clock with a budget."""

    budgets: ClassVar[list[Budget]] = []

    def __init__(self, budget: Budget) -> None:
        super().__init__(1e-3)
        self.budgets.append(budget)


class Cuda(types.ModuleType):
    """Stands in for `perfgate.cuda` and `perfgate.gpu`, which need torch and a device."""

    def __init__(self, *, why_not: str | None = None, others: list[str] | None = None) -> None:
        super().__init__("perfgate.cuda")
        self.OUT_OF_MEMORY = (ZeroDivisionError,)
        self.CudaClock = CudaClock
        self.available = lambda: why_not
        self.busy = lambda: others or []
        self.environment = lambda: Environment(device="NVIDIA H200", versions={"cuda": "13.0", "torch": "2.11.0"})
        self.use_one_stream = lambda: None
        self.held = lambda: 0
        self.let_go = lambda: None
        self.ceilings = lambda clock: {"read_bytes_per_second": 1e12}

    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("cuda", "gpu"):
            monkeypatch.setitem(sys.modules, f"perfgate.{name}", self)
            monkeypatch.setattr(f"perfgate.{name}", self, raising=False)


@pytest.fixture
def cuda(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """A machine with a GPU, and a suite that asks for the default clock."""
    suite.pytester.makeconftest("import pytest\n\n@pytest.fixture\ndef seconds():\n    return 1e-3")
    module = Cuda()
    module.stand_in(monkeypatch)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: object() if name == "torch" else found(name, *a))
    return module


def test_a_gpu_is_taken_if_there_is_one(suite: Suite, cuda: Cuda) -> None:
    result = suite.run()
    assert result.ret == Exit.OK
    result.stdout.fnmatch_lines(["perfgate: NVIDIA-H200_cu130_torch2.11"])


def test_how_long_a_case_is_timed_can_be_said(suite: Suite, cuda: Cuda) -> None:
    assert suite.run("--perf-warmup=0.01", "--perf-max-time=0.05", "--perf-min-samples=6").ret == Exit.OK
    assert CudaClock.budgets.pop() == Budget(warmup_seconds=0.01, max_seconds=0.05, min_samples=6)
    assert suite.run().ret == Exit.OK
    assert CudaClock.budgets.pop() == Budget()


def test_too_few_samples_to_know_a_median_are_refused(suite: Suite) -> None:
    """Of five nothing could be judged, which is no failure."""
    result = suite.run("--perf-min-samples=5")
    assert result.ret == Exit.USAGE
    result.stderr.fnmatch_lines(
        ["ERROR: --perf-min-samples: expected 6 or more, *, got 5; fewer are for `perfgate ab`*"]
    )


def test_no_gpu_is_said_plainly(suite: Suite, cuda: Cuda) -> None:
    cuda.available = lambda: "torch sees no CUDA device: check the driver"
    result = suite.run("--perf-device=cuda")
    assert result.ret == Exit.USAGE
    result.stderr.fnmatch_lines(["ERROR: --perf-device cuda: torch sees no CUDA device: check the driver"])
    assert not suite.journals
    result = suite.run("--perf-max-time=0.01", "-k", "a")
    assert result.ret == Exit.OK
    result.stdout.fnmatch_lines(["*CPU timings by the host clock*"])
    result.stdout.fnmatch_lines(["note: timed on the CPU by the host's clock: torch sees no CUDA device: *"])


def test_a_busy_gpu_ends_the_run_before_anything_is_timed(suite: Suite, cuda: Cuda) -> None:
    cuda.busy = lambda: ["process 7 computes on GPU 0"]
    result = suite.run()
    assert result.ret == Exit.UNFIT
    result.stdout.fnmatch_lines(["*the GPU is busy: process 7 computes on GPU 0. Wait, or give --perf-allow-busy*"])
    assert not suite.journals
    assert suite.run("--benchmark-save=x").ret == Exit.UNFIT
    result = suite.run("--perf-allow-busy")
    assert result.ret == Exit.OK
    result.stdout.fnmatch_lines(["note: timed although process 7 computes on GPU 0"])


def test_a_device_without_memory_is_a_result(suite: Suite, cuda: Cuda) -> None:
    suite.write(test_speed="def test_speed(gpu_benchmark):\n    gpu_benchmark(lambda: 1 / 0, name='big')")
    result = suite.run()
    result.assert_outcomes(skipped=1)
    assert result.ret == Exit.OK
