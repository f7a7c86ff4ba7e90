"""Every rung writes the text of the first one, and what a rung cannot do it says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from attnkit.llama import BATCHED, LADDER, Config, Model, Rung, Sampling, Weights, build, generate, rung
from attnkit.llama.captured import Captured
from attnkit.llama.ladder import MATMUL, fastest_prefill
from attnkit.variants import variant

CONFIG = Config(hidden=64, intermediate=96, layers=2, hq=4, hkv=2, vocab=64, positions=128)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

UNGRAPHED = dataclasses.replace(BATCHED, name="batched_without_graph", graph=False)


def here(entry: Rung, batch: int, dtype: torch.dtype) -> None:
    if reason := entry.why_not(CONFIG, batch, DEVICE, dtype):
        pytest.skip(reason)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("entry", [*LADDER, BATCHED, UNGRAPHED], ids=lambda entry: entry.name)
def test_a_rung_is_as_near_the_truth_as_the_first(entry: Rung, batch: int) -> None:
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    here(entry, batch, dtype)
    model = Model(Weights.random(CONFIG, DEVICE, dtype, seed=1))
    packed = (model.int8 if entry.int8 else model.packed) if dtype == torch.bfloat16 else None
    true, first = (packed.unpacked(t) if packed else model.weights for t in (torch.float32, dtype))
    decoders = [build(MATMUL, Model(weights), batch=batch, capacity=32) for weights in (true, first)]
    decoders.append(build(entry, model, batch=batch, capacity=32))
    text = torch.randint(0, CONFIG.vocab, (batch, 20), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    for decoder in decoders:
        decoder.prefill(text[:, :5])
    for i in range(5, 20):
        for decoder in decoders:
            decoder.tokens[:, i] = text[:, i]
            decoder.step()
        _, first_error, error = (decoder.logits - decoders[0].logits for decoder in decoders)
        # the roundings differ from rung to rung, their number does not grow; float32's own are the floor
        assert error.norm() <= 1.5 * first_error.norm() + 1e-5 * decoders[0].logits.norm()


def test_going_back_and_on_again_writes_the_same() -> None:
    decoder = build(MATMUL, Model(Weights.random(CONFIG, DEVICE, torch.float32, seed=1)), batch=2, capacity=32)
    expected = generate(decoder, torch.arange(8, device=DEVICE).view(2, 4), 12)
    for length in (9, 4):
        decoder.tokens[:, length + 1 :] = 0
        decoder.rewind(length)
        for _ in range(4 + 11 - length):
            decoder.step()
        assert torch.equal(decoder.tokens[:, 4:16], expected)
    with pytest.raises(ValueError, match="from 1 to the 15 tokens that were read, got 16"):
        decoder.rewind(16)


@pytest.mark.parametrize("entry", [*LADDER, BATCHED], ids=lambda entry: entry.name)
def test_sampled_text_repeats_and_depends_on_the_seed(entry: Rung) -> None:
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    here(entry, 1, dtype)
    model = Model(Weights.random(CONFIG, DEVICE, dtype, seed=1))
    prompt = torch.arange(6, device=DEVICE)[None]

    def written(seed: int) -> list[int]:
        sampling = Sampling(temperature=3.0, seed=seed)
        return generate(build(entry, model, batch=1, capacity=40, sampling=sampling), prompt, 30)[0].tolist()

    assert written(1) == written(1)
    assert written(1) != written(2)


class Recorder:
    """Captures by keeping the call, which a replay makes again."""

    def capture(self, call: Callable[[], object]) -> tuple[Callable[[], None], object]:
        return lambda: (call(), None)[1], None


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the graphs are real")
def test_a_captured_decoder_writes_what_it_would_without_a_graph() -> None:
    here(UNGRAPHED, 2, torch.float32)
    model = Model(Weights.random(CONFIG, dtype=torch.float32, seed=1))
    plain, inner = (build(UNGRAPHED, model, batch=2, capacity=32) for _ in range(2))
    captured = Captured(inner, Recorder())  # type: ignore[arg-type]
    prompt = torch.arange(8).view(2, 4)
    assert torch.equal(generate(captured, prompt, 10), generate(plain, prompt, 10))
    captured.rewind(6)
    for _ in range(3):
        captured.step()
    assert captured.length == 9
    assert torch.equal(captured.tokens, plain.tokens)


def test_names_are_each_their_own_and_find_their_rung() -> None:
    names = [entry.name for entry in (*LADDER, BATCHED)]
    assert len(set(names)) == len(names)
    assert [rung(name).name for name in names] == names
    with pytest.raises(ValueError, match="no rung is called 'fast': take one of matmul, softmax"):
        rung("fast")


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is missing here is the GPU")
def test_without_a_gpu_the_upper_rungs_say_what_they_need() -> None:
    cpu = torch.device("cpu")
    assert "CUDA device, got cpu" in (rung("fused").why_not(CONFIG, 1, cpu, torch.bfloat16) or "")
    assert "CUDA device, got cpu" in (rung("graph").why_not(CONFIG, 1, cpu, torch.bfloat16) or "")
    with pytest.raises(ValueError, match="persistent cannot: "):
        build(rung("persistent"), Model(Weights.random(CONFIG)), batch=1, capacity=8)


def test_more_sequences_than_fit_are_refused_with_the_way_out() -> None:
    reason = rung("fused").why_not(CONFIG, 5, DEVICE, torch.bfloat16)
    assert reason is not None
    assert "at most 4, got 5: take a rung of matrix products" in reason


def test_the_prompt_is_read_by_the_first_variant_that_can() -> None:
    chosen = fastest_prefill(CONFIG, 1, 16, torch.device("cpu"), torch.float32)
    assert chosen is variant("sdpa_flash").attention


def test_where_no_kernel_runs_the_prompt_is_computed_by_the_textbook() -> None:
    chosen = fastest_prefill(CONFIG, 1, 16, torch.device("meta"), torch.float32)
    assert chosen is variant("naive").attention


@pytest.mark.parametrize(
    ("prompt", "count", "message"),
    [
        ((1, 40), 1, "1 to 32 tokens, got 40"),
        ((2, 4), 1, r"\[batch, s\] with a batch of 1, got \[2, 4\]"),
        ((1, 30), 5, "30 tokens and 5 more need a capacity of 34, got 32"),
        ((1, 30), 0, "count must be at least 1"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused(prompt: tuple[int, int], count: int, message: str) -> None:
    decoder = build(MATMUL, Model(Weights.random(CONFIG, dtype=torch.float32)), batch=1, capacity=32)
    with pytest.raises(ValueError, match=message):
        generate(decoder, torch.zeros(prompt, dtype=torch.int64), count)


def test_a_step_needs_a_prompt_and_room() -> None:
    decoder = build(MATMUL, Model(Weights.random(CONFIG, dtype=torch.float32)), batch=1, capacity=4)
    with pytest.raises(ValueError, match="prefill a prompt first"):
        decoder.step()
    decoder.prefill(torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="the cache is full: 4 tokens"):
        decoder.step()
