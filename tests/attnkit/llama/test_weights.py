"""Configs and weights: what they are made from, how they are packed, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from attnkit.llama import LLAMA_2_7B, Config, Packed, Weights

CONFIG = Config(hidden=64, intermediate=96, layers=2, hq=4, hkv=2, vocab=50)
THEIRS = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
}


def test_a_token_of_llama_2_7b_reads_what_is_known_of_it() -> None:
    # 13.48 GB of weights less the embedding, and half a megabyte a token of context
    assert LLAMA_2_7B.bytes_per_token(0) == pytest.approx(13.21e9, rel=1e-3)
    assert LLAMA_2_7B.bytes_per_token(1) - LLAMA_2_7B.bytes_per_token(0) == 524288
    assert LLAMA_2_7B.bytes_per_token(0, weight_bytes=1) == pytest.approx(6.61e9, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hkv": 3}, "hkv must divide hq, got hq=4 and hkv=3"),
        ({"layers": 0}, "layers must be a whole number of at least 1, got 0"),
        ({"hq": 0, "d": None}, "hq must be a whole number of at least 1, got 0"),
        ({"d": 15}, "d must be even"),
        ({"epsilon": 0.0}, "epsilon must be finite and positive"),
    ],
)
def test_what_is_no_llama_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "model_type must be 'llama', got 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "must have no quantization_config, got one of 'fp8': load"),
        ({"quantization_config": {}}, "must have no quantization_config, got one of None"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type must be 'default' or 'llama3', got 'yarn'"),
    ],
)
def test_models_that_are_not_known_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.from_dict(THEIRS | change)


LLAMA_3_1 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number of at least 1, got 0"),
        ({"num_attention_heads": "4"}, "num_attention_heads must be a whole number of at least 1, got '4'"),
        ({"num_key_value_heads": True}, "num_key_value_heads must be a whole number of at least 1, got True"),
        ({"hidden_size": "a"}, "hidden_size must be a whole number of at least 1, got 'a'"),
        ({"vocab_size": None}, "vocab_size must be a whole number of at least 1, got None"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be finite and positive, got '1e-5'"),
        ({"rope_theta": [1e4]}, r"rope_theta must be finite and positive, got \[10000.0\]"),
        ({"rope_scaling": [8.0]}, r"rope_scaling must be an object, got \[8.0\]"),
        ({"rope_parameters": "default"}, "rope_parameters must be an object, got 'default'"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false, got 'false'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor must be finite and positive, got None"),
        ({"rope_scaling": LLAMA_3_1 | {"factor": "8"}}, "factor must be finite and positive, got '8'"),
        (
            {"rope_scaling": LLAMA_3_1 | {"low_freq_factor": 4.0}},
            "low_freq_factor must be below high_freq_factor, got 4.0 and 4.0",
        ),
        (
            {"rope_scaling": LLAMA_3_1 | {"original_max_position_embeddings": 8192.0}},
            "original_max_position_embeddings must be a whole number of at least 1, got 8192.0",
        ),
    ],
)
def test_what_is_not_what_it_should_be_is_refused_by_its_name(change: dict[str, object], message: str) -> None:
    assert Config.from_dict(THEIRS | {"rope_scaling": LLAMA_3_1}).rope_scaling is not None
    with pytest.raises(ValueError, match=f"^{message}$"):
        Config.from_dict(THEIRS | change)


def test_a_config_written_before_transformers_5_is_read() -> None:
    old = THEIRS | {"rope_theta": 500000.0, "rope_scaling": None, "num_key_value_heads": 2}
    config = Config.from_dict(old)
    assert (config.rope_theta, config.hkv, config.d) == (500000.0, 2, 16)


def test_a_config_that_lacks_something_or_is_broken_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a Llama's config must have 'vocab_size', got one without it"):
        Config.from_dict({name: value for name, value in THEIRS.items() if name != "vocab_size"})
    for text, message in (("{", "must be JSON, got "), ("[]", "must hold an object, got a list")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=rf"config\.json {message}"):
            Config.from_folder(tmp_path)


def test_a_folder_without_its_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has a config\.json"):
        Config.from_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(THEIRS))
    assert Config.from_folder(tmp_path).hidden == 64
    pytest.importorskip("safetensors", reason="without it the folder is not looked at")
    with pytest.raises(ValueError, match=r"has \*\.safetensors"):
        Weights.from_folder(tmp_path)


def test_weights_that_lack_something_are_refused() -> None:
    state = Weights.random(CONFIG).state()
    assert Weights.from_state(CONFIG, state).config == CONFIG
    with pytest.raises(ValueError, match=r"must be \[32, 64\] for this config, got \[64, 64\]"):
        Weights.from_state(CONFIG, state | {"model.layers.1.self_attn.k_proj.weight": torch.zeros(64, 64)})
    del state["model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match=r"must have 'model\.layers\.0\.mlp\.up_proj\.weight'"):
        Weights.from_state(CONFIG, state)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_that_somebody_else_has_quantised_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    state = {name: tensor.clone() for name, tensor in Weights.random(CONFIG).state().items()}
    # what is no weight may be anything
    state |= {name: state[name].to(dtype), "model.layers.1.mlp.down_proj.SCB": torch.ones(64, dtype=torch.int8)}
    message = rf"down_proj\.weight must be floating point of 16 bits or more, got {dtype}: load the unquantised"
    with pytest.raises(ValueError, match=message):
        Weights.from_state(CONFIG, state)
    save = pytest.importorskip("safetensors.torch", reason="the folder's weights are safetensors").save_file
    (tmp_path / "config.json").write_text(json.dumps(THEIRS | {"num_key_value_heads": 2}))
    save(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        Weights.from_folder(tmp_path)
    state[name] = state[name].float()
    save(state, tmp_path / "model.safetensors")
    assert Weights.from_folder(tmp_path).dtype == torch.bfloat16


def test_what_is_packed_can_be_unpacked() -> None:
    weights = Weights.random(CONFIG)
    back = Packed.of(weights).unpacked(torch.bfloat16)
    for ours, theirs in zip(back.state().values(), weights.state().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_int8_weights_are_within_half_a_level_of_each_row() -> None:
    weights = Weights.random(CONFIG)
    weights.layers[0].out[3] = 0
    back = Packed.of(weights, int8=True).unpacked(torch.float32)
    for name, ours in back.state().items():
        true = weights.state()[name].float()
        if true.ndim == 2 and "embed" not in name:
            level = true.abs().amax(1, keepdim=True) / 127
            assert ((ours - true).abs() <= 0.501 * level).all(), name


def test_weights_that_are_not_finite_are_not_rounded() -> None:
    weights = Weights.random(CONFIG)
    weights.layers[0].out[3, 0] = torch.nan
    with pytest.raises(ValueError, match=r"weight must be finite to be quantised, got inf or nan in 1 rows, first 3"):
        Packed.of(weights, int8=True)


def test_only_bfloat16_is_packed() -> None:
    with pytest.raises(ValueError, match=r"packed weights are bfloat16, got torch\.float32"):
        Packed.of(Weights.random(CONFIG, dtype=torch.float32))
