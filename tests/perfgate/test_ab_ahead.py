"""Base against head: a block's workers import and collect while the last one's are at work, and leave the GPU alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from perfgate.ab import blocks
from perfgate.ab.workers import Worker
from perfgate.gate import Exit

from .ab_repository import Repository

ELSEWHERE = 'Environment(device="Fake GPU", versions={"torch": "2.11.0"})'
ON_A_GPU = 'Environment(device="Fake GPU", versions={"torch": "2.11.0"}, facts={"uuid": "1"})'
USES_IT = "\nimport perfgate.plugin.worker\n\nperfgate.plugin.worker.in_use = lambda: True\n"
ENDS = """
import os, pathlib

def pytest_collection_modifyitems():
    with open(os.environ["ENDED"], "a") as file:
        file.write("x")
    if pathlib.Path(os.environ["ENDED"]).stat().st_size > 2:
        os._exit(7)
"""
"""In the second block."""


@pytest.fixture
def seen(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was done in order; visits as they came to the journal."""
    happened: list[str] = []
    workers: list[Worker] = []

    class Watched(Worker):
        def __init__(self, side: Any, *given: Any) -> None:
            happened.append(f"start {side}")
            super().__init__(side, *given)
            workers.append(self)

        def begin(self) -> None:
            assert self.code is None
            happened.append(f"begin {self.side}")
            super().begin()

        def send(self, **message: object) -> None:
            if "time" in message:
                happened.append("visit")
            super().send(**message)

    def free(environment: object) -> None:
        happened.append("free?")

    monkeypatch.setattr(blocks, "Worker", Watched)
    monkeypatch.setattr(blocks, "must_be_free", free)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(blocks.CORES)))
    conftest = repository.path / "conftest.py"
    conftest.write_text(conftest.read_text().replace(ELSEWHERE, ON_A_GPU))
    repository.commit("on a GPU")
    yield happened
    assert all(worker.code is not None for worker in workers)


START, BEGIN = ["start head", "start base"], ["begin head", "begin base"]
CASE = ["visit"] * 4
"""Of a case in a block: three that are the suite's, and a canary."""


def test_workers_of_the_next_block_start_before_this_one_ends(repository: Repository, seen: list[str]) -> None:
    assert repository.ab("--base=HEAD", "--blocks=2") == Exit.OK
    # all cases are among the last few; and a block may follow that does not come
    assert seen == [*START, *BEGIN, *START, *4 * CASE, "free?", *BEGIN, *START, *4 * CASE]


def test_they_start_when_few_cases_are_left_and_never_in_the_last_block(
    repository: Repository, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "AHEAD", 1)
    repository.slow("a")
    assert repository.ab("--confirm=2") == Exit.REGRESSED
    screen = [*START, *BEGIN, *3 * CASE, *START, *CASE]
    assert seen == [*screen, "free?", *BEGIN, *CASE, *START, *CASE, "free?", *BEGIN, *2 * CASE]


@pytest.mark.parametrize("why", ["few cores", "no GPU"])
def test_where_they_would_disturb_they_start_later(
    repository: Repository, seen: list[str], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why == "few cores":
        monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(blocks.CORES - 1)))
    else:
        conftest = repository.path / "conftest.py"
        conftest.write_text(conftest.read_text().replace(ON_A_GPU, ELSEWHERE))
        repository.commit("not on a GPU")
    assert repository.ab("--base=HEAD", "--blocks=2") == Exit.OK
    block = [*BEGIN, *4 * CASE]
    assert seen == [*START, *block, *START, "free?", *block]


def test_suites_that_use_the_gpu_while_they_are_collected_start_once_it_is_seen_that_nobody_else_does(
    repository: Repository, seen: list[str]
) -> None:
    with (repository.path / "conftest.py").open("a") as file:
        file.write(USES_IT)
    repository.commit("uses the GPU")
    assert repository.ab("--base=HEAD", "--blocks=2") == Exit.OK
    block = ["start head", "begin head", "start base", "begin base", *4 * CASE]
    assert seen == [*START, *block, "free?", *block]


def test_a_worker_that_ends_while_it_waits_is_said(
    repository: Repository, seen: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENDED", str(repository.path / "ended"))
    with (repository.path / "conftest.py").open("a") as file:
        file.write(ENDS)
    repository.commit("ends")
    assert repository.ab("--base=HEAD", "--blocks=2") == Exit.INCOMPLETE
    assert seen == [*START, *BEGIN, *START, *4 * CASE]
    assert "ended (exit code 7) before it had collected its tests" in "".join(capfd.readouterr())
