"""What is saved where, and which baselines are refused before anything is timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perfgate import Environment, preflight
from perfgate.gate import Exit

from .conftest import KEY, NODES, OPENS_JSON_AT_THE_START, Suite


def refused(suite: Suite, *arguments: str, **environment: str) -> str:
    """The one line with which a run refuses before it times anything."""
    result = suite.spawn("--benchmark-compare", *arguments, **environment)
    assert result.ret == Exit.REFUSED
    assert not suite.journals
    output = [*result.outlines, *result.errlines]
    assert not [line for line in output if "Traceback" in line or "INTERNALERROR" in line]
    lines = {line.strip("! ") for line in output if "Exit:" in line}
    (line,) = {line.partition("Exit: ")[2] for line in lines}
    return line


def test_runs_are_filed_by_environment(suite: Suite) -> None:
    assert suite.run("--benchmark-autosave", "--benchmark-storage=file://./kept").ret == 0
    (saved,) = (suite.path / "kept").rglob("*.json")
    assert saved.relative_to(suite.path / "kept").parts[:2] == (KEY, preflight.machine_id())
    document = json.loads(saved.read_text())
    assert Environment.from_json(document["machine_info"]["perfgate"]).device == "Fake GPU"


def test_another_environment_finds_no_baseline(suite: Suite, filed: Path) -> None:
    result = suite.run("--benchmark-compare", DEVICE="Other GPU")
    assert result.ret == Exit.OK
    result.stdout.fnmatch_lines(["note: no baseline of Other-GPU_torch2.11 in *"])


def test_another_environments_baseline_is_refused(suite: Suite, filed: Path) -> None:
    line = refused(suite, f"--benchmark-compare={filed}", DEVICE="Other GPU")
    assert line == f"this is Other-GPU_torch2.11, the baseline {filed} is of {KEY}: measure a baseline here"


def test_a_driver_that_differs_is_said(suite: Suite, filed: Path) -> None:
    result = suite.run("--benchmark-compare", DRIVER="590.2")
    assert result.ret == Exit.OK
    result.stdout.fnmatch_lines(["note: driver 590.2 here, 580.1 in the baseline"])


def test_another_method_is_refused_case_by_case(suite: Suite, document: dict[str, Any]) -> None:
    for benchmark in document["benchmarks"]:
        part = benchmark["extra_info"]["perfgate"]
        if part["case"]["name"] == "speed/b":
            part["method"]["l2"] = "warm"
    suite.file(document)
    result = suite.run("--benchmark-compare")
    assert result.ret == Exit.REFUSED
    result.stdout.fnmatch_lines(
        ["speed/b refused: timed by another method: fake v1, L2 cold, * now, fake v1, L2 warm*"]
    )


def test_a_corrupt_newest_baseline_is_refused_and_not_passed_over(suite: Suite, filed: Path) -> None:
    newest = filed.with_name("0002_base.json")
    newest.write_bytes(filed.read_bytes()[:-500])
    line = refused(suite)
    assert line.startswith(f"{newest.relative_to(suite.path)} is broken or cut off at line ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("[]", "is not pytest-benchmark's"),
        ('{"benchmarks": 3, "perfgate": {}}', "is not pytest-benchmark's"),
        ("\0", "is broken or cut off"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused(suite: Suite, filed: Path, content: str, message: str) -> None:
    filed.with_name("0002_base.json").write_text(content)
    assert f"0002_base.json {message}" in refused(suite)


def test_a_run_that_did_not_end_is_refused_as_a_baseline(suite: Suite) -> None:
    suite.write(test_wrong="def test_wrong():\n    assert False")
    assert suite.run("--benchmark-save=x").ret == pytest.ExitCode.TESTS_FAILED
    for journal in suite.journals:
        journal.unlink()
    assert "0001_x.json is of an incomplete run (3 of 3 cases, exit status 1)" in refused(suite)


def test_what_pytest_benchmark_alone_saved_is_refused(suite: Suite, document: dict[str, Any]) -> None:
    del document["perfgate"], document["machine_info"]["perfgate"]
    path = suite.file(document)
    assert refused(suite) == f"{path.relative_to(suite.path)} was not saved with perfgate: measure the baseline anew"


def test_what_pytest_benchmark_alone_saved_is_its_own_to_compare_with(suite: Suite, document: dict[str, Any]) -> None:
    del document["perfgate"]
    path = suite.file(document)
    suite.write(test_speed="def test_speed(benchmark):\n    benchmark(sum, [1])")
    result = suite.run(f"--benchmark-compare={path}", "--benchmark-max-time=0.001")
    assert result.ret == Exit.OK
    assert not suite.journals


def test_a_storage_elsewhere_does_not_crash_on_another_machine(
    suite: Suite, document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    del document["perfgate"]
    path = suite.file(document)
    suite.write(test_speed="def test_speed(benchmark):\n    benchmark(sum, [1])")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    result = suite.spawn(
        f"--benchmark-compare={path}", f"--benchmark-storage={elsewhere}", "--benchmark-max-time=0.001", NODE="there"
    )
    assert result.ret == Exit.OK


def test_our_baselines_are_compared_without_the_stock_warning(
    suite: Suite, document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    suite.file(document)
    result = suite.spawn("--benchmark-compare", "-Werror", NODE="there")
    assert result.ret == Exit.OK
    assert "machine_info is different" not in result.stdout.str() + result.stderr.str()


def test_a_chosen_number_is_compared_with(suite: Suite, document: dict[str, Any]) -> None:
    suite.file(document, "one")
    suite.file({**document, "perfgate": {**document["perfgate"], "complete": False}}, "two")
    result = suite.run("--benchmark-compare=0001")
    assert result.ret == Exit.OK
    result.stdout.fnmatch_lines([f"perfgate: {KEY}, compared with *0001_one.json"])
    assert suite.run("--benchmark-compare=0002").ret == Exit.REFUSED


@pytest.mark.parametrize("asked", ["0007", "nowhere.json", "a/b/c.json", "{path}/c.json"])
def test_a_baseline_that_is_named_and_not_there_is_refused(suite: Suite, filed: Path, asked: str) -> None:
    asked = asked.format(path=suite.path)
    line = refused(suite, f"--benchmark-compare={asked}")
    assert line.startswith(f"--benchmark-compare: there is no file {asked}, and none in ")


def test_what_pytest_benchmark_times_needs_no_baseline(suite: Suite) -> None:
    (suite.path / "test_speed.py").unlink()
    suite.write(test_stock="def test_stock(benchmark):\n    benchmark(sum, [1])")
    assert suite.run("--benchmark-compare=0007", "--benchmark-max-time=0.001").ret == Exit.OK


def test_of_several_the_last_is_judged_against_and_that_is_said(suite: Suite, document: dict[str, Any]) -> None:
    suite.file(document, "one")
    suite.file({**document, "datetime": "2026-01-01T00:00:00"}, "two")
    result = suite.run("--benchmark-compare=000")
    assert result.ret == Exit.OK
    result.stdout.fnmatch_lines(["note: several files are compared with; the verdicts are against *0002_two.json"])


def test_a_stale_json_is_gone_before_the_first_case(suite: Suite) -> None:
    (suite.path / "out.json").write_text("{}")
    suite.write(test_aaa="import os\n\ndef test_aaa():\n    assert not os.path.exists('out.json')\n    os._exit(9)")
    assert suite.spawn("--benchmark-json=out.json").ret == 9
    assert not (suite.path / "out.json").exists()


def test_collecting_leaves_the_json_alone(suite: Suite) -> None:
    (suite.path / "out.json").write_text("{}")
    assert suite.run("--collect-only", "--benchmark-json=out.json").ret == 0
    if not OPENS_JSON_AT_THE_START:
        assert (suite.path / "out.json").read_text() == "{}"


@pytest.mark.parametrize("target", ["nowhere/out.json", "."])
def test_a_json_that_could_not_be_written_is_refused_at_once(suite: Suite, target: str) -> None:
    result = suite.run(f"--benchmark-json={target}")
    assert result.ret == Exit.USAGE
    assert not suite.journals


def test_too_little_room_is_found_before_anything_is_timed(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "ROOM", 2**80)
    result = suite.run()
    assert result.ret == Exit.LOST
    result.stdout.fnmatch_lines(["*MiB are free at *, results need *: free some space*"])
    assert not suite.journals


def test_the_newest_file_is_the_one_pytest_benchmark_takes(tmp_path: Path) -> None:
    for name in ("M/0001_z.json", "M/0003_a.json", "0002_b.json", "M/notes.json", "N/0009_c.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert preflight.compared(tmp_path, "M", True) == [tmp_path / "M/0003_a.json"]
    assert preflight.compared(tmp_path, "M", "000*") == [
        tmp_path / "M/0001_z.json",
        tmp_path / "0002_b.json",
        tmp_path / "M/0003_a.json",
    ]
    assert preflight.compared(tmp_path, "M", "N/0009") == [tmp_path / "N/0009_c.json"]
    assert preflight.compared(tmp_path, "M", str(tmp_path / "M/notes.json")) == [tmp_path / "M/notes.json"]
    assert preflight.compared(tmp_path / "none", "M", True) == []


def test_the_nodes_of_the_suite_are_what_the_tests_here_say(suite: Suite) -> None:
    suite.run("--benchmark-json=out.json")
    assert {b["fullname"] for b in suite.document()["benchmarks"]} == set(NODES.values())
