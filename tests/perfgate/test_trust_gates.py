"""Starts of machines held against each other as baseline and run: what is called there, and of what."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from perfgate.clock import Samples
from perfgate.contest import Block, Visit
from perfgate.trust import gates, page
from perfgate.trust.data import Contest
from perfgate.trust.gates import between
from perfgate.verdict import State
from tests.perfgate.simulate import FAKE, H200
from tests.perfgate.test_trust_data import collected
from tests.perfgate.test_trust_page import rows, section

KEY = H200.key
TITLE = "Unchanged code against a baseline of another start"
STEADY = {f"steady{i}": 1e-3 for i in range(12)}


def start(
    number: int,
    seconds: Mapping[str, float | list[float]],
    *,
    fills: Mapping[str, int] | None = None,
    uuid: str | None = None,
    blocks: int = 3,
) -> Contest:
    """A run in which each case's processes, base and head of block after block, take so long."""
    rng, some = random.Random(number), collected(occasion=f"start {number}")
    environment = replace(H200, facts={"uuid": uuid or f"GPU-{number}"})

    def visits(name: str, block: int) -> tuple[Visit, ...]:
        given = seconds[name]
        of_process = given if isinstance(given, list) else [given] * 2 * blocks
        return tuple(
            Visit(
                side=side,
                samples=Samples(
                    seconds=tuple(of_process[2 * block + i] * rng.gauss(1, 0.001) for _ in range(20)), method=FAKE
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
        fills={} if fills is None else fills,
    )


def test_what_is_the_same_everywhere_is_called_nothing() -> None:
    found = between([start(i, STEADY) for i in range(3)], KEY)
    assert found == gates.Gates(starts=3, states={State.UNCHANGED: 6 * 12}, slower=frozenset())


def test_what_is_slower_at_one_start_is_called_there_alone() -> None:
    found = between([start(1, {**STEADY, "case": 1e-3}), start(2, {**STEADY, "case": 1.1e-3})], KEY)
    assert found is not None
    assert found.states == {State.UNCHANGED: 2 * 12, State.REGRESSED: 1, State.IMPROVED: 1}
    assert found.slower == {"case"}
    text = section(page.render([start(1, {**STEADY, "case": 1e-3}), start(2, {**STEADY, "case": 1.1e-3})]), TITLE)
    ((key, starts, verdicts, slower, faster, unresolved),) = rows(text)
    assert (key, starts, verdicts) == (KEY, "2", "26")
    assert [share.partition(" [")[0] for share in (slower, faster, unresolved)] == ["1 of 26", "1 of 26", "0 of 26"]
    assert text.endswith("Called slower though nothing had changed: case.")


def test_an_unlucky_process_is_timed_again() -> None:
    unlucky = [1.1e-3, *[1e-3] * 5]
    found = between([start(1, {**STEADY, "case": 1e-3}), start(2, {**STEADY, "case": unlucky})], KEY)
    assert found is not None
    assert not found.slower
    unlucky[:3] = [1.1e-3] * 3
    found = between([start(1, {**STEADY, "case": 1e-3}), start(2, {**STEADY, "case": unlucky})], KEY)
    assert found is not None
    assert found.slower == {"case"}


@pytest.mark.parametrize(("fills", "uuid", "slower"), [(0, None, True), (1, None, False), (1, "GPU-1", True)])
def test_what_fills_memory_may_take_longer_on_another_gpu(fills: int, uuid: str | None, slower: bool) -> None:
    known = {"case": fills} if fills else {}
    first, other = (start(i, {**STEADY, "case": s}, fills=known, uuid=uuid) for i, s in ((1, 6e-6), (2, 6.7e-6)))
    found = between([first, other], KEY)
    assert found is not None
    assert found.slower == ({"case"} if slower else set())


def test_runs_that_know_too_little_or_are_of_an_unfit_machine_say_nothing() -> None:
    runs = [start(1, STEADY), start(2, dict.fromkeys(STEADY, 0.0012))]
    for changes in ({"fills": None}, {"unfit": "the controls disagree"}, {"what": "drift", "disturbance": "heat"}):
        assert between([runs[0], replace(runs[1], **changes)], KEY) is None
    assert between(runs, "another") is None
    assert between([runs[0], runs[0]], KEY) is None
    assert "No two starts" in section(page.render(runs[:1]), TITLE)


def test_runs_of_one_start_are_one_baseline() -> None:
    # five processes make it: the second run's first two, and no more
    late = {**STEADY, "case": [1.1e-3] * 6}
    runs = [start(1, {**STEADY, "case": 1e-3}), start(1, late), start(2, {**STEADY, "case": 1e-3})]
    found = between(runs, KEY)
    assert found is not None
    assert found.starts == 2
    assert found.states == {State.UNCHANGED: 2 * 13}
