"""Base against head: a block's workers import and collect while the last one's are at work, and leave the GPU alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from perfgate.ab import blocks, crew
from perfgate.ab.blocks import Blocks
from perfgate.ab.refusals import Refused
from perfgate.ab.workers import Worker
from perfgate.gate import Exit

from .ab_repository import Repository

ELSEWHERE = 'Environment(device="Fake GPU", versions={"torch": "2.11.0"})'
ON_A_GPU = 'Environment(device="Fake GPU", versions={"torch": "2.11.0"}, facts={"uuid": "1"})'
USES_IT = """
import os, pathlib

USED = pathlib.Path(os.environ["USED"])

def pytest_collection_modifyitems():
    (USED / str(os.getpid())).touch()

@pytest.hookimpl(tryfirst=True)
def pytest_perf_environment(config):
    others = {path.name for path in USED.iterdir() if pathlib.Path("/proc", path.name).exists()} - {str(os.getpid())}
    if others and "--perf-allow-busy" not in config.invocation_params.args:
        pytest.exit("the GPU is busy", 12)
    return Environment(device="Fake GPU", versions={"torch": "2.11.0"}, facts={"uuid": "1"})
"""
"""While it is collected."""
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
def workers() -> list[Worker]:
    """All that were started."""
    return []


@pytest.fixture
def seen(repository: Repository, workers: list[Worker], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was done, in order."""
    happened: list[str] = []

    class Watched(Worker):
        def __init__(self, side: Any, *given: Any) -> None:
            happened.append(f"start {side}")
            super().__init__(side, *given)
            workers.append(self)

        def hello(self) -> Mapping[str, Any]:
            happened.append(f"begin {self.side}")
            return super().hello()

        def send(self, **message: object) -> None:
            if "time" in message:
                happened.append("visit")
            super().send(**message)

    def free(environment: object) -> None:
        happened.append("free?")

    monkeypatch.setattr(crew, "Worker", Watched)
    monkeypatch.setattr(crew, "must_be_free", free)
    monkeypatch.setattr(crew, "cores", lambda: crew.CORES)
    conftest = repository.path / "conftest.py"
    conftest.write_text(conftest.read_text().replace(ELSEWHERE, ON_A_GPU))
    repository.commit("on a GPU")
    yield happened
    assert all(worker.code is not None for worker in workers)


START, BEGIN = ["start head", "start base"], ["begin head", "begin base"]
ODD = BEGIN[::-1]
"""In the second block, and each other one after it: the memory that is there first is not always the head's."""
CASE = ["visit"] * 4
"""Of a case in a block: three that are the suite's, and a canary."""


def test_workers_of_the_next_block_start_before_this_one_ends(repository: Repository, seen: list[str]) -> None:
    assert repository.ab("--base=HEAD", "--blocks=2") == Exit.OK
    # all cases are among the last few; and a block may follow that does not come
    assert seen == [*START, *BEGIN, *START, *4 * CASE, "free?", *ODD, *START, *4 * CASE]


def test_they_start_when_few_cases_are_left_and_never_in_the_last_block(
    repository: Repository, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "AHEAD", 1)
    repository.slow("a")
    assert repository.ab("--confirm=2") == Exit.REGRESSED
    screen = [*START, *BEGIN, *3 * CASE, *START, *CASE]
    assert seen == [*screen, "free?", *ODD, *CASE, *START, *CASE, "free?", *BEGIN, *2 * CASE]


@pytest.mark.parametrize("why", ["few cores", "no GPU"])
def test_where_they_would_disturb_they_start_later(
    repository: Repository, seen: list[str], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why == "few cores":
        monkeypatch.setattr(crew, "cores", lambda: crew.CORES - 1)
    else:
        conftest = repository.path / "conftest.py"
        conftest.write_text(conftest.read_text().replace(ON_A_GPU, ELSEWHERE))
        repository.commit("not on a GPU")
    assert repository.ab("--base=HEAD", "--blocks=2") == Exit.OK
    assert seen == [*START, *BEGIN, *4 * CASE, *START, "free?", *ODD, *4 * CASE]


def test_suites_that_use_the_gpu_while_they_are_collected_start_once_it_is_seen_that_nobody_else_does(
    repository: Repository, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = repository.path / ".perfgate" / "used"
    used.mkdir(parents=True)
    monkeypatch.setenv("USED", str(used))
    with (repository.path / "conftest.py").open("a") as file:
        file.write(USES_IT)
    repository.commit("uses the GPU")
    assert repository.ab("--base=HEAD", "--blocks=2") == Exit.OK
    alone = ["start head", "begin head", "start base", "begin base", *4 * CASE]
    assert seen == [*START, "begin head", *alone, "free?", *START, *ODD, *4 * CASE]


@pytest.mark.parametrize("options", [(), ("--", "--perf-allow-busy")])
def test_a_suite_that_says_so_starts_alone_from_the_first_block_on(
    repository: Repository, seen: list[str], options: tuple[str, ...]
) -> None:
    """One side's is enough: it would use the GPU while a block before is timed."""
    with (repository.path / "conftest.py").open("a") as file:
        file.write("\nimport perfgate.plugin.worker\n\nperfgate.plugin.worker.in_use = lambda: True\n")
    assert repository.ab("--base=HEAD", "--blocks=2", *options) == Exit.OK
    alone = ["start head", "begin head", "start base", "begin base", *4 * CASE]
    assert seen == [*START, *alone, *([] if options else ["free?"]), *START, *ODD, *4 * CASE]


def test_nobody_is_asked_to_leave_where_others_may_use_the_gpu(repository: Repository, seen: list[str]) -> None:
    assert repository.ab("--base=HEAD", "--blocks=2", "--", "--perf-allow-busy") == Exit.OK
    assert seen == [*START, *BEGIN, *START, *4 * CASE, *ODD, *START, *4 * CASE]


def test_a_head_that_is_changed_once_the_next_block_has_started_is_not_compared(
    repository: Repository, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(self: Blocks) -> None:
        if "visit" in seen:
            repository.slow("a")

    monkeypatch.setattr(Blocks, "_look_where_code_is_from", changed)
    assert repository.ab("--base=HEAD", "--blocks=2") == Exit.INCOMPLETE
    assert seen == [*START, *BEGIN, *START, *4 * CASE]


@pytest.mark.parametrize("others", [False, True])
def test_whether_workers_that_wait_or_others_use_the_gpu_is_seen_without_them(
    repository: Repository, seen: list[str], monkeypatch: pytest.MonkeyPatch, others: bool
) -> None:
    def busy(environment: object) -> None:
        seen.append("free?")
        if others or seen.count("free?") == 1:
            raise Refused("the GPU is busy", Exit.UNFIT)

    monkeypatch.setattr(crew, "must_be_free", busy)
    block = [*ODD, *4 * CASE]
    assert repository.ab("--base=HEAD", "--blocks=2") == (Exit.UNFIT if others else Exit.OK)
    assert seen == [*START, *BEGIN, *START, *4 * CASE, "free?", "free?", *([] if others else [*START, *block])]


def test_workers_of_which_one_died_while_they_waited_are_replaced(
    repository: Repository, seen: list[str], workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def visited(self: Blocks, *given: object) -> None:
        if len(workers) == 4 and workers[3].code is None:
            workers[3].stop(at_once=True)

    monkeypatch.setattr(Blocks, "_look_where_code_is_from", visited)
    assert repository.ab("--base=HEAD", "--blocks=2") == Exit.OK
    assert seen == [*START, *BEGIN, *START, *4 * CASE, *START, "free?", *ODD, *START, *4 * CASE]


def test_a_suite_that_can_be_collected_no_more_is_said(
    repository: Repository, seen: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENDED", str(repository.path / ".perfgate" / "ended"))
    (repository.path / ".perfgate").mkdir()
    with (repository.path / "conftest.py").open("a") as file:
        file.write(ENDS)
    repository.commit("ends")
    assert repository.ab("--base=HEAD", "--blocks=2") == Exit.INCOMPLETE
    assert seen.count("visit") == 4 * len(CASE)
    assert "ended (exit code 7) before it had collected its tests" in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("quota", "cores"), [("200000 100000", 2), ("max 100000", 64), ("950000 100000", 9), (None, 64), ("", 64)]
)
def test_a_containers_share_of_the_cpu_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(crew, "QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert crew.cores() == cores
