"""From a run to its exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perfgate import baseline
from perfgate.__main__ import main
from perfgate.gate import Exit

from .conftest import NODES, Suite


def test_unchanged_code_is_green_twice(suite: Suite, filed: Path) -> None:
    for process in ("0.001", "-0.001"):
        result = suite.run("--benchmark-compare", PROCESS=process)
        assert result.ret == Exit.OK
        result.stdout.fnmatch_lines(["0 regressed, 0 improved, 3 unchanged, 0 unresolved, 0 new, 0 missing"])


def test_a_regression_fails_the_run_and_only_the_slowed_case_is_named(suite: Suite, filed: Path) -> None:
    result = suite.run("--benchmark-compare", SLOW="b")
    assert result.ret == Exit.REGRESSED
    named = [line for line in result.outlines if "regressed: new/old in [" in line]
    assert [line.split()[0] for line in named] == ["speed/b"]
    result.assert_outcomes(passed=3)


LAUNCHING = """
    import os
    import pytest
    from perfgate import FakeClock
    from perfgate.kernels import Kernel, Kernels

    @pytest.hookimpl(tryfirst=True)
    def pytest_perf_clock(config):
        kernel = Kernel(name="flash", grid=(132, 1, 1), block=(128, 1, 1), code="a", registers=128)
        if "SLOW" in os.environ:
            kernel = Kernel(name="flash", grid=(132, 1, 1), block=(128, 1, 1), code="b", registers=168)
        return FakeClock(process=float(os.environ.get("PROCESS", "0")), seconds=lambda result: result,
                         kernels=Kernels.of([kernel]))
"""


def test_a_regression_says_what_changed_in_its_kernels(suite: Suite) -> None:
    suite.pytester.syspathinsert()
    suite.write(launching=LAUNCHING)
    for i in range(3):
        assert suite.run("-p", "launching", f"--benchmark-json={i}.json", PROCESS=f"{0.001 * i}").ret == Exit.OK
    suite.file(baseline.merge([suite.document(f"{i}.json") for i in range(3)]))
    result = suite.run("-p", "launching", "--benchmark-compare", SLOW="b")
    assert result.ret == Exit.REGRESSED
    result.stdout.fnmatch_lines(["speed/b regressed: new/old in *", "    flash: code changed, registers 128 -> 168"])


SHORT = """
    import os

    def test_short(gpu_benchmark):
        seconds = 5.2e-6 * (1.06 if "SLOW" in os.environ else 1)
        gpu_benchmark(lambda: seconds, name="short", group="short")
"""


def test_a_short_call_may_be_slower_on_another_device_of_the_kind(suite: Suite) -> None:
    suite.write(test_speed=SHORT)
    for i in range(3):
        assert suite.run(f"--benchmark-json={i}.json", PROCESS=f"{0.001 * i}", UUID="GPU-1").ret == Exit.OK
    suite.file(baseline.merge([suite.document(f"{i}.json") for i in range(3)]))
    assert suite.run("--benchmark-compare", SLOW="all", UUID="GPU-1").ret == Exit.REGRESSED
    result = suite.run("--benchmark-compare", SLOW="all", UUID="GPU-2")
    assert result.ret == Exit.OK
    result.stdout.fnmatch_lines(["*another * than the baseline's: of short calls only larger slowdowns are called"])


@pytest.mark.parametrize("option", ["--no-summary", "-q", "-qq", "--tb=no", "--benchmark-quiet"])
def test_the_exit_code_does_not_hang_on_what_is_printed(suite: Suite, filed: Path, option: str) -> None:
    result = suite.run("--benchmark-compare", option, SLOW="b")
    assert result.ret == Exit.REGRESSED
    result.stdout.fnmatch_lines(["speed/b regressed: new/old in *"])


def test_the_section_stands_below_the_table(suite: Suite, filed: Path) -> None:
    lines = suite.run("--benchmark-compare").outlines
    table = next(i for i, line in enumerate(lines) if line.startswith("Name (time in "))
    section = next(i for i, line in enumerate(lines) if "= perfgate =" in line)
    assert table < section
    assert sum("= perfgate =" in line for line in lines) == 1


@pytest.mark.parametrize(("columns", "whole"), [(None, True), ("80", False)])
def test_a_log_has_room_for_the_whole_table(
    suite: Suite, filed: Path, monkeypatch: pytest.MonkeyPatch, columns: str | None, whole: bool
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    lines = suite.spawn("--benchmark-compare").outlines
    assert any("P95" in line and "peak mem" in line for line in lines) is whole
    assert any(line.startswith("no room in 80 columns for: ") for line in lines) is not whole


def test_the_section_stands_also_where_pytest_benchmark_fails_the_run(suite: Suite, filed: Path) -> None:
    result = suite.spawn("--benchmark-compare", "--benchmark-compare-fail=median:5%", SLOW="b")
    assert result.ret == Exit.REGRESSED
    result.stdout.fnmatch_lines(["speed/b regressed: new/old in *"])


def test_a_floor_above_the_change_lets_it_pass(suite: Suite, filed: Path) -> None:
    assert suite.run("--benchmark-compare", "--perf-floor=20", SLOW="b").ret == Exit.OK


def test_without_a_baseline_all_is_new_and_that_is_said(suite: Suite) -> None:
    result = suite.run("--benchmark-compare")
    assert result.ret == Exit.OK
    result.stdout.fnmatch_lines(["note: no baseline of Fake-GPU_torch2.11 in *: `perfgate baseline` measures one"])
    result.stdout.fnmatch_lines(["*3 new, 0 missing"])
    assert suite.run("--benchmark-compare", "--perf-strict").ret == Exit.INCOMPLETE


def test_a_new_case_is_listed_and_fails_only_a_strict_run(suite: Suite, filed: Path) -> None:
    suite.write(test_new="def test_new(gpu_benchmark):\n    gpu_benchmark(lambda: 1e-3, name='new/one')")
    result = suite.run("--benchmark-compare")
    assert result.ret == Exit.OK
    result.stdout.fnmatch_lines(["new/one new: *"])
    assert suite.run("--benchmark-compare", "--perf-strict").ret == Exit.INCOMPLETE


def test_a_case_whose_test_gave_no_number_is_missing(suite: Suite, filed: Path) -> None:
    suite.pytester.makepyfile(
        test_speed="""
        import pytest

        @pytest.mark.parametrize("case", ["a", "b", "c"])
        def test_speed(case, seconds, gpu_benchmark):
            if case == "c":
                pytest.skip("not on this device")
            gpu_benchmark(lambda: seconds, name=f"speed/{case}", group="speed", reference=case == "a")
        """
    )
    result = suite.run("--benchmark-compare")
    assert result.ret == Exit.INCOMPLETE
    result.stdout.fnmatch_lines(["speed/c missing: *", "*0 new, 1 missing"])


def test_what_was_deselected_is_not_missing_in_a_report_either(
    suite: Suite, filed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert suite.run("--benchmark-compare", "-k", "not speed[c]", "--benchmark-json=out.json").ret == Exit.OK
    assert main(["report", "out.json", "--against", str(filed)]) == Exit.OK
    assert "0 new, 0 missing" in capsys.readouterr().out
    document = suite.document("out.json")
    document["perfgate"]["deselected"] = []
    (suite.path / "out.json").write_text(json.dumps(document))
    assert main(["report", "out.json", "--against", str(filed)]) == Exit.INCOMPLETE
    assert "0 new, 1 missing" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["test_speed.py"], ["."], ["test_speed.py::test_speed"]])
def test_a_case_whose_test_was_removed_is_missing(suite: Suite, filed: Path, arguments: list[str]) -> None:
    source = (suite.path / "test_speed.py").read_text()
    (suite.path / "test_speed.py").write_text(source.replace('"a", "b", "c"', '"a", "b"'))
    result = suite.run(*arguments, "--benchmark-compare")
    assert result.ret == Exit.INCOMPLETE
    result.stdout.fnmatch_lines(["speed/c missing: *"])


@pytest.mark.parametrize(
    "arguments",
    [
        [NODES["a"]],
        ["-k", "a or b"],
        ["-m", "not slow", "-k", "b"],
        ["--deselect", NODES["c"]],
        ["test_other.py", NODES["b"]],
    ],
)
def test_what_was_deselected_is_not_missing(suite: Suite, filed: Path, arguments: list[str]) -> None:
    suite.write(test_other="def test_other():\n    pass")
    (suite.path / "pytest.ini").write_text("[pytest]\nmarkers = slow")
    result = suite.run(*arguments, "--benchmark-compare", "--perf-strict")
    assert result.ret == Exit.OK
    result.stdout.fnmatch_lines(["*0 new, 0 missing"])


@pytest.mark.parametrize("option", ["--ignore=test_speed.py", "--ignore-glob=*_speed.py"])
def test_what_lies_in_an_ignored_file_is_not_missing(suite: Suite, filed: Path, option: str) -> None:
    suite.write(test_more="def test_more(gpu_benchmark):\n    gpu_benchmark(lambda: 1.0, name='speed/d')")
    suite.run(option, "--benchmark-compare").stdout.fnmatch_lines(["*1 new, 0 missing"])


DESELECTING = """
    def pytest_collection_modifyitems(config, items):
        left = [item for item in items if "[b]" in item.nodeid]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]
"""


def test_what_a_suite_deselects_by_itself_hides_nothing_else_that_is_gone(suite: Suite, filed: Path) -> None:
    suite.pytester.syspathinsert()
    suite.write(deselecting=DESELECTING)
    result = suite.run("-p", "deselecting", "--benchmark-compare", "--perf-strict")
    assert result.ret == Exit.OK
    result.stdout.fnmatch_lines(["*0 new, 0 missing"])
    source = (suite.path / "test_speed.py").read_text()
    (suite.path / "test_speed.py").write_text(source.replace('"a", "b", "c"', '"a", "b"'))
    result = suite.run("-p", "deselecting", "--benchmark-compare", "--perf-strict")
    assert result.ret == Exit.INCOMPLETE
    result.stdout.fnmatch_lines(["speed/c missing: *", "*0 new, 1 missing"])


def test_a_gate_that_measured_nothing_is_not_green(suite: Suite, filed: Path) -> None:
    suite.pytester.makepyfile(
        test_speed="""
        import pytest

        @pytest.mark.parametrize("case", ["a", "b", "c"])
        def test_speed(case, gpu_benchmark):
            pytest.skip("no")
        """
    )
    assert suite.run("--benchmark-compare").ret == Exit.INCOMPLETE


def test_a_run_without_cases_is_none_of_our_business(suite: Suite, filed: Path) -> None:
    suite.write(test_other="def test_other():\n    pass")
    result = suite.run("test_other.py", "--benchmark-compare", "--perf-strict")
    assert result.ret == Exit.OK
    assert "perfgate" not in "\n".join(line for line in result.outlines if not line.startswith("plugins:"))
    assert not suite.journals


def test_a_failing_test_keeps_its_own_exit_code(suite: Suite, document: dict[str, Any]) -> None:
    for benchmark in document["benchmarks"]:
        benchmark["extra_info"]["perfgate"]["method"]["version"] = 0
    suite.file(document)
    suite.write(test_wrong="def test_wrong():\n    assert False")
    assert suite.run("--benchmark-compare").ret == pytest.ExitCode.TESTS_FAILED


def test_out_of_memory_where_the_baseline_has_a_number_is_a_regression(suite: Suite, filed: Path) -> None:
    suite.pytester.makepyfile(
        test_speed="""
        import pytest

        @pytest.mark.parametrize("case", ["a", "b", "c"])
        def test_speed(case, seconds, gpu_benchmark):
            if case == "c":
                raise MemoryError("Tried to allocate 80 GiB")  # before the case has told its name
            gpu_benchmark(lambda: seconds, name=f"speed/{case}", group="speed", reference=case == "a")
        """
    )
    result = suite.run("--benchmark-compare")
    assert result.ret == Exit.REGRESSED
    result.stdout.fnmatch_lines(["speed/c regressed: out of memory, but not in the baseline: Tried to allocate 80 GiB"])
    result.assert_outcomes(passed=2, skipped=1)
