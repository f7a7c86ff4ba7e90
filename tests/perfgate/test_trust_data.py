"""What is collected comes back as it was, and nothing half or twice gets in."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perfgate import contest
from perfgate.clock import Method
from perfgate.contest import ContestRule
from perfgate.trust import data
from perfgate.trust.data import Contest, Origin, Planted, Spread, Timing, TrustError
from perfgate.verdict import State
from tests.perfgate.simulate import H200, Kernel, contest_blocks

CASES = {name: Kernel(seconds=1e-4 * (i + 1)) for i, name in enumerate("abcdef")}
ORIGIN = Origin(date="2026-01-01T00:00:00+00:00", occasion="first", commit="0123abc", environment=H200)
TIMING = Timing(origin=ORIGIN, seconds={"copy": {"perfgate": 1e-5, "cupti": 1.01e-5}})


def collected(seed: int = 1, occasion: str = "first", **changes: Any) -> Contest:
    """A run as the gate would have judged it."""
    rng, rule = random.Random(seed), ContestRule(screen_blocks=2)
    blocks = contest_blocks(rng, CASES, blocks=2, hz={"base": 1.98e9, "head": 1.98e9})
    blocks += contest_blocks(rng, {"a": CASES["a"], "b": CASES["b"]}, stage=2, blocks=3)
    origin = replace(ORIGIN, date=f"2026-01-01T00:00:{seed:02}+00:00", occasion=occasion)
    verdicts = contest.judge(blocks, rule, set(CASES)).verdicts
    fields: dict[str, Any] = {
        "what": "aa",
        "origin": origin,
        "suite": "six",
        "seconds": {"screen": 10.0, "whole": 20.0},
        "controls": tuple(CASES),
        "blocks": tuple(blocks),
        "verdicts": {verdict.case: verdict for verdict in verdicts},
    }
    return Contest(**{**fields, **changes})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "docs" / "trust.jsonl"


def test_what_was_collected_comes_back(path: Path) -> None:
    planted = collected(2, what="planted", planted={"a": Planted(asked=0.02, true=0.0198)}, controls=("b", "c"))
    drift = collected(3, what="drift", disturbance="the clock falls", unfit="the controls disagree")
    seconds = {"a": {"perfgate": [1e-3, 1.1e-3], "plain": [1e-3, 1.2e-3]}}
    spread = Spread(origin=ORIGIN, seconds=seconds, windows={"a": [[(1e-3, 2e-3), (1e-3, 1e-3)], [(1.1e-3, 1e-3)]]})
    entries = [collected(1, fills=frozenset("ab")), planted, replace(drift, fills=frozenset()), TIMING, spread]
    for entry in entries:
        data.append(path, entry)
    found = data.read(path)
    assert [entry.what for entry in found] == ["aa", "planted", "drift", "timer", "spread"]
    assert found[3:] == [TIMING, spread]
    for before, after in zip(entries[:3], found[:3], strict=True):
        assert isinstance(before, Contest)
        assert isinstance(after, Contest)
        for name in ("origin", "suite", "seconds", "unfit", "controls", "planted", "disturbance", "fills"):
            assert getattr(after, name) == getattr(before, name)
        for was, now in zip(before.blocks, after.blocks, strict=True):
            assert now.stage == was.stage
            assert now.visits.keys() == was.visits.keys()
            for case, visits in was.visits.items():
                assert [visit.side for visit in now.visits[case]] == [visit.side for visit in visits]
                for one, other in zip(visits, now.visits[case], strict=True):
                    assert other.samples.seconds == pytest.approx(one.samples.seconds, abs=1e-10)
                    assert other.samples.counters == one.samples.counters
        for case, verdict in before.verdicts.items():
            assert after.verdicts[case] == replace(verdict, reason="")


def test_no_file_is_no_data(path: Path) -> None:
    assert data.read(path) == []


def test_a_run_counts_once(path: Path) -> None:
    data.append(path, collected())
    with pytest.raises(TrustError, match=r"the run of .* \(aa\) is there already: a run counts once"):
        data.append(path, collected())
    path.write_text(path.read_text() * 2)
    with pytest.raises(TrustError, match=r"line 2 is no whole run.*a run counts once"):
        data.read(path)


def test_a_line_that_was_cut_off_is_refused(path: Path) -> None:
    data.append(path, collected())
    path.write_text(path.read_text()[:-1])
    with pytest.raises(TrustError, match="cut off in its last line"):
        data.read(path)
    with pytest.raises(TrustError, match="cut off in its last line"):
        data.append(path, TIMING)


def verdict(change: dict[str, Any]) -> Callable[[dict[str, Any]], object]:
    return lambda line: line["cases"]["a"]["verdict"].update(change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda line: line.update(trust=2), "expected schema 1, got 2"),
        (lambda line: line.update(what="guess"), "what must be aa, planted, drift, timer or spread"),
        (lambda line: line.update(what="planted"), "a run of planted with planted={}"),
        (lambda line: line.update(planted={"a": {"asked": 0.02, "true": 0.02}}), "a run of aa with planted="),
        (lambda line: line.update(date="2026-01-01T00:00:00"), "date must say its offset"),
        (lambda line: line.update(date="yesterday"), "yesterday"),
        (lambda line: line.update(commit="HEAD"), "commit must be 7 to 40 hexadecimal digits"),
        (lambda line: line.update(occasion=" "), "occasion must name"),
        (lambda line: line.update(seconds={"whole": 0.0}), "seconds must be positive"),
        (lambda line: line.pop("environment"), "environment"),
        (lambda line: line.update(stages=[]), "visited in block 0"),
        (lambda line: line["cases"].clear(), "needs blocks and verdicts"),
        (lambda line: line["cases"]["a"].pop("verdict"), "verdict"),
        (lambda line: line["cases"]["a"]["visits"].clear(), "a was timed and not judged, or judged and not timed"),
        (lambda line: line["cases"]["a"]["visits"][0].__setitem__(1, "left"), "on side 'left'"),
        (lambda line: line["cases"]["a"]["visits"][0].__setitem__(2, "xyz"), "incorrect header"),
        (verdict({"state": "fine"}), "'fine' is not a valid State"),
        (verdict({"ratio": "much"}), "TypeError"),
        (lambda line: line["cases"]["a"]["method"].update(version=2, clocks=1), "clocks"),
    ],
)
def test_what_is_not_whole_is_refused_and_the_line_named(
    path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    data.append(path, TIMING)
    data.append(path, collected())
    timer, line = path.read_text().splitlines()
    changed = json.loads(line)
    change(changed)
    path.write_text(f"{timer}\n{json.dumps(changed)}\n")
    with pytest.raises(TrustError, match=f"line 2 is no whole run: .*({said})"):
        data.read(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity"])
def test_a_number_that_is_none_is_refused(path: Path, number: str) -> None:
    data.append(path, collected())
    path.write_text(path.read_text().replace('"whole":20.0', f'"whole":{number}'))
    with pytest.raises(TrustError, match=f"{number} where a number must be"):
        data.read(path)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [({}, "at least one kernel"), ({"k": {"cupti": 1.0}}, "needs perfgate's"), ({"k": {"perfgate": 1.0}}, "another's")]
    + [({"k": {"perfgate": 1.0, "cupti": bad}}, "positive and finite") for bad in (0.0, -1.0, float("inf"))],
)
def test_a_timer_needs_two_times(seconds: dict[str, dict[str, float]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Timing(origin=ORIGIN, seconds=seconds)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ({}, "at least one case"),
        ({"a": {"perfgate": [1.0, 1.0]}}, "by another clock"),
        ({"a": {"one": [1.0, 1.0], "other": [1.0, 1.0]}}, "by perfgate"),
        ({"a": {"perfgate": [1.0], "plain": [1.0]}}, "as many processes"),
        ({"a": {"perfgate": [1.0, 1.0, 1.0], "plain": [1.0, 1.0]}}, "as many processes"),
        ({"a": {"perfgate": [1.0, 0.0], "plain": [1.0, 1.0]}}, "positive and finite"),
    ],
)
def test_a_spread_is_of_several_processes_by_two_clocks(seconds: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Spread(origin=ORIGIN, seconds=seconds, windows=dict.fromkeys(seconds, [[(1.0, 1.0)]] * 3))


@pytest.mark.parametrize("windows", [{}, {"a": [[(1, 1)]]}, {"a": [[(1, 1)], []]}, {"a": [[(1, 1)], [(1, 0)]]}])
def test_a_spread_needs_the_windows_of_each_process(windows: dict[str, Any]) -> None:
    seconds = {"a": {"perfgate": [1.0, 1.0], "plain": [1.0, 1.0]}}
    with pytest.raises(ValueError, match="needs the times of each process's windows"):
        Spread(origin=ORIGIN, seconds=seconds, windows=windows)


@pytest.mark.parametrize(("asked", "true"), [(0.0, 0.02), (0.02, -0.01), (0.02, float("nan"))])
def test_a_planted_slowdown_is_one(asked: float, true: float) -> None:
    with pytest.raises(ValueError, match="must be positive and finite"):
        Planted(asked=asked, true=true)


def test_what_was_planted_is_no_control_and_has_a_verdict() -> None:
    slow = Planted(asked=0.02, true=0.02)
    with pytest.raises(ValueError, match="a was planted and is called a control"):
        collected(what="planted", planted={"a": slow})
    with pytest.raises(ValueError, match="z was planted and has no verdict"):
        collected(what="planted", planted={"z": slow})


def test_what_fills_memory_was_timed() -> None:
    with pytest.raises(ValueError, match="z is said to fill memory and has no verdict"):
        collected(fills=frozenset("az"))


def test_a_case_has_one_method(path: Path) -> None:
    run = collected()
    visits = dict(run.blocks[0].visits)
    first, *rest = visits["a"]
    other = replace(first, samples=replace(first.samples, method=Method(clock="host")))
    visits["a"] = (other, *rest)
    with pytest.raises(TrustError, match="a was timed by two methods"):
        data.append(path, replace(run, blocks=(replace(run.blocks[0], visits=visits), *run.blocks[1:])))
    assert not path.exists()


def test_a_disk_that_is_full_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data.append(path, TIMING)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrustError, match="No space left on device; nothing was added"):
        data.append(path, collected())
    assert path.read_bytes() == before


def test_a_state_is_kept_by_its_name(path: Path) -> None:
    run = collected()
    red = {**run.verdicts, "a": replace(run.verdicts["a"], state=State.REGRESSED)}
    data.append(path, replace(run, verdicts=red))
    assert '"state":"regressed"' in path.read_text()
