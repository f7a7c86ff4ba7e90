"""Base against head: memory and accuracy are judged, too, and checked again where chance may have moved them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest

from perfgate.ab import stages
from perfgate.contest import Block
from perfgate.gate import Exit

from . import ab_stand_in
from .ab_repository import Repository


def test_each_visit_of_the_first_block_carries_what_its_check_found(repository: Repository) -> None:
    repository.checked()
    assert repository.ab("--base=HEAD", "--blocks=2") == Exit.OK
    unknown = [None] * 4
    assert repository.errors() == {
        "speed/a": [1e-3] * 4 + unknown,
        "speed/b": [2e-3] * 4 + unknown,
        "speed/c": unknown * 2,
        "canary/copy": unknown * 2,
    }
    repository.journal.unlink()
    assert repository.ab("--base=HEAD", "--blocks=2", "--check-always") == Exit.OK
    assert repository.errors()["speed/a"] == [1e-3] * 8


def test_a_case_that_got_less_accurate_is_red_and_named_although_it_is_no_slower(
    repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    repository.checked()
    suite = repository.path / "test_speed.py"
    suite.write_text(suite.read_text().replace('"b": 2e-3}', '"b": 3e-3}'))
    assert repository.ab() == Exit.REGRESSED
    assert set(repository.states().values()) == {"unchanged"}
    assert repository.states("accuracy") == {"speed/b": "regressed"}
    said = capfd.readouterr().out
    assert "speed/b regressed in accuracy: mean error of out 0.003 now, 0.002 in the base (+50.0 %)" in said
    assert "0 regressed, 0 improved, 3 unchanged, 0 unresolved, 0 new, 0 missing, 1 regressed in accuracy" in said


@pytest.mark.parametrize(("blocks", "stages"), [(1, [1, 2]), (2, [1, 1])])
def test_what_may_have_got_less_accurate_is_checked_again_and_nothing_else(
    repository: Repository, blocks: int, stages: list[int]
) -> None:
    repository.checked()
    suite = repository.path / "test_speed.py"
    suite.write_text(suite.read_text().replace('"b": 2e-3}', '"b": 3e-3}'))
    assert repository.ab(f"--blocks={blocks}") == Exit.REGRESSED
    assert [block["stage"] for block in repository.entries("block")] == stages
    assert sorted(filter(None, repository.errors()["speed/b"])) == [2e-3] * 4 + [3e-3] * 4
    assert repository.errors()["speed/a"] == [1e-3] * 4 + [None] * 4 * (blocks - 1)


def scattering(repository: Repository) -> None:
    """Commit a suite whose error differs by process."""
    repository.checked()
    suite = repository.path / "test_speed.py"
    counts = repository.path.parent / "counts"
    suite.write_text(
        suite.read_text()
        + f"""
import pathlib
side = pathlib.Path({str(counts)!r} + ("-base" if "perfgate-ab-" in __file__ else "-head"))
side.write_text((side.read_text() if side.exists() else "") + "x")
ERRORS["b"] = (1.5 if side.name.endswith("head") else 1) * (2 if len(side.read_text()) % 2 else 1)
"""
    )
    repository.commit("scatters by its process, and more in the head")


def test_an_error_that_scatters_is_not_red_and_checked_some_times(repository: Repository) -> None:
    scattering(repository)
    assert repository.ab("--base=HEAD", "--confirm=9") == Exit.OK
    assert repository.states("accuracy") == {"speed/b": "unresolved"}
    assert [block["stage"] for block in repository.entries("block")] == [1] + [2] * stages.CHECKS


def test_checks_go_on_for_some_blocks_only_once_times_are_decided(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    scattering(repository)
    repository.slow("a")

    def undecided(blocks: Sequence[Block], controls: Collection[str], picked: Sequence[str]) -> Sequence[str]:
        return [] if any(block.stage == 2 for block in blocks) else picked

    monkeypatch.setattr(ab_stand_in, "RULES", replace(ab_stand_in.RULES, undecided=undecided))
    assert repository.ab("--base=HEAD", "--confirm=9") == Exit.REGRESSED
    assert [block["stage"] for block in repository.entries("block")] == [1] + [2] * (1 + stages.CHECKS)


def test_a_case_that_needs_more_memory_is_red_and_named(
    repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    conftest = repository.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + """
import contextlib, dataclasses, types
from kernels import SECONDS

BYTES = 2.0**24

class Counting(FakeClock):
    @contextlib.contextmanager
    def prepare(self, call, inputs=((),), *, l2="cold"):
        with super().prepare(call, inputs, l2=l2) as prepared:
            peak = BYTES if call() == SECONDS["b"] else 2.0**24
            time = lambda: dataclasses.replace(prepared.time(), counters={"peak_bytes": peak})
            yield types.SimpleNamespace(time=time)

def pytest_perf_clock(config):
    return Counting(seconds=lambda result: result)
"""
    )
    repository.commit("counts")
    conftest.write_text(conftest.read_text().replace("BYTES = 2.0**24", "BYTES = 2.0**25"))
    assert repository.ab() == Exit.REGRESSED
    assert repository.states("memory") == {"speed/b": "regressed"}
    assert (
        "speed/b regressed in memory: peak memory 33,554,432 B now, 16,777,216 B in the base" in capfd.readouterr().out
    )


def test_an_error_that_is_no_finite_number_fails_the_test(
    repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    repository.checked()
    suite = repository.path / "test_speed.py"
    suite.write_text(suite.read_text().replace('"b": 2e-3}', '"b": float("nan")}'))
    assert repository.ab() == Exit.REGRESSED
    assert repository.states()["speed/b"] == "missing"
    assert "speed/b: the error of out must be finite and not negative, got nan" in capfd.readouterr().out
