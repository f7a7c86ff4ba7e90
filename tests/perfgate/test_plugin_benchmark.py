"""What pytest-benchmark can do with its own timings works on device times."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perfgate.gate import Exit
from perfgate.journal import read

from .conftest import KEY, Suite


@pytest.fixture
def mixed(suite: Suite) -> Suite:
    """The suite, beside a test that pytest-benchmark times itself and one that times nothing."""
    suite.write(
        test_mixed="""
        def test_stock(benchmark):
            benchmark.pedantic(sum, args=([1],), rounds=3)

        def test_plain():
            pass
        """
    )
    return suite


def test_only(mixed: Suite) -> None:
    mixed.run("--benchmark-only").assert_outcomes(passed=4, skipped=1)


def test_skip(mixed: Suite, filed: Path) -> None:
    result = mixed.run("--benchmark-skip", "--benchmark-compare", "--perf-strict")
    result.assert_outcomes(passed=1, skipped=4)
    assert result.ret == Exit.OK
    assert not mixed.journals


def test_disable_and_enable(mixed: Suite) -> None:
    mixed.run("--benchmark-disable").assert_outcomes(passed=5)
    assert not mixed.journals
    mixed.run("--benchmark-disable", "--benchmark-enable").assert_outcomes(passed=5)
    assert len(mixed.journals) == 1


def test_the_recorded_durations_are_the_measured_ones(mixed: Suite) -> None:
    mixed.run("--benchmark-json=out.json")
    (journal,) = mixed.journals
    stored = {b["fullname"]: b for b in mixed.document()["benchmarks"]}
    assert "perfgate" not in stored.pop("test_mixed.py::test_stock")["extra_info"]
    for benchmark in stored.values():
        name = benchmark["extra_info"]["perfgate"]["case"]["name"]
        seconds = read(journal).records[name].processes[0].seconds
        assert benchmark["stats"]["data"] == pytest.approx(seconds, abs=1e-10)  # a record's resolution
        assert benchmark["stats"]["rounds"] == len(seconds)
        assert benchmark["options"]["timer"] == "replay"


def test_a_run_saved_beside_stock_timings_is_a_baseline(mixed: Suite) -> None:
    assert mixed.run("--benchmark-save=x").ret == 0
    result = mixed.run("--benchmark-compare", "--perf-strict")
    assert result.ret == Exit.UNRESOLVED  # one process knows nothing of the noise; but all is there
    result.stdout.fnmatch_lines(["0 regressed, *3 unresolved, 0 new, 0 missing"])


@pytest.mark.parametrize("option", ["--benchmark-save=x", "--benchmark-autosave"])
def test_save_with_and_without_data(suite: Suite, option: str) -> None:
    suite.run(option)
    suite.run(option, "--benchmark-save-data")
    without, with_data = (json.loads(p.read_text()) for p in sorted((suite.path / ".benchmarks" / KEY).rglob("*.json")))
    assert "data" not in without["benchmarks"][0]["stats"]
    assert len(with_data["benchmarks"][0]["stats"]["data"]) == 40


def test_compare_shows_both_runs(suite: Suite, filed: Path) -> None:
    result = suite.run("--benchmark-compare")
    rows = [line.split()[:2] for line in result.outlines if line.startswith("test_speed[")]
    assert sorted(rows) == [[f"test_speed[{c}]", which] for c in "abc" for which in ("(0001_base)", "(NOW)")]


@pytest.mark.parametrize(
    "options",
    [
        ["--benchmark-group-by=func"],
        ["--benchmark-group-by=group,param:case"],
        ["--benchmark-columns=min,median,rounds"],
        ["--benchmark-sort=name"],
        ["--benchmark-name=short"],
        ["--benchmark-time-unit=us"],
        ["--benchmark-warmup=on"],
        ["--benchmark-disable-gc"],
        ["--benchmark-min-rounds=3", "--benchmark-max-time=0.1", "--benchmark-calibration-precision=100"],
        ["--benchmark-timer=time.process_time"],
        ["--benchmark-cprofile=ncalls"],
    ],
)
def test_tables_are_made_of_device_times(suite: Suite, options: list[str]) -> None:
    result = suite.run("--benchmark-json=out.json", *options)
    result.assert_outcomes(passed=3)
    assert sum("speed[" in line or line.startswith(("a ", "b ", "c ")) for line in result.outlines) >= 3
    for benchmark in suite.document()["benchmarks"]:
        assert benchmark["stats"]["median"] == pytest.approx(1e-3, rel=0.01)
        assert benchmark["stats"]["rounds"] == 40


def test_cprofile_sees_the_call_itself(suite: Suite) -> None:
    suite.write(
        test_speed="""
        def my_kernel():
            return 1.0

        def test_speed(gpu_benchmark):
            gpu_benchmark(my_kernel)
        """
    )
    suite.run("--benchmark-cprofile=ncalls").stdout.fnmatch_lines(["*test_speed.py:*(my_kernel)"])


def test_a_marker_of_the_users_keeps_its_settings(suite: Suite) -> None:
    suite.write(
        test_speed="""
        import pytest

        @pytest.mark.benchmark(group="mine", min_rounds=7)
        def test_speed(gpu_benchmark):
            gpu_benchmark(lambda: 1.0)
        """
    )
    suite.run("--benchmark-json=out.json")
    (benchmark,) = suite.document()["benchmarks"]
    assert benchmark["group"] == "mine"
    assert (benchmark["options"]["min_rounds"], benchmark["options"]["timer"]) == (7, "replay")


@pytest.mark.parametrize(("slow", "code"), [("", Exit.OK), ("b", Exit.REGRESSED)])
def test_compare_fail(suite: Suite, filed: Path, slow: str, code: Exit) -> None:
    options = ["--benchmark-compare", "--benchmark-compare-fail=median:5%", "--perf-floor=50"]
    assert suite.spawn(*options, SLOW=slow).ret == code


@pytest.mark.skipif(importlib.util.find_spec("pygal") is None, reason="needs pygal")
def test_histogram(suite: Suite) -> None:
    assert suite.spawn("--benchmark-histogram=h").ret == 0
    assert list(suite.path.glob("h*.svg"))


def test_the_command_line_of_pytest_benchmark_reads_our_files(suite: Suite, filed: Path, document: Any) -> None:
    second = suite.file(document, "again")
    tool = [sys.executable, "-m", "pytest_benchmark", f"--storage={suite.path / '.benchmarks' / KEY}"]
    listed = subprocess.run([*tool, "list"], capture_output=True, text=True, check=True).stdout.split()
    assert listed == [str(filed), str(second)]
    ways = ["--columns=min,median,iqr,rounds", "--group-by=name"]
    help_text = subprocess.run([*tool, "compare", "--help"], capture_output=True, text=True, check=True).stdout
    if "--between" in help_text:
        ways.append("--between=median")
    for way in ways:
        compared = subprocess.run([*tool, "compare", way], capture_output=True, text=True, check=True).stdout
        assert all(f"test_speed[{case}]" in compared for case in "abc")
