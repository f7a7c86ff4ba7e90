"""Which blocks base against head is made of, and when they are enough: small repositories, a fake clock."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import pytest

from perfgate.ab import command, stages
from perfgate.ab.evidence import COMPLETE
from perfgate.ab.progress import Progress
from perfgate.contest import Block
from perfgate.gate import Exit

from . import ab_stand_in
from .ab_repository import KERNELS, Repository


def test_what_is_decided_is_not_visited_again(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    repository.write("src/kernels.py", f"{KERNELS}SECONDS['a'] *= 1.1\nSECONDS['b'] *= 1.1\n")

    def undecided(blocks: Sequence[Block], controls: Collection[str], picked: Sequence[str]) -> list[str]:
        done = sum(block.stage == 2 for block in blocks)
        return [name for name in picked if done < {"speed/a": 1, "speed/b": 2}[name]]

    monkeypatch.setattr(ab_stand_in, "RULES", replace(ab_stand_in.RULES, undecided=undecided))
    assert repository.ab("--confirm=4") == Exit.REGRESSED
    stages = [block["stage"] for block in repository.entries("block")]
    assert stages == [1, 2, 2]
    names = Counter(visit["visit"]["case"]["name"] for visit in repository.entries("visit"))
    assert names["speed/b"] == names["speed/a"] + 4


def visited(repository: Repository) -> list[set[str]]:
    """The suite's cases that each block visited."""
    blocks = repository.journal.read_text().split('{"block"')[1:]
    return [{case for case in ("a", "b", "c") if f'"speed/{case}"' in block} for block in blocks]


@pytest.mark.parametrize(("seconds", "blocks"), [(300.0, 2), (0.01, 1)])
def test_a_suite_that_takes_long_is_screened_by_one_block(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, seconds: float, blocks: int
) -> None:
    monkeypatch.setattr(stages, "SCREENING", seconds)
    assert repository.ab_by_default("--base=HEAD") == Exit.OK
    assert [block["stage"] for block in repository.entries("block")] == [1] * blocks
    notes = [entry["note"] for entry in repository.entries("note")]
    assert notes == (["1 block screened all cases, for 2 would have taken more than 0 minutes"] if blocks == 1 else [])


@pytest.mark.parametrize(("seconds", "fits", "said"), [(3500.0, {"a", "b"}, 2), (2500.0, {"b"}, 1), (1500.0, set(), 0)])
def test_a_second_block_screens_what_is_unsettled_as_far_as_there_is_time(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, seconds: float, fits: set[str], said: int
) -> None:
    """What is soonest visited comes first, with the controls: here the canary alone."""

    class Slow(command.Blocks):
        def run(self, *given: Any, **named: Any) -> None:
            super().run(*given, **named)
            self.took["speed/a"] = self.took["speed/b"] + 1

        def expected(self, names: Collection[str]) -> float:
            return 1000.0 * len(names)

    monkeypatch.setattr(command, "Blocks", Slow)
    monkeypatch.setattr(stages, "SCREENING", seconds)
    repository.write("src/kernels.py", f"{KERNELS}SECONDS['a'] *= 1.005\nSECONDS['b'] *= 1.005\n")  # and no suspect
    assert repository.ab_by_default() == Exit.OK
    assert visited(repository) == [{"a", "b", "c"}] + [fits] * bool(fits)
    assert repository.journal.read_text().count("canary/copy") == 1 + 4 + 4 * bool(fits)
    (note,) = (entry["note"] for entry in repository.entries("note"))
    assert note.endswith(f" minutes; another {said} of the 2 that it left unsettled")


def test_as_many_blocks_screen_as_were_asked_for(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "SCREENING", 0.01)
    assert repository.ab_by_default("--base=HEAD", "--blocks=3") == Exit.OK
    assert visited(repository) == [{"a", "b", "c"}] * 3
    assert repository.entries("note") == []


@pytest.mark.parametrize(
    ("asked", "fewest", "blocks"), [(None, 2, 2), (None, 3, 3), (4, 2, 4)], ids=["two", "three", "asked for"]
)
def test_confirming_ends_in_time(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, asked: int | None, fewest: int, blocks: int
) -> None:
    """A block in which nothing could be called yet is run however late it is, and so is what was asked for."""
    repository.write("src/kernels.py", f"{KERNELS}SECONDS['a'] *= 1.1\n")
    for name, value in {"SCREENING": 0.01, "CONFIRMING": 0.01, "FEWEST": fewest}.items():
        monkeypatch.setattr(stages, name, value)
    open_ = replace(ab_stand_in.RULES, undecided=lambda blocks, controls, picked: list(picked))
    monkeypatch.setattr(ab_stand_in, "RULES", open_)
    assert repository.ab_by_default(confirm=asked) == Exit.REGRESSED
    assert [block["stage"] for block in repository.entries("block")] == [1] + [2] * blocks
    cut = [entry["note"] for entry in repository.entries("note") if "confirmed" in entry["note"]]
    assert cut == ([] if asked else [f"{blocks} blocks confirmed, and 10 would have taken more than 0 minutes"])


def test_what_screening_left_of_its_time_is_there_to_confirm(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.write("src/kernels.py", f"{KERNELS}SECONDS['a'] *= 1.1\n")
    for name, value in {"CONFIRMING": 0.01, "FEWEST": 1}.items():
        monkeypatch.setattr(stages, name, value)
    seen = replace(
        ab_stand_in.RULES,
        undecided=lambda blocks, controls, picked: list(picked) if sum(b.stage == 2 for b in blocks) < 3 else [],
    )
    monkeypatch.setattr(ab_stand_in, "RULES", seen)
    assert repository.ab_by_default("--blocks=1", confirm=None) == Exit.REGRESSED
    assert [block["stage"] for block in repository.entries("block")] == [1, 2, 2, 2]


def test_what_the_first_block_alone_does_counts_for_when_screening_ends(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = repository.path / "test_speed.py"
    sleep = "__import__('time').sleep(1)"
    suite.write_text(suite.read_text().replace('{case}")', f'{{case}}", check=lambda _: {sleep})'))  # of three cases
    repository.commit("checked")
    monkeypatch.setattr(stages, "SCREENING", 3.0)
    assert repository.ab_by_default("--base=HEAD") == Exit.OK
    assert [block["stage"] for block in repository.entries("block")] == [1]


@pytest.mark.parametrize("where", ["check", "body"])
def test_checks_are_not_expected_of_a_second_block(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Of what a test does it is the check alone that a second block does not do again."""
    saved = []

    class Watched(command.Blocks):
        def run(self, *given: Any, **named: Any) -> None:
            begin = time.monotonic()
            super().run(*given, **named)
            saved.append(time.monotonic() - begin - self.expected(self.names))

    sleep = "__import__('time').sleep(1)"
    suite = repository.path / "test_speed.py"
    call = "    gpu_benchmark(lambda"
    text = suite.read_text().replace(call, f"    {sleep}\n{call}") if where == "body" else suite.read_text()
    check = sleep if where == "check" else "None"
    suite.write_text(text.replace('{case}")', f'{{case}}", check=lambda _: {check})'))
    repository.commit("checked")
    monkeypatch.setattr(command, "Blocks", Watched)
    assert repository.ab_by_default("--base=HEAD") == Exit.OK
    first, second = saved
    assert first > 2.9 if where == "check" else 0 <= first < 1  # three cases
    assert 0 <= second < 1


def test_controls_of_stage_2_are_drawn_from_those_that_are_soon_visited() -> None:
    took = {f"case{i:02}": 40.0 - i for i in range(40)}
    drawn = [stages.few(sorted(took), took, random.Random(seed)) for seed in range(20)]
    assert all(len(set(some)) == stages.CONTROLS for some in drawn)
    assert {name for some in drawn for name in some} == {name for name in took if took[name] <= 30}
    assert drawn[0] == stages.few(sorted(took), took, random.Random(0)) != drawn[1]
    few = sorted(took)[:7]
    assert sorted(stages.few(few, took, random.Random(0))) == few


def test_it_is_known_how_long_each_case_took(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    took: list[dict[str, float]] = []

    class Watched(command.Blocks):
        def run(self, *given: Any, **named: Any) -> None:
            super().run(*given, **named)
            took.append(dict(self.took))

    suite = repository.path / "test_speed.py"
    slow = "lambda: (case == 'c' and __import__('time').sleep(0.1), SECONDS[case])[1]"
    suite.write_text(suite.read_text().replace("lambda: SECONDS[case]", slow))
    repository.commit("slow")
    monkeypatch.setattr(command, "Blocks", Watched)
    assert repository.ab("--base=HEAD") == Exit.OK
    assert took[0].keys() == {"speed/a", "speed/b", "speed/c", "canary/copy"}
    assert max(took[0], key=lambda name: took[0][name]) == "speed/c"


class Clock:
    """Time that passes where it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Known:
    """What a comparison knows whose cases are all controls."""

    def __init__(self, names: Collection[str]) -> None:
        self.header = {"blocks": 2, "confirm": 10}
        self.compared, self.controls, self.canaries = set(names), set(names), {"canary"}
        self.blocks: list[Block] = []
        self.entries: list[dict[str, Any]] = []

    def add(self, **entry: Any) -> None:
        self.entries.append(entry)


class Paced:
    """Blocks whose cases take what they are said to take, and whose workers take three seconds to start."""

    def __init__(self, clock: Clock, took: dict[str, float]) -> None:
        self.clock, self.took, self.names, self.ran = clock, took, set(took), list[tuple[int, float]]()

    def run(self, stage: int, names: set[str] | None = None, **_: object) -> None:
        self.clock.now += self.expected(self.names if names is None else names)
        self.ran.append((stage, self.clock.now))

    def expected(self, names: Collection[str]) -> float:
        return 3.0 + sum(self.took[name] for name in names)


@pytest.mark.parametrize(
    ("pace", "unsettled", "suspects", "screened", "ended"),
    [
        (1.0, 100, 20, 300, 600),
        (1.0, 0, 20, 240, 600),
        (0.2, 0, 20, 100, 300),
        (2.5, 100, 20, 550, 1250),
        (2.5, 0, 2, 550, 850),
    ],
    ids=["as on an H200", "nothing unsettled", "a fast one", "a slow one", "a slow one with few"],
)
def test_what_takes_longest_is_confirmed_within_ten_minutes(
    monkeypatch: pytest.MonkeyPatch, pace: float, unsettled: int, suspects: int, screened: float, ended: float
) -> None:
    """Twenty cases of three seconds each are slower, and it takes all ten blocks to say so. Where one block alone takes
    longer than five minutes, there are five others to confirm, or four blocks."""
    clock = Clock()
    seconds = [2.9] * 20 + [1.3] * 40 + [0.55] * 173
    took = {f"case{i:03}": pace * s for i, s in enumerate(seconds)} | {"canary": 0.3}
    known, blocks = Known(took), Paced(clock, took)
    slow, others = [*took][:suspects], [*took][suspects:]
    rules = replace(
        ab_stand_in.RULES,
        unsettled=lambda *_: [*slow, *others[:unsettled]] if unsettled else [],
        suspects=lambda *_: slow,
        undecided=lambda *_: slow,
    )
    monkeypatch.setattr(stages, "time", clock)
    monkeypatch.setattr(stages, "doubted", lambda _: set())
    progress = Progress(2)
    run = stages.Stages(
        blocks,  # type: ignore[arg-type]
        known,  # type: ignore[arg-type]
        rules,
        progress,
        seed=1,
        screens=None,
        confirms=None,
        check_always=False,
    )
    assert run.run() == COMPLETE
    until = max(at for stage, at in blocks.ran if stage == 1)
    assert screened - 100 <= until <= screened
    *_, before, last = confirmed = [at for stage, at in blocks.ran if stage == 2]
    assert last <= ended
    limit = max(stages.SCREENING, until) + stages.CONFIRMING
    assert len(confirmed) == stages.FEWEST or last <= limit
    assert len(confirmed) == 10 or last + (last - before) > limit
