"""Every formula of a row, worked out by hand, and the laws it keeps."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfgate.case import Work
from perfgate.clock import Method
from perfgate.record import Record
from perfgate.report import Row, rows
from perfgate.verdict import State
from tests.perfgate.reported import CEILINGS, COLD, record, results, verdict


def only(*records: Record, name: str = "case", **said: object) -> Row:
    return next(row for row in rows(records, **said) if row.case.name == name)  # type: ignore[arg-type]


def test_quantiles_are_taken_over_all_processes_together() -> None:
    row = only(record("case", [1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]))
    # eleven durations, 1 to 11: the q-quantile is 1 + 10 q
    assert (row.processes, row.calls) == (2, 11)
    assert (row.median, row.p95, row.p99) == pytest.approx((6.0, 10.5, 10.9))


def test_rates_and_shares_are_work_over_median_and_over_the_ceilings() -> None:
    row = only(record("case", 2e-3, work=Work(flops=8e11, bytes=1.8e9, tokens=512, dtype="bf16")), ceilings=CEILINGS)
    assert row.flops_per_second == pytest.approx(4e14)
    assert row.matrix_share == pytest.approx(0.5)
    assert row.bytes_per_second == pytest.approx(9e11)
    assert row.bandwidth_share == pytest.approx(0.2)  # of the best bandwidth measured, 4.5 TB/s
    assert row.tokens_per_second == pytest.approx(256_000)


def test_speed_up_and_memory_reduction_are_counted_from_the_reference_of_the_group() -> None:
    slow = record("slow", 6e-3, group="g", reference=True, peak=8e9)
    fast = record("fast", 2e-3, group="g", peak=1e9)
    other = record("other", 1e-3, group="h", peak=1e9)
    assert (only(slow, fast, other, name="fast").speedup, only(slow, fast, other, name="fast").memory_reduction) == (
        3,
        8,
    )
    assert only(slow, fast, other, name="slow").speedup == 1
    assert only(slow, fast, other, name="other").speedup is None


def test_peak_memory_is_the_most_of_any_process() -> None:
    small, large = record("case", 1.0, peak=1e9), record("case", 1.0, peak=3e9)
    assert only(Record(case=small.case, processes=small.processes + large.processes)).peak_bytes == 3e9


@pytest.mark.parametrize("work", [None, Work(), Work(dtype="bf16")])
def test_without_work_there_is_no_rate_and_no_share(work: Work | None) -> None:
    row = only(record("case", 1e-3, work=work), ceilings=CEILINGS)
    assert {
        row.flops_per_second,
        row.bytes_per_second,
        row.tokens_per_second,
        row.matrix_share,
        row.bandwidth_share,
    } == {None}


@pytest.mark.parametrize("ceilings", [{}, {"flops_per_second.fp16": 8e14}, {"flops_per_second.bf16": 0.0}])
def test_without_a_ceiling_of_its_own_there_is_no_share(ceilings: dict[str, float]) -> None:
    row = only(record("case", 1e-3, work=Work(flops=1e9, bytes=1e6, dtype="bf16")), ceilings=ceilings)
    assert row.flops_per_second == pytest.approx(1e12)
    assert (row.matrix_share, row.bandwidth_share) == (None, None)


def test_a_group_with_two_references_has_no_speed_up() -> None:
    twice = [record(name, 1e-3, group="g", reference=True) for name in ("a", "b")]
    assert [row.speedup for row in rows(twice)] == [None, None]


def test_a_reference_timed_by_another_method_does_not_count() -> None:
    cold = record("cold", 2e-3, group="g", reference=True)
    warm = record("warm", 1e-3, group="g", method=replace(COLD, l2="warm"))
    assert only(cold, warm, name="warm").speedup is None


def test_a_case_may_have_no_group_and_then_has_no_reference() -> None:
    assert [row.speedup for row in rows([record("a", 1.0, reference=True), record("b", 2.0)])] == [None, None]


def test_a_verdict_finds_its_case() -> None:
    said = verdict("b", State.REGRESSED, 1.07)
    assert [row.verdict for row in rows([record("a", 1.0), record("b", 1.0)], verdicts=[said])] == [None, said]


def test_two_records_of_a_case_are_refused() -> None:
    with pytest.raises(ValueError, match=r"several of 'a': merge the processes first"):
        rows([record("a", 1.0), record("a", 2.0)])


def test_no_records_are_no_rows() -> None:
    assert rows([]) == []
    assert rows({}) == []


def test_groups_come_in_natural_order_and_in_a_group_the_reference_then_the_fastest() -> None:
    records = [
        record("s1024/a", 3.0, group="s1024"),
        record("s1024/b", 2.0, group="s1024"),
        record("s512/a", 1.0, group="s512"),
        record("s1024/ref", 9.0, group="s1024", reference=True),
        record("alone", 1.0),
    ]
    assert [row.case.name for row in rows(records)] == ["s512/a", "s1024/ref", "s1024/b", "s1024/a", "alone"]


def test_notes_of_all_processes_are_kept_once() -> None:
    assert only(record("case", 1.0, 1.0, notes=["hot", "slow"])).notes == ("hot", "slow")


durations = st.floats(min_value=1e-7, max_value=10.0)
amounts = st.floats(min_value=1.0, max_value=1e15)


@st.composite
def suites(draw: st.DrawFn) -> list[Record]:
    n = draw(st.integers(1, 12))
    return [
        record(
            f"case{i}",
            *draw(st.lists(st.lists(durations, min_size=1, max_size=5), min_size=1, max_size=3)),
            group=draw(st.sampled_from([None, "g1", "g2"])),
            reference=draw(st.booleans()),
            work=draw(st.none() | st.builds(Work, flops=amounts, bytes=amounts, tokens=amounts, dtype=st.just("bf16"))),
            peak=draw(st.none() | st.just(0.0) | amounts),
            method=draw(st.sampled_from([COLD, Method(clock="host")])),
        )
        for i in range(n)
    ]


@given(suites(), st.randoms(use_true_random=False))
def test_the_order_of_the_records_does_not_matter(suite: list[Record], order: random.Random) -> None:
    shuffled = list(suite)
    order.shuffle(shuffled)
    assert rows(shuffled, CEILINGS) == rows(suite, CEILINGS)
    assert rows({r.case.name: r for r in shuffled}, CEILINGS) == rows(suite, CEILINGS)


@given(suites(), st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_a_clock_that_runs_at_another_rate_scales_times_and_leaves_ratios(suite: list[Record], factor: float) -> None:
    # powers of two, so that scaling is exact and equality can be asked for
    scaled = [
        replace(r, processes=tuple(replace(p, seconds=tuple(factor * s for s in p.seconds)) for p in r.processes))
        for r in suite
    ]
    slower = {key: value / factor for key, value in CEILINGS.items()}
    for before, after in zip(rows(suite, CEILINGS), rows(scaled, slower), strict=True):
        assert after.case == before.case
        assert (after.median, after.p95, after.p99) == (
            factor * before.median,
            factor * before.p95,
            factor * before.p99,
        )
        assert (after.speedup, after.memory_reduction) == (before.speedup, before.memory_reduction)
        assert (after.matrix_share, after.bandwidth_share) == (before.matrix_share, before.bandwidth_share)
        if before.flops_per_second is not None:
            assert after.flops_per_second == before.flops_per_second / factor


@given(suites())
def test_the_reference_of_a_group_is_one_time_as_fast_as_itself(suite: list[Record]) -> None:
    for row in rows(suite):
        if row.case.reference and row.speedup is not None:
            assert row.speedup == 1


def test_selecting_keeps_what_a_name_finds_and_drops_the_word_on_the_whole_run() -> None:
    run = results([record("a/x", 1.0), record("b/x", 1.0)], out_of_memory={"b/y": "why", "c": "why"}, command="pytest")
    chosen = run.select("^b/")
    assert [row.case.name for row in chosen.rows] == ["b/x"]
    assert chosen.out_of_memory == {"b/y": "why"}
    assert (chosen.outcome, chosen.command) == (None, "pytest")


@pytest.mark.parametrize(
    ("pattern", "why"), [("(", "not a regular expression"), ("nothing", "finds none of the 1 cases")]
)
def test_a_selection_that_cannot_be_made_says_so(pattern: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        results([record("a", 1.0)]).select(pattern)
