"""Laws of stage 1: what it leaves unsettled, and what a second block of that may say."""

from __future__ import annotations

import math

import pytest

from perfgate import stats
from perfgate.contest import judge, suspects, unsettled
from perfgate.contrast import Contrasts
from perfgate.verdict import State
from tests.perfgate.test_contest import RULE, block, verdict

NOISY = dict(zip((f"noisy{i}" for i in range(30)), [0.012, -0.004, 0.009] * 10, strict=True))
"""Log-ratios of cases that one block leaves unsettled."""
QUIET = [f"quiet{i}" for i in range(40)]


def test_what_one_block_finds_suspicious_or_cannot_tell_is_unsettled() -> None:
    screen = [block(0, {"slow": 0.03, "fast": -0.03, "small": 0.0055, "calm": 0.0001}, stage=1, controls=QUIET)]
    assert unsettled(screen, RULE, QUIET) == ["slow", "fast", "small"]
    assert {*suspects(screen, RULE, QUIET)} == {"slow", "fast", "small"}
    assert verdict(judge(screen, RULE, QUIET), "small").state is State.UNCHANGED
    wide = [block(0, {"near": 0.0035, **NOISY}, stage=1, controls=[])]
    assert "near" in unsettled(wide, RULE, [*NOISY, "near"])  # what all scatter by does not let one say
    assert "near" not in suspects(wide, RULE, [*NOISY, "near"])
    assert unsettled([], RULE, QUIET) == []


def test_a_second_block_of_what_is_unsettled_takes_its_shift_from_what_is_settled() -> None:
    """All are controls; of those that it visits most are slower, and the machine is 0.5 % slower, too."""
    slow = dict.fromkeys((f"slow{i}" for i in range(24)), 0.03)
    first = block(0, slow, stage=1, controls=QUIET)
    again = block(1, slow, stage=1, controls=QUIET[:10], shift=0.005)
    found = judge([first, again], RULE, [*QUIET, *slow])
    assert found.unfit is None
    assert [shift.controls for shift in found.shifts] == [64, 10]
    assert math.log(found.shifts[1].ratio) == pytest.approx(0.005, abs=0.001)
    assert verdict(found, "slow7").ratio == pytest.approx(math.exp(0.03), rel=1e-3)
    whole = judge([first, block(1, slow, stage=1, controls=QUIET, shift=0.005)], RULE, [*QUIET, *slow])
    assert [shift.controls for shift in whole.shifts] == [64, 64]
    alone = judge([first, block(1, slow, stage=1, controls=QUIET[:1])], RULE, [*QUIET, *slow])
    assert [shift.controls for shift in alone.shifts] == [64, 25]  # one tells of no shift


def test_what_cases_scatter_by_is_learnt_before_some_are_chosen_for_it() -> None:
    """The second block has what was far off in the first, and is not so any more: that tells nothing of the others."""
    rule, names = RULE.band, [*QUIET, *NOISY]
    first = block(0, NOISY, stage=1, controls=QUIET)
    second = block(1, dict.fromkeys(NOISY, 0.0), stage=1, controls=QUIET[:10])
    alone, both = Contrasts.of([first], names, rule), Contrasts.of([first, second], names, rule, suspicious=[])
    assert both.prior == alone.prior
    assert Contrasts.of([first, second], names, rule).prior != alone.prior


def test_what_had_two_chances_to_be_found_unchanged_is_asked_more_strictly() -> None:
    first = block(0, NOISY, stage=1, controls=QUIET)
    for controls, confidence in ((QUIET[:10], 0.975), (QUIET, 0.95)):
        blocks = [first, block(1, {**NOISY, "noisy0": 0.0}, stage=1, controls=controls)]
        found = verdict(judge(blocks, RULE, [*QUIET, *NOISY]), "noisy0")
        suspicious = suspects([first], RULE, [*QUIET, *NOISY]) if confidence > 0.95 else None
        estimate = Contrasts.of(blocks, [*QUIET, *NOISY], RULE.band, suspicious=suspicious).estimate("noisy0")
        assert found.low is not None
        assert found.high is not None
        width = 2 * stats.t_quantile((1 + confidence) / 2, estimate.df) * estimate.error
        assert math.log(found.high / found.low) == pytest.approx(width)
    once = block(1, NOISY, stage=1, controls=QUIET[:10])
    one, two = (verdict(judge(blocks, RULE, [*QUIET, *NOISY]), "quiet30") for blocks in ([first], [first, once]))
    assert (one.low, one.high) == (two.low, two.high)
