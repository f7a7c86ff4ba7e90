"""The search for the fastest form of split-KV attention: it may not time a wrong one, and must say what it lacks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from attnkit.problem import Problem
from attnkit.variants.triton_splitkv_tiles import Form
from perf import search, tune_splitkv
from perf.search import screened
from perf.tune_splitkv import FORMS, PROBLEMS, Trial, chosen, parser, screen, screen_apart, turns

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_splitkv, "DEVICE", CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is needed, and there is a GPU")
def test_forms_are_screened_by_what_they_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Problem(b=1, hq=2, hkv=1, sq=1, skv=64, d=16, mask="causal")
    good, bad, torn = Form(), Form(warps=8), Form(warps=2)
    attend, calls = tune_splitkv.attend, iter(range(10**6))

    def planted(*tensors: torch.Tensor, form: Form, **options: Any) -> torch.Tensor:
        out = attend(*tensors, form=form, **options)
        return out * 1.5 if form == bad else out + 1e-3 * next(calls) if form == torn else out

    monkeypatch.setattr(tune_splitkv, "attend", planted)
    monkeypatch.setattr(tune_splitkv, "SCREEN_KEYS", 100)
    monkeypatch.setattr(tune_splitkv, "parity", lambda way, *rest: parity_of(way, small, bad=bad, torn=torn))
    assert screen(good, [small]) is None
    assert "wrong with 1 splits" in (screen(bad, [small]) or "")
    assert "not the same twice" in (screen(torn, [small]) or "")


def parity_of(way: Any, asked: Any, **_: object) -> SimpleNamespace:
    """The rule itself at a smaller size: whether out is anywhere near naive's."""
    from attnkit.variants import naive

    q, k, v, _ = asked.inputs(CPU)
    off = float((way.attention(q, k, v) - naive.VARIANT.attention(q, k, v, mask="causal")).abs().max())
    return SimpleNamespace(ok=off < 0.1, failures=[f"off by {off:.2f}"])


def test_a_form_that_dies_costs_itself_only(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys, os; os.abort() if '\"warps\": 7' in sys.argv[-1] else print('{\"out\": null}')"
    run = search.subprocess.run
    monkeypatch.setattr(
        search.subprocess,
        "run",
        lambda command, **options: run([search.sys.executable, "-c", program, command[-1]], **options),
    )
    verdicts = screened([Form(), Form(warps=7)], lambda form: screen_apart(form, ["b1-hkv8-4096"]), jobs=2)
    assert verdicts[Form()] is None
    assert (verdicts[Form(warps=7)] or "").startswith("exit -6")


def test_the_best_forms_are_tried_with_other_splits_and_again() -> None:
    asked = PROBLEMS["b1-hkv8-4096"]
    found: dict[Trial, list[float]] = {}
    order = []
    for trial in turns(FORMS, asked, found):
        order.append(trial)
        # the third form is fastest, and with 64 splits faster still
        found.setdefault(trial, []).append(1.0 + FORMS.index(trial.form) * 0.1 - 2.0 * (trial.form == FORMS[2]))
        found[trial][-1] -= (trial.splits == 64) * 0.5
    assert order[: len(FORMS)] == [chosen(form, asked) for form in FORMS]
    assert Trial(FORMS[2], 64) in order
    assert order[-tune_splitkv.FINALISTS] == Trial(FORMS[2], 64), "the fastest of all is timed again"
    assert max(trial.splits for trial in order) <= 64


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune_splitkv.main([]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--problems", "b1-hkv8-4096,b2"])
    assert "got b2" in capsys.readouterr().err


def test_the_whole_search_with_a_clock_that_knows_the_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fast, wrong = FORMS[3], FORMS[1]

    class Knowing:
        def __init__(self, budget: object) -> None:
            pass

        def measure(self, call: Any, inputs: object) -> SimpleNamespace:
            form = getattr(call, "form", None)
            return SimpleNamespace(median=1e-6 if form == fast else 1e-9 if form == wrong else 4e-6)

    def call(trial: Trial, workspace: object) -> Any:
        given: Any = lambda *tensors: None  # noqa: E731 - a function with an attribute
        given.form = trial.form
        return given

    monkeypatch.setattr(tune_splitkv, "CudaClock", Knowing)
    monkeypatch.setattr(tune_splitkv, "call", call)
    monkeypatch.setattr(tune_splitkv, "use_one_stream", lambda: None)
    monkeypatch.setattr(tune_splitkv, "ceilings", lambda clock: {"read_bytes_per_second": 4e12})
    monkeypatch.setattr(tune_splitkv, "SETS_BYTES", 0)
    monkeypatch.setattr(
        tune_splitkv, "screened", lambda forms, screen, jobs: {f: "wrong" if f == wrong else None for f in forms}
    )
    record: list[dict[str, Any]] = []
    tune_splitkv.tune(parser().parse_args(["--problems", "b1-hkv4-1024"]), record)
    (best,) = (entry for entry in record if "best" in entry)
    assert Form(**best["best"]["form"]) == fast
    assert best["seconds"] == 1e-6
    assert [entry["out"] for entry in record if "out" in entry] == ["wrong"]
    assert not any(Form(**entry["trial"]["form"]) == wrong for entry in record if "trial" in entry)
    assert "1.00 us" in capsys.readouterr().out
