"""Which blocks base against head is made of, and when they are enough: small repositories, a fake clock."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import pytest

from perfgate.ab import command, progress, stages
from perfgate.ab.evidence import COMPLETE
from perfgate.ab.progress import Progress
from perfgate.contest import Block
from perfgate.gate import Exit

from . import ab_stand_in
from .ab_repository import KERNELS, Repository


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

    lost: Collection[str] = ()

    def __init__(self, clock: Clock, took: dict[str, float]) -> None:
        self.clock, self.took, self.names = clock, took, took.keys() - self.lost
        self.ran: list[tuple[int, float, set[str]]] = []

    def run(self, stage: int, names: set[str] | None = None, **_: object) -> None:
        visited = self.names if names is None else names
        self.clock.now += self.expected(visited)
        self.ran.append((stage, self.clock.now, visited))

    def expected(self, names: Collection[str]) -> float:
        return 3.0 + sum(self.took[name] for name in names)


def conducted(
    took: dict[str, float], rules: Any, monkeypatch: pytest.MonkeyPatch, *, doubted: Collection[str] = ()
) -> tuple[Known, Paced]:
    """A run whose blocks take what they are said to take."""
    clock = Clock()
    known: Any = Known(took)
    blocks: Any = Paced(clock, took)
    monkeypatch.setattr(stages, "time", clock)
    monkeypatch.setattr(stages, "doubted", lambda _: set(doubted))
    run = stages.Stages(
        blocks,
        known,
        rules,
        Progress(2),
        seed=1,
        screens=None,
        confirms=None,
        check_always=False,
    )
    assert run.run() == COMPLETE
    return known, blocks


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
    second = f"a second one {said} of" if said else "there was no time for any of"
    assert note.endswith(f" minutes; {second} the 2 that it left unsettled")


def test_progress_counts_the_blocks_that_there_will_be(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stages, "SCREENING", 0.01)
    monkeypatch.setattr(progress, "MINUTE", 0.0)
    repository.write("src/kernels.py", f"{KERNELS}SECONDS['a'] *= 1.1\n")
    assert repository.ab_by_default() == Exit.REGRESSED
    said = capfd.readouterr().out
    assert "block 1 of 2: 4 of 4 cases" in said
    assert "block 3 of 3: " in said
    assert " of 4: " not in said


def test_as_many_blocks_screen_as_were_asked_for(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "SCREENING", 0.01)
    assert repository.ab_by_default("--base=HEAD", "--blocks=3") == Exit.OK
    assert visited(repository) == [{"a", "b", "c"}] * 3
    assert repository.entries("note") == []


@pytest.mark.parametrize(
    ("asked", "least", "blocks"), [(None, 2, 2), (None, 3, 3), (4, 2, 4)], ids=["two", "three", "asked for"]
)
def test_confirming_ends_in_time(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, asked: int | None, least: int, blocks: int
) -> None:
    """The fewest blocks that can tell anything are run however late it is, and so is what was asked for."""
    repository.write("src/kernels.py", f"{KERNELS}SECONDS['a'] *= 1.1\n")
    for name, value in {"SCREENING": 0.01, "CONFIRMING": 0.01, "LEAST": least}.items():
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
    for name, value in {"CONFIRMING": 0.01, "LEAST": 1}.items():
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
    beside: list[float] = []

    class Watched(command.Blocks):
        def run(self, *given: Any, **named: Any) -> None:
            super().run(*given, **named)
            took.append(dict(self.took))
            beside.append(self.expected([]))
            assert self.expected(["speed/a", "speed/c"]) == pytest.approx(
                beside[-1] + self.took["speed/a"] + self.took["speed/c"]
            )

    suite = repository.path / "test_speed.py"
    slow = "lambda: (case == 'c' and __import__('time').sleep(0.1), SECONDS[case])[1]"
    suite.write_text(suite.read_text().replace("lambda: SECONDS[case]", slow))
    repository.commit("slow")
    monkeypatch.setattr(command, "Blocks", Watched)
    assert repository.ab("--base=HEAD") == Exit.OK
    assert took[0].keys() == {"speed/a", "speed/b", "speed/c", "canary/copy"}
    assert max(took[0], key=lambda name: took[0][name]) == "speed/c"
    assert beside[0] > 0.1  # two interpreters were started


def test_what_is_screened_again_has_settled_controls_beside_it_and_nothing_that_was_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 100 cases thirty are unsettled, one of these came to nothing meanwhile, and a canary is noisy."""
    took = {f"case{i:02}": 1.6 + i / 1e6 for i in range(100)} | {"canary": 1.0}
    open_ = [*took][:30]
    lost = open_[3]
    rules = replace(
        ab_stand_in.RULES,
        unsettled=lambda *_: [*open_, "canary"],
        suspects=lambda *_: open_[:5],
        undecided=lambda blocks, controls, picked: [],
    )
    monkeypatch.setattr(Paced, "lost", {lost})
    known, blocks = conducted(took, rules, monkeypatch, doubted={"case95"})  # one of those that take longest
    first, second = (names for stage, _, names in blocks.ran if stage == 1)
    assert first == took.keys() - {lost}
    assert set(open_) & second == set(open_) - {lost}
    assert len(second - set(open_)) == stages.CONTROLS + 2
    assert {"canary", "case95"} <= second
    (note,) = (entry["note"] for entry in known.entries if "note" in entry)
    assert note.endswith("; a second one 29 of the 29 that it left unsettled")


def test_where_nearly_all_is_unsettled_what_is_no_suspect_keeps_it_company(monkeypatch: pytest.MonkeyPatch) -> None:
    took = {f"case{i:02}": 2.0 for i in range(100)} | {"canary": 1.0}
    rules = replace(
        ab_stand_in.RULES,
        unsettled=lambda *_: [*took][:95],
        suspects=lambda *_: [*took][:18],
        undecided=lambda blocks, controls, picked: [],
    )
    _, blocks = conducted(took, rules, monkeypatch)
    _, second = (names for _, _, names in blocks.ran)
    assert len(second - {*[*took][:18]}) > stages.CONTROLS


def test_confirming_is_done_beside_settled_controls_where_these_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    took = {f"case{i:02}": 0.5 for i in range(100)} | {"canary": 1.0}
    for settled in (30, 10):
        rules = replace(
            ab_stand_in.RULES,
            unsettled=lambda *_, settled=settled: [*took][: 100 - settled],
            suspects=lambda *_: [*took][:3],
            undecided=lambda blocks, controls, picked: picked if len(blocks) < 1 else [],
        )
        _, blocks = conducted(took, rules, monkeypatch)
        confirmed = next(names for stage, _, names in blocks.ran if stage == 2)
        assert {*[*took][:3], "canary"} <= confirmed
        assert len(confirmed) == 3 + 1 + stages.CONTROLS
        beside = confirmed - {*[*took][:3], "canary"}
        assert (beside <= {*[*took][70:]}) == (settled == 30)


def test_one_case_is_confirmed_however_long_it_takes_and_a_canary_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    took = {f"case{i}": 100.0 for i in range(3)} | {"canary": 1.0}
    rules = replace(
        ab_stand_in.RULES,
        unsettled=lambda *_: [],
        suspects=lambda *_: ["canary", "case0", "case1"],
        undecided=lambda blocks, controls, picked: list(picked),
    )
    known, blocks = conducted(took, rules, monkeypatch)
    assert [entry["suspects"] for entry in known.entries if "suspects" in entry] == [["canary", "case0"]]
    confirmed = [names for stage, _, names in blocks.ran if stage == 2]
    assert len(confirmed) == stages.LEAST
    assert confirmed[0] == {"canary", "case0", "case2"}
    notes = [entry["note"] for entry in known.entries if "note" in entry]
    assert any(note.startswith("1 suspicious case not confirmed, for all 2 would have taken") for note in notes)


@pytest.mark.parametrize(("doubted", "blocks"), [((), 0), (("case2",), stages.CHECKS)])
def test_where_the_machine_was_not_fit_accuracy_alone_is_confirmed(
    monkeypatch: pytest.MonkeyPatch, doubted: tuple[str, ...], blocks: int
) -> None:
    took = {f"case{i}": 1.0 for i in range(3)} | {"canary": 1.0}
    rules = replace(
        ab_stand_in.RULES,
        unsettled=lambda *_: [],
        suspects=lambda *_: ["case0"],
        judge=lambda *_: ab_stand_in.Findings((), unfit="the controls disagree"),
    )
    known, paced = conducted(took, rules, monkeypatch, doubted=doubted)
    assert [entry["suspects"] for entry in known.entries if "suspects" in entry] == [[]]
    assert len([names for stage, _, names in paced.ran if stage == 2]) == blocks


@pytest.mark.parametrize(("seconds", "blocks"), [(1.0, stages.CHECKS), (100.0, 1)])
def test_what_may_be_less_accurate_alone_is_checked_once_or_as_often_as_there_is_time(
    monkeypatch: pytest.MonkeyPatch, seconds: float, blocks: int
) -> None:
    took = {f"case{i}": seconds for i in range(3)} | {"canary": 1.0}
    rules = replace(
        ab_stand_in.RULES,
        unsettled=lambda *_: [],
        suspects=lambda *_: [],
        undecided=lambda blocks, controls, picked: [],
    )
    _, paced = conducted(took, rules, monkeypatch, doubted={"case0"})
    assert len([names for stage, _, names in paced.ran if stage == 2]) == blocks


@pytest.mark.parametrize(
    ("pace", "unsettled", "suspects", "confirms", "screened", "ended"),
    [
        (1.0, 100, 20, 12, 300, 600),
        (1.0, 0, 20, 16, 240, 600),
        (0.2, 0, 20, 20, 100, 300),
        (2.5, 100, 20, 2, 550, 850),
        (2.5, 0, 2, 2, 550, 850),
    ],
    ids=["as on an H200", "nothing unsettled", "a fast one", "a slow one", "a slow one with few"],
)
def test_what_takes_longest_is_confirmed_within_ten_minutes(
    monkeypatch: pytest.MonkeyPatch,
    pace: float,
    unsettled: int,
    suspects: int,
    confirms: int,
    screened: float,
    ended: float,
) -> None:
    """Twenty cases of three seconds each are slower, and it takes all ten blocks to say so: as many are confirmed as
    can be in seven. Where one block alone takes longer than five minutes, there are five others to confirm."""
    seconds = [2.9] * 20 + [1.3] * 40 + [0.55] * 173
    took = {f"case{i:03}": pace * s for i, s in enumerate(seconds)} | {"canary": 0.3}
    slow, others = [*took][:suspects], [*took][suspects:]
    rules = replace(
        ab_stand_in.RULES,
        unsettled=lambda *_: [*slow, *others[:unsettled]] if unsettled else [],
        suspects=lambda *_: slow,
        undecided=lambda blocks, controls, picked: list(picked),
    )
    known, blocks = conducted(took, rules, monkeypatch)
    until = max(at for stage, at, _ in blocks.ran if stage == 1)
    assert screened - 100 <= until <= screened
    *_, before, last = confirmed = [at for stage, at, _ in blocks.ran if stage == 2]
    assert last <= ended
    ((kept,), notes) = ([e[key] for e in known.entries if key in e] for key in ("suspects", "note"))
    assert kept == slow[:confirms]
    left = suspects - confirms
    some = f"{left} suspicious case{'' if left == 1 else 's'} not confirmed, for all {suspects} would have taken"
    assert any(note.startswith(some) for note in notes) == bool(left)
    limit = max(stages.SCREENING, until) + stages.CONFIRMING
    assert len(confirmed) == stages.LEAST or last <= limit
    assert len(confirmed) == 10 or last + (last - before) > limit
