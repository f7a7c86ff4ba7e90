"""The peers that the ladder is timed beside decode the same model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from attnkit.llama import Config, Decoder, Model, Weights, build
from attnkit.llama.ladder import MATMUL
from attnkit.llama.weights import Packed
from perf.peers import Compiled, CompiledInt8, Transformers

CONFIG = Config(hidden=64, intermediate=96, layers=2, hq=4, hkv=2, vocab=64, positions=64)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peer", [Compiled, CompiledInt8, Transformers])
def test_a_peer_agrees_with_the_first_rung(peer: Callable[..., Decoder]) -> None:
    if peer is Transformers:
        pytest.importorskip("transformers", reason="the peer is transformers")
    given = Weights.random(CONFIG)
    weights = Packed.of(given).unpacked(torch.float32)
    text = torch.randint(0, CONFIG.vocab, (2, 20), generator=torch.Generator().manual_seed(2))
    theirs = peer(weights, 2, 32, compile=False)
    if peer is CompiledInt8:  # the first rung has the weights that these are rounded to
        weights = Packed.of(given, int8=True).unpacked(torch.float32)
    first = build(MATMUL, Model(weights), batch=2, capacity=32)
    for decoder in (first, theirs):
        decoder.prefill(text[:, :5])
    for turn in range(2):
        for i in range(5, 20 - turn):
            torch.testing.assert_close(theirs.logits, first.logits, rtol=1e-3, atol=1e-4)
            for decoder in (first, theirs):
                decoder.tokens[:, i] = text[:, i]
                decoder.step()
        # the same steps again, from the middle
        for decoder in (first, theirs):
            decoder.rewind(5)
            decoder.tokens[:, 5] = text[:, 5]
            decoder.step()
            decoder.rewind(5)
            decoder.logits.zero_()
