"""What a person reads: a few honest digits."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfgate.report import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.2344e-3, "1.234 ms"),
        (999.96e-6, "1.000 ms"),
        (123.44e-6, "123.4 µs"),
        (1e-6, "1.000 µs"),
        (0.5e-9, "0.5000 ns"),
        (2.0, "2.000 s"),
        (7200.0, "7200 s"),
        (None, "–"),
    ],
)
def test_durations_have_four_digits(value: float | None, text: str) -> None:
    assert units.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.274e9, "B", "1.27 GB"),
        (4.31e12, "B/s", "4.31 TB/s"),
        (12.0, "B", "12.0 B"),
        (0.0, "B", "0 B"),
        (15360.0, "", "15.4 k"),
        (None, "B", "–"),
        (math.inf, "B", "–"),
    ],
)
def test_quantities_have_a_prefix(value: float | None, unit: str, text: str) -> None:
    assert units.quantity(value, unit) == text


@given(st.floats(min_value=1e-9, max_value=9e17))
def test_a_quantity_reads_back_as_the_number_it_was(value: float) -> None:
    number, _, prefix = units.quantity(value, "").partition(" ")
    scale = {p: s for s, p in units.PREFIXES}[prefix]
    assert float(number) * scale == pytest.approx(value, rel=0.0051)  # three digits: half of the last of 1.00


@given(st.floats(min_value=1e-9, max_value=9e2))
def test_a_duration_has_four_digits_and_one_to_three_before_the_point(value: float) -> None:
    assert re.fullmatch(r"(\d\.\d{3}|\d\d\.\d\d|\d{3}\.\d) (n|µ|m|)s", units.seconds(value))


@pytest.mark.parametrize(
    ("values", "expected"), [([4e14, 2e9], (1e12, "T")), ([9e11, None], (1e9, "G")), ([], (1e9, "G"))]
)
def test_a_column_of_rates_has_the_unit_of_its_largest(values: list[float | None], expected: tuple[float, str]) -> None:
    assert units.rate_unit(values) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(7.123e14, "712"), (7.1e12, "7.10"), (5.1e10, "0.051"), (1e8, "<0.001"), (None, "–")],
)
def test_rates_stay_narrow(value: float | None, text: str) -> None:
    assert units.rates(value, 1e12) == text


@pytest.mark.parametrize(("ratio", "text"), [(1.068, "+6.8 %"), (0.9, "-10.0 %"), (0.9999, "0.0 %"), (None, "–")])
def test_a_change_has_a_sign_unless_it_is_none(ratio: float | None, text: str) -> None:
    assert units.signed_percent(ratio) == text


def test_shares_multiples_and_sizes() -> None:
    assert (units.percent(0.9123), units.percent(None)) == ("91.2", "–")
    assert (units.multiple(3.4142), units.multiple(123.4), units.multiple(None)) == ("3.41×", "123×", "–")
    assert (units.plain(16384.0), units.plain(0.5)) == ("16384", "0.5")


def test_names_sort_by_the_numbers_in_them() -> None:
    assert sorted(["s16384", "s512", "s1024-b", "a"], key=units.natural) == ["a", "s512", "s1024-b", "s16384"]
