"""Where the CUDA clock lets further input sets lie: what it asks of memory, without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from perfgate import cuda, gpu  # noqa: E402 - after the check for torch


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What is taken at once, in bytes; -1 where what was left was given back."""
    happened: list[int] = []
    monkeypatch.setattr(gpu, "give_back", lambda: happened.append(-1))
    monkeypatch.setattr(torch, "empty", lambda size, **_: happened.append(size))
    return happened


@pytest.mark.parametrize(
    ("held", "making", "more", "sizes"),
    [
        (100, 30, 15, [-1, 1530]),
        (100, 0, 3, [-1, 300]),
        (100, 300, 3, [-1, 600]),
        (100, 301, 3, []),
        (100, 30, 0, []),
    ],
)
def test_further_sets_get_a_stretch_that_making_them_is_no_more_than_half_of(
    asked: list[int], held: int, making: int, more: int, sizes: list[int]
) -> None:
    first = cuda._FirstSet(("first",), held, making)
    assert cuda._more_sets(first, lambda i: (i,), more) == [(i,) for i in range(1, more + 1)]
    assert asked == sizes


def test_where_the_stretch_does_not_fit_each_set_takes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(gpu, "give_back", lambda: None)
    monkeypatch.setattr(torch, "empty", full)
    assert cuda._more_sets(cuda._FirstSet((), 100, 0), lambda i: (i,), 2) == [(1,), (2,)]


@pytest.mark.parametrize(
    ("before", "after", "peak", "held", "making"),
    [(500, 600, 640, 100, 40), (500, 500, 500, 0, 0), (500, 450, 500, 0, 50)],
)
def test_the_first_set_tells_what_it_holds_and_what_making_it_took(
    monkeypatch: pytest.MonkeyPatch, before: int, after: int, peak: int, held: int, making: int
) -> None:
    allocated = [before]
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: allocated[0])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)

    def inputs(i: int) -> tuple[int]:
        allocated[0] = after
        return (i,)

    first_set: Callable[[Any], Any] = cuda._first_set
    assert first_set(inputs) == cuda._FirstSet((0,), held, making)
    assert first_set([("a",), ("b",)]) == cuda._FirstSet(("a",), 0, 0)
