"""The peers that the ladder is timed beside decode the same model."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attnkit.linear import LARGEST
from attnkit.llama import Config, Decoder, Model, Weights, build
from attnkit.llama.ladder import MATMUL
from attnkit.llama.weights import Packed
from perf.peers import (
    PEERS,
    BitsandbytesInt8,
    Compiled,
    CompiledInt8,
    RoundedInt8,
    TorchaoInt8,
    Transformers,
    Vllm,
    vllm_engine,
)
from perf.peers.compiled import Matrix
from perf.test_llama import MODELS, STEPS, Size, Truth, after_prompt, distance
from tests.attnkit.llama import vllm_stand_in

CONFIG = Config(hidden=64, intermediate=96, layers=2, hq=4, hkv=2, vocab=64, positions=64)
PACKAGES = {Transformers: "transformers", TorchaoInt8: "torchao", BitsandbytesInt8: "bitsandbytes"}
TEXT = torch.randint(0, CONFIG.vocab, (2, 40), generator=torch.Generator().manual_seed(2))


def require(peer: Callable[..., Decoder]) -> None:
    if package := PACKAGES.get(peer):  # type: ignore[call-overload] # not every peer is a key
        pytest.importorskip("transformers", reason="the peer is transformers'")
        pytest.importorskip(package, reason=f"the peer is {package}")


def agree(theirs: Decoder, first: Decoder, context: int, end: int) -> None:
    """Hold all logits of a text against the first rung's, and again those after going back to its context."""
    for decoder in (first, theirs):
        decoder.prefill(TEXT[:, :context])
    torch.testing.assert_close(theirs.logits, first.logits, rtol=1e-3, atol=1e-4)
    for turn in range(2):
        for i in range(context, end - turn):
            for decoder in (first, theirs):
                decoder.tokens[:, i] = TEXT[:, i]
                decoder.step()
            torch.testing.assert_close(theirs.logits, first.logits, rtol=1e-3, atol=1e-4)
        # the same steps again, from the middle
        for decoder in (first, theirs):
            decoder.rewind(context)
            decoder.tokens[:, context] = TEXT[:, context]
            decoder.step()
            decoder.rewind(context)
            decoder.logits.zero_()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peer", [Compiled, CompiledInt8, Transformers, TorchaoInt8])
def test_a_peer_agrees_with_the_first_rung(peer: Callable[..., Decoder]) -> None:
    require(peer)
    given = Weights.random(CONFIG)
    weights = Packed.of(given).unpacked(torch.float32)
    theirs = peer(weights, 2, 32, compile=False)
    if peer in (CompiledInt8, TorchaoInt8):  # the first rung has the weights that these are rounded to
        weights = Packed.of(given, int8=True).unpacked(torch.float32)
    agree(theirs, build(MATMUL, Model(weights), batch=2, capacity=32), 5, 20)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peer", [Compiled, CompiledInt8])
def test_a_graph_copies_but_tokens_and_positions(peer: type[Compiled]) -> None:
    """Where it had to copy the cache there would be none: the step writes it."""
    moving: list[tuple[int, ...]] = []

    def backend(module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        moving.extend(
            tuple(node.meta["example_value"].shape)
            for node in inputs
            if "_dynamo_static_input_type" not in node.meta["tensor_dict"]
        )
        return module.forward

    one = peer(Weights.random(CONFIG), 1, 32, compile=False)
    torch.compile(one._compute, backend=backend, fullgraph=True)(TEXT[:1, :1], torch.tensor([3]))
    assert sorted(moving) == [(1,), (1, 1)]


@pytest.mark.filterwarnings("ignore")
def test_bitsandbytes_multiplies_as_the_decoder_does_that_its_bound_is_made_of() -> None:
    require(BitsandbytesInt8)
    weights = Weights.random(CONFIG, dtype=torch.float32)
    theirs = BitsandbytesInt8(weights, 2, 32, compile=False).model.model.layers[1].mlp.down_proj
    x = torch.randn(3, CONFIG.intermediate, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = theirs(x)
    rounded, exact = (Matrix(weights.layers[1].down, int8=True, rounded=r)(x) for r in (True, False))
    assert distance(found, rounded) < 0.5 * distance(rounded, exact)


@pytest.mark.filterwarnings("ignore")
def test_bitsandbytes_is_as_far_off_as_its_roundings() -> None:
    require(BitsandbytesInt8)
    model = Model(Weights.random(CONFIG))
    weights = model.packed.unpacked(torch.float32)
    exact = build(MATMUL, Model(model.int8.unpacked(torch.float32)), batch=2, capacity=32)
    found = []
    for decoder in (BitsandbytesInt8(weights, 2, 32, compile=False), RoundedInt8(weights, 2, 32, compile=False), exact):
        decoder.prefill(TEXT[:, :20])
        decoder.tokens[:, 20] = TEXT[:, 20]
        decoder.step()
        found.append(decoder.logits)
    theirs, rounded, true = found
    assert 0.5 < distance(theirs, true) / distance(rounded, true) < 1.5


def test_what_a_matrix_multiplies_is_rounded_row_by_row() -> None:
    x = (
        torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    )
    x[1, 2] = 0
    rounded = Matrix(torch.eye(64), int8=False, rounded=True)(x)
    steps = rounded / x.abs().amax(-1, keepdim=True).clamp(min=1e-30) * LARGEST
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    assert ((rounded - x).abs() <= x.abs().amax(-1, keepdim=True) / LARGEST * 0.5001).all()
    assert not torch.equal(rounded, x)


def test_a_peer_that_rounds_more_may_be_further_off_but_not_wrong() -> None:
    model, size, truth = Model(Weights.random(MODELS["tiny"])), Size("tiny", 1, 20), Truth()
    true = truth.logits(model, size, int8=True)
    strict, wide = truth.allowed(model, size), truth.allowed(model, size, rounded=True)
    weights = model.packed.unpacked(torch.float32)
    rounded = distance(after_prompt(RoundedInt8(weights, 1, size.capacity, compile=False), size), true)
    assert wide == pytest.approx(strict + 1.5 * rounded)
    broken = RoundedInt8(weights, 1, size.capacity, compile=False)
    broken.down[1] = lambda x: x.new_zeros(*x.shape[:-1], MODELS["tiny"].hidden)
    assert strict < wide < 0.5 * distance(after_prompt(broken, size), true)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    pytest.importorskip("transformers", reason="the engine's config is written by transformers")
    monkeypatch.setitem(sys.modules, "vllm", vllm_stand_in)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    device = SimpleNamespace(total_memory=100 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    vllm_engine.engine.cache_clear()
    yield vllm_stand_in
    vllm_engine.engine.cache_clear()


@pytest.mark.parametrize("context", [5, 16])
def test_vllm_decodes_our_weights(stand_in: Any, context: int) -> None:
    weights = Weights.random(CONFIG, dtype=torch.float32)
    agree(Vllm(weights, 2, 40), build(MATMUL, Model(weights), batch=2, capacity=40), context, 36)


def test_a_timed_call_asks_vllm_once_and_finds_its_context_there(stand_in: Any) -> None:
    weights = Weights.random(MODELS["tiny"], dtype=torch.float32)
    size = Size("tiny", 2, 32)
    decoder, first = Vllm(weights, 2, size.capacity), build(MATMUL, Model(weights), batch=2, capacity=size.capacity)
    torch.testing.assert_close(after_prompt(decoder, size), after_prompt(first, size), rtol=1e-3, atol=1e-4)
    decoder.llm.calls.clear()
    for _ in range(2):
        for each in (decoder, first):
            each.rewind(size.context)
            for _ in range(STEPS):
                each.step()
        assert torch.equal(decoder.tokens, first.tokens)
    assert decoder.llm.calls == [(size.context + 1, STEPS)] * 2


def test_vllm_is_not_timed_at_reading_a_prompt(stand_in: Any) -> None:
    decoder = Vllm(Weights.random(CONFIG, dtype=torch.float32), 2, 40)
    decoder.prefill(TEXT[:, :16])
    decoder.step()
    decoder.rewind(16)
    decoder.llm.cached.clear()
    decoder.step()
    with pytest.raises(RuntimeError, match="had 0 tokens of 17 in its cache"):
        _ = decoder.tokens


def test_a_capture_is_refused_before_the_engine_has_begun(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Vllm(Weights.random(CONFIG, dtype=torch.float32), 2, 40)
    decoder.prefill(TEXT[:, :16])
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(RuntimeError, match="no graph can hold that"):
            _ = decoder.tokens
    assert decoder.llm.calls == []
    assert decoder.tokens.shape == (2, 41)


def test_vllm_starts_once_in_this_process_and_with_its_graphs(stand_in: Any) -> None:
    weights = Weights.random(CONFIG)
    llm = Vllm(weights, 2, 40).llm
    assert Vllm(weights, 1, 20).llm is llm
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert not llm.eager
    assert llm.options["dtype"] == "bfloat16"
    assert llm.memory == pytest.approx(0.06, rel=0.1), "room for what is neither weight nor cache, and little else"
    with pytest.raises(ValueError, match="set up for 64 sequences"):
        Vllm(weights, 65, 20)
    with pytest.raises(ValueError, match="32768 tokens, got 64 of 600"):
        Vllm(weights, 64, 600)


def test_int8_peers_are_named_so() -> None:
    assert all(name.endswith("_int8") == peer.int8 for name, peer in PEERS.items())


def test_a_peer_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Weights.random(CONFIG)
    for name, peer in PEERS.items():
        assert peer.absent(weights), name
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for package in ("transformers", "bitsandbytes", "torchao", "vllm"):
        reasons = [peer.absent(weights) for name, peer in PEERS.items() if name.removesuffix("_int8") == package]
        assert reasons == [f"the package {package} is not installed: pip install {package}"]
