"""The search for the fastest form: it may not time a wrong kernel, and must say what it lacks."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attnkit.products.matvec_tiles import Config
from perf import search, tune_matvec
from perf.search import screened
from perf.tune_matvec import CANDIDATES, Trial, parser, screen_apart, turns


def test_a_candidate_is_the_same_in_another_process() -> None:
    for config in CANDIDATES:
        trial = Trial("int8", config)
        assert Trial.loads(trial.dumps()) == trial


def test_a_candidate_that_dies_costs_itself_only(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = Trial("half", CANDIDATES[0]), Trial("half", Config("bulk", 7, 1, 1))
    program = "import sys, os; os.abort() if '\"warps\": 7' in sys.argv[-1] else print('{\"out\": null}')"
    run = search.subprocess.run
    monkeypatch.setattr(
        search.subprocess,
        "run",
        lambda command, **options: run([search.sys.executable, "-c", program, command[-1]], **options),
    )
    verdicts = screened([good, bad], screen_apart, jobs=2)
    assert verdicts[good] is None
    assert (verdicts[bad] or "").startswith("exit -6")


def test_the_best_few_are_timed_again() -> None:
    trials = [Trial("half", config) for config in CANDIDATES]
    rates: dict[Trial, list[float]] = {}
    for i, trial in enumerate(turns(trials, rates)):
        rates.setdefault(trial, []).append(float(i < len(trials)) * trials.index(trial))
    again = [trial for trial, found in rates.items() if len(found) > 1]
    for overlap in (False, True):
        of_kind = [trial for trial in trials if trial.config.overlap == overlap]
        assert [trial for trial in again if trial.config.overlap == overlap] == of_kind[-tune_matvec.FINALISTS :]


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune_matvec.main([]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--shapes", "qkv,sideways"])
    assert "expected some of qkv, o, gate_up, down, head, got sideways" in capsys.readouterr().err


def test_the_whole_search_with_a_clock_that_knows_the_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = [config for config in CANDIDATES if not (config.overlap or config.fixed)]
    fast, wrong, faster = plain[1], plain[2], next(c for c in CANDIDATES if c.overlap and not c.fixed)

    class Knowing:
        def __init__(self, budget: object) -> None:
            pass

        def measure(self, call: object, inputs: object) -> SimpleNamespace:
            config = getattr(call, "config", None)
            return SimpleNamespace(median={fast: 2e-6, faster: 1e-6, wrong: 1e-9}.get(config, 4e-6))

    def calls(config: Config) -> Callable[..., object]:
        call: Any = lambda *given: None  # noqa: E731 - a function with an attribute
        call.config = config
        return call

    monkeypatch.setattr(tune_matvec, "CudaClock", Knowing)
    monkeypatch.setattr(tune_matvec, "calls", calls)
    monkeypatch.setattr(tune_matvec, "use_one_stream", lambda: None)
    monkeypatch.setattr(tune_matvec, "ceilings", lambda clock: {"read_bytes_per_second": 4e12})
    monkeypatch.setattr(tune_matvec, "operands", lambda *given: (torch.zeros(1, 1),) * 3)
    monkeypatch.setattr(
        tune_matvec,
        "screened",
        lambda trials, screen, jobs: {t: "wrong" if t.config == wrong else None for t in trials},
    )
    record: list[dict[str, Any]] = []
    tune_matvec.tune(parser().parse_args(["--shapes", "o,down"]), record)
    best = [entry for entry in record if "best" in entry]
    assert [Config(**entry["best"]["config"]) for entry in best] == [fast, faster] * 4
    assert best[0]["bytes_per_second"] == pytest.approx(4096 * 4096 * 2 / 2e-6)
    assert sum(entry.get("out") == "wrong" for entry in record) == 2
    assert "geometric mean" in capsys.readouterr().out
