"""transformers' LlamaForCausalLM, and the same with its linear layers replaced by others' int8.

All have the weights that our rungs have. Those of int8 peers are rounded by us, the head's among them, and handed over
in the form that the package itself makes: what is timed is its product, and what it should give is known.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from attnkit.linear import LARGEST, quantize
from attnkit.llama import Config, Weights
from perf.peers.stepwise import COMPILE, SEARCHED, Stepwise

__all__ = ["BitsandbytesInt8", "TorchaoInt8", "Transformers", "of_transformers"]


def of_transformers(config: Config, *, tied: bool, **options: Any) -> Any:
    """The same sizes as transformers' ``LlamaConfig``; `options` are further ones of its own."""
    from transformers import LlamaConfig

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if (scaling := config.rope_scaling) is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.original,
        }
    return LlamaConfig(
        hidden_size=config.hidden,
        intermediate_size=config.intermediate,
        num_hidden_layers=config.layers,
        num_attention_heads=config.hq,
        num_key_value_heads=config.hkv,
        head_dim=config.d,
        vocab_size=config.vocab,
        max_position_embeddings=config.positions,
        rms_norm_eps=config.epsilon,
        rope_parameters=rope,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
        **options,
    )


class Transformers(Stepwise):
    """LlamaForCausalLM on the same weights, with a static cache."""

    compiler = COMPILE

    def __init__(self, weights: Weights, batch: int, capacity: int, compile: bool = True) -> None:
        from transformers import LlamaForCausalLM, StaticCache

        super().__init__(weights, batch, capacity)
        theirs = of_transformers(weights.config, tied=False)  # the state holds the head by its own name
        with torch.device("meta"):
            model = LlamaForCausalLM(theirs).to(weights.dtype)
        model.load_state_dict(weights.state(), assign=True)
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear):
                model.set_submodule(name, self.linear(layer))
        # its table of rotations is no weight, and was made on no device
        model.model.rotary_emb = type(model.model.rotary_emb)(theirs).to(weights.device)
        self.model = model.eval()
        self.cache = StaticCache(config=theirs, max_cache_len=capacity)
        self._step: Any = torch.compile(self.model.forward, **self.compiler) if compile else self.model.forward

    def linear(self, layer: nn.Linear) -> nn.Module:
        """What stands in a linear layer's place."""
        return layer

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """A step is compiled, a prompt is not."""
        call = self._step if tokens.shape[1] == 1 else self.model.forward
        rows = positions[None].expand(self.batch, -1)
        out = call(input_ids=tokens, position_ids=rows, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    def prompt(self, tokens: torch.Tensor) -> torch.Tensor:
        """With an empty cache."""
        self.cache.reset()
        return super().prompt(tokens)

    def rewind(self, length: int) -> None:
        """Go back; the cache counts for itself."""
        super().rewind(length)
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(length)


class BitsandbytesInt8(Transformers):
    """With bitsandbytes' Linear8bitLt, threshold 0: what a layer multiplies becomes float16, and then int8."""

    def linear(self, layer: nn.Linear) -> nn.Module:
        """Linear8bitLt of the same weights."""
        from bitsandbytes.nn import Int8Params, Linear8bitLt

        matrix, scales = quantize(layer.weight.detach())
        options = {"has_fp16_weights": False, "threshold": 0.0, "device": "meta"}
        theirs: nn.Module = Linear8bitLt(layer.in_features, layer.out_features, bias=False, **options)
        # it keeps the largest element of a row where we keep a step
        theirs.weight = Int8Params(matrix, requires_grad=False, has_fp16_weights=False, CB=matrix, SCB=scales * LARGEST)
        return theirs


EVERY_WAY: dict[str, Any] = {
    **SEARCHED,
    "options": {**SEARCHED["options"], "coordinate_descent_check_all_directions": True},
}
"""As ``torchao.quantization.quantize_`` sets the compiler up for such weights."""


class TorchaoInt8(Transformers):
    """With torchao's int8 weights."""

    compiler = EVERY_WAY

    def linear(self, layer: nn.Linear) -> nn.Module:
        """The layer with an Int8Tensor for a weight."""
        from torchao.quantization import Int8Tensor

        matrix, scales = quantize(layer.weight.detach())
        theirs = Int8Tensor(matrix, scales[:, None], [1, layer.in_features], layer.weight.dtype)
        layer.weight = nn.Parameter(theirs, requires_grad=False)
        return layer
