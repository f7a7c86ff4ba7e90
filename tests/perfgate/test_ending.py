"""No run is green that did not come to its end, whatever its process says."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from perfgate import ending
from perfgate.__main__ import main
from perfgate.gate import Exit

from .conftest import Suite

LEAVES = "import os\n\n@pytest.fixture(autouse=True)\ndef leaves(case):\n    yield\n    if case == 'b': os._exit({})\n"


@pytest.fixture
def here(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:cacheprovider -p no:hypothesispytest --perf-again=0")
    return suite


def leaves(suite: Suite, how: str) -> None:
    """The process of this suite ends after its second test was timed."""
    conftest = suite.path / "conftest.py"
    conftest.write_text(f"{conftest.read_text()}\n{LEAVES.format(how)}")


def test_the_gate_passes_on_what_pytest_says(here: Suite, filed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", "test_speed.py"]) == Exit.OK
    assert "3 unchanged" in capfd.readouterr().out
    leaves(here, "int('wrong')")
    assert main(["gate"]) == Exit.REGRESSED
    assert main(["gate", "--", "--unheard-of"]) == Exit.USAGE
    assert main(["gate", "--", "--help"]) == Exit.OK
    assert "perfgate: " not in capfd.readouterr().err


def test_a_regression_ends_the_gate_with_1(
    here: Suite, filed: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOW", "b")
    assert main(["gate"]) == Exit.REGRESSED
    assert "speed/b regressed" in capfd.readouterr().out


def test_a_test_that_ends_the_process_with_code_0_is_not_green(
    here: Suite, filed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    leaves(here, "0")
    assert here.spawn("--benchmark-compare").ret == 0  # nobody is left in there to say otherwise
    capfd.readouterr()
    assert main(["gate"]) == Exit.INCOMPLETE
    assert "perfgate: pytest ended with exit code 0 before it came to its end" in capfd.readouterr().err


RESUMES = """
def pytest_terminal_summary(config):
    if not config.getoption("perf_fresh"):
        os._exit(0)
"""


def test_a_fresh_process_gives_no_receipt_for_the_one_that_asked_it(
    here: Suite, filed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conftest = here.path / "conftest.py"
    conftest.write_text(f"{conftest.read_text()}\n{RESUMES}")
    monkeypatch.setenv("SLOW", "b")
    assert main(["gate", "--", "--perf-again=1"]) == Exit.INCOMPLETE


@pytest.mark.parametrize("text", ["", "{", "null", "[0]"])
def test_a_broken_receipt_is_none(tmp_path: Path, text: str) -> None:
    receipt = tmp_path / "receipt.json"
    assert ending._read(receipt) is None
    receipt.write_text(text)
    assert ending._read(receipt) is None


def test_an_exit_handler_that_ends_the_process_with_code_0_hides_no_regression(
    here: Suite, filed: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    conftest = here.path / "conftest.py"
    conftest.write_text(f"{conftest.read_text()}\n\nimport atexit\natexit.register(os._exit, 0)\n")
    monkeypatch.setenv("SLOW", "b")
    assert main(["gate"]) == Exit.REGRESSED
    assert "perfgate: pytest came to exit code 1 and ended with 0" in capfd.readouterr().err
    monkeypatch.delenv("SLOW")
    assert main(["gate"]) == Exit.OK


def test_a_run_that_is_killed_is_incomplete(here: Suite, filed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    leaves(here, "os.kill(os.getpid(), 9)")
    assert main(["gate"]) == Exit.INCOMPLETE
    assert "perfgate: pytest was killed by signal 9" in capfd.readouterr().err


def test_an_interrupted_gate_lets_pytest_come_to_its_end(
    here: Suite, filed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    here.write(
        test_more=f"""
        import os, signal

        def test_interrupts(gpu_benchmark):
            os.kill({os.getpid()}, signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
    """
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    code, why = ending.run(["--benchmark-only", "test_more.py", "test_speed.py"])
    assert (code, why) == (pytest.ExitCode.INTERRUPTED, None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_gate_that_is_asked_to_end_interrupts_pytest(here: Suite, filed: Path, number: signal.Signals) -> None:
    """As nox does after Ctrl-C."""
    here.write(
        test_more=f"""
        import os, time

        def test_goes_on(gpu_benchmark):
            os.kill({os.getpid()}, {int(number)})
            time.sleep(60)
    """
    )
    before = signal.getsignal(number)
    code, why = ending.run(["--benchmark-only", "test_more.py"])
    assert (code, why) == (pytest.ExitCode.INTERRUPTED, None)
    assert signal.getsignal(number) is before


SKIPS = "import pytest\n\ndef test_skips(gpu_benchmark):\n    pytest.skip('not here')\n"


@pytest.mark.parametrize("text", [SKIPS, "def test_other():\n    pass\n"])
def test_a_gate_that_measured_nothing_is_not_green(here: Suite, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    here.write(test_none=text)
    assert main(["gate", "test_none.py"]) == Exit.INCOMPLETE
    assert "perfgate: nothing was measured" in capfd.readouterr().err
    assert main(["gate", "test_none.py", "--", "--collect-only"]) == Exit.OK
