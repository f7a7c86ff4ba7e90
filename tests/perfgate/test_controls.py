"""Which cases are controls: those that launched the same on both sides, in each block."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from perfgate.contest import ContestRule, Findings, judge, suspects
from perfgate.contrast import Block, Visit
from perfgate.controls import same_kernels
from perfgate.kernels import Kernel, Kernels
from perfgate.verdict import State
from tests.perfgate.simulate import contest_blocks, kernels, samples

RULE = ContestRule()


def launching(code: str | None) -> Kernels | None:
    return None if code is None else Kernels.of([Kernel(name="k", grid=(1, 1, 1), code=code)])


def block(*codes: str | None, sides: Sequence[str] = ("base", "head", "head", "base")) -> Block:
    """Visits of one case whose kernel has these codes."""
    visits = tuple(
        Visit(side=side, samples=replace(samples(1e-3), kernels=launching(code)))  # type: ignore[arg-type]
        for side, code in zip(sides, codes, strict=True)
    )
    return Block(stage=1, visits={"case": visits})


@pytest.mark.parametrize(
    ("blocks", "control"),
    [
        ([block("a", "a", "a", "a")], True),
        ([block("a", "b", "b", "a")], False),
        ([block("a", "a", "b", "a")], False),
        ([block("a", "a", None, "a")], False),
        ([block(None, None, None, None)], False),
        ([block("?", "?", "?", "?")], False),
        ([block("a", "a", "a", "a"), block("b", "b", "b", "b")], True),
        ([block("a", "a", "a", "a"), block("a", "b", "b", "a")], False),
        ([block("a", "b", "b", "a"), block("a", "a", "a", "a")], False),
        ([block("a", "a", sides=("base", "base"))], False),
        ([block("a", "a", "a", "a"), block("a", "b", sides=("base", "base"))], True),
        ([], False),
    ],
)
def test_a_control_launched_the_same_on_both_sides_in_every_block(blocks: list[Block], control: bool) -> None:
    assert same_kernels(blocks) == ({"case"} if control else set())


def run(rng: random.Random, ratio: float, share: float) -> tuple[Findings, set[str]]:
    """Both stages of a suite whose kernels are all the same, and of which a share is slower all the same."""
    cases = kernels(rng)
    names = list(cases)
    slow = set(rng.sample(names, int(share * len(names))))
    about = {"ratios": dict.fromkeys(slow, ratio), "within": 0.0007, "visits": "AB"}
    first = contest_blocks(rng, cases, blocks=2, **about)  # type: ignore[arg-type]
    picked = suspects(first, RULE, names)
    beside = rng.sample([name for name in names if name not in picked], 20)
    few = {name: cases[name] for name in [*picked, *beside]}
    second = contest_blocks(rng, few, stage=2, blocks=10, **about)  # type: ignore[arg-type]
    return judge([*first, *second], RULE, names, picked), slow


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_controls_that_are_slower_for_another_reason_are_called(share: float) -> None:
    """Their inputs' layout, say: they are judged against the others, and only they are called."""
    rng = random.Random(21)
    for _ in range(20):
        found, slow = run(rng, 1.02, share)
        red = {v.case for v in found.verdicts if v.state is State.REGRESSED}
        assert found.unfit is None
        assert red
        assert red <= slow


@pytest.mark.parametrize("share", [0.4, 0.6, 1.0])
def test_where_too_many_controls_are_slower_nothing_is_called_and_nothing_is_green(share: float) -> None:
    rng = random.Random(22)
    for _ in range(20):
        found, _ = run(rng, 1.02, share)
        assert found.unfit is not None
        assert {v.state for v in found.verdicts} == {State.UNRESOLVED}
