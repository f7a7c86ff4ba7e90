"""What looks slower is timed again in fresh processes before it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from perfgate import again, baseline, journal
from perfgate.again import NotTimed
from perfgate.gate import Exit

from .conftest import Suite

UNLUCKY = """

import pathlib

def pytest_configure(config):
    count = pathlib.Path("count")
    config.n = int(count.read_text()) + 1 if count.exists() else 1
    count.write_text(str(config.n))

@pytest.fixture
def seconds(request):
    slow = request.config.n <= int(os.environ.get("UNLUCKY", "0"))
    slow &= request.node.callspec.params["case"] in os.environ.get("SLOW", "").split()
    return 1e-3 * (1.10 if slow else 1.0)
"""


@pytest.fixture
def unlucky(suite: Suite, filed: Path) -> Suite:
    """A suite whose first UNLUCKY processes see the cases of SLOW 10 % slower."""
    with (suite.path / "conftest.py").open("a") as conftest:
        conftest.write(UNLUCKY)
    return suite


def processes(suite: Suite) -> int:
    return int((suite.path / "count").read_text())


def counted(suite: Suite, name: str = "out.json") -> dict[str, int]:
    return {case: len(record.processes) for case, record in baseline.read(suite.path / name).records.items()}


def test_one_unlucky_process_is_no_regression(unlucky: Suite) -> None:
    result = unlucky.run("--benchmark-compare", "--perf-again=2", "--benchmark-json=out.json", UNLUCKY="1", SLOW="b")
    assert result.ret == Exit.OK
    assert processes(unlucky) == 3
    result.stdout.fnmatch_lines(["perfgate: 1 case looked slower, timed again in fresh process 2 of 2*"])
    assert counted(unlucky) == {"speed/a": 1, "speed/b": 3, "speed/c": 1}
    (path,) = unlucky.journals
    contents = journal.read(path)
    assert contents.complete
    assert len(contents.records["speed/b"].processes) == 3
    assert [p.name for p in (unlucky.path / ".perfgate").iterdir()] == [path.name]


def test_what_is_slower_in_every_process_is_called(unlucky: Suite) -> None:
    arguments = ["--benchmark-compare", "--perf-again=2", "--benchmark-json=out.json"]
    result = unlucky.run(*arguments, UNLUCKY="9", SLOW="b c")
    assert result.ret == Exit.REGRESSED
    assert processes(unlucky) == 3
    assert counted(unlucky) == {"speed/a": 1, "speed/b": 3, "speed/c": 3}
    named = [line.split()[0] for line in result.outlines if "regressed: new/old in [" in line]
    assert sorted(named) == ["speed/b", "speed/c"]


@pytest.mark.parametrize(("option", "slow"), [("--perf-again=0", "b"), ("--perf-again=2", "")])
def test_no_process_is_started_if_none_is_asked_for_or_nothing_is_slower(
    unlucky: Suite, option: str, slow: str
) -> None:
    result = unlucky.run("--benchmark-compare", option, UNLUCKY="1", SLOW=slow)
    assert result.ret == (Exit.REGRESSED if slow else Exit.OK)
    assert processes(unlucky) == 1


def test_only_the_slowest_are_timed_again_and_that_is_said(unlucky: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "MOST", 1)
    result = unlucky.run("--benchmark-compare", "--perf-again=1", UNLUCKY="1", SLOW="b c")
    assert result.ret == Exit.REGRESSED
    result.stdout.fnmatch_lines(["note: 2 cases looked slower: the 1 slowest were timed again*"])


def test_a_fresh_process_saves_nothing_though_the_project_saves_every_run(unlucky: Suite) -> None:
    (unlucky.path / "pytest.ini").write_text("[pytest]\naddopts = --benchmark-autosave\n")
    before = set(unlucky.path.glob(".benchmarks/**/*.json"))
    result = unlucky.run("--benchmark-compare", "--perf-again=2", UNLUCKY="9", SLOW="b")
    assert result.ret == Exit.REGRESSED
    assert processes(unlucky) == 3
    assert len(set(unlucky.path.glob(".benchmarks/**/*.json")) - before) == 1


def test_an_interrupt_while_a_fresh_process_times_ends_the_run_as_one(
    unlucky: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(again, "process", interrupted)
    result = unlucky.run("--benchmark-compare", "--perf-again=1", UNLUCKY="1", SLOW="b")
    assert result.ret == pytest.ExitCode.INTERRUPTED


def test_a_fresh_process_that_fails_excuses_nothing(unlucky: Suite) -> None:
    with (unlucky.path / "conftest.py").open("a") as conftest:
        conftest.write("\n\ndef pytest_sessionstart():\n    assert int(pathlib.Path('count').read_text()) == 1\n")
    result = unlucky.run("--benchmark-compare", "--perf-again=2", UNLUCKY="1", SLOW="b")
    assert result.ret == Exit.REGRESSED
    assert processes(unlucky) == 2
    result.stdout.fnmatch_lines(["note: what looked slower was not timed again: * timed nothing (*): see *"])
    (log,) = unlucky.path.glob(".perfgate/*.again/again.log")
    assert "AssertionError" in log.read_text()


def test_a_fresh_process_on_another_device_or_by_another_method_counts_for_nothing(unlucky: Suite) -> None:
    source = (unlucky.path / "conftest.py").read_text()
    (unlucky.path / "conftest.py").write_text(
        source.replace('device=os.environ.get("DEVICE", "Fake GPU")', 'device="Fake GPU" + "2" * (config.n > 1)')
    )
    arguments = ["--benchmark-compare", "--perf-again=1", "--benchmark-json=out.json"]
    result = unlucky.run(*arguments, UNLUCKY="1", SLOW="b")
    assert result.ret == Exit.REGRESSED
    assert counted(unlucky)["speed/b"] == 1
    result.stdout.fnmatch_lines(["note: a fresh process had nothing comparable of speed/b"])


@pytest.mark.parametrize(
    ("given", "paths", "kept"),
    [
        ("perf --benchmark-compare -q", ["perf"], "-q"),
        ("--benchmark-compare 0001 perf", ["perf"], ""),
        ("--benchmark-compare perf", [], ""),
        ("--benchmark-compare=0001 --perf-suite full perf", ["perf"], "--perf-suite full"),
        ("-k perf perf", ["perf"], "-k perf"),
        ("perf -k perf", ["perf"], "-k perf"),
        ("a/b.py::test[x] c -x --benchmark-json out.json", ["a/b.py::test[x]", "c"], ""),
        ("--benchmark-json=out.json --benchmark-autosave --perf-journal=j --basetemp t", [], ""),
        ("--benchmark-only --perf-device cuda -p mine", [], "--benchmark-only --perf-device cuda -p mine"),
    ],
)
def test_a_fresh_process_has_the_options_but_not_the_paths_and_not_the_files(
    given: str, paths: Sequence[str], kept: str
) -> None:
    assert again.arguments(given.split(), paths) == kept.split()


def test_a_process_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "PATIENCE", 0.2)
    monkeypatch.setattr(again, "PATIENCE_A_CASE", 0.0)
    script = tmp_path / "sleeper"
    script.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(NotTimed, match=r"did not end within 0 s: see .*again\.log"):
        again.process([], ["test_it"], directory=tmp_path / "fresh", cwd=tmp_path)


def test_a_process_that_has_used_no_device_has_nothing_to_let_go() -> None:
    gpu = pytest.importorskip("perfgate.gpu")
    if not gpu.torch.cuda.is_initialized():
        gpu.let_go()
