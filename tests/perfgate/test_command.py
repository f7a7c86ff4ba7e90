"""The commands: a baseline of several processes, and reports of what files hold."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perfgate import accept, baseline, fresh, preflight
from perfgate.__main__ import main
from perfgate.environment import Environment
from perfgate.gate import Exit
from perfgate.record import Record
from perfgate.trust import data
from tests.perfgate.test_trust_starts import started

from .conftest import KEY, Suite, disk

# each process differs a little, as they do; several processes count themselves
COUNTED = """

def pytest_configure(config):
    count = pathlib.Path("count")
    n = int(count.read_text()) + 1 if count.exists() else 1
    count.write_text(str(n))
    os.environ["PROCESS"] = str((n % 3 - 1) * float(os.environ.get("SPREAD", "0.002")))
"""


@pytest.fixture
def counted(suite: Suite) -> Suite:
    conftest = suite.path / "conftest.py"
    conftest.write_text("import pathlib\n" + conftest.read_text() + COUNTED)
    return suite


@pytest.fixture
def files(suite: Suite, processes: list[dict[str, Any]]) -> list[str]:
    """What five processes left."""
    names = [f"p{i}.json" for i in range(len(processes))]
    for name, process in zip(names, processes, strict=True):
        (suite.path / name).write_text(json.dumps(process))
    return names


def written(suite: Suite) -> list[Path]:
    return sorted((suite.path / "baselines").rglob("*.json"))


def test_a_baseline_is_measured_in_fresh_processes_and_found_by_compare(
    counted: Suite, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--processes=3", "--label=all", "test_speed.py", "--", "-p", "no:cacheprovider"]
    assert main(["baseline", *arguments]) == Exit.OK
    (path,) = written(counted)
    assert path.relative_to(counted.path / "baselines") == Path(KEY, preflight.machine_id(), "0001_all.json")
    found = baseline.read(path)
    assert found.processes == 3
    assert [len(r.processes) for r in found.records.values()] == [3, 3, 3]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "process 1 of 3"
    assert lines[1].startswith("process 2 of 3: ")
    assert lines[-1] == f"{path.relative_to(counted.path)}: 3 cases in 3 processes"
    assert not list((counted.path / ".perfgate").iterdir())  # nothing is left that the baseline holds
    assert counted.run("--benchmark-compare", "--benchmark-storage=baselines").ret == Exit.OK
    assert counted.run("--benchmark-compare", "--benchmark-storage=baselines", SLOW="c").ret == Exit.REGRESSED


def test_devices_share_the_processes_side_by_side(
    suite: Suite, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    conftest = suite.path / "conftest.py"
    conftest.write_text(conftest.read_text().replace('"UUID"', '"CUDA_VISIBLE_DEVICES"'))
    # each of a pair waits for the other to begin: one after the other they would never end
    suite.write(
        test_speed="""
        import os, pathlib, time

        def test_speed(gpu_benchmark):
            device = os.environ["CUDA_VISIBLE_DEVICES"]
            pathlib.Path(device).touch()
            while not pathlib.Path("7").exists() or not pathlib.Path("GPU-5").exists():
                time.sleep(0.01)
            gpu_benchmark(lambda: 1.0 + time.time_ns() % 1000 * 1e-9, name="first")
        """
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert main(["baseline", "--processes=3", "--devices=7,GPU-5", "--", "-p", "no:cacheprovider"]) == Exit.OK
    (path,) = written(suite)
    found = baseline.read(path)
    assert (found.processes, found.environment.facts["uuid"]) == (3, "7,GPU-5")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "process 1 to 2 of 3"
    assert lines[1].startswith("process 3 of 3: ")


def test_a_device_that_is_not_there_is_said_before_anything_is_timed(
    suite: Suite, capsys: pytest.CaptureFixture[str]
) -> None:
    (suite.path / "conftest.py").unlink()
    suite.write(test_speed="def test_speed(gpu_benchmark):\n    gpu_benchmark(lambda: 1.0, name='first')")
    assert main(["baseline", "--processes=1", "--devices=99", "--keep=kept"]) == Exit.USAGE
    assert "--perf-device cuda: " in capsys.readouterr().err
    assert not (suite.path / "kept" / "process-1.json").exists()


def test_when_one_of_two_devices_processes_fails_the_other_comes_to_its_end(
    suite: Suite, capsys: pytest.CaptureFixture[str]
) -> None:
    suite.write(
        test_speed="""
        import os, time

        def test_speed(gpu_benchmark):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
            time.sleep(0.3)
            gpu_benchmark(lambda: 1.0, name="first")
        """
    )
    assert main(["baseline", "--processes=4", "--devices=0,1", "--keep=kept"]) == pytest.ExitCode.TESTS_FAILED
    assert "the end of kept/process-1.log:" in capsys.readouterr().err
    assert [path.name for path in sorted((suite.path / "kept").glob("*.json"))] == ["process-2.json"]
    assert not written(suite)


def test_processes_that_disagree_make_no_baseline_and_are_kept(
    counted: Suite, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPREAD", "0.08")
    assert main(["baseline", "--processes=3", "--keep=kept", "--", "-p", "no:cacheprovider"]) == Exit.UNFIT
    assert not written(counted)
    said = capsys.readouterr().err
    assert "speed/a: the medians of 3 processes lie 17" in said
    again = next(line for line in said.splitlines() if "--from" in line).split()
    assert [Path(name).name for name in again[3:]] == ["process-1.json", "process-2.json", "process-3.json"]
    assert main([*again[1:], "--visible=90"]) == Exit.OK
    assert len(written(counted)) == 1
    assert len(list((counted.path / "kept").iterdir())) == 9


def test_a_failing_suite_makes_no_baseline_and_shows_why(counted: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    counted.write(test_wrong="def test_wrong(benchmark):\n    benchmark(lambda: None)\n    assert 1 == 2")
    assert main(["baseline", "--processes=2", "--keep=kept"]) == pytest.ExitCode.TESTS_FAILED
    captured = capsys.readouterr()
    assert "ended with exit code 1; the end of kept/process-1.log:" in captured.err
    assert "FAILED test_wrong.py::test_wrong" in captured.err
    assert captured.out.splitlines() == ["process 1 of 2"]
    assert not written(counted)


def test_a_suite_without_cases_makes_no_baseline(suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    suite.write(test_speed="def test_speed():\n    pass")
    assert main(["baseline", "--processes=1", "--keep=kept"]) == Exit.INCOMPLETE
    assert "timed nothing; the end of kept/process-1.log:" in capsys.readouterr().err


def test_processes_of_different_environments_are_not_merged(
    suite: Suite, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    other = suite.document(files[1])
    other["machine_info"]["perfgate"]["device"] = "Other GPU"
    (suite.path / files[1]).write_text(json.dumps(other))
    assert main(["baseline", "--from", *files]) == Exit.REFUSED
    assert "no baseline: process 1 ran on Fake-GPU_torch2.11, process 2 on Other-GPU" in capsys.readouterr().err
    assert not written(suite)


def test_a_broken_file_is_not_merged(suite: Suite, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = suite.path / files[2]
    path.write_bytes(path.read_bytes()[:1000])
    assert main(["baseline", "--from", *files]) == Exit.REFUSED
    said = capsys.readouterr().err
    assert "p2.json is broken or cut off at line" in said
    assert "perfgate baseline --from" not in said  # that is what was just done


def test_numbers_are_taken_one_after_the_other(suite: Suite, files: list[str]) -> None:
    for _ in range(2):
        assert main(["baseline", "--from", *files]) == Exit.OK
    assert [path.name for path in written(suite)] == ["0001_default.json", "0002_default.json"]


def test_cases_that_are_gone_on_purpose_leave_a_baseline_that_is_else_the_same(suite: Suite, files: list[str]) -> None:
    for name in files:
        document = suite.document(name)
        document["perfgate"]["out_of_memory"] = {"large": "no memory", "other": "no memory"}
        (suite.path / name).write_text(json.dumps(document))
    assert main(["baseline", "--from", *files]) == Exit.OK
    (first,) = written(suite)
    assert main(["baseline", "--from", str(first), "--without", "c$|^large"]) == Exit.OK
    before, after = (json.loads(path.read_text()) for path in written(suite))
    known = baseline.read(first)
    assert "speed/c" in known.records
    assert baseline.from_document(after).records == {k: v for k, v in known.records.items() if k != "speed/c"}
    assert after["perfgate"].pop("out_of_memory") == {"other": "no memory"}
    del before["perfgate"]["out_of_memory"]
    left = [b for b in before.pop("benchmarks") if b["extra_info"]["perfgate"]["case"]["name"] != "speed/c"]
    assert left == after.pop("benchmarks")
    assert before == after


def test_what_another_python_measured_is_filed_where_that_one_looks_for_it(suite: Suite, files: list[str]) -> None:
    there = {"system": "Linux", "python_implementation": "CPython", "python_version": "3.99.1"}
    for name in files:
        document = suite.document(name)
        document["machine_info"].update(there)
        (suite.path / name).write_text(json.dumps(document))
    assert main(["baseline", "--from", *files]) == Exit.OK
    (path,) = written(suite)
    assert path.parent.name.startswith("Linux-CPython-3.99-")


def test_an_interrupt_leaves_nothing_but_the_processes_files(suite: Suite) -> None:
    suite.write(
        test_speed="""
        import pathlib, time

        def test_speed(gpu_benchmark):
            gpu_benchmark(lambda: 1.0, name="first")

        def test_wait(gpu_benchmark):
            pathlib.Path("waiting").touch()
            time.sleep(30)
        """
    )
    command = [sys.executable, "-m", "perfgate", "baseline", "--keep=kept"]
    with subprocess.Popen(command, cwd=suite.path, stderr=subprocess.PIPE, text=True, start_new_session=True) as child:
        deadline = time.monotonic() + 30
        while not (suite.path / "waiting").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does
        _, said = child.communicate(timeout=30)
    assert child.returncode == 2
    assert said.strip() == "perfgate: interrupted"
    assert not written(suite)
    assert (suite.path / "kept" / "process-1.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["baseline", "--processes=0"], "expected a number of processes, 1 or more, got '0'"),
        (["baseline", "--devices=0,,1"], "expected devices as CUDA_VISIBLE_DEVICES names them, each once, got '0,,1'"),
        (["baseline", "--devices=0,0"], "expected devices as CUDA_VISIBLE_DEVICES names them, each once, got '0,0'"),
        (["baseline", "--visible=nan", "--from", "p0.json"], "--visible must be a percentage above 0"),
        (["baseline", "--from", "p0.json", "--", "-k", "a"], "--from measures nothing, so it takes no suite, got -k a"),
        (["baseline", "--from", "p0.json", "--without", "x/y"], "'x/y' is found in the name of no case, such as "),
        (
            ["baseline", "--from", "p0.json", "--without", "("],
            "expected a regular expression for names of cases, got '('",
        ),
        (["baseline", "--from", "p0.json", "--without", "."], "holds no case that perfgate timed"),
        (["baseline", "--without", "a"], "give the files with --from, or deselect with -k"),
        (["baseline", "--label=a/b", "--from", "p0.json"], "expected letters, digits, '.', '_' and '-', got 'a/b'"),
        (["report", "nowhere.json"], "nowhere.json cannot be read: No such file"),
        (["report", "nowhere.jsonl"], "cannot read journal nowhere.jsonl: No such file"),
        (["report", "p0.json", "--format=pdf"], "invalid choice: 'pdf'"),
        (["report", "p0.json", "--axis=("], "not a regular expression"),
        (["report", "p0.json", "--along=b"], "give that too"),
        (["report", "p0.json", "--block=x"], "give the document with --out"),
        (["report", "p0.json", "p1.json", "--format=svg"], "a picture shows one file, got 2"),
        (["judge"], "invalid choice: 'judge'"),
    ],
)
def test_bad_input_is_one_clear_line(
    suite: Suite, files: list[str], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as error:  # argparse
        code = int(str(error.code))
    said = capsys.readouterr()
    assert code not in (0, pytest.ExitCode.INTERRUPTED)
    assert message in said.err.splitlines()[-1]
    assert not said.out


def test_an_error_that_nobody_foresaw_is_neither_green_nor_a_regression(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> int:
        raise TypeError("nobody foresaw this")

    monkeypatch.setattr(accept, "command", broken)
    assert main(["accept", "case", "--because", "it is wanted"]) == pytest.ExitCode.INTERNAL_ERROR
    said = capsys.readouterr().err.splitlines()
    assert "TypeError: nobody foresaw this" in said
    assert said[-1] == "perfgate: an error in perfgate itself, or in a plugin: TypeError: nobody foresaw this"


@pytest.mark.parametrize("arguments", [["gate", "-k", "foo"], ["--unheard-of"], ["baseline", "--processes=x"]])
def test_wrong_options_end_with_their_code(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == Exit.USAGE


@pytest.mark.parametrize("command", [[], ["baseline"], ["report"]])
def test_each_command_has_its_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*command, "--help"])
    assert "usage: perfgate" in capsys.readouterr().out


def test_a_report_of_a_baseline_and_of_a_journal_show_the_same_cases(
    suite: Suite, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    suite.run()
    capsys.readouterr()
    texts = []
    for path in (files[2], str(suite.journals[0])):
        assert main(["report", path]) == Exit.OK
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert "copy 4.00 TB/s" in texts[0]


def test_a_report_of_a_run_that_did_not_end_says_so(suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    suite.write(test_wrong="def test_wrong():\n    assert False")
    suite.run()
    assert main(["report", str(suite.journals[0])]) == Exit.OK
    assert "is of a run that did not come to its end, or failed" in capsys.readouterr().out


def test_a_saved_run_is_judged_again(suite: Suite, filed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite.run("--benchmark-save=slow", SLOW="b")
    (slow,) = (suite.path / ".benchmarks").rglob("*slow.json")
    assert main(["report", str(slow), "--against", str(filed)]) == Exit.REGRESSED
    assert "speed/b regressed: new/old in [" in capsys.readouterr().out
    assert main(["report", str(filed), "--against", str(filed)]) == Exit.OK


def test_markdown_goes_into_a_documents_block(suite: Suite, files: list[str]) -> None:
    readme = suite.path / "README.md"
    readme.write_text("before\n<!-- generated: table -->\nold\n<!-- end -->\nafter\n")
    assert main(["report", files[0], "--format=markdown", "--out=README.md", "--block=table"]) == Exit.OK
    text = readme.read_text()
    assert text.startswith("before\n<!-- generated: table -->\n")
    assert text.endswith("\n<!-- end -->\nafter\n")
    assert "speed/a" in text
    assert "\nold\n" not in text


def test_a_document_without_the_block_is_left_alone(suite: Suite, files: list[str], capsys: Any) -> None:
    (suite.path / "README.md").write_text("text")
    assert main(["report", files[0], "--out=README.md", "--block=table"]) == Exit.USAGE
    assert (suite.path / "README.md").read_text() == "text"


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system without a free byte."""
    with disk(tmp_path / "full", "8k") as place:
        yield place


def test_a_full_disk_leaves_no_half_baseline(suite: Suite, files: list[str], full_disk: Path) -> None:
    assert main(["baseline", "--from", *files, "--storage", str(full_disk)]) == Exit.REFUSED
    assert not [path for path in full_disk.rglob("*") if path.is_file()]


def test_a_full_disk_is_found_before_anything_is_measured(suite: Suite, full_disk: Path, capsys: Any) -> None:
    assert main(["baseline", "--storage", str(full_disk)]) == Exit.LOST
    assert "MiB are free at" in capsys.readouterr().err


def test_the_plugin_is_named_only_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [])
    monkeypatch.delenv("PYTEST_PLUGINS", raising=False)
    assert fresh.plugin_arguments() == ["-p", "perfgate.plugin"]
    monkeypatch.setenv("PYTEST_PLUGINS", "other,perfgate.plugin")
    assert fresh.plugin_arguments() == []
    monkeypatch.delenv("PYTEST_PLUGINS")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: ["perfgate"])
    assert fresh.plugin_arguments() == []


def starts_of(environment: Environment, count: int, path: Path, names: tuple[str, str]) -> Path:
    """Runs of unchanged code at so many starts, each slower than the one before by 0.2 %."""
    for i in range(count):
        run = started(f"start {i}", 1 + i / 500, names=names)
        origin = replace(run.origin, environment=environment, date=f"2026-01-01T00:00:{i:02}+00:00")
        data.append(path, replace(run, origin=origin))
    return path


def test_a_baseline_carries_what_sessions_differ_by(
    suite: Suite, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    here = baseline.from_document(suite.document(files[0])).environment
    runs = starts_of(here, 6, suite.path / "trust.jsonl", ("speed/a", "speed/b"))
    assert main(["baseline", "--from", *files, "--sessions", str(runs)]) == Exit.OK
    (path,) = written(suite)
    assert "two sessions differ by an sd of 0.47%, as 6 starts did" in capsys.readouterr().out
    assert baseline.read(path).session == pytest.approx(0.0047, rel=0.01)


@pytest.mark.parametrize(("count", "names", "known"), [(4, ("speed/a", "speed/b"), 0), (6, ("speed/a", "another"), 1)])
def test_what_too_few_starts_or_cases_say_of_sessions_is_not_carried(
    suite: Suite, files: list[str], count: int, names: tuple[str, str], known: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor what the first file carried."""
    document = suite.document(files[0])
    document["perfgate"]["session"] = {"sd": 0.001}
    (suite.path / files[0]).write_text(json.dumps(document))
    here = baseline.from_document(document).environment
    runs = starts_of(here, count, suite.path / "trust.jsonl", names)
    assert main(["baseline", "--from", *files, "--sessions", str(runs)]) == Exit.OK
    (path,) = written(suite)
    said = f"{known} of 3 cases were timed at 5 starts or more of {here.key}: what sessions differ by stays assumed"
    assert said in capsys.readouterr().out
    assert baseline.read(path).session is None


def test_runs_that_are_not_there_are_said_before_anything_is_measured(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("perfgate.recording.measure", lambda *_, **__: pytest.fail("this was measured"))
    assert main(["baseline", "--sessions", "nothing.jsonl"]) == Exit.USAGE
    assert "nothing.jsonl" in capsys.readouterr().err


def test_a_merged_baseline_holds_what_its_processes_measured(suite: Suite, files: list[str]) -> None:
    assert main(["baseline", "--from", *files]) == Exit.OK
    (path,) = written(suite)
    merged = {b["fullname"]: b for b in json.loads(path.read_text())["benchmarks"]}
    for i, name in enumerate(files):
        for benchmark in suite.document(name)["benchmarks"]:
            alone = Record.from_json(benchmark["extra_info"]["perfgate"])
            together = Record.from_json(merged[benchmark["fullname"]]["extra_info"]["perfgate"])
            assert together.processes[i] == alone.processes[0]
