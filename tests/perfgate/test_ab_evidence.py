"""What was seen, before it is judged: all windows of a block have the same taken off."""

from __future__ import annotations

import pytest

from perfgate import Case, Record, Samples
from perfgate.ab.evidence import SCHEMA, Evidence
from perfgate.clock import LEAST_SHARE, Method

ORDER = ("base", "head", "head", "base")
WINDOW, CALLS = 3e-6, 100e-6
"""What a window takes for itself, whatever a process found, and its calls."""


def samples(found: float | None, *, calls: int = 1, launch: str = "graph", slower: float = 1.0) -> Samples:
    """Of a process that found that a window takes this long for itself; None: it takes nothing off."""
    counters = {} if found is None else {"window_seconds": found, "calls_per_window": float(calls)}
    seconds = (CALLS * slower + WINDOW - (found or 0.0)) / calls
    return Samples(seconds=(seconds,) * 10, method=Method(clock="fake", launch=launch), counters=counters)


def take(evidence: Evidence, side: str, seen: Samples, name: str = "case") -> None:
    evidence.take({"visit": Record(case=Case(name=name), processes=(seen,)).to_json(), "side": side})


def seen(*blocks: dict[str, float], calls: int = 1, launch: str = "graph", slower: float = 1.0) -> Evidence:
    """Blocks of one case, by what each side's process found; the head is slower."""
    found = Evidence({"ab": SCHEMA})
    for number, by_side in enumerate(blocks):
        found.take({"block": number, "stage": 1 + (number > 0)})
        for side in ORDER:
            by = slower if side == "head" else 1.0
            take(found, side, samples(by_side[side], calls=calls, launch=launch, slower=by))
    return found


def windows(found: Evidence, name: str = "case") -> list[float]:
    """What was taken off, block by block."""
    of_block = [{v.samples.counters["window_seconds"] for v in block.visits[name]} for block in found.blocks]
    assert all(len(values) == 1 for values in of_block)
    return [values.pop() for values in of_block]


@pytest.mark.parametrize("calls", [1, 4])
@pytest.mark.parametrize("launch", ["graph", "queue"])
def test_what_processes_misjudge_a_window_by_is_no_difference_of_sides(calls: int, launch: str) -> None:
    found = seen({"base": 4e-6, "head": 3e-6}, {"base": 3e-6, "head": 3.5e-6}, calls=calls, launch=launch)
    assert [block.differences["case"].time for block in found.blocks] == pytest.approx([0.0, 0.0], abs=1e-5)
    slower = seen({"base": 4e-6, "head": 3e-6}, calls=calls, launch=launch, slower=1.02)
    assert slower.blocks[0].differences["case"].time == pytest.approx(0.02, abs=5e-4)


def test_each_block_has_its_own_and_what_is_shown_is_what_is_judged() -> None:
    found = seen({"base": 2e-6, "head": 3e-6}, {"base": 9e-6, "head": 3e-6})
    assert windows(found) == pytest.approx([2.5e-6, 6e-6])
    for side in ("base", "head"):
        medians = [process.median for process in found.records(side)["case"].processes]
        assert medians == pytest.approx([100.5e-6, 97e-6], rel=1e-5)


def test_processes_count_however_many_cases_they_visited() -> None:
    found = seen({"base": 4e-6, "head": 3e-6})
    for name in ("b", "c"):  # a worker that was replaced, and visits more
        for side in ORDER:
            take(found, side, samples(5e-6 if side == "base" else 3e-6), name)
    assert [windows(found, name) for name in ("case", "b", "c")] == [[4e-6]] * 3
    found = seen({"base": 4e-6, "head": 4e-6})  # the same by chance: two processes all the same
    for side in ORDER:
        take(found, side, samples(2e-6 if side == "base" else 4e-6), "b")
    assert windows(found) == [4e-6]


def test_windows_of_another_kind_are_others() -> None:
    found = seen({"base": 3e-6, "head": 3e-6})
    for side in ORDER:
        take(found, side, samples(8e-6, launch="queue"), "queued")
    assert (windows(found), windows(found, "queued")) == ([3e-6], [8e-6])


def test_of_what_has_no_windows_nothing_is_taken_off() -> None:
    found = seen({"base": 3e-6, "head": 4e-6})
    for side in ORDER:
        take(found, side, samples(None), "other")
    assert [v.samples.median for v in found.blocks[0].visits["other"]] == pytest.approx([CALLS + WINDOW] * 4)
    assert found.blocks[0].differences["case"].time == pytest.approx(0, abs=1e-5)


def test_a_later_visit_counts_too() -> None:
    found = seen({"base": 3e-6, "head": 4e-6})
    assert windows(found) == [3.5e-6]
    found.take({"void": "case"})
    for side in ORDER:
        take(found, side, samples(5e-6))
    assert windows(found) == [5e-6]


@pytest.mark.parametrize("window", [4e-6, 100e-6])
@pytest.mark.parametrize("found", [1e-6, 3.8e-6, 9e-6])
@pytest.mark.parametrize("calls", [1, 3])
def test_a_window_is_what_it_was_where_a_tenth_of_it_was_left(window: float, found: float, calls: int) -> None:
    left = max(window - found, LEAST_SHARE * window) / calls
    counters = {"window_seconds": found, "calls_per_window": float(calls)}
    timed = Samples(seconds=(left,), method=Method(clock="fake"), counters=counters)
    assert timed.at_window(found).seconds == pytest.approx(timed.seconds)
    for other in (1e-6, 3e-6, 9e-6):
        again = timed.at_window(other)
        assert again.seconds == pytest.approx((max(window - other, LEAST_SHARE * window) / calls,))
        assert again.counters == {**counters, "window_seconds": other}
