"""The long fuzz draws what the laws draw, misses nothing that fails, survives a process that dies, and counts right."""

from __future__ import annotations

import json
import re
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attnkit import testing
from attnkit.mask import Boolean, Documents, Prefix, Window
from attnkit.parity import Comparison, Parity
from attnkit.problem import TRAINED, Problem
from attnkit.variant import Attention, Variant
from attnkit.variants import TABLE, variant
from tests.fuzz import __main__ as command
from tests.fuzz import page, shares, trial
from tests.fuzz.draw import COMPILED, COMPILED_EVERY, Share, Trial, drawn, trials
from tests.fuzz.summary import LIMITS, of_folder, summary
from tests.fuzz.trial import said

CPU = torch.device("cpu")
NAMES = tuple(way.name for way in TABLE)
PROBLEM = Problem(b=1, hq=2, sq=9, d=16, dtype="fp32", mask=Window(3, 0))


def share(**changes: Any) -> Share:
    some = {"seed": 0, "index": 0, "processes": 2, "problems": 90, "longest": 24, "head_dims": testing.HEAD_DIMS}
    return Share(**some | {"variants": ("naive", "sdpa_math", "naive_compiled")} | changes)


def test_the_same_seed_draws_the_same_problems_and_another_others() -> None:
    first = drawn("0", 30, longest=40)
    assert first == drawn("0", 30, longest=40)
    assert len({problem for problem, _ in first}) == 30
    assert len({problem for problem, _ in first} & {problem for problem, _ in drawn("1", 30, longest=40)}) < 20


def test_a_process_draws_of_all_kinds_but_of_few_dtypes_and_head_dims_and_some_in_fp8() -> None:
    one = share(processes=16, problems=900)
    (cell,) = one.cells
    problems = list(dict.fromkeys(each.problem for each in trials(one, CPU)))
    assert {(problem.dtype, problem.d) for problem in problems} == {cell, ("fp8", cell[1])}
    for some in (problems, problems[: len(problems) // 2]):  # as many of a run that is cut short
        assert 3 < len(some) / sum(problem.dtype == "fp8" for problem in some) < 7
    kinds = {type(problem.mask) for problem in problems}
    assert kinds >= {str, Window, Prefix, Documents, Boolean}
    assert any(problem.sink for problem in problems)
    assert any(problem.group > 1 for problem in problems)
    assert len({problem.layout for problem in problems}) == 5


@pytest.mark.parametrize("processes", [1, 3, 16])
def test_all_processes_together_have_every_dtype_and_head_dim(processes: int) -> None:
    dims = testing.HEAD_DIMS
    found = {
        cell for index in range(processes) for cell in share(index=index, processes=processes, head_dims=dims).cells
    }
    assert {dtype for dtype, _ in found} == set(TRAINED)
    assert {d for _, d in found} == set(dims)
    every = {
        cell
        for seed in range(2)
        for index in range(processes)
        for cell in share(seed=seed, index=index, processes=processes, head_dims=dims).cells
    }
    assert len(every) == len(TRAINED) * len(dims)


def test_each_problem_is_tried_by_all_that_take_it_and_what_is_compiled_gets_few() -> None:
    found = list(trials(share(variants=NAMES), CPU))
    assert found == list(trials(share(variants=NAMES), CPU))
    problems = list(dict.fromkeys(each.problem for each in found))
    for way in TABLE:
        for pass_ in ("fwd", "fwd+bwd"):
            able = [p for p in problems if way.absent() is None and way.rejects(p, CPU, pass_) is None]
            tried = [each.problem for each in found if (each.variant, each.pass_) == (way.name, pass_)]
            if way.name in COMPILED:
                assert len(tried) <= len(problems) // COMPILED_EVERY + 1
            else:
                assert tried == able


def test_what_is_wrong_is_said_and_what_is_right_has_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    found = said(Trial("naive", "fwd+bwd", PROBLEM, 3), CPU)
    assert found["failures"] == []
    assert [name.split()[0] for name in found["ratios"]] == ["out", "dq", "dk", "dv"]
    assert all(0 <= ratio <= 1 for ratio, _ in found["ratios"].values())

    def answer(attention: Attention) -> dict[str, Any]:
        planted = Variant("planted", "for this test", attention, lambda *_: None, lacks={})
        monkeypatch.setattr("tests.fuzz.trial.variant", lambda name: planted)
        return said(Trial("planted", "fwd", PROBLEM, 4), CPU)

    right = variant("naive").attention
    assert answer(right)["failures"] == []
    (failure,) = answer(lambda *inputs, **options: right(*inputs, **options | {"mask": "full"}))["failures"][:1]
    assert failure.startswith("out is off by ")
    raised = answer(lambda *inputs, **options: 1 / 0)
    assert raised == {"failures": ["raised ZeroDivisionError: division by zero"], "ratios": {}, "seed": 4}


def test_a_small_problem_is_drawn_several_times_and_its_errors_are_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = dict.fromkeys(range(3, 3 + trial.DRAWS), (1.0, 1.0)) | {3: (2.0, 4.0), 4: (6.0, 1.0), 5: (1.0, 8.0)}

    def compared(way: Variant, problem: Problem, device: torch.device, pass_: str, seed: int) -> Parity:
        failures = ("out is wrong",) if errors[seed][0] > 8 else ()
        return Parity((Comparison("out", errors[seed][0], 0.0, errors[seed][1], 0.0, failures, open_error=0.5),))

    monkeypatch.setattr(trial, "parity", compared)
    assert said(Trial("naive", "fwd", PROBLEM, 3), CPU) == {"failures": [], "ratios": {"out 0": [0.75, 0.75]}}
    large = replace(PROBLEM, sq=4096)
    assert said(Trial("naive", "fwd", large, 3), CPU) == {"failures": [], "ratios": {"out 0": [0.5, 0.5]}}
    half = replace(PROBLEM, sq=512)  # half of what is enough
    assert said(Trial("naive", "fwd", half, 3), CPU)["ratios"] == {"out 0": [1.5, 1.5]}
    errors[5] = (9.0, 0.0)
    found = said(Trial("naive", "fwd", PROBLEM, 3), CPU)
    assert found == {"failures": ["out is wrong"], "ratios": {"out 0": [2.25, 2.25]}, "seed": 5}


def test_as_many_truths_are_kept_as_a_problem_is_drawn() -> None:
    from attnkit import parity

    assert parity._expected.cache_info().maxsize == trial.DRAWS


def test_in_the_end_nothing_is_compiled_and_the_others_make_up_the_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "said", lambda trial, device: {"failures": [], "ratios": {}})
    monkeypatch.setattr("tests.attnkit.interpreter.install", lambda: None)
    one = share(variants=("naive", "triton_flash"), problems=60)
    for name, seconds in (("early", 2 * trial.WITHOUT_KERNELS), ("late", trial.WITHOUT_KERNELS / 2)):
        assert trial.main(one, 0, 20, time.time() + seconds, tmp_path / name) == trial.DONE
        found = [record["variant"] for record in shares.records(tmp_path / name)]
        assert len(found) == 40
        able = variant("triton_flash").absent() is None
        assert set(found) == ({"naive", "triton_flash"} if name == "early" and able else {"naive"})


def worker(path: Path, body: str) -> tuple[str, ...]:
    """A stand-in for the process of a share, which has `number`, `write` and the arguments."""
    head = """
    import json, os, sys, time
    _, share, first, done, until, file = sys.argv
    share, file = json.loads(share), open(file, "a")
    def write(line):
        file.write(json.dumps(line) + "\\n")
        file.flush()
    def begin(number):
        known = {"variant": "naive", "pass": "fwd", "dtype": "fp32", "problem": "p", "seed": 1}
        write({"number": number, **known})
    """
    path.write_text(textwrap.dedent(head) + textwrap.dedent(body))
    return (sys.executable, str(path))


def test_a_process_that_dies_fails_at_its_trial_and_another_goes_on_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = """
    for number in range(int(first), share["problems"]):
        assert int(done) == number
        done = number + 1
        begin(number)
        if number == 2:
            os.abort()
        if number == 4:
            write({"failures": ["out is off"], "ratios": {}})
            sys.exit(3)  # as where the device is lost
        write({"failures": [], "ratios": {}})
    """
    monkeypatch.setattr(shares, "COMMAND", worker(tmp_path / "worker.py", body))
    found = shares.run([share(problems=7)], 60, tmp_path / "run")
    assert [record["number"] for record in found] == list(range(7))
    failed = {record["number"]: record["failures"] for record in found if record["failures"]}
    assert failed == {2: ["ended its process: SIGABRT"], 4: ["out is off"]}


def test_a_process_without_end_is_ended_and_that_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "COMMAND", worker(tmp_path / "worker.py", "begin(0)\ntime.sleep(60)"))
    monkeypatch.setattr(shares, "GRACE", 1.0)
    started = time.monotonic()
    (record,) = shares.run([share()], 1, tmp_path / "run")
    assert time.monotonic() - started < 30
    assert "no end 1 s after the time was over" in record["failures"][0]


def test_a_process_that_does_nothing_is_an_error_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "COMMAND", worker(tmp_path / "worker.py", "sys.exit('no such module')"))
    with pytest.raises(RuntimeError, match=r"died before its first trial \(exit code 1\): see .*share0.log"):
        shares.run([share()], 60, tmp_path / "run")
    assert "no such module" in (tmp_path / "run" / "share0.log").read_text()


def record(variant: str, pass_: str, ratios: dict[str, float], failures: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "number": 0,
        "variant": variant,
        "pass": pass_,
        "dtype": "bf16",
        "problem": repr(PROBLEM),
        "seed": 5,
        "failures": list(failures),
        "ratios": {f"{name} 0": [ratio, ratio / 2] for name, ratio in ratios.items()},
    }


RUN: dict[str, Any] = {
    "environment": {"device": "a device", "versions": {"torch": "2"}},
    "problems": 100,
    "longest": 24,
    "processes": 1,
    "seed": 0,
    "draws": 5,
    "enough": 77,
    "device": "cpu",
}


@pytest.mark.parametrize(("ratio", "flagged"), [(LIMITS["fwd"], False), (LIMITS["fwd"] + 0.01, True)])
@pytest.mark.parametrize("name", ["triton_flash", "sdpa_math"])
def test_ours_are_flagged_where_the_99th_percentile_is_over_the_limit(name: str, ratio: float, flagged: bool) -> None:
    # of 200 two may be larger
    ratios = [0.5] * 197 + [ratio, 7.0, 8.0]
    found = summary([record(name, "fwd", {"out": value}) for value in ratios], None, **RUN)
    (row,) = found["errors"]
    assert (row["p99"], row["max"], row["plain_median"], row["tensors"]) == (ratio, 8.0, 0.25, 200)
    assert row["plain_p99"] == ratio / 2
    assert row["flagged"] == (flagged and name == "triton_flash")


def test_out_is_of_forward_and_gradients_of_backward_whichever_pass_computed_them() -> None:
    both = {"out": 0.5, "dq": 1.0, "dsink": 1.4}
    found = summary([record("triton_flash", "fwd", {"out": 0.6}), record("triton_flash", "fwd+bwd", both)], None, **RUN)
    assert {(row["pass"], row["tensors"], row["max"]) for row in found["errors"]} == {("fwd", 2, 0.6), ("bwd", 2, 1.4)}
    assert found["errors"][1]["worst"]["tensor"] == "dsink"


def test_problems_are_counted_by_variant_and_pass_and_failures_can_be_computed_again() -> None:
    records = [
        record("naive", "fwd", {"out": 1.0}),
        record("naive", "fwd", {"out": 1.0}),
        record("triton_flash", "fwd+bwd", {"out": float("inf")}, ("out is not finite",)),
        {key: value for key, value in record("naive", "fwd", {}).items() if key not in ("failures", "ratios")},
    ]
    found = summary(records, None, **RUN)
    assert found["problems"] == 3
    assert [tuple(row.values()) for row in found["counts"]] == [
        ("naive", "fwd", 2, 0),
        ("triton_flash", "fwd+bwd", 1, 1),
    ]
    (failure,) = found["failures"]
    names = {"Problem": Problem, "Window": Window}
    assert eval(failure["problem"], names) == PROBLEM
    text = page.page(json.loads(json.dumps(found)))
    assert "**3 problems, 1 failures.**" in text
    assert "100 were asked for; the time was over before." in text
    assert "has fewer than 77 numbers is drawn up to 5 times" in text
    assert "| `naive` | 2 |  | 0 |" in text
    assert f'parity(variant("triton_flash"), {PROBLEM!r}, "cpu", "fwd+bwd", 5)' in text


def test_the_command_computes_what_was_asked_for_and_writes_it_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fuzz.json"
    options = ["--problems=40", "--processes=1", "--longest=16", "--variants=naive,sdpa_math,triton_flash"]
    assert command.main([*options, f"--out={out}"]) == 0
    found = json.loads(out.read_text())
    assert found["problems"] == 40
    assert found["failures"] == []
    able = {name for name in ("naive", "sdpa_math", "triton_flash") if variant(name).absent() is None}
    assert {row["variant"] for row in found["counts"]} == able
    assert capsys.readouterr().out.startswith(page.page(found))


def test_errors_over_the_limit_are_an_exit_code_once_they_are_no_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(records: int) -> int:
        found = [record("triton_flash", "fwd", {"out": LIMITS["fwd"] + 0.01})] * records
        monkeypatch.setattr(shares, "run", lambda *_, **__: found)
        return command.main([f"--problems={records}", f"--out={tmp_path / 'fuzz.json'}"])

    assert (run(99), run(100)) == (0, 1)


def test_a_page_is_made_of_what_a_killed_run_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, folder = tmp_path / "fuzz.json", tmp_path / "fuzz"
    assert command.main(["--problems=12", "--processes=1", "--variants=naive,sdpa_math", f"--out={out}"]) == 0
    whole = json.loads(out.read_text())
    capsys.readouterr()
    page.main([str(folder)])
    assert capsys.readouterr().out == page.page(whole) + "\n"
    lines = folder / "share0.jsonl"
    *kept, begun = lines.read_text().splitlines(keepends=True)[:9]  # 4 trials, and one that did not end
    lines.write_text("".join(kept) + begun + '{"failures": [')
    page.main([str(folder)])
    said = capsys.readouterr().out
    assert "**4 problems, 0 failures.**" in said
    assert "12 were asked for; the time was over before." in said


def test_what_more_processes_of_an_earlier_run_left_is_not_counted(tmp_path: Path) -> None:
    out = f"--out={tmp_path / 'fuzz.json'}"
    for processes, problems in ((2, 4), (1, 2)):
        command.main([f"--problems={problems}", f"--processes={processes}", "--variants=naive,sdpa_math", out])
    assert of_folder(tmp_path / "fuzz")["problems"] == 2


def test_a_run_whose_time_was_over_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fuzz.json"
    options = ["--problems=40", "--processes=1", "--longest=16", "--variants=naive,sdpa_math", f"--out={out}"]
    assert command.main(options) == 0
    whole, lines = json.loads(out.read_text()), (tmp_path / "fuzz" / "share0.jsonl")
    *kept, begun = lines.read_text().splitlines(keepends=True)[:23]  # 11 trials, and one that did not end
    lines.write_text("".join(kept) + begun + '{"failures": [')
    assert command.main([*options, "--resume"]) == 0
    assert lines.read_text().startswith("".join(kept))
    resumed = json.loads(out.read_text())
    assert resumed["problems"] == whole["problems"] == 40
    for changed in ("--seed=1", "--problems=41", "--commit=another"):
        with pytest.raises(SystemExit, match="2"):
            command.main([*options, changed, "--resume"])
        assert re.search(r"--resume goes on with the same run: \w+ was .*, is ", capsys.readouterr().err)
    (tmp_path / "fuzz" / "run.json").unlink()
    with pytest.raises(SystemExit, match="2"):
        command.main([*options, "--resume"])
    assert "run.json, which a run leaves, got FileNotFoundError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--variants=nope,naive", "--variants must be of naive, .*transformer_engine, got 'nope'"),
        ("--variants=", "--variants must be of naive, .*, got ''"),
        ("--out=.", "--out must be a file with an ending, .perfgate/fuzz.json, got ."),
        ("--out=fuzz", "--out must be a file with an ending, .perfgate/fuzz.json, got fuzz"),
        ("--seconds=-1", "--seconds must be finite and positive, got -1"),
    ],
)
def test_a_wrong_option_is_said_before_anything_is_computed(
    option: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "run", lambda *_: pytest.fail("began"))
    with pytest.raises(SystemExit, match="2"):
        command.main([option])
    assert re.search(said, capsys.readouterr().err)


def test_where_nothing_was_computed_nothing_is_claimed() -> None:
    text = page.page(summary([], None, **RUN))
    assert "**0 problems, 0 failures.**" in text
    assert "100 were asked for; none was computed." in text
    assert "none of their tensors was compared." in text
    assert "over" not in text.partition("100 were asked for")[2]


@pytest.mark.parametrize(
    ("content", "why"), [(None, "FileNotFoundError"), ("{", "JSONDecodeError"), ("{}", "KeyError")]
)
def test_a_file_that_is_no_result_makes_no_page(
    content: str | None, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "fuzz.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit, match="2"):
        page.main([str(file)])
    said = capsys.readouterr()
    assert said.out == ""
    assert f"FILE must be what python -m tests.fuzz wrote, got {file} ({why}" in said.err


def test_a_page_is_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        page.main([])
    found = summary([record("naive", "fwd", {"out": 1.0})], None, **RUN)
    (tmp_path / "fuzz.json").write_text(json.dumps(found))
    page.main([str(tmp_path / "fuzz.json")])
    assert capsys.readouterr().out == page.page(found) + "\n"
