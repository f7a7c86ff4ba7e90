"""A journal of base against head becomes a run of the committed data, if it is whole."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perfgate import kernels
from perfgate.__main__ import main
from perfgate.ab.trees import UNCOMMITTED
from perfgate.case import Case
from perfgate.contest import Block
from perfgate.record import Record
from perfgate.trust import data
from perfgate.trust.data import Contest
from perfgate.verdict import Quantity, State
from tests.perfgate.simulate import H200, Kernel, contest_blocks

COMMIT, OTHER = "a" * 40, "b" * 40
CANARIES = ("canary/copy", "canary/matmul")
SUITE = ("slow", *(f"same{i}" for i in range(12)))
SAME = kernels.Kernels.of([kernels.Kernel(name="k", grid=(1, 1, 1), code="a")])
FILLED = kernels.Kernels.of(
    [kernels.Kernel(name="memset", bytes=4)] * 2 + [kernels.Kernel(name="k", grid=(1, 1, 1), code="a")]
)
CASES = {name: Kernel(sd=0.001) for name in (*SUITE, *CANARIES)}


def journal(path: Path, blocks: Sequence[Block], *, base: str = COMMIT, end: str | None = "complete") -> Path:
    """What ``perfgate ab`` keeps of these blocks."""
    started = "2026-01-01T00:00:00+00:00"
    lines: list[Mapping[str, Any]] = [
        {"ab": 1, "started": started, "argv": [], "seed": 1, "base": f"{base} it", "head": f"{COMMIT} it"}
        | {"blocks": 2, "confirm": 4, "floor": 0.01},
        *({"environment": H200.to_json(), "side": side} for side in ("base", "head")),
        {"pairs": len(SUITE)},
        *({"canary": name} for name in CANARIES),
    ]
    for number, block in enumerate(blocks):
        lines.append({"block": number, "stage": block.stage})
        for name, visits in block.visits.items():
            for visit in visits:
                launched = FILLED if name in ("same0", "canary/copy") else SAME
                record = Record(case=Case(name=name), processes=(replace(visit.samples, kernels=launched),))
                lines.append({"visit": record.to_json(), "side": visit.side})
    if end:
        lines.append({"end": end})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def blocks(ratio: float = 1.0) -> list[Block]:
    rng, ratios = random.Random(1), {"slow": ratio}
    return [
        *contest_blocks(rng, CASES, blocks=2, ratios=ratios),
        *contest_blocks(rng, CASES, stage=2, blocks=4, ratios=ratios),
    ]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "trust.jsonl"


def collect(kept: Path, *arguments: object) -> int:
    return main(["calibrate", "collect", *map(str, arguments), "--occasion=first", f"--data={kept}"])


def only(kept: Path) -> Contest:
    (entry,) = data.read(kept)
    assert isinstance(entry, Contest)
    return entry


def test_unchanged_code_is_kept_with_its_verdicts(tmp_path: Path, kept: Path) -> None:
    assert collect(kept, "aa", journal(tmp_path / "ab.jsonl", blocks()), "--suite=two", "--seconds", 10, 20) == 0
    run = only(kept)
    assert (run.what, run.suite, run.origin.occasion, run.origin.commit) == ("aa", "two", "first", COMMIT)
    assert run.fills == {"same0"}
    assert run.seconds == {"screen": 10.0, "whole": 20.0}
    assert {name: v.state for name, v in run.verdicts.items()} == dict.fromkeys(SUITE, State.UNCHANGED)
    assert set(run.controls) == set(CASES)
    assert [block.stage for block in run.blocks] == [1, 1, 2, 2, 2, 2]
    assert set(run.blocks[0].visits) == set(CASES)


def test_what_fills_memory_is_not_known_where_kernels_are_not(tmp_path: Path, kept: Path) -> None:
    written = journal(tmp_path / "ab.jsonl", blocks())
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    for line in lines:
        if "visit" in line:
            del line["visit"]["kernels"]
            del line["visit"]["processes"][0]["kernels"]
    written.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert collect(kept, "aa", written) == 0
    assert only(kept).fills is None


def test_a_planted_slowdown_is_kept_with_its_size_and_is_no_control(tmp_path: Path, kept: Path) -> None:
    path = journal(tmp_path / "ab.jsonl", blocks(1.03), base=OTHER)
    assert collect(kept, "planted", path, "--planted=slow=3:2.97") == 0
    run = only(kept)
    assert run.planted["slow"].asked == 0.03
    assert run.planted["slow"].true == pytest.approx(0.0297)
    assert "slow" not in run.controls
    assert run.verdicts["slow"].state is State.REGRESSED
    assert {v.state for name, v in run.verdicts.items() if name != "slow"} == {State.UNCHANGED}


def test_verdicts_of_memory_are_not_those_of_time(tmp_path: Path, kept: Path) -> None:
    lean = []
    for block in blocks(1.03):
        visits = tuple(
            replace(v, samples=replace(v.samples, counters={"peak_bytes": 2.0**30 * (2 if v.side == "base" else 1)}))
            for v in block.visits["slow"]
        )
        lean.append(replace(block, visits={**block.visits, "slow": visits}))
    path = journal(tmp_path / "ab.jsonl", lean, base=OTHER)
    assert collect(kept, "planted", path, "--planted=slow=3:2.97") == 0
    verdict = only(kept).verdicts["slow"]
    assert (verdict.quantity, verdict.state) == (Quantity.TIME, State.REGRESSED)


def test_a_disturbed_machine_is_kept_with_what_disturbed_it(tmp_path: Path, kept: Path) -> None:
    assert collect(kept, "drift", journal(tmp_path / "ab.jsonl", blocks()), "--disturbance=the clock falls") == 0
    assert only(kept).disturbance == "the clock falls"


@pytest.mark.parametrize("end", [None, "interrupted"])
def test_half_a_run_is_refused(tmp_path: Path, kept: Path, capsys: pytest.CaptureFixture[str], end: str | None) -> None:
    assert collect(kept, "aa", journal(tmp_path / "ab.jsonl", blocks(), end=end)) != 0
    assert "did not come to its end" in capsys.readouterr().err
    assert not kept.exists()


def test_what_is_not_committed_is_not_unchanged_code(
    tmp_path: Path, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = journal(tmp_path / "ab.jsonl", blocks())
    path.write_text(path.read_text().replace(f'"head": "{COMMIT} it"', f'"head": "{COMMIT} it {UNCOMMITTED}"'))
    assert collect(kept, "aa", path) != 0
    assert "is of code that was not committed" in capsys.readouterr().err
    assert not kept.exists()


def test_slowdowns_may_be_planted_in_what_is_not_committed(tmp_path: Path, kept: Path) -> None:
    path = journal(tmp_path / "ab.jsonl", blocks(1.03), base=OTHER)
    path.write_text(path.read_text().replace(f'"head": "{COMMIT} it"', f'"head": "{COMMIT} it {UNCOMMITTED}"'))
    assert collect(kept, "planted", path, "--planted=slow=3:2.97") == 0
    assert only(kept).origin.commit == COMMIT


def test_two_revisions_are_not_unchanged_code(tmp_path: Path, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert collect(kept, "aa", journal(tmp_path / "ab.jsonl", blocks(), base=OTHER)) != 0
    assert "compares aaaaaaa with bbbbbbb: unchanged code is a commit against itself" in capsys.readouterr().err


def test_of_several_journals_all_are_added_or_none(tmp_path: Path, kept: Path) -> None:
    paths = [journal(tmp_path / f"{i}.jsonl", blocks()) for i in (1, 2)]
    assert collect(kept, "aa", *paths) != 0
    assert not kept.exists()


@pytest.mark.parametrize("text", ["slow", "slow=2", "slow=two:1", "slow=0:1", "slow=2:nan"])
def test_a_planted_size_that_is_none_is_refused(
    tmp_path: Path, kept: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert collect(kept, "planted", journal(tmp_path / "ab.jsonl", blocks()), f"--planted={text}") != 0
    assert "expected CASE=ASKED:TRUE in per cent" in capsys.readouterr().err
