"""Pictures: the same bytes each time, every line named, nothing drawn where there is nothing."""

from __future__ import annotations

import itertools
import random
import sys
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("matplotlib")

from perfgate.report import FORMATS, Axis, Results, plot
from tests.perfgate.reported import CEILINGS, record, results, sweep

LENGTH = Axis(pattern=r"s(\d+)", label="sequence length")


def example(**said: object) -> Results:
    records, gone = sweep({"naive": 4e13, "flash": 4e14, "fused": 1e14}, [512, 1024, 2048, 4096], ends={"naive": 1024})
    return results(records, out_of_memory=gone, ceilings=CEILINGS, **said)


def test_the_same_results_give_the_same_bytes() -> None:
    once = FORMATS["svg"](example(), LENGTH)
    assert FORMATS["svg"](example(), LENGTH) == once
    assert "<dc:date>" not in once
    assert ElementTree.fromstring(once).tag.endswith("svg")


def test_the_order_of_the_cases_does_not_matter() -> None:
    records, gone = sweep({"naive": 4e13, "flash": 4e14}, [512, 1024, 2048], ends={"naive": 1024})
    first = plot.render(results(records, out_of_memory=gone), LENGTH)
    random.Random(0).shuffle(records)
    assert plot.render(results(records, out_of_memory=gone), LENGTH) == first


def test_the_callers_own_style_does_not_leak_in() -> None:
    import matplotlib

    expected = plot.render(example(), LENGTH)
    with matplotlib.rc_context({"axes.facecolor": "black", "lines.linewidth": 9, "font.size": 30}):
        assert plot.render(example(), LENGTH) == expected


def test_the_picture_says_what_where_and_how() -> None:
    picture = plot.figure(example(), LENGTH)
    said = "\n".join(text.get_text() for text in picture.texts)
    assert said == (
        "Median time of a call over sequence length (lower is better)\n"
        "NVIDIA H200: cuda 13.0, torch 2.11.0, triton 3.6.0\n"
        "timed by cuda-events v1, L2 cold, graph: 10 cases in 1 process\n"
        "×: out of memory"
    )


def test_every_line_has_its_points_and_its_name_at_the_end() -> None:
    (axes,) = plot.figure(example(), LENGTH).axes
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["flash"].get_xydata().tolist() == [
        [512, pytest.approx(1e6 * 512**2 / 4e14)],
        [1024, pytest.approx(1e6 * 1024**2 / 4e14)],
        [2048, pytest.approx(1e6 * 2048**2 / 4e14)],
        [4096, pytest.approx(1e6 * 4096**2 / 4e14)],
    ]
    assert len(lines["naive (ref)"].get_xydata()) == 2
    assert {text.get_text() for text in axes.texts} == {"naive (ref)", "flash", "fused"}
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_title(loc="left") == "forward, b4-d64-bf16"


def test_where_the_memory_ended_there_is_a_cross() -> None:
    (axes,) = plot.figure(example(), LENGTH).axes
    (cross,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert cross.get_xdata().tolist() == [2048]  # the first length that naive had no memory for


def test_rates_start_at_zero_and_show_the_ceiling() -> None:
    (axes,) = plot.figure(example(), LENGTH, metric="flops").axes
    assert axes.get_ylim()[0] == 0
    assert axes.get_yscale() == "linear"
    assert any(list(line.get_ydata()) == [pytest.approx(8e14)] * 2 for line in axes.lines)


def test_a_ceiling_far_above_everything_is_not_drawn() -> None:
    records, _ = sweep({"slow": 1e12}, [512, 1024])
    (axes,) = plot.figure(results(records, ceilings=CEILINGS), LENGTH, metric="flops").axes
    assert [line.get_label() for line in axes.lines] == ["slow"]


def test_an_alternative_looks_the_same_in_every_panel() -> None:
    forward, _ = sweep({"naive": 4e13, "flash": 4e14, "fused": 1e14}, [512, 1024])
    backward, _ = sweep({"naive": 4e13, "fused": 1e14}, [512, 1024], suite="backward")
    looks = [
        {line.get_label(): (line.get_color(), line.get_marker()) for line in axes.lines}
        for axes in plot.figure(results(forward + backward), LENGTH).axes
    ]
    assert looks[0]["fused"] == looks[1]["fused"]
    assert len(set(looks[1].values())) == 3


def test_fifteen_alternatives_differ_in_colour_or_line() -> None:
    records, _ = sweep({f"v{i}": 1e12 * (i + 1) for i in range(15)}, [512, 1024], reference="none")
    (axes,) = plot.figure(results(records), LENGTH).axes
    assert len({(line.get_color(), str(line.get_linestyle()), line.is_dashed()) for line in axes.lines}) == 15


def test_a_size_of_zero_has_a_place_on_the_axis() -> None:
    run = results([record(f"f/v/w{w}", 1e-3 * (w + 1)) for w in (0, 1, 2)])
    (axes,) = plot.figure(run, Axis(pattern=r"w(\d+)")).axes
    assert axes.get_xscale() == "linear"


@pytest.mark.parametrize(
    ("run", "axis", "why"),
    [
        (example(), None, "needs to know which field of the problem is x"),
        (
            example(),
            Axis(pattern=r"z(\d+)"),
            r"nothing to draw: no cases differ in a field that matches 'z\(\\\\d\+\)'",
        ),
        (results([]), LENGTH, "nothing to draw"),
        (results([], out_of_memory={"f/v/s1": "why", "f/v/s2": "why"}), LENGTH, "nothing to draw"),
        (
            results([record(f"f{i}/v/s{s}", 1.0) for i in range(13) for s in (1, 2)]),
            LENGTH,
            "at most 12 panels, got 13",
        ),
    ],
)
def test_a_picture_that_cannot_be_drawn_says_so(run: Results, axis: Axis | None, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        plot.render(run, axis)


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown metric 'speed': expected one of time, flops, bytes"):
        plot.render(example(), LENGTH, metric="speed")


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        plot.render(example(), LENGTH)


@given(st.dictionaries(st.text("abc", min_size=1), st.floats(0, 200), max_size=15))
def test_names_are_apart_in_their_order_and_inside(wanted: dict[str, float]) -> None:
    places = plot.spread(wanted, spacing=10.0, top=200.0)
    assert places.keys() == wanted.keys()
    ordered = sorted(wanted, key=lambda name: (wanted[name], name))
    for lower, upper in itertools.pairwise(ordered):
        assert places[upper] - places[lower] >= 10.0 - 1e-9
    assert all(-1e-9 <= place <= 200.0 + 1e-9 for place in places.values())


@given(st.lists(st.floats(0, 200), max_size=10, unique=True))
def test_names_that_have_room_stay_where_they_should_be(heights: list[float]) -> None:
    wanted = {str(i): 25.0 * i + height / 20 for i, height in enumerate(heights)}  # at least 15 apart
    assert plot.spread(wanted, spacing=10.0, top=500.0) == pytest.approx(wanted)
