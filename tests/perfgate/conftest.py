"""A project with a few cases, timed by a fake clock, to run pytest on: in this process or in one of its own."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_benchmark
from pytest_benchmark.logger import PytestBenchmarkWarning

from perfgate import baseline, preflight
from perfgate.fresh import plugin_arguments

from .ab_repository import Repository

KEY = "Fake-GPU_torch2.11"
NODES = {case: f"test_speed.py::test_speed[{case}]" for case in ("a", "b", "c")}

CONFTEST = """
    import os
    import pytest
    from perfgate import Environment, FakeClock

    def pytest_perf_clock(config):
        return FakeClock(process=float(os.environ.get("PROCESS", "0")), seconds=lambda result: result)

    def pytest_perf_environment(config):
        return Environment(
            device=os.environ.get("DEVICE", "Fake GPU"),
            versions={"torch": "2.11.0", "driver": os.environ.get("DRIVER", "580.1")},
            facts={"uuid": os.environ["UUID"]} if "UUID" in os.environ else {},
        )

    def pytest_perf_ceilings(config, clock):
        return {"copy_bytes_per_second": 4e12}

    def pytest_benchmark_generate_machine_info():
        return {"node": os.environ.get("NODE", "here"), "machine": "m"}  # asking the processor takes a second

    def pytest_benchmark_generate_commit_info(config):
        return {"id": "0" * 40}

    @pytest.fixture
    def seconds(request):
        case = request.node.callspec.params["case"]
        return 1e-3 * (1.10 if case in os.environ.get("SLOW", "").split() else 1.0)
"""

SPEED = """
    import pytest
    from perfgate import Work

    @pytest.mark.parametrize("case", ["a", "b", "c"])
    def test_speed(case, seconds, gpu_benchmark):
        gpu_benchmark(lambda: seconds, name=f"speed/{case}", group="speed", reference=case == "a", work=Work(bytes=1e9))
"""

ENVIRONMENT = ("PROCESS", "DEVICE", "DRIVER", "NODE", "SLOW", "UUID")


OPENS_JSON_AT_THE_START = tuple(map(int, pytest_benchmark.__version__.split(".")[:2])) < (5, 3)


class Suite:
    """A project in a directory of its own; keywords of `run` and `spawn` are environment variables."""

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pytester, self._monkeypatch = pytester, monkeypatch
        self.path = pytester.path
        for name in ENVIRONMENT:
            monkeypatch.delenv(name, raising=False)
        # hypothesis, which no suite here uses, takes a process as long to load as all the rest
        monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest")
        pytester.makeconftest(CONFTEST)
        pytester.makepyfile(test_speed=SPEED)

    def write(self, **files: str) -> None:
        self.pytester.makepyfile(**files)

    def run(self, *arguments: str, **environment: str) -> pytest.RunResult:
        with self._monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore", PytestBenchmarkWarning)  # not of the tests here, but of those run there
            warnings.simplefilter("ignore", ResourceWarning)
            for name, value in environment.items():
                patch.setenv(name, value)
            result = self.pytester.runpytest_inprocess(*self._arguments(arguments))
            if OPENS_JSON_AT_THE_START:
                gc.collect()  # it does so each time the command line is parsed, and leaves all but the last open
            return result

    def spawn(self, *arguments: str, **environment: str) -> pytest.RunResult:
        with self._monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            return self.pytester.runpytest_subprocess(*self._arguments(arguments), timeout=60)

    def _arguments(self, arguments: tuple[str, ...]) -> list[str]:
        # a fresh process takes a second; the tests of that ask for it
        return [*plugin_arguments(), "-p", "no:cacheprovider", "--perf-again=0", *arguments]

    def document(self, name: str = "out.json") -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.path / name).read_text())
        return document

    def cases(self, name: str = "out.json") -> set[str]:
        return {b["extra_info"]["perfgate"]["case"]["name"] for b in self.document(name)["benchmarks"]}

    @property
    def journals(self) -> list[Path]:
        return sorted((self.path / ".perfgate").glob("*.jsonl"))

    def file(self, document: Mapping[str, Any], label: str = "base", key: str = KEY) -> Path:
        """File a baseline where ``--benchmark-compare`` finds it."""
        return baseline.write(document, self.path / ".benchmarks" / key / preflight.machine_id(), label)


@contextmanager
def disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of its own, of this size."""
    place.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", f"size={size}", "perfgate", str(place)]
    if mount is None or os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs root and the right to do so")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(autouse=True)
def not_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where xdist runs the tests here, the sessions that they start would take themselves for its workers."""
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A shell lets what it starts in the background ignore Ctrl-C, and so would the sessions that tests start."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Suite:
    return Suite(pytester, monkeypatch)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture
def processes(suite: Suite, cache: Path) -> list[dict[str, Any]]:
    """What five processes of the suite saved; run once for all tests."""
    for i in range(1, 6):
        kept = cache / f"{i}.json"
        if not kept.exists():
            result = suite.run("test_speed.py", f"--benchmark-json={i}.json", PROCESS=f"{0.001 * (i - 3)}")
            assert result.ret == 0
            shutil.move(suite.path / f"{i}.json", kept)
    shutil.rmtree(suite.path / ".perfgate", ignore_errors=True)
    return [json.loads((cache / f"{i}.json").read_text()) for i in range(1, 6)]


@pytest.fixture
def document(processes: list[dict[str, Any]]) -> dict[str, Any]:
    """A whole baseline of the suite."""
    return baseline.merge(processes)


@pytest.fixture
def filed(suite: Suite, document: dict[str, Any]) -> Path:
    """That baseline where ``--benchmark-compare`` finds it."""
    return suite.file(document)


@pytest.fixture
def repository(
    pytester: pytest.Pytester, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Repository]:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    # what no suite here uses takes a third of a worker's start
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest -p no:anyio -p no:xdist -p no:timeout")
    made = Repository(pytester, capfd)
    yield made
    assert len(made.worktrees()) == 1, "a worktree was left"
    assert list(temporary.iterdir()) == [], "temporary files were left"
