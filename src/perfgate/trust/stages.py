"""Stage 2 of a comparison whose blocks are drawn or recorded: what of them a rule asks for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from perfgate import contest
from perfgate.contest import Block, ContestRule, Findings
from perfgate.trust.data import Contest

__all__ = ["confirmed", "judged_again"]

Fresh = Callable[[int, Sequence[str]], Block | None]
"""``fresh(number, names)``: a block of stage 2 that visits these cases, and controls; None if there is none."""


def confirmed(
    screen: Sequence[Block], rule: ContestRule, controls: Collection[str], picked: Sequence[str], fresh: Fresh
) -> list[Block]:
    """The blocks of stage 1, and those of stage 2 until nothing that was picked is undecided."""
    seen = list(screen)
    for number in range(rule.confirm_blocks):
        left = contest.undecided(seen, rule, controls, picked)
        if not left or (block := fresh(number, left)) is None:
            break
        seen.append(block)
    return seen


def judged_again(run: Contest, rule: ContestRule) -> Findings:
    """What a rule says of a recorded run, which was perhaps decided by another one.

    It picks of stage 1 what it will, and sees of stage 2 what was recorded and it would have asked for.
    """
    screen, recorded = ([block for block in run.blocks if block.stage == stage] for stage in (1, 2))
    picked = contest.suspects(screen, rule, run.controls)

    def fresh(number: int, left: Sequence[str]) -> Block | None:
        if number >= len(recorded):
            return None
        visits = recorded[number].visits
        asked = {*left, *run.controls} - (set(picked) - set(left))
        return replace(recorded[number], visits={name: visits[name] for name in visits if name in asked})

    return contest.judge(confirmed(screen, rule, run.controls, picked, fresh), rule, run.controls, picked)
