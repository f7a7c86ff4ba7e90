"""The search for tiles: what it may not do is time a wrong kernel, or let one bad candidate end it."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch

pytest.importorskip("triton")

from attnkit import tune
from attnkit.problem import Problem
from attnkit.tune import CANDIDATES, Search, Trial, parser, screen, screened
from attnkit.variants.triton_flash_tiles import ROW_PADDING, TABLE, Config

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = Trial("dkdv", 64, Config(32, 64, 4, 2))


@pytest.fixture(autouse=True)
def _many_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "form_here", lambda form, queries, device: form)


def search(seconds: float = 60.0) -> Search:
    return Search("fwd", [Problem(b=1, hq=1, sq=64, d=64)], time.monotonic() + seconds, [])


def trials(*warps: int) -> list[Trial]:
    return [Trial("forward", 64, Config(64, 64, w, 2)) for w in warps]


@pytest.mark.parametrize(
    "trial", [Trial(*key, config) for key, configs in CANDIDATES.items() for config in configs], ids=str
)
def test_a_candidate_is_a_form_that_its_kernel_has(trial: Trial) -> None:
    assert trial.kernel == "forward" or ROW_PADDING % trial.config.block_m == 0
    assert trial.kernel == "dkdv" or not trial.config.split
    assert Trial.loads(trial.dumps()) == trial


def test_tiles_of_a_hopper_for_the_masks_that_are_searched_are_candidates() -> None:
    searched = {
        key: config for key, config in TABLE[90].items() if key[1] == "half" and key[4:] in ((), ("causal",), ("few",))
    }
    assert searched
    # how wide a block is at least is no choice: what is narrower is wrong, and rows that are pasted here must keep it
    wide = {key for key, config in searched.items() if config.least == 64}
    assert wide == {("forward", "half", "pointer", d) for d in (64, 128, 256)} | {("dkdv", "half", "pointer", 256)}
    found = {key: dataclasses.replace(config, least=16) for key, config in searched.items()}
    assert [key for key, config in found.items() if config not in CANDIDATES[key[0], key[3]]] == []  # type: ignore[index]


def test_a_right_candidate_passes_the_screen() -> None:
    assert screen(SMALL, DEVICE, "fp16", 64, ["causal"], 128) is None


def test_a_wrong_candidate_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tune.attention
    monkeypatch.setattr(tune, "attention", lambda q, k, v, **options: right(q, k, v, **options) * 1.01)
    reason = screen(SMALL, DEVICE, "fp16", 64, ["causal"], 128)
    assert reason is not None
    assert reason.startswith("wrong: out of b1-h1-s128-d64-fp16-causal is off by")


def test_a_candidate_that_dies_costs_itself_only(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = trials(4, 8)
    arguments = parser().parse_args(["triton_flash", "--jobs", "2"])
    # this process stands in for the compiler: the bad one aborts it
    program = "import sys, os; os.abort() if '\"warps\": 8' in sys.argv[-1] else print('{\"out\": null}')"
    run = tune.subprocess.run
    monkeypatch.setattr(
        tune.subprocess,
        "run",
        lambda command, **options: run([tune.sys.executable, "-c", program, command[5]], **options),
    )
    verdicts = screened([good, bad], arguments)
    assert verdicts[good] is None
    assert (verdicts[bad] or "").startswith("exit -6")


def test_the_fastest_wins_and_its_row_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {4: 300.0, 8: 500.0, 2: 100.0}
    monkeypatch.setattr(Search, "rate", lambda self, trial: [rates[trial.config.warps]])
    found = search()
    rows = found.choose(trials(4, 8, 2))
    assert found.chosen == {"forward": Config(64, 64, 8, 2)}
    table = eval("{" + rows[0].partition("#")[0] + "}", {"Config": Config})
    assert table == {("forward", "half", "pointer", 64): Config(64, 64, 8, 2)}


def test_a_row_is_for_the_queries_that_were_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "form_here", lambda form, queries, device: "few" if queries <= 256 else form)
    short, long = (Problem(b=1, hq=2, sq=s, d=64, mask="causal") for s in (128, 256))
    forms = {
        (kernel, len(problems)): Search("fwd", problems, 0.0, []).form(kernel)
        for kernel in ("forward", "dq")
        for problems in ([short], [short, long])
    }
    assert forms.pop(("forward", 1)) == ("few",)
    assert set(forms.values()) == {("causal",)}


def test_when_time_is_up_nothing_more_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Search, trial: Trial) -> list[float]:
        raise AssertionError(f"timed {trial}")

    monkeypatch.setattr(Search, "rate", fail)
    assert search(seconds=-1.0).choose(trials(4)) == []


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main(["triton_flash"]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["triton_flash", "--passes", "fwd,sideways"])
    assert "expected some of fwd, bwd, got sideways" in capsys.readouterr().err
