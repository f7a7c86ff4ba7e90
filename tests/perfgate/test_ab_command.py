"""Base against head, whole: small repositories, real worktrees and worker processes, a fake clock."""

from __future__ import annotations

import argparse
import json
import re
from textwrap import dedent

import pytest

from perfgate import contest
from perfgate.__main__ import main
from perfgate.ab import command
from perfgate.ab.progress import Progress
from perfgate.gate import Exit

from . import ab_stand_in
from .ab_repository import CONFTEST, LAUNCHED, Repository


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


def test_a_case_that_is_tuned_anew_in_each_process_is_not_called_and_it_is_said(
    repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    """By perfgate's own rule: the sides take the slower configuration by turns."""
    conftest = repository.path / "conftest.py"
    launching = CONFTEST.replace("seconds=lambda result: result", "seconds=tuned, kernels=launched")
    conftest.write_text(
        f"""{dedent(launching)}{LAUNCHED}
import pathlib

place = pathlib.Path({str(repository.path / ".perfgate")!r})
side = "head" if pathlib.Path(__file__).parent == place.parent else "base"
place.mkdir(exist_ok=True)
started = len(list(place.glob(f"{{side}}-*")))
(place / f"{{side}}-{{started}}").touch()
SLOWER = 1.05 if started % 2 == (side == "head") else 1.0

def tuned(result):
    return result * (SLOWER if result == 2e-3 else 1)

launched_ = launched
launched = lambda result: launched_(tuned(result))
"""
    )
    repository.commit("tuned anew")
    code = main(["ab", "--base=HEAD", "--blocks=2", "--seed=1", "--json=result.json", "--strict"])
    assert (code, repository.states()["speed/b"]) == (Exit.UNRESOLVED, "unresolved")
    said = capfd.readouterr().out
    assert "\n    the kernels differ between the processes of one side\n" in said
    assert repository.result()["controls"] == ["canary/copy", "speed/a", "speed/c"]


def test_a_case_on_one_side_only_is_new_or_missing(repository: Repository) -> None:
    repository.write("src/kernels.py", "SECONDS = {'a': 1e-3, 'b': 2e-3, 'd': 4e-3}\n")
    assert repository.ab() == Exit.INCOMPLETE
    expected = {"speed/a": "unchanged", "speed/b": "unchanged", "speed/c": "missing", "speed/d": "new"}
    assert repository.states() == expected


def test_a_new_case_fails_a_strict_run_alone(repository: Repository) -> None:
    source = (repository.path / "src/kernels.py").read_text()
    repository.write("src/kernels.py", source + "SECONDS['d'] = 4e-3\n")
    assert repository.ab() == Exit.OK
    assert repository.states()["speed/d"] == "new"
    repository.journal.unlink()
    assert repository.ab("--strict") == Exit.INCOMPLETE


def test_the_help_says_how_a_strict_run_fails() -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    said = " ".join(parser.format_help().split())
    assert f"exit code {Exit.INCOMPLETE:d} as missing ones do, and unresolved ones with {Exit.UNRESOLVED:d}" in said


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


@pytest.mark.parametrize("error", [ValueError("no wrong option"), ZeroDivisionError()])
def test_an_error_in_the_harness_is_no_regression_and_what_was_timed_is_kept(
    repository: Repository, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: object) -> list[str]:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(contest, "suspects", broken)
        assert main(["ab", "--base=HEAD", "--blocks=1"]) == pytest.ExitCode.INTERNAL_ERROR
    said = capfd.readouterr().err.splitlines()[-1]
    journal = repository.journal.relative_to(repository.path)
    assert f"RuntimeError: {type(error).__name__}: {error}; what was timed is in {journal}: perfgate ab --from" in said
    assert len(repository.entries("visit")) > 4
    assert main(["ab", f"--from={repository.journal}"]) == Exit.UNFIT
    assert "the run did not come to its end: 3 of 3 cases were compared" in capfd.readouterr().out


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
