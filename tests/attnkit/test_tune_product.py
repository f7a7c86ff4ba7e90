"""The search for the fastest tiles: it may not time a wrong kernel, and what fails must not end it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from attnkit.products.product_tiles import TABLE, Tiles
from perf import tune_product
from perf.tune_product import CANDIDATES, Trial, line_of, parser, screen, turns

TRIALS = [Trial(kind, form) for kind, forms in CANDIDATES.items() for form in forms]


def test_a_candidate_is_the_same_in_another_process_and_in_the_table() -> None:
    for trial in TRIALS:
        assert Trial.loads(trial.dumps()) == trial
        assert eval(line_of(trial.form), {"Tiles": Tiles}) == trial.form


def test_what_the_table_has_is_timed_too() -> None:
    for kind, forms in CANDIDATES.items():
        assert {form for _, _, form in TABLE[90][kind] if form.block_m > 16} <= set(forms)


def test_no_kind_is_the_one_to_go_short() -> None:
    order = turns(TRIALS)
    assert sorted(order, key=TRIALS.index) == TRIALS
    assert [trial.kind for trial in order[:4]] == ["dynamic", "int8"] * 2
    for kind, forms in CANDIDATES.items():
        assert [trial.form for trial in order if trial.kind == kind] == forms


def test_a_wrong_candidate_is_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    def given(weights: str, m: int, n: int, k: int, *, dtype: torch.dtype) -> Any:
        torch.manual_seed(m)
        weight = torch.randint(-127, 128, (min(n, 40), min(k, 64)), dtype=torch.int8)
        return torch.randn(m, min(k, 64)).to(dtype), weight, 0.01 * (torch.rand(len(weight)) + 0.5)

    monkeypatch.setattr(tune_product, "operands", given)
    if torch.cuda.is_available():
        pytest.skip("these operands are on the host: for the interpreter")
    for trial in (Trial("dynamic", Tiles(32, 32, 32, 4, 2)), Trial("int8", Tiles(32, 64, 32, 4, 2, left=True))):
        assert screen(trial) is None
    for trial in (Trial("dynamic", Tiles(32, 32, 32, 4, 2)), Trial("int8", Tiles(32, 64, 32, 4, 2, left=True))):
        module = tune_product.triton_dynamic if trial.kind == "dynamic" else tune_product.triton_product
        multiply = module.multiply
        for wrong in (
            lambda *given, form, multiply=multiply: 1.05 * multiply(*given, form=form),
            lambda x, weight, scale, form, multiply=multiply: multiply(x, weight, scale.roll(1), form=form),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(module, "multiply", wrong)
                assert "wrong: " in str(screen(trial))


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune_product.main([]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


def test_the_whole_search_with_a_clock_that_knows_the_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = {"dynamic": CANDIDATES["dynamic"][1], "int8": CANDIDATES["int8"][2]}
    wrong, failing = Trial("dynamic", CANDIDATES["dynamic"][4]), Trial("int8", CANDIDATES["int8"][0])

    class Knowing:
        def __init__(self, budget: object) -> None:
            pass

        def measure(self, call: Any, inputs: object) -> SimpleNamespace:
            trial = getattr(call, "__self__", None)
            if not isinstance(trial, Trial):
                if call is torch._int_mm:
                    raise RuntimeError("sizes that it does not take")
                return SimpleNamespace(median=8e-6)
            if trial == failing:
                raise ValueError("too many resources requested for launch")
            return SimpleNamespace(median=1e-9 if trial == wrong else 2e-6 if trial.form == fast[trial.kind] else 4e-6)

    def given(weights: str, m: int, n: int, k: int, seed: int) -> Any:
        return torch.zeros(m, 1), torch.zeros(n, 1, dtype=torch.int8).expand(n, k), torch.ones(1)

    monkeypatch.setattr(tune_product, "CudaClock", Knowing)
    monkeypatch.setattr(tune_product, "use_one_stream", lambda: None)
    monkeypatch.setattr(tune_product, "operands", given)
    monkeypatch.setattr(tune_product, "SHAPES", {"o": (4096, 64), "qkv": (12288, 64)})
    verdicts = {trial: "wrong" if trial == wrong else None for trial in TRIALS}
    monkeypatch.setattr(tune_product, "screened", lambda trials, screen, jobs: {t: verdicts[t] for t in trials})
    record: list[dict[str, Any]] = []
    tune_product.tune(parser().parse_args(["--shapes", "o,qkv", "--rows", "256,2048"]), record)
    best = [entry for entry in record if "best" in entry]
    assert [(entry["shape"], entry["rows"]) for entry in best[::2]] == [
        ("o", 256), ("o", 2048), ("qkv", 256), ("qkv", 2048),
    ]  # fmt: skip
    # at 256 rows that form has too few tiles of the smaller weight for the GPU to have work
    assert Tiles(**best[0]["best"]["form"]) != fast["dynamic"]
    assert all(Tiles(**e["best"]["form"]) == fast[e["best"]["kind"]] for e in best[1:])
    assert sum(entry.get("out") == "wrong" for entry in record) == 1
    out = capsys.readouterr().out
    assert "ValueError: too many resources requested for launch" in out
    assert "RuntimeError: sizes that it does not take" in out
    assert '(256, 12288, Tiles(128, 256, 128, 8, 4, "async")),  # qkv: 2.0 us, 4.00 x torch in 16 bits' in out


def test_a_search_that_runs_out_of_time_has_its_best(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(measure=lambda call, inputs: SimpleNamespace(median=1e-6))
    now = iter(range(10**6))
    monkeypatch.setattr(tune_product, "CudaClock", lambda budget: clock)
    monkeypatch.setattr(tune_product, "use_one_stream", lambda: None)
    monkeypatch.setattr(tune_product, "operands", lambda *given: (None, torch.zeros(4096, 8, dtype=torch.int8), 1))
    monkeypatch.setattr(tune_product, "SHAPES", {"o": (4096, 8)})
    monkeypatch.setattr(tune_product, "screened", lambda trials, screen, jobs: dict.fromkeys(trials))
    monkeypatch.setattr(tune_product.time, "monotonic", lambda: next(now))
    record: list[dict[str, Any]] = []
    tune_product.tune(parser().parse_args(["--shapes", "o", "--rows", "2048", "--seconds", "5"]), record)
    assert "time is up" in capsys.readouterr().out
    assert sum("trial" in entry for entry in record) == 5
    assert sum("best" in entry for entry in record) == 2
