"""The list of known bugs is whole, its tests are there, and the page is what the list and the outcomes say."""

from __future__ import annotations

import importlib
import json
import math
import re
from pathlib import Path

import pytest
import torch

from attnkit.problem import Problem
from attnkit.variants import TABLE, flash_attn_4, variant
from tests.attnkit import test_known_bugs
from tests.known_bugs import outcomes
from tests.known_bugs.__main__ import OUTCOMES
from tests.known_bugs.outcomes import Collector, collect
from tests.known_bugs.page import link, of_environment, page
from tests.known_bugs.table import BUGS, HERE, KNOWN, LEAST_D, Known

PAGE = Path(__file__).parents[2] / "docs" / "known_bugs.md"


def test_there_are_33_and_each_has_an_issue_a_sentence_and_a_test() -> None:
    assert [bug.number for bug in BUGS] == list(range(1, 34))
    for bug in BUGS:
        assert bug.kind
        assert bug.issues
        assert bug.tests
        assert bug.sentence.endswith(".")
    assert len({bug.kind for bug in BUGS}) == len(BUGS)


@pytest.mark.parametrize("node", sorted({node for bug in BUGS for node in bug.nodes}))
def test_a_test_that_is_named_is_there(node: str) -> None:
    path, _, function = node.partition("::")
    if "splitkv" in path:
        pytest.importorskip("triton")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    assert callable(getattr(module, function))


def test_a_test_that_is_there_is_named() -> None:
    there = {f"{HERE}::{name}" for name in vars(test_known_bugs) if name.startswith("test_")}
    assert there == {node for bug in BUGS for node in bug.nodes if node.startswith(HERE)}
    names = {way.name for way in TABLE} | set(test_known_bugs.BACKENDS)
    for test, name in KNOWN:
        assert f"{HERE}::{test}" in there
        assert name in names


def test_what_is_known_is_expected_of_some_cases_alone() -> None:
    one = Known("an issue", cases=("-2-0-5-", "h-q"))
    assert one.has("-full-2-0-5-flex-")
    assert one.has("-h-q-flex-")
    assert not one.has("-full-0-5-5-flex-")
    assert Known("an issue").has("-anything-")


def report(test: str, parameters: str, outcome: str, when: str = "call", xfail: str | None = None) -> pytest.TestReport:
    found = pytest.TestReport(
        f"{HERE}::{test}[{parameters}]",
        (HERE, 0, test),
        {},
        outcome,  # type: ignore[arg-type]
        "E   first\nE   AssertionError: dq is off" if outcome == "failed" else None,
        when,  # type: ignore[arg-type]
    )
    if xfail:
        found.wasxfail = f"reason: {xfail}"  # type: ignore[attr-defined]
    return found


def test_the_worst_of_its_tests_is_what_a_variant_came_to() -> None:
    collector, test = Collector(), "test_a_token_is_generated_with_few_key_heads"
    for name, seen in {
        "naive": [("passed", None), ("skipped", None)],
        "naive_compiled": [("skipped", None)],
        "sdpa_math": [("passed", None), ("skipped", "pytorch#1")],
        "sdpa_cudnn": [("passed", None), ("failed", None), ("skipped", "pytorch#2")],
        "flex": [("passed", "pytorch#3")],  # expected to fail, and did not
    }.items():
        for outcome, xfail in seen:
            collector.pytest_runtest_logreport(report(test, f"1-{name}-bf16", outcome, xfail=xfail))
            collector.pytest_runtest_logreport(report(test, f"1-{name}-bf16", "passed", when="teardown"))
    row = collect(collector)[1]
    assert row["number"] == 2
    assert row["variants"] == {
        "naive": "right",
        "sdpa_math": "has it",
        "sdpa_cudnn": "failed",
        "flex": "right",
        "naive_compiled": "cannot",
    }
    assert row["reasons"] == {"sdpa_math": "pytorch#1", "sdpa_cudnn": "pytorch#2"}
    text = "\n".join(of_environment({"device": "GPU", "versions": {}, "bugs": [row]}))
    assert "| `naive`, `flex` | `sdpa_math` **not expected:** `sdpa_cudnn` |  | `naive_compiled` |" in text
    assert "- 2, `sdpa_math`: pytorch#1" in text
    row["variants"] = dict.fromkeys(row["variants"], "cannot")
    text = "\n".join(of_environment({"device": "GPU", "versions": {}, "bugs": [row]}))
    assert "| 2 | few key heads in decoding |  |  |  | all |" in text


def shown(number: int, variants: dict[str, str], **said: str) -> list[str]:
    """The row of a bug, and what is explained."""
    row = {"number": number, "variants": variants, "reasons": {}}
    lines = of_environment({"device": "GPU", "versions": {}, "bugs": [row], **said})
    return [line for line in lines if line.startswith((f"| {number} ", "- "))]


def test_a_library_is_right_of_bits_where_they_were_compared_alone() -> None:
    found = {"naive": "right", "sdpa_math": "right", "flex": "cannot"}
    kind = "| 24 | deterministic backward that is not"
    assert shown(24, found) == [f"{kind} | `naive` |  |  | `flex` |", "- 24, `sdpa_math`: bits were not compared"]
    assert shown(24, found, bits="compared") == [f"{kind} | `naive`, `sdpa_math` |  |  | `flex` |"]


def test_what_has_no_gradients_is_not_right_of_them() -> None:
    found = {"naive": "right", "triton_splitkv": "right", "flash_attn_4": "right", "flex": "has it"}
    for number, right, cannot in [
        (1, "`naive`", "`triton_splitkv`, `flash_attn_4`"),
        (23, "`naive`, `flash_attn_4`", "`triton_splitkv`"),
        (2, "`naive`, `triton_splitkv`, `flash_attn_4`", ""),
    ]:
        assert shown(number, found) == [f"| {number} | {BUGS[number - 1].kind} | {right} | `flex` |  | {cannot} |"]


def test_a_library_that_refuses_does_not_have_a_bug() -> None:
    found = {"sdpa_efficient": "has it", "sdpa_cudnn": "has it", "flex": "has it", "naive": "failed"}
    for number in (13, 16):
        (row,) = shown(number, found)
        assert row.endswith("| `sdpa_cudnn` **not expected:** `naive` | `sdpa_efficient`, `flex` |  |")
    # of other bugs nothing is known of them: what was expected was written down by the test
    assert shown(5, found)[0].endswith("| `sdpa_efficient`, `sdpa_cudnn`, `flex` **not expected:** `naive` |  |  |")


@pytest.mark.parametrize(
    ("outcome", "reason", "said"),
    [
        ("has it", "lengths of 0 are not promised; no issue is known", None),
        ("has it", "an issue of something else", "lengths of 0 are not promised; no issue is known"),
        ("failed", "AssertionError: dq is off", None),
    ],
)
def test_a_reason_is_put_as_it_is_put_now(outcome: str, reason: str, said: str | None) -> None:
    row = {"number": 18, "variants": {"flex": outcome}, "reasons": {"flex": reason}}
    lines = of_environment({"device": "GPU", "versions": {}, "bugs": [row]})
    assert f"- 18, `flex`: {said or reason}" in lines


@pytest.mark.parametrize(("test", "name"), KNOWN)
def test_what_is_expected_has_an_issue_or_none_is_known(test: str, name: str) -> None:
    entry = KNOWN[test, name]
    issues = re.findall(r"[a-z-]*#[0-9]+", entry.reason)
    assert issues or entry.reason.endswith("no issue is known")
    assert all(link(issue) for issue in issues)


def test_what_refuses_is_not_expected_to_compute_something_wrong() -> None:
    refusals = [entry for entry in KNOWN.values() if entry.refuses]
    assert refusals
    for entry in refusals:
        assert AssertionError not in entry.raises


def test_what_is_said_to_have_no_gradients_rejects_them() -> None:
    problem = Problem(b=1, hq=1, sq=1, d=64)
    for name, least in LEAST_D.items():
        if math.isinf(least):
            device = torch.device("cuda" if name == "flashinfer" else "cpu")
            assert "no backward" in (variant(name).rejects(problem, device, "fwd+bwd") or "")
        else:
            assert (name, least) == ("flash_attn_4", flash_attn_4.LEAST_D_BACKWARD)


@pytest.mark.parametrize(("said", "came_to"), [("pytorch#2", "has it"), (None, "failed")])
def test_a_process_that_ends_behind_a_test_that_said_why_adds_nothing(said: str | None, came_to: str) -> None:
    test = "test_a_token_is_generated_with_few_key_heads"
    ended = report(test, "1-sdpa_cudnn", "failed", when="???")
    collector = Collector()
    collector.pytest_runtest_logreport(ended)
    assert collect(collector)[1]["variants"] == {"sdpa_cudnn": "failed"}
    collector = Collector()
    collector.pytest_runtest_logreport(report(test, "1-sdpa_cudnn", "skipped" if said else "failed", xfail=said))
    before = collect(collector)[1]
    collector.pytest_runtest_logreport(ended)
    assert collect(collector)[1] == before
    assert before["variants"] == {"sdpa_cudnn": came_to}


@pytest.mark.parametrize(
    ("parameters", "name"),
    [("naive-bf16]", "naive"), ("bf16-naive_compiled]", "naive_compiled"), ("window-l9-flex]", "flex"), ("", "")],
)
def test_a_variant_is_found_among_parameters(parameters: str, name: str) -> None:
    assert outcomes.variant_of(parameters) == name


def test_an_issue_is_a_link() -> None:
    assert link("#443") == "[#443](https://github.com/Dao-AILab/flash-attention/issues/443)"
    assert link("pytorch#1") == "[pytorch#1](https://github.com/pytorch/pytorch/issues/1)"
    assert link("commit ab12") == "[ab12](https://github.com/Dao-AILab/flash-attention/commit/ab12)"
    for bug in BUGS:
        for issue in bug.issues:
            assert link(issue)


def test_the_committed_page_is_made_of_the_committed_outcomes() -> None:
    files = sorted(OUTCOMES.glob("*.json"))
    assert files
    assert PAGE.read_text(encoding="utf-8") == page([json.loads(file.read_text()) for file in files]) + "\n"
    for file in files:
        for row in json.loads(file.read_text())["bugs"]:
            assert "failed" not in row["variants"].values(), f"{file.name}: bug {row['number']} is not expected"
