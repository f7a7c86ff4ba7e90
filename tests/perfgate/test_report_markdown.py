"""Pages for GitHub: what stands in them, that nothing breaks a table, and that they never grow too long."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfgate.report import Axis, Results, markdown
from perfgate.verdict import State
from tests.perfgate.reported import CEILINGS, outcome, record, results, sweep, verdict

LENGTH = Axis(pattern=r"s(\d+)", label="sequence length")


def test_the_page_says_where_how_and_by_which_command() -> None:
    page = markdown.render(results([record("a", 1.0, 1.0)], ceilings=CEILINGS, command="nox -s baseline"))
    assert page.startswith(
        "Measured on **NVIDIA H200: cuda 13.0, torch 2.11.0, triton 3.6.0**\n"
        "\n"
        "- timed by cuda-events v1, L2 cold, graph: 1 case in 2 processes\n"
        "- ceilings measured in the same run: copy 4.00 TB/s, read 4.50 TB/s, bf16 matrix 800 TFLOP/s\n"
        "- command: `nox -s baseline`\n"
    )


def test_a_small_table_has_a_row_an_alternative_and_a_column_an_x() -> None:
    # 1e6 s² operations at 4e13 and 4e14 a second: ten times as fast everywhere
    records, gone = sweep({"naive": 4e13, "flash": 4e14}, [512, 1024, 16384], ends={"naive": 1024})
    page = markdown.render(results(records, out_of_memory=gone), LENGTH, full=False)
    assert (
        "**forward, b4-d64-bf16**: TFLOP/s over sequence length (in brackets the speed-up over the reference)\n"
        "\n"
        "| | 512 | 1024 | 16384 |\n"
        "|---|--:|--:|--:|\n"
        "| naive (ref) | 40.0 | 40.0 | out of memory |\n"
        "| flash | **400 (10.0×)** | **400 (10.0×)** | **400** |\n"
    ) in page
    assert "<details>" not in page


def test_a_small_table_of_times_marks_the_shortest() -> None:
    records, _ = sweep({"naive": 4e13, "flash": 4e14}, [1000, 2000])
    page = markdown.render(results(records), LENGTH, metric="time", full=False)
    assert "| naive (ref) | 25.00 ms | 100.0 ms |\n| flash | **2.500 ms (10.0×)** | **10.00 ms (10.0×)** |" in page


def test_a_small_table_of_bandwidths() -> None:
    records, _ = sweep({"flash": 4e14}, [1000, 2000])  # 1e7 bytes in 2.5 ms, 2e7 in 10 ms
    assert "| flash | **4.00** | **2.00** |" in markdown.render(results(records), LENGTH, metric="bytes", full=False)


def test_the_full_table_has_every_case_and_every_column() -> None:
    records, _ = sweep({"naive": 4e13, "flash": 4e14}, [1000])
    page = markdown.render(results(records, ceilings=CEILINGS))
    assert "<summary>All 2 cases</summary>" in page
    assert (
        "| case | median | P95 | P99 | TFLOP/s | % matrix | GB/s | % bandwidth | tokens/s "
        "| peak mem | speed-up | less mem |\n"
    ) in page
    assert (
        "| `forward/flash/b4-s1000-d64-bf16` | 2.500 ms | 2.500 ms | 2.500 ms | 400 | 50.0 | 4.00 | 0.1 | 1.60 M "
        "| 1.00 GB | 10.0× | 1.00× |\n"
    ) in page


def test_verdicts_come_worst_first_and_unchanged_is_counted() -> None:
    verdicts = [
        verdict("b", State.UNRESOLVED, 1.015),
        verdict("a", State.REGRESSED, 1.068),
        verdict("c", State.UNCHANGED, 1.0),
    ]
    page = markdown.render(
        results([record(c, 1.0) for c in "abc"], outcome=outcome(verdicts, str(verdicts[1]), "driver differs"))
    )
    assert "**1 regressed, 0 improved, 1 unchanged, 1 unresolved, 0 new, 0 missing**\n\ndriver differs\n" in page
    assert (
        "| regressed | `a` | +6.8 % | new/old in [1.058, 1.078], floor 2.0% |\n"
        "| unresolved | `b` | +1.5 % | new/old in [1.005, 1.025], floor 2.0% |\n"
    ) in page
    assert "| unchanged | `c`" not in page


def test_what_became_of_the_kernels_stands_in_the_evidence() -> None:
    told = replace(verdict("a", State.REGRESSED, 1.068), why=("k<4>: code changed", "fill: new"))
    page = markdown.render(results([record("a", 1.0)], outcome=outcome([told], str(told))))
    assert r"new/old in [1.058, 1.078], floor 2.0%<br>k\<4>: code changed<br>fill: new |" in page


def test_notes_out_of_memory_and_absent_are_listed() -> None:
    page = markdown.render(
        results([], notes=["hot"], out_of_memory={"big": "64 GB"}, absent={"flash_attn": "pip install flash-attn"})
    )
    assert "Notes:\n\n- hot\n" in page
    assert "Out of memory (a result, not an error):\n\n- `big`: 64 GB\n" in page
    assert "Not here:\n\n- flash_attn: pip install flash-attn\n" in page


def test_nothing_measured_is_a_page_too() -> None:
    assert (
        markdown.render(results([]), LENGTH) == "Measured on **NVIDIA H200: cuda 13.0, torch 2.11.0, triton 3.6.0**\n"
    )


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown metric 'speed': expected one of time, flops, bytes"):
        markdown.render(results([]), metric="speed")


@given(st.text(min_size=1, max_size=30))
def test_no_name_breaks_a_table(text: str) -> None:
    name = f"x{text}x"
    page = markdown.render(results([record(name, 1e-3)], outcome=outcome([verdict(name, State.NEW)])))
    for line in page.splitlines():
        if line.startswith("| new |"):
            assert line.replace("\\|", "").count("|") == 5
        if line.startswith("| ") and line.endswith(" ms | new |"):
            assert line.replace("\\|", "").count("|") == 6


def test_text_is_shown_as_it_is() -> None:
    page = markdown.render(results([], notes=["a|b <c> *d* _e_ f_g [h](i) & `j`", "two\nlines"]))
    assert r"- a\|b \<c> \*d\* \_e\_ f_g [h]\(i) \& \`j\`" in page
    assert "- two lines\n" in page


def long_run(n: int) -> Results:
    names = [f"forward/variant{i}/b4-h16-s4096-d128-bf16-causal" for i in range(n)]
    verdicts = [verdict(name, State.REGRESSED if i < n // 2 else State.UNCHANGED, 1.1) for i, name in enumerate(names)]
    return results([record(name, 1e-3) for name in names], outcome=outcome(verdicts))


def test_200_cases_fit_into_a_comment() -> None:
    page = markdown.render(long_run(200))
    assert len(page.encode()) < markdown.LIMIT == 65_536
    assert "left out" not in page


def test_what_does_not_fit_is_left_out_and_said() -> None:
    page = markdown.render(long_run(2000))
    assert len(page.encode()) <= markdown.LIMIT
    rows = sum(line.startswith("| regressed |") for line in page.splitlines())
    assert f"{1000 - rows} of 1000 verdicts left out: they would not fit into 65,536 bytes." in page
    assert page.count("<details>") == page.count("</details>")


@given(st.integers(1, 60), st.integers(1, 20), st.integers(2000, 20_000))
def test_a_page_is_never_longer_than_its_limit(panels: int, lengths: int, limit: int) -> None:
    records = []
    for i in range(panels):
        records += sweep({"naive": 4e13, "flash": 4e14}, [128 * (j + 1) for j in range(lengths)], suite=f"suite{i}")[0]
    run = results(records, outcome=outcome([verdict(r.case.name, State.NEW) for r in records]))
    page, whole = (markdown.render(run, LENGTH, limit=most) for most in (limit, 10**8))
    assert len(page.encode()) <= limit
    assert ("left out" in page) == (len(whole.encode()) > limit)
    assert markdown.render(run, LENGTH, limit=len(whole.encode())) == whole
    assert page.count("<details>") == page.count("</details>")


def test_a_limit_without_room_for_anything_is_refused() -> None:
    with pytest.raises(ValueError, match="a page of 10 bytes has no room for its head"):
        markdown.render(results([]), limit=10)


DOCUMENT = """\
# Title
<!-- generated: table -->
old
<!-- end -->
between
<!-- generated: other -->
<!-- end -->
"""


def test_a_block_is_replaced_and_the_rest_is_kept() -> None:
    assert markdown.replace_block(DOCUMENT, "table", "new\n\nlines\n") == DOCUMENT.replace("old", "new\n\nlines")
    assert markdown.replace_block(DOCUMENT, "other", "new") == DOCUMENT.replace("other -->\n", "other -->\nnew\n")


@given(st.text(st.characters(exclude_characters="<"), max_size=80))
def test_replacing_a_block_twice_is_replacing_it_once(body: str) -> None:
    once = markdown.replace_block(DOCUMENT, "table", body)
    assert markdown.replace_block(once, "table", body) == once


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("no block", "expected one line '<!-- generated: table -->' in the document, got 0"),
        (DOCUMENT + DOCUMENT, "got 2"),
        ("<!-- generated: table -->\n", "block 'table' has no end"),
        ("<!-- generated: table -->\n<!-- generated: other -->\n<!-- end -->\n", "block 'table' has no end"),
    ],
)
def test_a_document_without_just_one_such_block_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        markdown.replace_block(text, "table", "new")


@pytest.mark.parametrize("body", ["a <!-- end --> b", "<!-- generated: table -->"])
def test_a_text_that_would_end_its_block_is_refused(body: str) -> None:
    with pytest.raises(ValueError, match="has a block's marker in it"):
        markdown.replace_block(DOCUMENT, "table", body)
