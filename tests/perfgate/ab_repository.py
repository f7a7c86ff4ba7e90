"""A git repository with a suite and a fake clock, for `perfgate ab` to compare commits of."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from . import ab_stand_in

__all__ = ["CONFTEST", "KERNELS", "LAUNCHED", "Repository"]

CONFTEST = """
    import pytest
    from perfgate import Environment, FakeClock

    def pytest_perf_clock(config):
        return FakeClock(seconds=lambda result: result)

    def pytest_perf_environment(config):
        return Environment(device="Fake GPU", versions={"torch": "2.11.0"})

    def pytest_perf_canaries(config):
        return {"canary/copy": (lambda: 1e-4, ((),))}

    def pytest_benchmark_generate_machine_info():
        return {"node": "here", "machine": "m"}
"""

LAUNCHED = """

def launched(seconds):
    from perfgate.kernels import Kernel, Kernels

    return Kernels.of([Kernel(name="flash", grid=(132, 1, 1), code=f"{round(seconds * 1e9):x}")])
"""

CHECKED = """

ERRORS = {"a": 1e-3, "b": 2e-3}

def check(case):
    return lambda _: {"out": ERRORS[case]} if case in ERRORS else None
"""

KERNELS = "SECONDS = {'a': 1e-3, 'b': 2e-3, 'c': 3e-3}\n"

SUITE = """
    import pytest
    from kernels import SECONDS

    @pytest.mark.parametrize("case", SECONDS)
    def test_speed(case, gpu_benchmark):
        gpu_benchmark(lambda: SECONDS[case], name=f"speed/{case}")

    def test_of_something_else():
        raise AssertionError("no worker runs this")
"""


class Repository:
    """A git repository with a package in src, its suite, and a commit of both."""

    def __init__(self, pytester: pytest.Pytester, capfd: pytest.CaptureFixture[str]) -> None:
        self.pytester, self.path, self._capfd = pytester, pytester.path, capfd
        pytester.makeconftest(CONFTEST)
        pytester.makepyfile(test_speed=SUITE)
        (self.path / "src").mkdir()
        self.write("src/kernels.py", KERNELS)
        self.write(".gitignore", ".perfgate/\n__pycache__/\n")
        self.git("init", "-q", "-b", "main")
        self.commit("first")

    def git(self, *arguments: str) -> str:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *who, *arguments], cwd=self.path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def write(self, path: str, text: str) -> None:
        (self.path / path).write_text(text)

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)

    def slow(self, case: str, factor: float = 1.1) -> None:
        self.write("src/kernels.py", f"{KERNELS}SECONDS['{case}'] *= {factor}\n")

    def ab(self, *arguments: str) -> int:
        blocks = [] if any(a.startswith("--blocks") for a in arguments) else ["--blocks=1"]
        return self.ab_by_default(*blocks, *arguments)

    def ab_by_default(self, *arguments: str, confirm: int | None = 2) -> int:
        asked = [f"--confirm={confirm}"] if confirm else []
        return ab_stand_in.main([*asked, "--seed=1", "--json=result.json", *arguments])

    def result(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.path / "result.json").read_text())
        return document

    def states(self, quantity: str = "time") -> dict[str, str]:
        return {v["case"]: v["state"] for v in self.result()["verdicts"] if v["quantity"] == quantity}

    def checked(self) -> None:
        """Commit a suite whose checks return errors of two of the cases."""
        suite = self.path / "test_speed.py"
        suite.write_text(suite.read_text().replace('{case}")', '{case}", check=check(case))') + CHECKED)
        self.commit("checked")

    def errors(self) -> dict[str, list[float | None]]:
        """What each visit of the journal knows of a case's error, in order."""
        found: dict[str, list[float | None]] = {}
        for entry in self.entries("visit"):
            (process,) = entry["visit"]["processes"]
            found.setdefault(entry["visit"]["case"]["name"], []).append(process["counters"].get("error.out"))
        return found

    @property
    def journal(self) -> Path:
        (path,) = (self.path / ".perfgate").glob("ab-*.jsonl")
        return path

    def entries(self, key: str) -> list[dict[str, Any]]:
        lines = map(json.loads, self.journal.read_text().splitlines())
        return [line for line in lines if key in line]

    def worktrees(self) -> list[str]:
        return re.findall(r"^worktree (.*)$", self.git("worktree", "list", "--porcelain"), flags=re.MULTILINE)
