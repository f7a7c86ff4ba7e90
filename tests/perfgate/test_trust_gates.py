"""Starts of machines held against each other as baseline and run: what is called there, and of what."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from perfgate.clock import Method, Samples
from perfgate.contest import Block, Visit
from perfgate.trust import gates, page
from perfgate.trust.data import Contest
from perfgate.trust.gates import between
from perfgate.verdict import State
from tests.perfgate.simulate import FAKE, H200
from tests.perfgate.test_trust_data import collected
from tests.perfgate.test_trust_page import rows, section

KEY = H200.key
TITLE = "One start against a baseline of another"
STEADY = {f"steady{i}": 1e-3 for i in range(12)}


def start(
    number: int,
    seconds: Mapping[str, float | list[float]],
    *,
    fills: frozenset[str] = frozenset(),
    uuid: str | None = None,
    blocks: int = 3,
    method: Method = FAKE,
) -> Contest:
    """A run in which each case's processes, base and head of block after block, take so long."""
    rng, some = random.Random(number), collected(occasion=f"start {number}")
    environment = replace(H200, facts={"uuid": f"GPU-{number}" if uuid is None else uuid})

    def visits(name: str, block: int) -> tuple[Visit, ...]:
        given = seconds[name]
        of_process = given if isinstance(given, list) else [given] * 2 * blocks
        return tuple(
            Visit(
                side=side,
                samples=Samples(
                    seconds=tuple(of_process[2 * block + i] * rng.gauss(1, 0.001) for _ in range(20)), method=method
                ),
            )
            for i, side in enumerate(("base", "head"))
            for _ in range(2)
        )

    verdicts = {name: replace(some.verdicts["a"], case=name) for name in seconds}
    seen = [Block(stage=1, visits={name: visits(name, block) for name in seconds}) for block in range(blocks)]
    canary = {"canary/copy": (visits(next(iter(seconds)), 0))}
    seen[0] = Block(stage=1, visits={**seen[0].visits, **canary})
    return replace(
        some,
        origin=replace(some.origin, environment=environment, occasion=f"start {number}"),
        blocks=tuple(seen),
        verdicts=verdicts,
        controls=("canary/copy",),
        fills=fills,
    )


def both(*runs: Contest) -> gates.Gates:
    found = between(runs, KEY)
    assert found is not None
    return found


def test_what_is_the_same_everywhere_is_called_nothing() -> None:
    found = both(*(start(i, STEADY) for i in range(3)))
    assert (found.starts, found.pairs, found.called, found.cases) == (3, 6, {}, set())
    assert found.states == {State.UNCHANGED: 6 * 12}


def test_what_is_slower_at_one_start_is_called_there_alone() -> None:
    cases = ({"a": 1e-3, "b": 1e-3}, {"a": 1.1e-3, "b": 1.1e-3}, {"a": 1.1e-3})
    runs = [start(i, {**STEADY, **case}) for i, case in enumerate(cases, 1)]
    found = both(*runs)
    assert found.called == {State.REGRESSED: 2, State.IMPROVED: 2}
    assert found.states == {State.UNCHANGED: 6 * 12 + 2, State.REGRESSED: 3, State.IMPROVED: 3}
    assert found.cases == {"a", "b"}
    third = start(3, {"b": 1e-3, **STEADY}, uuid="GPU-1")
    text = section(page.render([*runs[:2], third]), TITLE)
    # the second is slower than the first by two cases and than the third by one
    assert rows(text) == [[KEY, "3", "6", "2", "2", "80", "0"]]
    assert text.endswith("Called slower: a, b.")
    # a process that is faster by chance is timed once, and makes a baseline that sees little
    lucky = start(2, {**STEADY, "a": [0.9e-3, *[1e-3] * 5]})
    assert rows(section(page.render([runs[0], lucky]), TITLE))[0][1:5] == ["2", "2", "0", "1"]


@pytest.mark.parametrize(
    ("processes", "called"),
    [
        ([1.1e-3, 1e-3, 1e-3, 1e-3], False),
        ([1.055e-3, 1.055e-3, 1e-3, 1e-3], False),
        ([1.1e-3, 1.1e-3, 1.1e-3, 1e-3], True),
        ([1e-3, 1.2e-3, 1.2e-3, 1.2e-3], False),
    ],
)
def test_a_case_is_called_by_three_processes_of_which_the_first_looks_slower(
    processes: list[float], called: bool
) -> None:
    found = both(start(1, {**STEADY, "case": 1e-3}), start(2, {**STEADY, "case": [*processes, 1e-3, 1e-3]}))
    assert found.cases == ({"case"} if called else set())


@pytest.mark.parametrize(
    ("fills", "uuid", "slower"),
    [(False, None, True), (True, None, False), (True, "", False), (True, "GPU-1", True)],
)
def test_what_fills_memory_may_take_longer_on_another_gpu(fills: bool, uuid: str | None, slower: bool) -> None:
    known = frozenset(["case"] if fills else [])
    found = both(*(start(i, {**STEADY, "case": s}, fills=known, uuid=uuid) for i, s in ((1, 6e-6), (2, 6.7e-6))))
    assert found.cases == ({"case"} if slower else set())


@pytest.mark.parametrize(("uuid", "slower"), [(None, False), ("GPU-1", True)])
def test_a_short_call_may_take_longer_on_another_gpu(uuid: str | None, slower: bool) -> None:
    found = both(*(start(i, {**STEADY, "case": s}, uuid=uuid) for i, s in ((1, 5.2e-6), (2, 5.5e-6))))
    assert found.cases == ({"case"} if slower else set())


def test_runs_that_know_too_little_or_are_of_an_unfit_machine_say_nothing() -> None:
    runs = [start(1, STEADY), start(2, dict.fromkeys(STEADY, 1.2e-3))]
    for changes in ({"fills": None}, {"unfit": "the controls disagree"}, {"what": "drift", "disturbance": "heat"}):
        assert between([runs[0], replace(runs[1], **changes)], KEY) is None
    assert between(runs, "another") is None
    assert between([runs[0], runs[0]], KEY) is None
    assert between([runs[0], start(2, {"another": 1e-3})], KEY) is None
    assert "No two starts" in section(page.render(runs[:1]), TITLE)


def test_cases_timed_by_another_method_are_not_compared() -> None:
    other = Method(clock="fake", version=2)
    old, new = start(1, STEADY), start(2, dict.fromkeys(STEADY, 1.2e-3), method=other)
    assert between([old, new], KEY) is None
    found = both(start(1, STEADY, blocks=1), start(1, dict.fromkeys(STEADY, 1.2e-3), method=other), start(2, STEADY))
    assert found.states == {State.UNCHANGED: 2 * 12}


def test_five_processes_of_a_start_are_a_baseline() -> None:
    late = start(1, {**STEADY, "case": [1.1e-3] * 6})
    found = both(start(1, {**STEADY, "case": [1e-3] * 6}), late, start(2, {**STEADY, "case": 1e-3}))
    assert (found.starts, found.states) == (2, {State.UNCHANGED: 2 * 13})
