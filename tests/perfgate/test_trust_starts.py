"""What starts of machines differ by: the spread that was there, of unchanged code on fit machines of one kind."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from perfgate.clock import Samples
from perfgate.contest import Block, Visit
from perfgate.trust.data import Contest
from perfgate.trust.starts import apart
from tests.perfgate.simulate import FAKE, H200
from tests.perfgate.test_trust_data import collected

LONG, SHORT = "flash", "add"
KEY = H200.key


def started(occasion: str, factor: float, late: float = 0.0, names: tuple[str, str] = (LONG, SHORT)) -> Contest:
    """A run of a long case and a short one at a start that is slower by a factor, and begins kernels late."""
    some = collected(occasion=occasion)

    def visit(seconds: float) -> Visit:
        return Visit(side="base", samples=Samples(seconds=(seconds,) * 6, method=FAKE))

    visits = dict(zip(names, ((visit(1e-3 * factor),), (visit(4e-6 * factor + late),)), strict=True))
    verdicts = {name: replace(some.verdicts["a"], case=name) for name in visits}
    visits["canary/copy"] = (visit(1.0 if occasion == "start 1" else 2.0),)
    return replace(some, blocks=(Block(stage=1, visits=visits),), verdicts=verdicts, controls=("canary/copy",))


def test_the_spread_over_starts_is_the_one_that_was_there() -> None:
    rng = random.Random(3)
    found = apart([started(f"start {i}", math.exp(rng.gauss(0, 0.005))) for i in range(200)], KEY)
    assert found is not None
    assert found.count == 200
    assert found.cases == {LONG: pytest.approx(0.005, rel=0.15), SHORT: pytest.approx(0.005, rel=0.15)}
    assert found.session == pytest.approx(0.005 * math.sqrt(2), rel=0.15)
    assert found.to_json() == {"sd": found.session, "starts": 200, "cases": 2}


def test_what_short_calls_differ_by_in_seconds_is_no_share_of_long_ones() -> None:
    """0.1 us, by which two starts differ, is 2.5 % of 4 us."""
    rng = random.Random(4)
    found = apart([started(f"start {i}", math.exp(rng.gauss(0, 0.004)), rng.gauss(0, 6e-8)) for i in range(100)], KEY)
    assert found is not None
    assert found.cases[SHORT] == pytest.approx(0.015, rel=0.2)
    assert found.session < 0.0065


def test_what_calls_that_fill_memory_differ_by_is_no_share_of_long_ones() -> None:
    """0.3 us, by which two starts differ, is 7.5 % of 4 us."""
    rng = random.Random(5)
    runs = [started(f"start {i}", math.exp(rng.gauss(0, 0.004)), rng.gauss(0, 1.8e-7)) for i in range(100)]
    first = replace(runs[0], fills=frozenset([SHORT]))
    unknown, known = apart(runs, KEY), apart([first, *runs[1:]], KEY)
    assert unknown is not None
    assert known is not None
    assert known.session < 0.02 < unknown.session


def test_runs_of_one_start_are_one_start() -> None:
    runs = [started(f"start {i}", 1 + i / 1000) for i in range(5)]
    alone, twice = apart(runs, KEY), apart([*runs, *runs], KEY)
    assert alone is not None
    assert alone == twice


def test_two_gpus_of_one_occasion_are_two_starts() -> None:
    runs = [started(f"start {i}", 1 + i / 1000) for i in range(4)]
    other = started("start 0", 1.004)
    environment = replace(H200, facts={**H200.facts, "uuid": "GPU-2"})
    found = apart([*runs, replace(other, origin=replace(other.origin, environment=environment))], KEY)
    assert found is not None
    assert found.count == 5


@pytest.mark.parametrize(
    "last",
    [
        started("start 4", 1.0, 0.0),
        replace(started("another", 1.0), unfit="it was warm"),
        replace(started("another", 1.0), what="drift", disturbance="the clock falls"),
        replace(
            started("another", 1.0),
            origin=replace(collected(occasion="another").origin, environment=replace(H200, device="NVIDIA B200")),
        ),
    ],
    ids=["no-other-start", "not-fit", "disturbed", "another-kind"],
)
def test_fewer_than_five_starts_of_unchanged_code_say_nothing(last: Contest) -> None:
    four = [started(f"start {i}", 1.0) for i in range(1, 5)]
    assert apart([*four, started("start 5", 1.0)], KEY) is not None
    assert apart([*four, last], KEY) is None
