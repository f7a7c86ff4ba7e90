"""Case names as coordinates."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfgate.report.grid import Axis, panels
from tests.perfgate.reported import record, results, sweep

LENGTH = Axis(pattern=r"s(\d+)", label="sequence length")


def test_a_name_is_a_suite_an_alternative_and_a_problem() -> None:
    assert LENGTH.place("forward/flash/b4-h16-s4096-d128-bf16-causal") == (
        "forward",
        "b4-h16-d128-bf16-causal",
        "flash",
        4096,
    )


def test_what_goes_along_x_starts_no_panel_of_its_own() -> None:
    along = Axis(pattern=r"s(\d+)", along=r"b\d+")
    assert along.place("f/v/b32-s512-d64") == along.place("f/v/b4-s512-d64") == ("f", "d64", "v", 512)


@pytest.mark.parametrize("name", ["test_copy", "f/v/b4-d64", "f/v/s1-s2", "f/v/w/s1", "f/v/sq1-skv512"])
def test_a_name_without_just_one_such_field_has_no_place(name: str) -> None:
    assert LENGTH.place(name) is None


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"pattern": "s("}, "not a regular expression: 's\\('"),
        ({"pattern": r"s\d+"}, "one group, such as"),
        ({"pattern": r"(s)(\d+)"}, "one group, such as"),
        ({"pattern": r"s(\d+)", "along": "["}, "not a regular expression"),
    ],
)
def test_an_axis_that_cannot_be_read_says_so(said: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Axis(**said)


def test_a_panel_holds_what_differs_in_alternative_and_x_only() -> None:
    records, gone = sweep({"flash": 4e14, "naive": 4e13}, [512, 1024, 16384], ends={"naive": 1024})
    more, _ = sweep({"flash": 2e14, "naive": 2e13}, [512, 1024], suite="backward")
    drawn, homeless = panels(results([*records, *more, record("test_copy", 1.0)], out_of_memory=gone), LENGTH)
    assert [panel.title for panel in drawn] == ["backward, b4-d64-bf16", "forward, b4-d64-bf16"]
    assert drawn[1].xs == (512, 1024, 16384)
    assert drawn[1].series == ("naive", "flash")  # the reference first
    assert drawn[1].out_of_memory == {("naive", 16384)}
    assert drawn[1].rows["flash", 512].case.name == "forward/flash/b4-s512-d64-bf16"
    assert homeless == ["test_copy"]


def test_a_panel_of_one_x_is_none() -> None:
    records, _ = sweep({"flash": 4e14}, [512])
    assert panels(results(records), LENGTH) == ([], ["forward/flash/b4-s512-d64-bf16"])


def test_two_cases_in_one_place_are_refused() -> None:
    run = results([record(f"f/v/b{b}-s512", 1.0) for b in (1, 2)])
    with pytest.raises(ValueError, match="f/v/b1-s512 and f/v/b2-s512 have the same place"):
        panels(run, Axis(pattern=r"s(\d+)", along=r"b\d+"))


@given(st.randoms(use_true_random=False))
def test_the_order_of_the_cases_does_not_matter(order: random.Random) -> None:
    records, gone = sweep({"a": 1e12, "naive": 2e12, "b10": 3e12, "b9": 4e12}, [512, 1024, 2048], ends={"naive": 1024})
    expected = panels(results(records, out_of_memory=gone), LENGTH)
    order.shuffle(records)
    assert (
        panels(results(records, out_of_memory=dict(order.sample(sorted(gone.items()), len(gone)))), LENGTH) == expected
    )
