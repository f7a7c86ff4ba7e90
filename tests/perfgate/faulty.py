"""Ways that a run of perfgate goes, each with a place for a fault: what test_faults.py plants is made of these."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.stats import Stats

from perfgate import preflight
from perfgate.__main__ import main
from perfgate.record import pack, unpack

from .conftest import Suite
from .test_plugin_options import Cuda

Document = dict[str, Any]

FAULTY = """
import contextlib
import random
import signal
import sys
import types
from dataclasses import replace
from perfgate.clock import FakePrepared, MeasureError
from perfgate.guard import Guard

visits = 0

def fault(samples):
    global visits
    visits += 1
    {body}
    return samples

class Faulty(FakeClock):
    @contextlib.contextmanager
    def prepare(self, call, inputs=((),), *, l2="cold"):
        with super().prepare(call, inputs, l2=l2) as prepared:
            yield FakePrepared(lambda: fault(prepared.time()))

def pytest_perf_clock(config):
    return Faulty(seconds=lambda result: result, {arguments})
"""

WINDOW = """
taken, graphs = [], []
torch = types.SimpleNamespace(
    cuda=types.SimpleNamespace(memory_stats=lambda: {"segment.all.allocated": len(taken)})
)
runtime = types.SimpleNamespace(jit_post_compile_hook=None)
triton = sys.modules["triton"] = types.ModuleType("triton")
triton.knobs = types.SimpleNamespace(runtime=runtime)

class Autotuner:
    fn = fault

    def _bench(self):
        pass

sys.modules["triton.runtime.autotuner"] = types.SimpleNamespace(Autotuner=Autotuner)

class Counters:
    def __getitem__(self, name):
        return {"unique_graphs": len(graphs)}

sys.modules["torch._dynamo.utils"] = types.SimpleNamespace(counters=Counters(), get_compilation_metrics=lambda: [])
"""


LEAVES = """
import os
import pytest

@pytest.hookimpl(trylast=True)
def pytest_sessionfinish():
    os._exit(0)
"""


def clock(body: str = "pass", arguments: str = "") -> str:
    """A clock whose samples this happens to."""
    return FAULTY.format(body=body, arguments=arguments)


def window(happens: str) -> str:
    """A clock inside whose timed window this happens, watched as that of a GPU is."""
    return clock(f"with Guard('attention', torch): {happens}") + WINDOW


def hook(signature: str, body: str) -> str:
    return f"def {signature}:\n    {body}\n"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run or a command ended."""

    code: int
    lines: Sequence[str]

    @property
    def green(self) -> bool:
        """Whether somebody would merge: exit code 0, and nothing but cases found no slower."""
        text = "\n".join(self.lines)
        counts = {word: int(n) for n, word in re.findall(r"(\d+) ([a-z]+)(?=,|$)", text, re.MULTILINE)}
        judged = counts.get("unchanged", 0) + counts.get("improved", 0)
        others = ("regressed", "unresolved", "new", "missing", "refused")
        return self.code == 0 and judged > 0 and not any(counts.get(word) for word in others)


@dataclass(frozen=True, kw_only=True)
class World:
    """A suite of three cases, what its five processes saved, and the baseline made of it."""

    suite: Suite
    processes: list[Document]
    document: Document
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def command(self, *arguments: object) -> Ended:
        self.capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = self.capsys.readouterr()
        return Ended(code=code, lines=[*out.splitlines(), *err.splitlines()])

    def save(self, name: str, document: Document) -> Path:
        path = self.suite.path / name
        path.write_text(json.dumps(document))
        return path


Edit = Callable[[Document], object]


def nothing(document: Document) -> None:
    """Leave it as it is."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A gate run with a fault: ``pytest --benchmark-compare``.

    Attributes:
        baseline: What is done to the baseline.
        file: What is done to its file.
        source: What is replaced in the tests, and by what.
        conftest: What is added there.
        options: Given to pytest.
        spawn: Whether it is run in a process of its own.
    """

    baseline: Edit = nothing
    file: Callable[[bytes], bytes] = bytes
    source: tuple[str, str] = ("", "")
    conftest: str = ""
    options: tuple[str, ...] = ("--benchmark-compare",)
    environment: dict[str, str] = field(default_factory=dict)
    spawn: bool = False

    def __call__(self, world: World) -> Ended:
        suite = world.suite
        self.baseline(world.document)
        path = suite.file(world.document)
        path.write_bytes(self.file(path.read_bytes()))
        test, conftest = suite.path / "test_speed.py", suite.path / "conftest.py"
        old, new = self.source
        assert old in test.read_text()
        test.write_text(test.read_text().replace(old, new) if old else test.read_text())
        conftest.write_text(f"{conftest.read_text()}\n\n{textwrap.dedent(self.conftest)}")
        run = suite.spawn if self.spawn else suite.run
        options = [option.format(baseline=path) for option in self.options]
        result = run(*options, **self.environment)
        return Ended(code=int(result.ret), lines=[*result.outlines, *result.errlines])


def parts(document: Document) -> list[Document]:
    return [benchmark["extra_info"]["perfgate"] for benchmark in document["benchmarks"]]


def method(**changes: object) -> Edit:
    """The baseline's cases were timed by another method."""
    return lambda document: [part["method"].update(changes) for part in parts(document)]


def says(**changes: object) -> Edit:
    """The run says this of itself."""
    return lambda document: document["perfgate"].update(changes)


def record(change: Callable[[Document], object]) -> Edit:
    """This is done to the record of each case."""
    return lambda document: [change(part) for part in parts(document)]


def process(change: Callable[[Document], object]) -> Edit:
    """This is done to the samples of each process of each case."""
    return record(lambda part: [change(process) for process in part["processes"]])


def seconds(change: Callable[[tuple[float, ...]], tuple[float, ...]]) -> Edit:
    """The baseline's durations are these."""
    return process(lambda p: p.update(samples=pack(change(unpack(p["samples"])))))


def text(old: str, new: str) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        assert old.encode() in content
        return content.replace(old.encode(), new.encode())

    return change


def merge(change: Callable[[Document], object], which: int = 1) -> Callable[[World], Ended]:
    """``perfgate baseline --from`` five processes, to the second of which this was done."""

    def plant(world: World) -> Ended:
        change(world.processes[which])
        paths = [world.save(f"{i}.json", document) for i, document in enumerate(world.processes, 1)]
        return world.command("baseline", "--from", *paths, "--storage", world.suite.path / "stored")

    return plant


def merge_twice(world: World) -> Ended:
    """The same process counts as two."""
    path = world.save("1.json", world.processes[0])
    return world.command("baseline", "--from", path, path, "--storage", world.suite.path / "stored")


def measure(source: str, *arguments: str, stale: bool = False) -> Callable[[World], Ended]:
    """``perfgate baseline`` of a suite in which this happens."""

    def plant(world: World) -> Ended:
        test = world.suite.path / "test_speed.py"
        test.write_text(f"{test.read_text()}\n{textwrap.dedent(source)}")
        keep = world.suite.path / "kept"
        keep.mkdir()
        if stale:
            world.save("kept/process-1.json", world.processes[0])
        world.suite.write(leaves=LEAVES)
        world.monkeypatch.setenv(
            "PYTHONPATH", os.pathsep.join([str(world.suite.path), os.environ.get("PYTHONPATH", "")])
        )
        storage = world.suite.path / "stored"
        options = ("--processes=1", f"--keep={keep}", f"--storage={storage}", "test_speed.py")
        return world.command("baseline", *options, "--", *arguments)

    return plant


def report(change: Edit) -> Callable[[World], Ended]:
    """``perfgate report`` of a saved run against the baseline."""

    def plant(world: World) -> Ended:
        run, base = world.processes[0], world.save("base.json", world.document)
        change(run)
        return world.command("report", world.save("run.json", run), "--against", base)

    return plant


def report_of_a_killed_run(world: World) -> Ended:
    """All cases are in its journal, but not its end."""
    assert world.suite.run("--perf-journal=killed.jsonl").ret == 0
    journal = world.suite.path / "killed.jsonl"
    journal.write_text("".join(line for line in journal.read_text().splitlines(True) if '"end"' not in line))
    return world.command("report", journal, "--against", world.save("base.json", world.document))


def against_a_journal(world: World) -> Ended:
    """A journal where a baseline must be."""
    assert world.suite.run("--perf-journal=run.jsonl").ret == 0
    run = world.save("run.json", world.processes[0])
    return world.command("report", run, "--against", world.suite.path / "run.jsonl")


def on_a_gpu(**machine: Any) -> Callable[[World], Ended]:
    """The gate on a machine whose GPU is so."""

    def plant(world: World) -> Ended:
        Cuda(**machine).stand_in(world.monkeypatch)
        conftest = "import pytest\n\n@pytest.fixture\ndef seconds():\n    return 1e-3\n"
        (world.suite.path / "conftest.py").write_text(conftest)
        result = world.suite.run("--benchmark-compare", "--perf-device=cuda")
        return Ended(code=int(result.ret), lines=[*result.outlines, *result.errlines])

    return plant


def kept(change: Callable[[list[float]], list[float]]) -> Callable[[World], Ended]:
    """pytest-benchmark keeps other durations than it was given."""

    def plant(world: World) -> Ended:
        update = Stats.update

        def updated(self: Any, duration: float) -> None:
            update(self, duration)
            self.data[:] = change(self.data)

        world.monkeypatch.setattr(Stats, "update", updated)
        return Gate()(world)

    return plant


def without_room(world: World) -> Ended:
    """The disk is full before anything is timed."""
    world.monkeypatch.setattr(preflight, "ROOM", 2**80)
    return Gate()(world)


CALL = "gpu_benchmark(lambda: seconds"
END = "work=Work(bytes=1e9))"
COMMIT = {"id": "1" * 40}
ONE = ("--benchmark-compare={baseline}",)


def stops(statement: str) -> tuple[str, str]:
    """This happens in the test of the second case, after it was timed."""
    return (END, f"{END}\n    if case == 'b': {statement}\n")
