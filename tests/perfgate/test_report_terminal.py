"""The terminal section: a golden example, widths, and what must never be lost."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfgate.case import Work
from perfgate.clock import Method
from perfgate.environment import Environment
from perfgate.record import Record
from perfgate.report import FORMATS, Results, terminal
from perfgate.report.columns import IMPORTANCE, columns
from perfgate.verdict import Quantity, State, Verdict
from tests.perfgate.reported import CEILINGS, outcome, record, results, sweep, verdict

SMALL = Work(flops=8e10, bytes=9e8, tokens=2048, dtype="bf16")
LARGE = Work(flops=3.2e11, bytes=1.8e9, tokens=4096, dtype="bf16")


WHY = ("flash: code changed, registers 128 -> 168", "fill: new (grid 8×1×1, block 128×1×1)")


def example() -> Results:
    """Two groups of three, one case of each kind."""
    records = [
        record("forward/naive/s2048", 2e-3, group="forward/s2048", reference=True, work=SMALL, peak=4e9),
        record("forward/flash/s2048", 2e-4, group="forward/s2048", work=SMALL, peak=1e9),
        record("forward/fused/s2048", 8e-4, group="forward/s2048", work=SMALL, peak=2e9),
        record("forward/naive/s4096", 8e-3, group="forward/s4096", reference=True, work=LARGE, peak=16e9),
        record(
            "forward/flash/s4096", [7.9e-4, 8e-4, 8.1e-4], group="forward/s4096", work=LARGE, peak=2e9, notes=["hot"]
        ),
    ]
    verdicts = [
        verdict("forward/flash/s4096", State.REGRESSED, 1.068),
        verdict("forward/old/s2048", State.MISSING),
        verdict("forward/fused/s2048", State.UNRESOLVED, 1.015),
        verdict("forward/naive/s4096", State.NEW),
        verdict("forward/flash/s2048", State.IMPROVED, 0.9),
        verdict("forward/naive/s2048", State.UNCHANGED, 1.0),
    ]
    return results(
        records,
        ceilings=CEILINGS,
        outcome=outcome(verdicts, str(verdicts[0]), "1 case unresolved; slowdowns up to 3.1% may hide there"),
        out_of_memory={"forward/fused/s4096": "tried to allocate 64 GB"},
        absent={"flash_attn": "not installed: pip install flash-attn"},
        notes=["driver 580.2 here, 580.1 in the baseline"],
    )


GOLDEN_80 = """\
NVIDIA H200: cuda 13.0, torch 2.11.0, triton 3.6.0
timed by cuda-events v1, L2 cold, graph: 5 cases in 1 process

                 median  TFLOP/s  % matrix  GB/s  speed-up   change     verdict
forward/s2048
  naive (ref)  2.000 ms     40.0       5.0   450     1.00×    0.0 %   unchanged
  flash        200.0 µs      400      50.0  4500     10.0×  -10.0 %    improved
  fused        800.0 µs      100      12.5  1125     2.50×   +1.5 %  unresolved
forward/s4096
  naive (ref)  8.000 ms     40.0       5.0   225     1.00×        –         new
  flash        800.0 µs      400      50.0  2250     10.0×   +6.8 %   regressed
no room in 80 columns for: P95, P99, % bandwidth, tokens/s, peak mem, less mem, new/old, visible from

forward/flash/s4096 regressed: new/old in [1.058, 1.078], floor 2.0%
forward/old/s2048 missing: said to be missing
forward/fused/s2048 unresolved: new/old in [1.005, 1.025], floor 2.0%
forward/naive/s4096 new: said to be new
forward/flash/s2048 improved: new/old in [0.890, 0.910], floor 2.0%
1 regressed, 1 improved, 1 unchanged, 1 unresolved, 1 new, 1 missing
1 case unresolved; slowdowns up to 3.1% may hide there

ceilings measured in the same run: copy 4.00 TB/s, read 4.50 TB/s, bf16 matrix 800 TFLOP/s
note: driver 580.2 here, 580.1 in the baseline
note: forward/flash/s4096: hot
out of memory, which is a result and not an error:
  forward/fused/s4096: tried to allocate 64 GB
not here: flash_attn: not installed: pip install flash-attn"""

GOLDEN_160_TABLE = """\
                 median       P95       P99  TFLOP/s  % matrix  GB/s  % bandwidth  tokens/s  peak mem  speed-up  less mem   change         new/old     verdict
forward/s2048
  naive (ref)  2.000 ms  2.000 ms  2.000 ms     40.0       5.0   450         10.0    1.02 M   4.00 GB     1.00×     1.00×    0.0 %  [0.990, 1.010]   unchanged
  flash        200.0 µs  200.0 µs  200.0 µs      400      50.0  4500        100.0    10.2 M   1.00 GB     10.0×     4.00×  -10.0 %  [0.890, 0.910]    improved
  fused        800.0 µs  800.0 µs  800.0 µs      100      12.5  1125         25.0    2.56 M   2.00 GB     2.50×     2.00×   +1.5 %  [1.005, 1.025]  unresolved
forward/s4096
  naive (ref)  8.000 ms  8.000 ms  8.000 ms     40.0       5.0   225          5.0     512 k   16.0 GB     1.00×     1.00×        –               –         new
  flash        800.0 µs  809.0 µs  809.8 µs      400      50.0  2250         50.0    5.12 M   2.00 GB     10.0×     8.00×   +6.8 %  [1.058, 1.078]   regressed
no room in 160 columns for: visible from"""  # noqa: E501 - a wide table is the point


def test_the_section_at_80_columns() -> None:
    assert "\n".join(terminal.render(example(), width=80)) == GOLDEN_80


def test_the_table_at_160_columns() -> None:
    lines = terminal.render(example(), width=160)
    assert "\n".join(lines[3:12]) == GOLDEN_160_TABLE


def test_the_host_clock_is_named_plainly() -> None:
    cpu = Environment(device="CPU AMD EPYC", versions={"torch": "2.13.0"})
    lines = terminal.render(Results.of([record("a", 1.0, method=Method(clock="host"))], cpu))
    assert lines[:2] == ["CPU AMD EPYC: torch 2.13.0", "CPU timings by the host clock: 1 case in 1 process"]


def test_a_run_by_two_methods_says_how_many_cases_each() -> None:
    run = results([record("a", 1.0, 1.0), record("b", 1.0, 1.0), record("c", 1.0, 1.0, method=Method(clock="host"))])
    assert terminal.render(run)[1:3] == [
        "timed by cuda-events v1, L2 cold, graph: 2 cases in 2 processes",
        "CPU timings by the host clock: 1 case in 2 processes",
    ]


def test_nothing_measured_is_said() -> None:
    assert terminal.render(results([])) == [
        "NVIDIA H200: cuda 13.0, torch 2.11.0, triton 3.6.0",
        "nothing was measured",
    ]


def test_a_single_case_without_work_has_times_alone() -> None:
    assert terminal.render(results([record("test_copy", 1e-3)]))[3:] == [
        "             median       P95       P99",
        "test_copy  1.000 ms  1.000 ms  1.000 ms",
    ]


def test_colour_changes_no_width_and_marks_what_is_red() -> None:
    def paint(text: str, *markup: str) -> str:
        return f"<{'+'.join(markup)}>{text}</>"

    painted = terminal.render(example(), width=80, paint=paint)
    assert "<red+bold>forward/flash/s4096 regressed: new/old in [1.058, 1.078], floor 2.0%</>" in painted
    assert any(line.endswith("<red+bold> regressed</>") for line in painted)
    assert [re.sub(r"<[a-z+/]*>", "", line) for line in painted] == terminal.render(example(), width=80)


def test_names_too_long_for_the_terminal_keep_both_ends() -> None:
    name = "forward/triton_flash/b4-h16-s4096-d128-bf16-causal-and-what-else-there-may-be-said-of-it"
    lines = terminal.render(results([record(name, 1e-3, work=SMALL)], ceilings=CEILINGS), width=80)
    row = next(line for line in lines if "…" in line)
    assert row.startswith("forward/triton_flash/b4")
    assert row.split()[0].endswith("said-of-it")


def many(n: int, state: State, ratio: float | None = None, step: float = 0.0) -> Results:
    names = [f"forward/v{i}/s512" for i in range(n)]
    return results(
        [record(name, 1e-3) for name in names],
        outcome=outcome([verdict(name, state, ratio + step * i if ratio else None) for i, name in enumerate(names)]),
    )


def test_a_reason_shared_by_many_is_said_once() -> None:
    lines = terminal.render(many(194, State.NEW))
    assert lines.count("194 cases new: said to be new") == 1
    assert sum(line.startswith("  forward/") for line in lines) == 0
    assert "0 regressed, 0 improved, 0 unchanged, 0 unresolved, 194 new, 0 missing" in lines


def test_what_is_left_to_the_table_is_counted() -> None:
    lines = terminal.render(many(50, State.UNRESOLVED, 1.01, step=0.001))
    assert sum(" unresolved: new/old" in line for line in lines) == 20
    assert "and 30 more unresolved: see the table" in lines


def test_every_regression_is_listed_however_many_there_are() -> None:
    lines = terminal.render(many(120, State.REGRESSED, 1.1, step=0.001))
    assert sum(" regressed: new/old" in line for line in lines) == 120
    assert "120 regressed, 0 improved, 0 unchanged, 0 unresolved, 0 new, 0 missing" in lines


def test_missing_cases_are_named_for_no_table_has_them() -> None:
    run = results([record("a", 1.0)], outcome=outcome([verdict(f"gone{i}", State.MISSING) for i in range(60)]))
    lines = terminal.render(run)
    assert all(f"  gone{i}" in lines for i in range(60))


def test_refused_cases_are_counted_when_there_are_any() -> None:
    lines = terminal.render(many(3, State.REFUSED))
    assert lines[-1] == "0 regressed, 0 improved, 0 unchanged, 0 unresolved, 0 new, 0 missing, 3 refused"


def test_a_new_case_without_memory_is_told_once() -> None:
    run = results([], out_of_memory={"big": "64 GB"}, outcome=outcome([verdict("big", State.NEW)]))
    assert [line for line in terminal.render(run) if "big" in line] == ["  big: 64 GB"]


def test_a_case_that_regressed_by_running_out_of_memory_is_told_as_a_regression() -> None:
    run = results([], out_of_memory={"big": "64 GB"}, outcome=outcome([verdict("big", State.REGRESSED)]))
    assert "big regressed: said to be regressed" in terminal.render(run)


def test_notes_that_differ_in_numbers_alone_are_said_once_with_the_worst() -> None:
    records = [record(f"case{i}", 1.0, notes=[f"stopped at 0.5 s: known to ±{i}.0%"]) for i in (9, 10, 2)]
    notes = [line for line in terminal.render(results(records)) if line.startswith("note")]
    assert notes == ["note: 3 cases, such as case10: stopped at 0.5 s: known to ±10.0%"]


def test_200_cases_repeat_the_titles_of_the_columns() -> None:
    records, _ = sweep({f"v{i}": 1e12 * (i + 1) for i in range(10)}, [128 * (i + 1) for i in range(20)], reference="v0")
    lines = terminal.render(results(records), width=80)
    titles = [i for i, line in enumerate(lines) if line.lstrip().startswith("median")]
    assert len(records) == 200
    assert len(titles) > 3
    assert max(b - a for a, b in itertools.pairwise(titles)) <= 60


suites = st.builds(
    lambda names, work: [record(f"{'n' * n}{i}", 1e-3, work=work) for i, n in enumerate(names)],
    st.lists(st.integers(1, 90), min_size=1, max_size=5),
    st.sampled_from([None, SMALL]),
)


@given(suites, st.integers(40, 250))
def test_no_line_of_the_table_is_wider_than_the_terminal(suite: list[Record], width: int) -> None:
    lines = terminal.render(results(suite), width=width)[3:]
    table = [line for line in lines if line and not line.startswith("no room")]
    assert len(table) == 1 + len(suite)
    assert max(map(len, table)) <= width


@given(suites)
def test_columns_are_dropped_in_the_order_of_their_importance(suite: list[Record]) -> None:
    run = results(suite, outcome=outcome([verdict(r.case.name, State.UNCHANGED, 1.0) for r in suite]))
    by_importance = sorted(columns(run.rows), key=lambda column: IMPORTANCE.index(column.name))
    titles = [column.title for column in by_importance]
    for width in range(60, 260, 10):
        shown = terminal.render(run, width=width)[3]
        kept = [title for title in titles if re.search(rf"(^| ){re.escape(title)}( |$)", shown)]
        assert kept == titles[: len(kept)]
        assert kept[0] == "median"


@pytest.mark.parametrize("name", ["text", "markdown"])
def test_a_format_of_the_table_gives_text(name: str) -> None:
    assert "forward/flash/s4096" in FORMATS[name](example(), None)


def test_accepted_cases_are_all_listed_and_a_case_has_one_row_whatever_else_is_said_of_it() -> None:
    records = [record(f"c{i}", 1e-3) for i in range(30)]
    verdicts = [verdict(f"c{i}", State.ACCEPTED, 1.05 + i / 100) for i in range(30)]
    verdicts += [
        Verdict(case="c1", state=State.REGRESSED, quantity=Quantity.MEMORY, reason="peak memory 2 B now, 1 B"),
        Verdict(case="c2", state=State.IMPROVED, quantity=Quantity.ACCURACY, reason="mean error of out"),
    ]
    told = replace(outcome(verdicts), notes=("stale: what was accepted of c5 was ignored",))
    lines = terminal.render(results(records, outcome=told), width=100)
    assert sum(" accepted: " in line for line in lines) == 30
    assert sum(line.startswith("c1 ") for line in lines) == 3  # its row, and two verdicts
    assert "c1 regressed in memory: peak memory 2 B now, 1 B" in lines
    assert any(line.endswith("30 accepted, 1 regressed in memory, 1 improved in accuracy") for line in lines)
    assert "stale: what was accepted of c5 was ignored" in lines


def test_what_became_of_the_kernels_stands_below_the_verdict() -> None:
    told = replace(verdict("a", State.REGRESSED, 1.1), why=WHY)
    lines = terminal.render(results([record("a", 1e-3)], outcome=outcome([told], str(told))))
    at = lines.index(str(told))
    assert lines[at + 1 : at + 3] == [f"    {sentence}" for sentence in WHY]


def test_cases_that_share_a_reason_keep_their_own_kernels() -> None:
    told = [replace(verdict(f"k{i}", State.REGRESSED), why=(f"kernel{i}: code changed",)) for i in range(5)]
    lines = terminal.render(results([record(v.case, 1e-3) for v in told], outcome=outcome(told)))
    for i in range(5):
        assert lines[lines.index(f"  k{i}") + 1] == f"    kernel{i}: code changed"
