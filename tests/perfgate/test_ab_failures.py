"""Base against head: what fails, dies, does not fit or is interrupted is said, and nothing is left behind."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perfgate.ab import crew, refusals
from perfgate.ab.workers import GOING, Worker
from perfgate.contest import Side
from perfgate.gate import Exit

from .ab_repository import Repository

ROOT = Path(__file__).parents[2]


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
    busy = itertools.repeat(["process 8 computes on GPU 0"])
    answers = itertools.chain([next(busy), []], busy)  # soon free before the second block, busy before the third
    monkeypatch.setattr(refusals, "FORGETTING", 0.2)
    monkeypatch.setattr("perfgate.nvml.busy", lambda which: next(answers))
    assert repository.ab("--base=HEAD", "--blocks=3") == Exit.UNFIT
    assert len(repository.entries("block")) == 2
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


def test_a_worker_ends_its_fixtures_and_then_at_once(repository: Repository) -> None:
    conftest = repository.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + f"""
import atexit, os, pathlib, time

@pytest.fixture(scope="session", autouse=True)
def place():
    yield
    (pathlib.Path("{repository.path}/.perfgate") / f"ended-{{os.getpid()}}").touch()

atexit.register(time.sleep, 60)
"""
    )
    repository.commit("a way out that takes long")
    begin = time.monotonic()
    assert repository.ab("--base=HEAD") == Exit.OK
    assert time.monotonic() - begin < GOING
    assert len(list((repository.path / ".perfgate").glob("ended-*"))) == 2


def test_an_error_of_a_session_s_end_is_in_the_workers_logs(repository: Repository) -> None:
    conftest = repository.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + """
@pytest.fixture(scope="session", autouse=True)
def place():
    yield
    raise RuntimeError("the place cannot be left")
"""
    )
    repository.commit("an end that fails")
    repository.write("src/kernels.py", "SECONDS = {'a': 1e-3, 'b': 2e-3}\n")
    assert repository.ab() == Exit.INCOMPLETE  # logs stay
    logs = [*repository.journal.with_suffix("").glob("*.log")]
    assert len(logs) == 2
    assert all("the place cannot be left" in log.read_text() for log in logs)


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
    repository: Repository, monkeypatch: pytest.MonkeyPatch, settles: bool
) -> None:
    told: list[Side] = []

    class Watched(Worker):
        def send(self, **message: object) -> None:
            if "run" in message:
                told.append(self.side)
            super().send(**message)

    monkeypatch.setattr(crew, "Worker", Watched)
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
    assert repository.ab("--base=HEAD", "--blocks=2") == Exit.OK
    assert set(repository.states().values()) == {"unchanged"}
    prepared = 4 + 1 if settles else 4 * 2
    assert len((repository.path / ".perfgate" / "prepared").read_text()) == 2 * 2 * prepared
    # and no side is always the first
    assert told == [*prepared * ["base", "head"], *prepared * ["head", "base"]]
    assert repository.errors()["speed/a"] == [*[1e-3] * 4, *[None] * 4]  # checked in the first block alone


@pytest.mark.parametrize("check", [False, True])
def test_what_does_not_fit_into_the_head_alone_has_regressed(repository: Repository, check: bool) -> None:
    suite = repository.path / "test_speed.py"
    if check:
        suite.write_text(suite.read_text().replace('{case}")', '{case}", check=lambda result: None)'))
        repository.commit("checked")
    suite.write_text(
        suite.read_text().replace("lambda: SECONDS[case]", "lambda: SECONDS[case] if case != 'c' else no()")
    )
    suite.write_text(suite.read_text() + "\ndef no():\n    raise MemoryError('no room')\n")
    assert repository.ab() == Exit.REGRESSED
    assert repository.states()["speed/c"] == "regressed"


def test_a_check_that_does_not_fit_fails(repository: Repository) -> None:
    suite = repository.path / "test_speed.py"
    suite.write_text(suite.read_text().replace('{case}")', '{case}", check=check if case == "c" else None)'))
    suite.write_text(suite.read_text() + "\ndef check(_):\n    raise MemoryError('no room')\n")
    assert repository.ab() == Exit.REGRESSED
    (ended,) = repository.entries("ended")
    assert (ended["side"], ended["ended"], ended["reason"]) == (
        "head",
        "failed",
        "its check ran out of memory: no room",
    )


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
