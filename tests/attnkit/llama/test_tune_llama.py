"""The search for a form finds the one that a clock says is fastest, and leaves out what is wrong or does not fit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from attnkit.llama import Config, Decoder, Model, Packed, Weights, build
from attnkit.llama.fused import Launch
from attnkit.llama.ladder import MATMUL
from attnkit.llama.sizes import Form
from perf import tune_llama

CONFIG = Config(hidden=32, intermediate=32, layers=1, hq=2, vocab=16, positions=512)


def test_the_fastest_is_first_and_what_is_wrong_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Weights.random(CONFIG)
    packed = Packed.of(weights)
    decoders: dict[int, Form] = {}

    def made(_: Packed, launch: Launch, form: Form) -> Decoder:
        if form.chunk == 4096:
            raise ValueError("does not fit\nat all")
        model = Model(Weights.random(CONFIG, seed=1) if form.chunk == 1024 else weights)
        decoder = build(MATMUL, model, batch=1, capacity=tune_llama.CONTEXT + tune_llama.STEPS)
        decoders[id(decoder)] = form
        return decoder

    def clock(call: Callable[[], None]) -> float:
        call()
        form = decoders[id(call.__defaults__[0])]  # type: ignore[attr-defined]
        return tune_llama.STEPS * (1e-3 if form == Form(8, 2048, None) else 2e-3)

    monkeypatch.setattr(tune_llama, "ROUNDS", 1)
    rows = tune_llama.search(packed, ("persistent",), made, clock)
    assert len(rows) == len(list(tune_llama.forms("persistent"))) == 8
    why = {(row.form.warps, row.form.chunk): row.why_not for row in rows}
    assert why[8, 4096] == "does not fit"
    assert why[8, 1024] == "logits differ from the first's"
    assert why[8, 2048] == ""
    lines = tune_llama.report(rows, CONFIG).splitlines()
    assert lines[1].split()[:6] == ["persistent", "bf16", "8", "2048", "max", "1000.0"]


def test_activations_of_int8_weights_are_tried_both_ways() -> None:
    both = list(tune_llama.forms("persistent", int8=True))
    assert {form.fixed for form in both} == {False, True}
    assert [form for form in both if not form.fixed] == list(tune_llama.forms("persistent"))


def test_forms_that_overlap_leave_room_for_the_next_kernel() -> None:
    for form in tune_llama.forms("overlapped"):
        assert form.depth is not None
        assert form.warps * 2 * form.chunk * form.depth <= 64 * 1024
