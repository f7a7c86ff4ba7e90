"""Whatever goes wrong: no finished case is lost, and nothing is left that looks like a whole baseline."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfgate import baseline
from perfgate.baseline import BaselineError
from perfgate.fresh import plugin_arguments
from perfgate.gate import Exit
from perfgate.journal import read

from .conftest import Suite, disk

MORE = """
    import os, resource, signal, time
    import pytest

    def test_first(gpu_benchmark):
        gpu_benchmark(lambda: 1.0, name="first")

    def test_second(gpu_benchmark):
        gpu_benchmark(lambda: 1.0, name="second")
        {happens}

    def test_third(gpu_benchmark):
        gpu_benchmark(lambda: 1.0, name="third")
"""


def happens(suite: Suite, what: str) -> None:
    """Three cases; this happens in the second's test, after it was timed."""
    (suite.path / "test_speed.py").unlink()
    suite.write(test_more=MORE.format(happens=what))


def finished(suite: Suite) -> set[str]:
    (journal,) = suite.journals
    return set(read(journal).records)


@pytest.mark.parametrize("what", ["assert False", "pytest.fail('no')", "pytest.skip('no')", "raise KeyError('x')"])
def test_a_case_whose_test_does_not_pass_is_kept_nowhere(suite: Suite, what: str) -> None:
    happens(suite, what)
    result = suite.run("--benchmark-json=out.json", "--benchmark-save=x")
    assert suite.cases() == {"first", "third"}
    assert finished(suite) == {"first", "third"}
    assert not any(line.startswith("test_second ") for line in result.outlines)
    assert suite.document()["perfgate"]["complete"] is ("skip" in what)


@pytest.mark.parametrize("what", ["raise RuntimeError('no kernel')", "raise MeasureError('no kernel')"])
def test_a_call_that_raises_is_one_failure_and_no_warning(suite: Suite, what: str) -> None:
    (suite.path / "test_speed.py").unlink()
    suite.write(
        test_more=f"""
        from perfgate import MeasureError

        def test_first(gpu_benchmark):
            def call():
                {what}

            gpu_benchmark(call)
        """
    )
    result = suite.spawn("-Werror")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["FAILED *no kernel"])


def test_a_case_whose_teardown_fails_is_taken_back(suite: Suite) -> None:
    (suite.path / "test_speed.py").unlink()
    suite.write(
        test_more="""
        import pytest

        @pytest.fixture
        def resource():
            yield
            raise RuntimeError("the kernel wrote out of bounds")

        def test_first(gpu_benchmark):
            gpu_benchmark(lambda: 1.0, name="first")

        def test_second(resource, gpu_benchmark):
            gpu_benchmark(lambda: 1.0, name="second")
        """
    )
    assert suite.run("--benchmark-json=out.json").ret == pytest.ExitCode.TESTS_FAILED
    assert suite.cases() == finished(suite) == {"first"}


def test_an_expected_failure_is_not_kept(suite: Suite) -> None:
    (suite.path / "test_speed.py").unlink()
    suite.write(
        test_more="""
        import pytest

        @pytest.mark.xfail
        def test_first(gpu_benchmark):
            gpu_benchmark(lambda: 1.0, name="first")
            assert False
        """
    )
    suite.run("--benchmark-json=out.json").assert_outcomes(xfailed=1)
    assert not suite.journals


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_leaves_its_finished_cases_and_no_baseline(suite: Suite) -> None:
    happens(suite, "os.kill(os.getpid(), signal.SIGKILL)")
    (suite.path / "out.json").write_text('{"of": "an earlier run"}')
    result = suite.spawn("--benchmark-json=out.json", "--benchmark-save=x")
    assert result.ret == -signal.SIGKILL
    assert finished(suite) == {"first"}
    assert not read(suite.journals[0]).complete
    assert not list((suite.path / ".benchmarks").rglob("*.json"))
    assert not (suite.path / "out.json").exists()


def test_an_interrupt_saves_the_finished_cases_as_an_incomplete_run(suite: Suite) -> None:
    happens(suite, "os.kill(os.getpid(), signal.SIGINT); time.sleep(5)")
    result = suite.spawn("--benchmark-json=out.json")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert suite.cases() == finished(suite) == {"first"}
    with pytest.raises(BaselineError, match=r"incomplete run \(1 of 3 cases, exit status 2\)"):
        baseline.read(suite.path / "out.json")
    result.stdout.fnmatch_lines(["note: this run is incomplete (1 of 3 cases were measured)*"])


def test_an_interrupt_from_outside_while_a_case_is_timed(suite: Suite) -> None:
    (suite.path / "test_speed.py").unlink()
    suite.write(
        test_more="""
        import pathlib, time

        def test_first(gpu_benchmark):
            gpu_benchmark(lambda: 1.0, name="first")

        def wait():
            pathlib.Path("waiting").touch()
            time.sleep(30)

        def test_second(gpu_benchmark):
            gpu_benchmark(wait, name="second")
        """
    )
    command = [sys.executable, "-m", "pytest", *plugin_arguments(), "--benchmark-json=out.json"]
    with subprocess.Popen(command, cwd=suite.path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 30
        while not (suite.path / "waiting").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == pytest.ExitCode.INTERRUPTED
    assert suite.cases() == finished(suite) == {"first"}


def test_stopping_at_the_first_failure_is_an_incomplete_run(suite: Suite) -> None:
    happens(suite, "assert False")
    assert suite.run("-x", "--benchmark-json=out.json").ret == pytest.ExitCode.TESTS_FAILED
    assert suite.cases() == {"first"}
    assert suite.document()["perfgate"] | {"absent": None} == {
        "schema": 1,
        "complete": False,
        "exitstatus": 1,
        "collected": 3,
        "measured": 1,
        "processes": 1,
        "ceilings": {},
        "out_of_memory": {},
        "absent": None,
        "deselected": [],
    }


def test_a_test_that_forgot_to_time_makes_the_run_incomplete(suite: Suite) -> None:
    suite.write(test_forgot="def test_forgot(gpu_benchmark):\n    pass")
    suite.run("--benchmark-json=out.json")
    assert suite.document()["perfgate"]["complete"] is False


def test_of_reruns_the_last_is_kept(suite: Suite) -> None:
    """What pytest-rerunfailures does: the protocol again, with fixtures anew."""
    suite.pytester.makeconftest(
        (suite.path / "conftest.py").read_text()
        + """
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):
    runtestprotocol(item, nextitem=nextitem, log=False)
    item._initrequest()
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    return True
"""
    )
    (suite.path / "test_speed.py").unlink()
    suite.write(
        test_more="""
        import itertools
        turns = itertools.count(1)

        def test_first(gpu_benchmark):
            turn = next(turns)
            gpu_benchmark(lambda: float(turn), name="first")
            assert turn == 2
        """
    )
    result = suite.run("--benchmark-json=out.json")
    assert result.ret == 0
    (benchmark,) = suite.document()["benchmarks"]
    assert round(benchmark["stats"]["median"]) == 2
    assert round(read(suite.journals[0]).records["first"].processes[0].median) == 2
    assert sum(line.startswith("test_first ") for line in result.outlines) == 1


LIMIT = "resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(next(os.scandir('.perfgate'))) + {}, -1))"


def lift_limit(suite: Suite, hook: str) -> None:
    """Let files grow again from this hook on: the output, which is a file here, is not to fail too."""
    conftest = suite.path / "conftest.py"
    body = "import resource\n    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))"
    conftest.write_text(f"{conftest.read_text()}\n\n@pytest.hookimpl(tryfirst=True)\ndef {hook}():\n    {body}\n")


def test_a_journal_that_cannot_grow_ends_the_run_at_once_and_keeps_what_it_has(suite: Suite) -> None:
    happens(suite, LIMIT.format(50))
    lift_limit(suite, "pytest_runtest_logreport")
    result = suite.spawn()
    assert result.ret == Exit.LOST
    result.assert_outcomes(passed=2)
    assert finished(suite) == {"first"}
    result.stdout.fnmatch_lines(["*cannot write journal *: File too large; the cases before are kept in it. *"])
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


def test_a_save_that_fails_costs_neither_tables_nor_other_reports(suite: Suite) -> None:
    happens(suite, LIMIT.format(3000))
    lift_limit(suite, "pytest_terminal_summary")
    result = suite.spawn("--benchmark-json=out.json", "--benchmark-save=x", "--junitxml=junit.xml", "-rA")
    assert result.ret == Exit.LOST
    result.assert_outcomes(passed=3)
    assert sum(line.startswith(("test_first ", "test_second ", "test_third ")) for line in result.outlines) == 3
    result.stdout.fnmatch_lines(["note: results were lost: this run was not saved: *File too large; *in *.jsonl"])
    assert (suite.path / "junit.xml").exists()
    assert not (suite.path / "out.json").exists()
    assert not list((suite.path / ".benchmarks").rglob("*.json"))
    assert finished(suite) == {"first", "second", "third"}
    assert not read(suite.journals[0]).complete


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 18 MiB: what perfgate wants to have free, and little more."""
    with disk(tmp_path / "small", "18m") as place:
        yield place


def test_a_disk_that_fills_up_loses_no_finished_case(suite: Suite, small_disk: Path) -> None:
    filler = small_disk / "filler"
    happens(suite, f"open({str(filler)!r}, 'wb', 0).write(b'x' * 2**26)")
    test = suite.path / "test_more.py"
    page = os.sysconf("SC_PAGE_SIZE")  # what is left of the journal's last page is there, however full the disk
    test.write_text(test.read_text().replace('name="second"', f'name="second", group="g" * {page}'))
    journal = small_disk / "journal.jsonl"
    result = suite.spawn(
        f"--perf-journal={journal}", f"--benchmark-json={small_disk / 'out.json'}", f"--benchmark-storage={small_disk}"
    )
    assert result.ret == Exit.LOST
    result.stdout.fnmatch_lines(["*cannot write journal *: No space left on device; *"])
    assert set(read(journal).records) == {"first"}
    assert {path.name for path in small_disk.iterdir()} == {"filler", "journal.jsonl"}


@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="needs pytest-xdist")
def test_xdist_is_refused_with_one_clear_line(suite: Suite) -> None:
    result = suite.spawn("-n2")
    assert result.ret == Exit.USAGE
    line = "perf needs the device to itself: run without -n (got -n 2), or with --benchmark-disable"
    assert line in result.outlines
    assert "not used" not in result.stdout.str()
    assert not suite.journals
    result = suite.spawn("-n2", "--benchmark-only")
    assert result.ret == Exit.USAGE
    assert f"ERROR: {line}" in result.errlines
    assert suite.spawn("-n2", "--benchmark-disable").ret == Exit.OK
    assert suite.spawn("-n0").ret == Exit.OK


@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="needs pytest-xdist")
def test_tests_without_cases_run_under_xdist(suite: Suite) -> None:
    suite.write(test_speed="def test_other():\n    pass")
    assert suite.spawn("-n2").ret == Exit.OK


def test_without_pytest_benchmark_calls_run_once(suite: Suite) -> None:
    suite.pytester.makeconftest("import pytest\n\n@pytest.fixture\ndef seconds():\n    return 1.0")
    (suite.path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers")
    suite.write(
        test_more="""
        import pytest

        @pytest.mark.benchmark(group="x")
        def test_more(gpu_benchmark):
            calls = []
            assert gpu_benchmark(lambda x: calls.append(x) or 3, inputs=[(1,)], name="n", check=lambda r: r == 3) == 3
            assert calls == [1]
        """
    )
    result = suite.spawn("-p", "no:benchmark")
    assert result.ret == Exit.OK
    result.assert_outcomes(passed=4)
