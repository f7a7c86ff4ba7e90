"""The test of a known bug's kind finds a bug of that kind, and nothing in attention that is right."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from attnkit.problem import Pass, Problem
from attnkit.variant import Attention, Variant
from attnkit.variants import variant
from tests.attnkit import test_known_bugs
from tests.known_bugs.planted import PLANTED, noise, of_gradient
from tests.known_bugs.table import BUGS, Bug

CPU = torch.device("cpu")


def arguments(test: Callable[..., None]) -> Iterator[dict[str, Any]]:
    """Yield what a test is parametrized with, but for the variant."""
    marks = [mark.args for mark in test.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    sets = []
    for names, values in marks:
        names = names.split(",") if isinstance(names, str) else names
        given = [getattr(value, "values", value) if hasattr(value, "marks") else value for value in values]
        if len(names) == 1:
            given = [value if hasattr(whole, "marks") else (value,) for whole, value in zip(values, given, strict=True)]
        sets.append([dict(zip(names, value, strict=True)) for value in given if names != ["name"]] or [{}])
    for chosen in itertools.product(*sets):
        yield {name: value for part in chosen for name, value in part.items()}


def finds(test: str, attention: Attention, monkeypatch: pytest.MonkeyPatch, name: str = "naive") -> bool:
    """Whether a test fails, with any of its parameters, where this attention is in naive's place, or another's."""
    planted = Variant(name, "planted", attention, lambda *_: None, lacks={})
    monkeypatch.setattr(test_known_bugs, "variant", lambda name: planted)
    monkeypatch.setattr(test_known_bugs, "GPU", False)
    function = getattr(test_known_bugs, test)
    for given in arguments(function):
        try:
            function(name=name, device=CPU, **given)
        except (AssertionError, RuntimeError, ZeroDivisionError):
            return True
    return False


@pytest.mark.parametrize(("number", "test", "made"), PLANTED, ids=[f"{n}-{test}" for n, test, _ in PLANTED])
def test_a_bug_of_the_kind_is_found_and_what_is_right_is_not_called_wrong(
    number: int, test: str, made: Callable[[], Attention], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert test in BUGS[number - 1].tests
    assert finds(test, made(), monkeypatch)
    assert not finds(test, variant("naive").attention, monkeypatch)


ORDER = "test_gradients_of_a_group_are_summed_in_one_order"


@pytest.mark.parametrize("name", ["sdpa_math", "sdpa_flash"])
def test_bits_that_depend_on_the_run_are_found_in_a_library_that_promises_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_deterministic_debug_mode()
    assert finds(ORDER, of_gradient(1, noise), monkeypatch, name)
    assert not finds(ORDER, variant(name).attention, monkeypatch, name)
    assert torch.get_deterministic_debug_mode() == before


def test_a_library_that_promises_no_bits_is_not_called_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def added(dk: torch.Tensor, *_: torch.Tensor, **options: object) -> torch.Tensor:
        return dk.put_(torch.zeros(1, dtype=torch.long), dk.new_ones(1))  # torch has no deterministic way to do so

    with pytest.raises(pytest.skip.Exception, match="promises no bits"):
        finds(ORDER, variant("naive").attention, monkeypatch, "flash_attn_3")
    with pytest.raises(pytest.skip.Exception, match="put_ does not have a deterministic implementation"):
        finds(ORDER, of_gradient(1, added), monkeypatch, "sdpa_math")


GRADIENTS = [
    (bug, test)
    for bug in BUGS
    if bug.gradients
    for test in bug.tests
    # torch's own functions have gradients
    if hasattr(test_known_bugs, test) and not test.startswith("test_torch_")
]


@pytest.mark.parametrize(("bug", "test"), GRADIENTS, ids=[f"{bug.number}-{test}" for bug, test in GRADIENTS])
def test_forward_alone_is_not_called_right_where_a_bug_is_one_of_gradients(
    bug: Bug, test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untrained(problem: Problem, device: torch.device, pass_: Pass) -> str | None:
        return None if pass_ == "fwd" else "has no backward"

    planted = Variant("naive", "planted", variant("naive").attention, untrained, lacks={})
    monkeypatch.setattr(test_known_bugs, "variant", lambda name: planted)
    function = getattr(test_known_bugs, test)
    for given in arguments(function):
        with pytest.raises(pytest.skip.Exception, match="has no backward"):
            function(name="naive", device=CPU, **given)


def test_what_is_planted_nowhere_needs_a_gpu_or_has_laws_elsewhere() -> None:
    covered = {number for number, _, _ in PLANTED}
    same_test = {bug.number for bug in BUGS if set(bug.tests) & {test for _, test, _ in PLANTED}}
    # 5 is among tests/mutants; 15 and 20 to 23 need a GPU
    assert {bug.number for bug in BUGS} - covered - same_test == {5, 15, 20, 21, 22, 23}
