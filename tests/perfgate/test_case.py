"""A case is its name; work is an amount."""

from __future__ import annotations

import math

import pytest

from perfgate.case import Case, Work


@pytest.mark.parametrize("name", ["", " ", "a ", "\ta"])
def test_a_name_has_no_blanks_at_its_ends(name: str) -> None:
    with pytest.raises(ValueError, match="a case needs a name"):
        Case(name=name)


@pytest.mark.parametrize("field", ["flops", "bytes", "tokens"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_work_is_a_finite_amount(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"work.{field} must be finite and not negative, got"):
        Work(**{field: value})


def test_equal_cases_are_one() -> None:
    assert {Case(name="a", work=Work(flops=1.0)), Case(name="a", work=Work(flops=1.0))} == {
        Case(name="a", work=Work(flops=1.0))
    }
