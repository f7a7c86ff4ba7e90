"""How others decode a Llama, as decoders that the ladder is timed beside.

compiled        a decoder as gpt-fast writes it: static cache, fused projections, torch.compile with CUDA graphs
compiled_int8   the same with int8 weights, a scale a row: the compiler converts them as they are read
transformers    LlamaForCausalLM with a static cache, its forward compiled likewise
"""

from __future__ import annotations

import abc
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from attnkit.llama import Config, Decoder, Weights, rotation
from attnkit.llama.decoder import check_prompt, check_rewind, check_room
from attnkit.llama.plain import rmsnorm
from attnkit.llama.weights import quantize

__all__ = ["PEERS", "Compiled", "CompiledInt8", "Peer", "Transformers", "of_transformers"]

COMPILE: dict[str, Any] = {"mode": "reduce-overhead", "fullgraph": True}


@dataclass(frozen=True, slots=True)
class Peer:
    """A way to decode that is not ours.

    Attributes:
        build: Makes a decoder for weights, a batch and a capacity.
        absent: Why it cannot decode these weights here, or None.
        int8: Whether it rounds the weights to int8.
    """

    build: Callable[[Weights, int, int], Decoder]
    absent: Callable[[Weights], str | None]
    int8: bool = False


class Stepwise(abc.ABC):
    """What both peers share: tokens and positions on the device, and `forward` to logits."""

    def __init__(self, weights: Weights, batch: int, capacity: int) -> None:
        self.batch, self.capacity, self.length = batch, capacity, 0
        device = weights.device
        self.logits = torch.zeros((batch, weights.config.vocab), dtype=torch.float32, device=device)
        self.tokens = torch.zeros((batch, capacity + 1), dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)

    @abc.abstractmethod
    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """``tokens [b, s]`` at ``positions [s]`` to the last one's logits ``[b, vocab]``."""

    def prompt(self, tokens: torch.Tensor) -> torch.Tensor:
        """The prompt ``[b, s]`` to its last token's logits."""
        return self.forward(tokens, torch.arange(tokens.shape[1], device=tokens.device))

    @torch.no_grad()
    def prefill(self, prompt: torch.Tensor) -> None:
        """Read a prompt."""
        check_prompt(self, prompt)
        self.length = prompt.shape[1]
        self.tokens[:, : self.length] = prompt
        self.position.fill_(self.length)
        self._choose(self.prompt(prompt))

    @torch.no_grad()
    def step(self) -> None:
        """Read the newest token."""
        check_room(self)
        self.length += 1
        logits = self.forward(self.tokens.index_select(1, self.position), self.position)
        self.position += 1
        self._choose(logits)

    def rewind(self, length: int) -> None:
        """Go back."""
        check_rewind(self, length)
        self.length = length
        self.position.fill_(length)

    def _choose(self, logits: torch.Tensor) -> None:
        self.logits.copy_(logits)
        self.tokens.index_copy_(1, self.position, self.logits.argmax(-1, keepdim=True))


class Matrix:
    """A linear layer's weights ``[n, k]``, in int8 with a scale a row if that is asked for."""

    def __init__(self, matrix: torch.Tensor, int8: bool) -> None:
        self.matrix = matrix
        self.scales: torch.Tensor | None = None
        if int8:
            self.matrix, self.scales = quantize(matrix)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x [..., k]`` to ``[..., n]``."""
        if self.scales is None:
            return linear(x, self.matrix)
        return (linear(x, self.matrix.to(x.dtype)) * self.scales).to(x.dtype)


class Compiled(Stepwise):
    """The way of gpt-fast: one function over tensors of fixed shapes, which inductor fuses and replays as a graph."""

    int8 = False

    def __init__(self, weights: Weights, batch: int, capacity: int, compile: bool = True) -> None:
        super().__init__(weights, batch, capacity)
        config = weights.config
        self.config, self.weights = config, weights
        self.qkv = [Matrix(torch.cat((layer.q, layer.k, layer.v)), self.int8) for layer in weights.layers]
        self.out = [Matrix(layer.out, self.int8) for layer in weights.layers]
        self.gate_up = [Matrix(torch.cat((layer.gate, layer.up)), self.int8) for layer in weights.layers]
        self.down = [Matrix(layer.down, self.int8) for layer in weights.layers]
        self.head = Matrix(weights.head, self.int8)
        shape = (config.layers, batch, config.hkv, capacity, config.d)
        self.k_cache = torch.zeros(shape, dtype=weights.dtype, device=weights.device)
        self.v_cache = torch.zeros_like(self.k_cache)
        self.turns = rotation.table(config, capacity, weights.device)
        self.keys = torch.arange(capacity, device=weights.device)
        self._eager = self._compute
        self._compute_one = torch.compile(self._compute, **COMPILE) if compile else self._compute

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """A step is compiled, a prompt is not."""
        return (self._compute_one if tokens.shape[1] == 1 else self._eager)(tokens, positions)

    def _compute(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        config, weights = self.config, self.weights
        heads = (config.hq, config.hkv, config.hkv)
        turns = self.turns[positions]
        seen = self.keys[None, :] <= positions[:, None]  # [s, capacity]
        x = weights.embedding[tokens]
        for i, layer in enumerate(weights.layers):
            n = rmsnorm(x, layer.attention_norm, config.epsilon)
            parts = self.qkv[i](n).split([h * config.d for h in heads], dim=-1)
            q, k, v = (part.unflatten(-1, (-1, config.d)) for part in parts)
            q, k = rotation.rotate(q, turns), rotation.rotate(k, turns)
            self.k_cache[i].index_copy_(2, positions, k.transpose(1, 2))
            self.v_cache[i].index_copy_(2, positions, v.transpose(1, 2))
            a = scaled_dot_product_attention(
                q.transpose(1, 2), self.k_cache[i], self.v_cache[i], attn_mask=seen, enable_gqa=config.group > 1
            )
            x = x + self.out[i](a.transpose(1, 2).flatten(2))
            n = rmsnorm(x, layer.mlp_norm, config.epsilon)
            gate, up = self.gate_up[i](n).chunk(2, dim=-1)
            x = x + self.down[i](silu(gate) * up)
        return self.head(rmsnorm(x[:, -1], weights.norm, config.epsilon))


class CompiledInt8(Compiled):
    """The same with int8 weights."""

    int8 = True


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

    def __init__(self, weights: Weights, batch: int, capacity: int, compile: bool = True) -> None:
        from transformers import LlamaForCausalLM, StaticCache

        super().__init__(weights, batch, capacity)
        theirs = of_transformers(weights.config, tied=False)  # the state holds the head by its own name
        with torch.device("meta"):
            model = LlamaForCausalLM(theirs).to(weights.dtype)
        model.load_state_dict(weights.state(), assign=True)
        # its table of rotations is no weight, and was made on no device
        model.model.rotary_emb = type(model.model.rotary_emb)(theirs).to(weights.device)
        self.model = model.eval()
        self.cache = StaticCache(config=theirs, max_cache_len=capacity)
        self._step: Any = torch.compile(self.model.forward, **COMPILE) if compile else self.model.forward

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


def _needs_cuda(weights: Weights) -> str | None:
    """Say that compilation is for a GPU: on a CPU it takes longer than all that is timed there."""
    return None if weights.device.type == "cuda" else f"is compiled for a CUDA device, got {weights.device.type}"


def _needs_transformers(weights: Weights) -> str | None:
    if importlib.util.find_spec("transformers") is None:
        return "the package transformers is not installed: pip install transformers"
    if weights.config.rope_scaling is not None:
        return "is set up for unscaled rotations"
    return _needs_cuda(weights)


PEERS = {
    "compiled": Peer(Compiled, _needs_cuda),
    "compiled_int8": Peer(CompiledInt8, _needs_cuda, int8=True),
    "transformers": Peer(Transformers, _needs_transformers),
}
