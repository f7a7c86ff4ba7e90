"""Base against head, whole: small repositories, real worktrees and worker processes, a fake clock."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from perfgate.__main__ import main
from perfgate.ab import command, trees
from perfgate.ab.progress import Progress
from perfgate.contest import Block
from perfgate.gate import Exit

from . import ab_stand_in

ROOT = Path(__file__).parents[2]

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

    def ab_by_default(self, *arguments: str) -> int:
        return ab_stand_in.main(["--confirm=2", "--seed=1", "--json=result.json", *arguments])

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


def test_unchanged_code_is_green_and_the_tree_stays_as_it_was(repository: Repository) -> None:
    assert repository.ab("--base=HEAD") == Exit.OK
    assert repository.states() == dict.fromkeys(("speed/a", "speed/b", "speed/c"), "unchanged")
    assert repository.git("status", "--porcelain") == "?? result.json"
    sides = [entry["side"] for entry in repository.entries("visit") if entry["visit"]["case"]["name"] == "speed/a"]
    assert sides == ["base", "head", "head", "base"]
    assert repository.result()["controls"] == ["canary/copy"]


def test_cases_with_the_same_kernels_are_controls_and_of_others_it_is_said_what_changed(
    repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    conftest = repository.path / "conftest.py"
    launching = CONFTEST.replace("seconds=lambda result: result", "seconds=lambda result: result, kernels=launched")
    conftest.write_text(f"{dedent(launching)}{LAUNCHED}")
    repository.commit("kernels")
    repository.slow("b")
    assert repository.ab() == Exit.REGRESSED
    # what this clock launches is told by the duration, which a changed kernel alone has
    assert repository.result()["controls"] == ["canary/copy", "speed/a", "speed/c"]
    said = capfd.readouterr().out
    assert re.search(r"^speed/b regressed: .*\n    flash: code changed$", said, re.MULTILINE)
    assert "3 controls: 2 cases with the same kernels on both sides, 1 canary" in said
    (verdict,) = (v for v in repository.result()["verdicts"] if v["case"] == "speed/b")
    assert verdict["why"] == ["flash: code changed"]


def test_what_is_not_committed_is_the_head_and_the_slower_case_is_named(
    repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    repository.slow("b")
    assert repository.ab() == Exit.REGRESSED
    assert repository.states() == {"speed/a": "unchanged", "speed/b": "regressed", "speed/c": "unchanged"}
    said = capfd.readouterr().out
    assert re.search(r"^base: \w{7,} first \(HEAD, for the changes are not committed\)$", said, re.MULTILINE)
    assert re.search(r"^head: \w{7,} first with uncommitted changes$", said, re.MULTILINE)
    assert "speed/b regressed: head/base 1.1" in said
    assert "1 regressed, 0 improved, 2 unchanged" in said
    assert [block["stage"] for block in repository.entries("block")] == [1, 2, 2]
    confirmed = repository.journal.read_text().split('"stage":2')[1]
    assert "speed/b" in confirmed
    assert "canary/copy" in confirmed
    assert "speed/a" not in confirmed
    # the second block is visited the other way round
    sides = [json.loads(line)["side"] for line in confirmed.splitlines() if "speed/b" in line]
    assert sides == ["head", "base", "base", "head"]


def test_the_base_is_where_head_left_the_upstream(repository: Repository, capfd: pytest.CaptureFixture[str]) -> None:
    repository.git("update-ref", "refs/remotes/origin/main", "HEAD")
    repository.git("checkout", "-q", "-b", "work")
    repository.slow("c", 0.9)
    repository.commit("faster")
    assert repository.ab() == Exit.OK
    assert repository.states()["speed/c"] == "improved"
    assert "first (where HEAD left origin/main)" in capfd.readouterr().out


def test_what_is_decided_is_not_visited_again(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    repository.write("src/kernels.py", f"{KERNELS}SECONDS['a'] *= 1.1\nSECONDS['b'] *= 1.1\n")

    def undecided(blocks: Sequence[Block], controls: Collection[str], picked: Sequence[str]) -> list[str]:
        done = sum(block.stage == 2 for block in blocks)
        return [name for name in picked if done < {"speed/a": 1, "speed/b": 2}[name]]

    monkeypatch.setattr(ab_stand_in, "RULES", replace(ab_stand_in.RULES, undecided=undecided))
    assert repository.ab("--confirm=4") == Exit.REGRESSED
    stages = [block["stage"] for block in repository.entries("block")]
    assert stages == [1, 2, 2]
    names = Counter(visit["visit"]["case"]["name"] for visit in repository.entries("visit"))
    assert names["speed/b"] == names["speed/a"] + 4


@pytest.mark.parametrize(("seconds", "blocks"), [(300.0, 2), (0.01, 1)])
def test_a_suite_that_takes_long_is_screened_by_one_block(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, seconds: float, blocks: int
) -> None:
    monkeypatch.setattr(command, "SCREENING", seconds)
    assert repository.ab_by_default("--base=HEAD") == Exit.OK
    assert [block["stage"] for block in repository.entries("block")] == [1] * blocks
    notes = [entry["note"] for entry in repository.entries("note")]
    assert notes == (["1 block screened, and 2 would have taken more than 0 minutes"] if blocks == 1 else [])


def test_a_case_on_one_side_only_is_new_or_missing(repository: Repository) -> None:
    repository.write("src/kernels.py", "SECONDS = {'a': 1e-3, 'b': 2e-3, 'd': 4e-3}\n")
    assert repository.ab() == Exit.OK
    expected = {"speed/a": "unchanged", "speed/b": "unchanged", "speed/c": "missing", "speed/d": "new"}
    assert repository.states() == expected
    repository.journal.unlink()
    assert repository.ab("--strict") == Exit.INCOMPLETE


def test_each_visit_of_the_first_block_carries_what_its_check_found(repository: Repository) -> None:
    repository.checked()
    assert repository.ab("--base=HEAD", "--blocks=2") == Exit.OK
    unknown = [None] * 4
    assert repository.errors() == {
        "speed/a": [1e-3] * 4 + unknown,
        "speed/b": [2e-3] * 4 + unknown,
        "speed/c": unknown * 2,
        "canary/copy": unknown * 2,
    }
    repository.journal.unlink()
    assert repository.ab("--base=HEAD", "--blocks=2", "--check-always") == Exit.OK
    assert repository.errors()["speed/a"] == [1e-3] * 8


def test_a_case_that_got_less_accurate_is_red_and_named_although_it_is_no_slower(
    repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    repository.checked()
    suite = repository.path / "test_speed.py"
    suite.write_text(suite.read_text().replace('"b": 2e-3}', '"b": 3e-3}'))
    assert repository.ab() == Exit.REGRESSED
    assert set(repository.states().values()) == {"unchanged"}
    assert repository.states("accuracy") == {"speed/b": "regressed"}
    said = capfd.readouterr().out
    assert "speed/b regressed in accuracy: mean error of out 0.003 now, 0.002 in the base (+50.0 %)" in said
    assert "0 regressed, 0 improved, 3 unchanged, 0 unresolved, 0 new, 0 missing, 1 regressed in accuracy" in said


@pytest.mark.parametrize(("blocks", "stages"), [(1, [1, 2]), (2, [1, 1])])
def test_what_may_have_got_less_accurate_is_checked_again_and_nothing_else(
    repository: Repository, blocks: int, stages: list[int]
) -> None:
    repository.checked()
    suite = repository.path / "test_speed.py"
    suite.write_text(suite.read_text().replace('"b": 2e-3}', '"b": 3e-3}'))
    assert repository.ab(f"--blocks={blocks}") == Exit.REGRESSED
    assert [block["stage"] for block in repository.entries("block")] == stages
    assert sorted(filter(None, repository.errors()["speed/b"])) == [2e-3] * 4 + [3e-3] * 4
    assert repository.errors()["speed/a"] == [1e-3] * 4 + [None] * 4 * (blocks - 1)


def scattering(repository: Repository) -> None:
    """Commit a suite whose error differs by process."""
    repository.checked()
    suite = repository.path / "test_speed.py"
    counts = repository.path.parent / "counts"
    suite.write_text(
        suite.read_text()
        + f"""
import pathlib
side = pathlib.Path({str(counts)!r} + ("-base" if "perfgate-ab-" in __file__ else "-head"))
side.write_text((side.read_text() if side.exists() else "") + "x")
ERRORS["b"] = (1.5 if side.name.endswith("head") else 1) * (2 if len(side.read_text()) % 2 else 1)
"""
    )
    repository.commit("scatters by its process, and more in the head")


def test_an_error_that_scatters_is_not_red_and_checked_some_times(repository: Repository) -> None:
    scattering(repository)
    assert repository.ab("--base=HEAD", "--confirm=9") == Exit.OK
    assert repository.states("accuracy") == {"speed/b": "unresolved"}
    assert [block["stage"] for block in repository.entries("block")] == [1] + [2] * command.CHECKS


def test_checks_go_on_for_some_blocks_only_once_times_are_decided(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    scattering(repository)
    repository.slow("a")

    def undecided(blocks: Sequence[Block], controls: Collection[str], picked: Sequence[str]) -> Sequence[str]:
        return [] if any(block.stage == 2 for block in blocks) else picked

    monkeypatch.setattr(ab_stand_in, "RULES", replace(ab_stand_in.RULES, undecided=undecided))
    assert repository.ab("--base=HEAD", "--confirm=9") == Exit.REGRESSED
    assert [block["stage"] for block in repository.entries("block")] == [1] + [2] * (1 + command.CHECKS)


def test_a_case_that_needs_more_memory_is_red_and_named(
    repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    conftest = repository.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + """
import contextlib, dataclasses, types
from kernels import SECONDS

BYTES = 2.0**24

class Counting(FakeClock):
    @contextlib.contextmanager
    def prepare(self, call, inputs=((),), *, l2="cold"):
        with super().prepare(call, inputs, l2=l2) as prepared:
            peak = BYTES if call() == SECONDS["b"] else 2.0**24
            time = lambda: dataclasses.replace(prepared.time(), counters={"peak_bytes": peak})
            yield types.SimpleNamespace(time=time)

def pytest_perf_clock(config):
    return Counting(seconds=lambda result: result)
"""
    )
    repository.commit("counts")
    conftest.write_text(conftest.read_text().replace("BYTES = 2.0**24", "BYTES = 2.0**25"))
    assert repository.ab() == Exit.REGRESSED
    assert repository.states("memory") == {"speed/b": "regressed"}
    assert (
        "speed/b regressed in memory: peak memory 33,554,432 B now, 16,777,216 B in the base" in capfd.readouterr().out
    )


def test_an_error_that_is_no_finite_number_fails_the_test(
    repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    repository.checked()
    suite = repository.path / "test_speed.py"
    suite.write_text(suite.read_text().replace('"b": 2e-3}', '"b": float("nan")}'))
    assert repository.ab() == Exit.REGRESSED
    assert repository.states()["speed/b"] == "missing"
    assert "speed/b: the error of out must be finite and not negative, got nan" in capfd.readouterr().out


def test_the_help_says_how_a_strict_run_fails() -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    said = " ".join(parser.format_help().split())
    assert f"exit code {Exit.INCOMPLETE:d}, and unresolved ones with {Exit.UNRESOLVED:d}" in said


def test_a_renamed_test_times_the_same_case(repository: Repository) -> None:
    suite = repository.path / "test_speed.py"
    suite.write_text(suite.read_text().replace("test_speed(", "test_quick("))
    assert repository.ab() == Exit.OK
    assert repository.states() == dict.fromkeys(("speed/a", "speed/b", "speed/c"), "unchanged")


def test_a_base_without_a_suite_compares_nothing(repository: Repository, capfd: pytest.CaptureFixture[str]) -> None:
    repository.git("rm", "-q", "--cached", "test_speed.py")
    repository.git("commit", "-q", "-m", "no suite")
    assert repository.ab("test_speed.py") == Exit.INCOMPLETE
    assert set(repository.states().values()) == {"new"}
    said = capfd.readouterr().out
    assert "the base has no suite at these paths" in said
    assert "nothing was compared" in said


def test_both_sides_measure_with_the_running_perfgate_and_run_their_own_code(repository: Repository) -> None:
    (repository.path / "src" / "perfgate").mkdir()
    repository.write("src/perfgate/__init__.py", "raise RuntimeError('not this one')\n")
    repository.commit("has a perfgate of its own")
    repository.slow("a")
    assert repository.ab() == Exit.REGRESSED


def test_a_side_that_runs_the_others_code_is_refused(
    repository: Repository, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.git("mv", "src", "python")
    repository.commit("a place that nobody looks at")
    site = "import sys\nsys.path.append({!r})\n".format(str(repository.path / "python"))
    elsewhere = repository.path.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "sitecustomize.py").write_text(site)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(elsewhere)]))
    assert repository.ab("--base=HEAD") == Exit.REFUSED
    assert "the base runs code of the head: " in capfd.readouterr().err
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["python", os.environ["PYTHONPATH"]]))
    repository.journal.unlink()
    assert repository.ab("--base=HEAD") == Exit.OK


WRITES = """
import os, sys
from pathlib import Path
from types import ModuleType

path = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"], {path!r})
path.parent.mkdir(parents=True, exist_ok=True)
path.touch()
sys.modules[path.stem] = ModuleType(path.stem)
sys.modules[path.stem].__file__ = str(path)
"""


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("fr/cfrvet.py", Exit.OK),
        ("fr/cfrvet.main.so", Exit.OK),
        ("kernels2.py", Exit.REFUSED),
        ("fr/k.py", Exit.REFUSED),
    ],
)
def test_what_torch_compile_keeps_in_the_working_tree_is_nobodys_code(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, path: str, code: Exit
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(repository.path / "cache"))
    conftest = repository.path / "conftest.py"
    conftest.write_text(conftest.read_text() + WRITES.format(path=path))
    repository.commit("compiles")
    assert repository.ab("--base=HEAD", "--blocks=2") == code


@pytest.mark.parametrize("name", ["TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"])
def test_what_a_compiler_keeps_in_the_working_tree_is_no_change_of_it(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    cache = repository.path / "cache"
    cache.mkdir()
    (cache / "kept.py").write_text("")
    repository.commit("has a file there")
    monkeypatch.setenv(name, str(cache))
    (cache / "written.py").write_text("")
    assert not trees.head(repository.path).dirty
    (cache / "kept.py").write_text("x = 1")
    assert trees.head(repository.path).dirty
    repository.git("checkout", "-q", "cache")
    (repository.path / "mine.py").write_text("")
    assert trees.head(repository.path).dirty
    monkeypatch.setenv(name, str(repository.path))
    assert trees.head(repository.path).dirty


def installed(repository: Repository, *, copied: bool) -> Path:
    """Where pip would have put the package, from the tree; a copy of it, or the path of the tree's (editable)."""
    site = repository.path.parent / "site-packages"
    information = site / "kernels-1.dist-info"
    information.mkdir(parents=True, exist_ok=True)
    origin = {"url": f"file://{repository.path}", "dir_info": {} if copied else {"editable": True}}
    (information / "direct_url.json").write_text(json.dumps(origin))
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 1\n")
    (information / "RECORD").write_text("kernels.py,,\n" if copied else "kernels_finder.py,,\n")
    if copied:
        (site / "kernels.py").write_text(KERNELS)
    else:
        (site / "kernels.pth").write_text("import kernels_finder\n")
        (site / "kernels_finder.py").write_text(f"import sys\nsys.path.append({str(repository.path / 'src')!r})\n")
    return site


def test_an_installed_copy_of_what_a_tree_holds_is_refused(
    repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    site = installed(repository, copied=True)
    conftest = repository.path / "conftest.py"
    conftest.write_text(f"import sys\nsys.path.insert(0, {str(site)!r})\n{conftest.read_text()}")
    repository.commit("finds what is installed first")
    repository.slow("b")
    assert repository.ab() == Exit.REFUSED
    said = capfd.readouterr().err
    assert f"code that is not its tree's: expected kernels from the tree, got {site}/kernels.py. Uninstall that" in said


def test_an_installed_copy_is_refused_also_where_nobody_finds_the_trees_own(
    repository: Repository, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = installed(repository, copied=True)
    repository.git("mv", "src", "python")
    repository.commit("a place that nobody looks at")
    repository.write("python/kernels.py", KERNELS.replace("2e-3", "3e-3"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(site)]))
    assert repository.ab() == Exit.REFUSED
    said = capfd.readouterr().err
    assert f"expected kernels from each tree, got {site}/kernels.py. Uninstall it" in said


def test_code_that_is_loaded_late_is_looked_at_too(repository: Repository, capfd: pytest.CaptureFixture[str]) -> None:
    site = installed(repository, copied=True)
    suite = repository.path / "test_speed.py"
    late = f"    import sys; sys.path.insert(0, {str(site)!r})\n    from kernels import SECONDS\n    gpu_benchmark"
    text = suite.read_text().replace("from kernels import SECONDS\n", "").replace('"case", SECONDS', '"case", "abc"')
    suite.write_text(text.replace("    gpu_benchmark", late, 1))
    repository.commit("loads late")
    repository.slow("b")
    assert repository.ab() == Exit.REFUSED
    assert "code that is not its tree's: expected kernels from the tree" in capfd.readouterr().out


def test_an_editable_installation_is_no_hindrance(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    site = installed(repository, copied=False)
    (site / "sitecustomize.py").write_text(f"import site\nsite.addsitedir({str(site)!r})\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(site)]))
    repository.slow("b")
    assert repository.ab() == Exit.REGRESSED
    assert repository.states()["speed/b"] == "regressed"


def test_a_suite_that_leaves_with_code_0_while_it_is_collected_is_not_green(
    repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    suite = repository.path / "test_speed.py"
    suite.write_text(f"import os\nos._exit(0)\n{suite.read_text()}")
    assert repository.ab() == Exit.INCOMPLETE
    assert "the head's worker ended (exit code 0) before it had collected its tests" in capfd.readouterr().err


def test_a_gpu_that_gets_busy_between_blocks_ends_the_run_as_unfit(
    repository: Repository, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    conftest = repository.path / "conftest.py"
    conftest.write_text(conftest.read_text().replace('device="Fake GPU"', 'device="Fake GPU", facts={"uuid": "7"}'))
    repository.commit("a GPU")
    answers = iter([[], *[["process 8 computes on GPU 0"]] * 3])  # free before the second block, busy before the third
    monkeypatch.setattr("perfgate.nvml.busy", lambda which: next(answers))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert repository.ab("--base=HEAD", "--blocks=3") == Exit.UNFIT
    assert "the GPU is busy: process 8 computes on GPU 0: 3 of 3 cases were compared" in capfd.readouterr().out
    assert repository.ab(f"--from={repository.journal}") == Exit.UNFIT


def test_what_the_screen_picked_is_in_the_journal(repository: Repository) -> None:
    repository.slow("b")
    assert repository.ab() == Exit.REGRESSED
    assert repository.entries("suspects") == [{"suspects": ["speed/b"]}]


@pytest.mark.parametrize(("deaths", "code"), [(1, 7), (2, 7), (1, 0)])
def test_a_worker_that_dies_costs_its_case_and_is_replaced_once(
    repository: Repository, capfd: pytest.CaptureFixture[str], deaths: int, code: int
) -> None:
    suite = repository.path / "test_speed.py"
    dies = f"    if case in {['a', 'b'][:deaths]}:\n        os._exit({code})\n"
    suite.write_text("import os\n" + suite.read_text().replace("    gpu_benchmark", f"{dies}    gpu_benchmark", 1))
    assert repository.ab() == Exit.INCOMPLETE
    said = capfd.readouterr().out
    assert f"the head's worker ended (exit code {code}) at test_speed.py::test_speed[a]; the end of its log:" in said
    states = repository.states()
    assert states["test_speed.py::test_speed[a]"] == "unresolved"
    if deaths == 1:
        assert {states["speed/b"], states["speed/c"]} == {"unchanged"}
    else:
        assert "workers ended 2 times" in said


def test_a_failing_test_of_the_head_is_red_and_one_of_the_base_is_not(
    repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    suite = repository.path / "test_speed.py"
    whole = suite.read_text()
    suite.write_text(whole.replace("    gpu_b", "    assert case != 'b', 'wrong'\n    gpu_b", 1))
    assert repository.ab() == Exit.REGRESSED
    said = capfd.readouterr().out
    assert "speed/b missing: its test failed in the head: wrong" in said
    assert "1 of the head's tests failed" in said
    repository.commit("wrong")
    suite.write_text(whole)
    repository.journal.unlink()
    assert repository.ab() == Exit.OK
    assert repository.states()["speed/b"] == "new"


def test_what_does_not_fit_beside_the_other_side_is_visited_alone(repository: Repository) -> None:
    taken = repository.path.parent / "taken"
    conftest = repository.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + f"""
import contextlib, os

class Small(FakeClock):
    @contextlib.contextmanager
    def prepare(self, call, inputs=((),), *, l2="cold"):
        if call() != 2e-3:
            with super().prepare(call, inputs, l2=l2) as prepared:
                yield prepared
            return
        try:
            os.close(os.open({str(taken)!r}, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            raise MemoryError("no room") from None
        try:
            with super().prepare(call, inputs, l2=l2) as prepared:
                yield prepared
        finally:
            os.unlink({str(taken)!r})

def pytest_perf_clock(config):
    return Small(seconds=lambda result: result)
"""
    )
    repository.commit("a device with little memory")
    repository.checked()
    assert repository.ab("--base=HEAD") == Exit.OK
    assert repository.states()["speed/b"] == "unchanged"
    visits = [v["side"] for v in repository.entries("visit") if v["visit"]["case"]["name"] == "speed/b"]
    assert visits == ["base", "head", "head", "base"]
    assert repository.errors()["speed/b"] == [2e-3] * 4  # checked once a side, and prepared twice


@pytest.mark.parametrize("settles", [True, False])
def test_sides_whose_clocks_planned_differently_prepare_again_one_after_the_other(
    repository: Repository, settles: bool
) -> None:
    conftest = repository.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + f"""
import contextlib, os, pathlib, types

class Misled(FakeClock):
    first = True

    @contextlib.contextmanager
    def prepare(self, call, inputs=((),), *, l2="cold"):
        with super().prepare(call, inputs, l2=l2) as prepared:
            misled, self.first = self.first or not {settles}, False
            with pathlib.Path("{repository.path}/.perfgate/prepared").open("a") as file:
                file.write("x")
            yield types.SimpleNamespace(time=prepared.time, plan=os.getpid() if misled else 1)

def pytest_perf_clock(config):
    return Misled(seconds=lambda result: result)
"""
    )
    repository.commit("a clock that is misled")
    repository.checked()
    assert repository.ab("--base=HEAD") == Exit.OK
    assert set(repository.states().values()) == {"unchanged"}
    prepared = len((repository.path / ".perfgate" / "prepared").read_text())
    assert prepared == (4 * 2 + 2 if settles else 4 * 2 * 2)
    assert repository.errors()["speed/a"] == [1e-3] * 4


def test_what_does_not_fit_into_the_head_alone_has_regressed(repository: Repository) -> None:
    suite = repository.path / "test_speed.py"
    suite.write_text(
        suite.read_text().replace("lambda: SECONDS[case]", "lambda: SECONDS[case] if case != 'c' else no()")
    )
    suite.write_text(suite.read_text() + "\ndef no():\n    raise MemoryError('no room')\n")
    assert repository.ab() == Exit.REGRESSED
    assert repository.states()["speed/c"] == "regressed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_what_is_known_and_leaves_nothing(repository: Repository, number: int) -> None:
    conftest = repository.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + f"""
import os, pathlib, time

def pytest_runtest_setup(item):
    place = pathlib.Path({str(repository.path / ".perfgate")!r})
    (place / f"worker-{{os.getpid()}}").touch()
    if item.name == "test_speed[c]":
        (place / "at-c").touch()
        time.sleep(60)
"""
    )
    repository.commit("slow setup")
    argv = [sys.executable, "-m", "tests.perfgate.ab_stand_in", "--base=HEAD", "--blocks=1", "--seed=1"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    child = subprocess.Popen(
        argv,
        cwd=repository.path,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    place = repository.path / ".perfgate"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (place / "at-c").exists():
        time.sleep(0.01)
    os.killpg(child.pid, number)
    said, _ = child.communicate(timeout=30)
    assert child.returncode == 2, said
    assert re.search(r"interrupted: [012] of 3 cases were compared", said)
    workers = {int(path.name.removeprefix("worker-")) for path in place.glob("worker-*")}
    assert len(workers) == 2
    assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []


def test_a_journal_can_be_judged_again(repository: Repository, capfd: pytest.CaptureFixture[str]) -> None:
    repository.slow("b")
    assert repository.ab() == Exit.REGRESSED
    first, _ = repository.states(), capfd.readouterr()
    assert repository.ab(f"--from={repository.journal}") == Exit.REGRESSED
    assert repository.states() == first
    whole = repository.journal.read_text()
    repository.journal.write_text(whole[: whole.index('{"end"') + 3])  # as a killed run leaves it
    assert repository.ab(f"--from={repository.journal}", "--confirm=2") == Exit.REGRESSED
    assert "the run did not come to its end: 3 of 3 cases were compared" in capfd.readouterr().out
    repository.journal.write_text(whole[: whole.index('{"block":1')])
    assert repository.ab(f"--from={repository.journal}") == Exit.INCOMPLETE


def test_what_a_killed_run_left_is_removed_by_the_next(repository: Repository, tmp_path: Path) -> None:
    left = tmp_path / "temporary" / "perfgate-ab-left"
    left.mkdir()
    (left / "lock").touch()
    repository.git("worktree", "add", "--detach", str(left / "base"), "HEAD")
    assert repository.ab("--base=HEAD") == Exit.OK


def test_worktrees_of_others_are_left_alone(repository: Repository, tmp_path: Path) -> None:
    alike = tmp_path / "temporary" / "perfgate-ab-ideas"
    alike.mkdir()
    (alike / "notes.txt").touch()
    away = tmp_path / "temporary" / "away"
    for place in (alike / "try", away):
        repository.git("worktree", "add", "--detach", str(place), "HEAD")
    away.rename(tmp_path / "temporary" / "moved")
    before = repository.git("worktree", "list")
    try:
        assert repository.ab("--base=HEAD") == Exit.OK
        assert (alike / "notes.txt").exists()
        assert repository.git("worktree", "list") == before
    finally:
        (tmp_path / "temporary" / "moved").rename(away)
        for place in (alike / "try", away):
            repository.git("worktree", "remove", "--force", str(place))
        (alike / "notes.txt").unlink()
        alike.rmdir()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--base=nowhere"], r"there is no commit 'nowhere' in .*: fetch it, or give another --base"),
        ([], r"there is none of origin/HEAD, .* to compare with: give --base REF"),
        (["--base=HEAD", "--json=no/where.json"], r"--json: .* there is no directory no"),
        (["--from=nothing.jsonl", "test_speed.py"], r"--from times nothing, so it takes no suite"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_4(
    repository: Repository, capfd: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert repository.ab(*arguments) == Exit.USAGE
    (line,) = capfd.readouterr().err.splitlines()
    assert re.search(said, line)


def test_where_there_is_no_repository_it_says_so(
    pytester: pytest.Pytester, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(pytester.path.parent))
    assert ab_stand_in.main([]) == Exit.USAGE
    assert "not a git repository" in capfd.readouterr().err
    monkeypatch.setenv("PATH", str(pytester.path))
    assert ab_stand_in.main([]) == Exit.USAGE
    assert "git is not installed" in capfd.readouterr().err


def test_each_tree_is_built_first_and_a_build_that_fails_ends_it(
    repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    assert repository.ab("--base=HEAD", "--build=test -e src/kernels.py && touch built") == Exit.OK
    (repository.path / "built").unlink()
    repository.journal.unlink()
    assert repository.ab("--base=HEAD", "--build=echo no compiler; false") == Exit.INCOMPLETE
    assert "--build failed in the base's tree with exit code 1; its end:\n    no compiler" in capfd.readouterr().err


def test_the_command_judges_by_the_rule_of_contests(
    repository: Repository, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    conftest = repository.path / "conftest.py"
    text = conftest.read_text().replace("lambda result: result", "lambda result: result, seed=os.getpid()")
    text = text.replace('{"canary/copy"', '{"canary/matmul": (lambda: 2e-4, ((),)), "canary/copy"')
    conftest.write_text(f"import os\n{text}")
    repository.commit("processes differ")
    repository.slow("b")
    assert main(["ab", "--confirm=3", "--json=result.json"]) == Exit.REGRESSED
    assert [case for case, state in repository.states().items() if state == "regressed"] == ["speed/b"]
    repository.journal.unlink()
    repository.git("checkout", "-q", "src")
    assert main(["ab", "--base=HEAD", "--confirm=2", "--json=result.json"]) == Exit.OK


def test_the_progress_without_a_terminal_is_a_line_each_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = Progress(2)
    progress(0, 0, 4)
    now = 159.0
    progress(0, 1, 4)
    assert capsys.readouterr().out == ""
    now = 160.0
    progress(0, 2, 4)
    progress(0, 3, 4)
    progress.clear()
    assert capsys.readouterr().out == "block 1 of 2: 2 of 4 cases, 3:00 left\n"


def test_the_progress_on_a_terminal_is_a_line_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = Progress(2)
    progress(0, 0, 4)
    now = 130.0
    progress(0, 1, 4)
    progress.extend(1)
    progress(0, 1, 4)
    progress.clear()
    shown = capsys.readouterr().out.split("\r\x1b[K")
    assert shown == [
        "",
        "block 1 of 2: 0 of 4 cases",
        "block 1 of 2: 1 of 4 cases, 3:30 left",
        "block 1 of 3: 1 of 4 cases, 5:30 left",
        "",
    ]


def test_an_option_that_pytest_does_not_know_is_a_usage_error(
    repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    assert repository.ab("--base=HEAD", "--", "--unheard-of") == Exit.USAGE
    assert "unrecognized arguments: --unheard-of" in capfd.readouterr().err
