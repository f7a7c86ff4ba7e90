"""The reference rung against transformers' LlamaForCausalLM, on the same weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from attnkit.llama import Config, Plain, RopeScaling, Weights, generate
from attnkit.llama.plain import cut
from attnkit.variants import naive
from perf.peers import of_transformers

transformers = pytest.importorskip("transformers", reason="transformers is the judge of these tests")
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers and what it imports warn of themselves

SMALL = Config(hidden=64, intermediate=96, layers=2, hq=4, vocab=99, positions=64)
CONFIGS = {
    "one head a head": SMALL,
    "groups of heads": dataclasses.replace(SMALL, hkv=2, rope_theta=500000.0, epsilon=1e-6),
    "head and embedding tied": dataclasses.replace(SMALL, tied=True),
    "wide heads": dataclasses.replace(SMALL, d=32),
    "long wavelengths": dataclasses.replace(
        SMALL, hkv=1, rope_scaling=RopeScaling(factor=8.0, low=1.0, high=4.0, original=32)
    ),
}


def model_of(config: Config, dtype: torch.dtype = torch.float32) -> Any:
    """Their model of these sizes, with weights that a seed draws."""
    theirs = of_transformers(config, tied=config.tied, initializer_range=0.2)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(theirs)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):  # all ones, which would hide a norm that is left out
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    return model.to(dtype).eval()


def reference(weights: Weights, batch: int, capacity: int = 32) -> Plain:
    attention = naive.VARIANT.attention
    return Plain(weights, batch, capacity, attention=cut(attention), prefill=attention)


@pytest.fixture(params=CONFIGS, ids=lambda name: name.replace(" ", "-"))
def config(request: pytest.FixtureRequest) -> Config:
    return CONFIGS[request.param]


def test_logits_are_those_model_of(config: Config) -> None:
    model = model_of(config)
    decoder = reference(Weights.from_state(config, model.state_dict()), batch=2)
    text = torch.randint(0, config.vocab, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = model(text).logits
    decoder.prefill(text[:, :7])
    for i in range(7, 20):
        # float32 on both sides: the sums are the same but for their order
        torch.testing.assert_close(decoder.logits, want[:, i - 1], rtol=1e-4, atol=1e-4)
        decoder.tokens[:, i] = text[:, i]
        decoder.step()
    torch.testing.assert_close(decoder.logits, want[:, 19], rtol=1e-4, atol=1e-4)


def test_greedy_text_is_that_model_of() -> None:
    model = model_of(SMALL)
    prompt = torch.randint(0, SMALL.vocab, (3, 5), generator=torch.Generator().manual_seed(2))
    ours = generate(reference(Weights.from_state(SMALL, model.state_dict()), batch=3), prompt, 12)
    theirs = model.generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert torch.equal(ours, theirs[:, 5:])


def test_a_config_survives_the_way_through_transformers_json(config: Config) -> None:
    found = json.loads(model_of(config).config.to_json_string(use_diff=False))
    assert Config.from_dict(found) == config


def test_weights_are_read_from_a_hugging_face_folder(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="the folder's files are safetensors")
    model = model_of(SMALL)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1, "several files are the case that is tested"
    weights = Weights.from_folder(tmp_path, dtype=torch.float32)
    assert weights.config == SMALL
    expected = Weights.from_state(SMALL, model.state_dict())
    assert torch.equal(weights.head, expected.head)
    for ours, theirs in zip(weights.layers, expected.layers, strict=True):
        for field in dataclasses.fields(ours):
            assert torch.equal(getattr(ours, field.name), getattr(theirs, field.name)), field.name
