"""What was seen, before it is judged: all windows have the same taken off."""

from __future__ import annotations

import pytest

from perfgate import Case, Record, Samples
from perfgate.ab.evidence import SCHEMA, Evidence
from perfgate.clock import Method
from perfgate.contrast import Difference

ORDER = ("base", "head", "head", "base")
WINDOW = 3e-6
"""What a window takes for itself, whatever a process measured."""


def seen(*blocks: dict[str, float], calls: int = 1, launch: str = "graph", slower: float = 1.0) -> Evidence:
    """Blocks of one case that takes 100 us a window, by what each side's process found that a window takes."""
    found = Evidence({"ab": SCHEMA})
    for number, measured in enumerate(blocks):
        found.take({"block": number, "stage": 1})
        for side in ORDER:
            window = 100e-6 * (slower if side == "head" else 1.0) + WINDOW
            samples = Samples(
                seconds=((window - measured[side]) / calls,) * 10,
                method=Method(clock="fake", launch=launch),
                counters={"window_seconds": measured[side], "calls_per_window": float(calls)},
            )
            record = Record(case=Case(name="case"), processes=(samples,))
            found.take({"visit": record.to_json(), "side": side})
    return found


def differences(found: Evidence) -> list[Difference]:
    return [block.differences["case"] for block in found.blocks]


@pytest.mark.parametrize("calls", [1, 4])
@pytest.mark.parametrize("launch", ["graph", "queue"])
def test_what_processes_misjudge_a_window_by_is_no_difference_of_sides(calls: int, launch: str) -> None:
    found = seen({"base": 4e-6, "head": 3e-6}, {"base": 3e-6, "head": 3.5e-6}, calls=calls, launch=launch)
    assert [d.time for d in differences(found)] == pytest.approx([0.0, 0.0], abs=1e-5)
    slower = seen({"base": 4e-6, "head": 3e-6}, calls=calls, launch=launch, slower=1.02)
    assert differences(slower)[0].time == pytest.approx(0.02, abs=5e-4)


def test_the_median_of_what_processes_found_is_taken_off() -> None:
    found = seen({"base": 2e-6, "head": 3e-6}, {"base": 9e-6, "head": 3e-6})
    processes = [*found.records("base")["case"].processes, *found.records("head")["case"].processes]
    assert [process.median for process in processes] == pytest.approx([100e-6] * 4, rel=1e-5)
    assert found.records("base")["case"].processes[1].counters["window_seconds"] == pytest.approx(3e-6)


def test_queued_windows_are_not_those_of_graphs() -> None:
    found = seen({"base": 3e-6, "head": 3e-6})
    for entry in seen({"base": 8e-6, "head": 8e-6}, launch="queue").blocks[0].visits["case"]:
        record = Record(case=Case(name="queued"), processes=(entry.samples,))
        found.take({"visit": record.to_json(), "side": entry.side})
    windows = {
        name: {v.samples.counters["window_seconds"] for v in seen} for name, seen in found.blocks[0].visits.items()
    }
    assert windows == {"case": {3e-6}, "queued": {8e-6}}


def test_without_windows_nothing_is_taken_off() -> None:
    found = Evidence({"ab": SCHEMA})
    found.take({"block": 0, "stage": 1})
    for side in ORDER:
        samples = Samples(seconds=(1e-3,) * 10, method=Method(clock="fake"))
        found.take({"visit": Record(case=Case(name="case"), processes=(samples,)).to_json(), "side": side})
    assert {v.samples.seconds for v in found.blocks[0].visits["case"]} == {(1e-3,) * 10}


def test_of_a_short_window_a_tenth_is_left() -> None:
    counters = {"window_seconds": 3e-6, "calls_per_window": 1.0}
    samples = Samples(seconds=(1e-6,), method=Method(clock="fake"), counters=counters)
    assert samples.at_window(3.5e-6).seconds == pytest.approx((0.5e-6,))
    assert samples.at_window(9e-6).seconds == pytest.approx((0.4e-6,))
