"""What a check returns is kept and judged, and a strict run fails of what it cannot tell."""

from __future__ import annotations

from typing import Any

import pytest

from perfgate import baseline, price
from perfgate.gate import Exit
from perfgate.verdict import Noise

from .conftest import Suite

CHECKED = """
    import math, os
    import pytest

    @pytest.mark.parametrize("case", ["a", "b", "c"])
    def test_speed(case, seconds, gpu_benchmark):
        error = float(os.environ.get("ERROR", "1e-3")) if case == "b" else 1e-3
        check = {"a": lambda _: None, "b": lambda _: {"out": error, "dq": 2 * error}, "c": lambda _: True}[case]
        gpu_benchmark(lambda: seconds, name=f"speed/{case}", group="speed", reference=case == "a", check=check)
"""


@pytest.fixture
def checked(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A suite with a baseline that knows the errors of case b."""
    monkeypatch.delenv("ERROR", raising=False)
    suite.write(test_speed=CHECKED)
    files = [f"{i}.json" for i in range(3)]
    for i, file in enumerate(files):
        assert suite.run(f"--benchmark-json={file}", PROCESS=f"{0.001 * i}").ret == Exit.OK
    suite.file(baseline.merge([suite.document(file) for file in files]))
    return suite


def test_the_errors_of_a_check_are_kept_in_the_baseline(checked: Suite) -> None:
    (path,) = (checked.path / ".benchmarks").rglob("*.json")
    found = {name: price.errors(record) for name, record in baseline.read(path).records.items()}
    assert found == {"speed/a": {}, "speed/b": {"out": [1e-3] * 3, "dq": [2e-3] * 3}, "speed/c": {}}


def test_a_case_that_got_less_accurate_fails_the_run_and_is_named(checked: Suite) -> None:
    assert checked.run("--benchmark-compare").ret == Exit.OK
    result = checked.run("--benchmark-compare", ERROR="1.1e-3")
    assert result.ret == Exit.REGRESSED
    result.stdout.fnmatch_lines(
        ["speed/b regressed in accuracy: mean error of out 0.0011 now, 0.001 in the baseline (+10.0 %)*"]
    )
    result.stdout.fnmatch_lines(["0 regressed, 0 improved, 3 unchanged, *0 missing, 1 regressed in accuracy"])


@pytest.mark.parametrize("option", ["", "--benchmark-disable"])
@pytest.mark.parametrize("error", ["nan", "inf"])
def test_an_error_that_is_no_finite_number_fails_the_test(suite: Suite, error: str, option: str) -> None:
    suite.write(test_speed=CHECKED)
    result = suite.run(*filter(None, [option]), ERROR=error)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines([f"*speed/b: the error of out must be finite and not negative, got {error}"])


def test_an_error_that_is_no_finite_number_fails_the_test_also_without_pytest_benchmark(suite: Suite) -> None:
    suite.write(test_speed=CHECKED)
    suite.pytester.makeconftest("import pytest\n@pytest.fixture\ndef seconds():\n    return 1e-3")
    suite.spawn("-p", "no:benchmark", ERROR="nan").assert_outcomes(passed=2, failed=1)


def test_a_call_whose_memory_grew_fails_the_run_and_only_memory_is_named(
    suite: Suite, document: dict[str, Any]
) -> None:
    for benchmark in document["benchmarks"]:
        for process in benchmark["extra_info"]["perfgate"]["processes"]:
            process["counters"]["peak_bytes"] = 2.0**24
    suite.file(document)
    suite.pytester.makepyfile(
        larger="""
        import dataclasses
        import pytest
        from perfgate import FakeClock

        class Larger:
            def measure(self, call, inputs=((),), *, l2="cold"):
                samples = FakeClock(seconds=lambda result: result).measure(call, inputs, l2=l2)
                return dataclasses.replace(samples, counters={**samples.counters, "peak_bytes": 2.0**25})

        @pytest.hookimpl(tryfirst=True)
        def pytest_perf_clock(config):
            return Larger()
        """
    )
    suite.pytester.syspathinsert()
    result = suite.run("-p", "larger", "test_speed.py::test_speed[b]", "--benchmark-compare")
    assert result.ret == Exit.REGRESSED
    result.stdout.fnmatch_lines(
        ["speed/b regressed in memory: peak memory 33,554,432 B now, 16,777,216 B in the baseline (+100.0 %)"]
    )


@pytest.mark.parametrize(("option", "code"), [([], Exit.OK), (["--perf-strict"], Exit.UNRESOLVED)])
def test_a_case_unresolved_fails_a_strict_run_with_a_code_of_its_own(
    suite: Suite, document: dict[str, Any], option: list[str], code: int
) -> None:
    for benchmark in document["benchmarks"]:  # one process, so nothing is known of the noise
        benchmark["extra_info"]["perfgate"]["processes"] = benchmark["extra_info"]["perfgate"]["processes"][:1]
    path = suite.file(document)
    records = baseline.read(path).records
    assert Noise.of(records.values()).prior is None
    result = suite.run("--benchmark-compare", *option)
    assert result.ret == code
    result.stdout.fnmatch_lines(["0 regressed, 0 improved, 0 unchanged, 3 unresolved, 0 new, 0 missing"])
