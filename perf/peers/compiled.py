"""A decoder as gpt-fast writes and compiles it: one function over tensors of fixed shapes, replayed as a graph."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from attnkit.linear import LARGEST, quantize
from attnkit.llama import Weights, rotation
from attnkit.llama.plain import rmsnorm
from perf.peers.stepwise import SEARCHED, Stepwise, static

__all__ = ["Compiled", "CompiledInt8", "RoundedInt8"]


class Matrix:
    """A linear layer's weights ``[n, k]``, in int8 with a scale a row if that is asked for.

    With `rounded` x is rounded, too: to 255 levels of each row's largest element.
    """

    def __init__(self, matrix: torch.Tensor, int8: bool, rounded: bool = False) -> None:
        self.matrix, self.rounded = matrix, rounded
        self.scales: torch.Tensor | None = None
        if int8:
            self.matrix, self.scales = quantize(matrix)
            static(self.scales)
        static(self.matrix)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x [..., k]`` to ``[..., n]``."""
        if self.rounded:
            step = (x.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=torch.finfo(x.dtype).tiny)
            x = (x / step).round() * step
        if self.scales is None:
            return linear(x, self.matrix)
        return (linear(x, self.matrix.to(x.dtype)) * self.scales).to(x.dtype)


class Compiled(Stepwise):
    """The way of gpt-fast: one function over tensors of fixed shapes, which inductor fuses and replays as a graph."""

    int8 = False
    rounded = False

    def __init__(self, weights: Weights, batch: int, capacity: int, compile: bool = True) -> None:
        super().__init__(weights, batch, capacity)
        config = weights.config
        self.config, self.weights = config, weights

        def of(matrix: torch.Tensor) -> Matrix:
            return Matrix(matrix, self.int8, self.rounded)

        self.qkv = [of(torch.cat((layer.q, layer.k, layer.v))) for layer in weights.layers]
        self.out = [of(layer.out) for layer in weights.layers]
        self.gate_up = [of(torch.cat((layer.gate, layer.up))) for layer in weights.layers]
        self.down = [of(layer.down) for layer in weights.layers]
        self.head = of(weights.head)
        # a tensor a layer: what is written into a part of one is copied, and in the end all of it
        shape = (batch, config.hkv, capacity, config.d)
        self.k_cache, self.v_cache = (
            [torch.zeros(shape, dtype=weights.dtype, device=weights.device) for _ in weights.layers] for _ in "kv"
        )
        self.turns = rotation.table(config, capacity, weights.device)
        self.keys = torch.arange(capacity, device=weights.device)
        for tensor in (*self.k_cache, *self.v_cache, self.turns, self.keys, weights.embedding, weights.norm):
            static(tensor)
        for layer in weights.layers:
            static(layer.attention_norm)
            static(layer.mlp_norm)
        self._one = torch.compile(self._compute_one, **SEARCHED) if compile else self._compute_one

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """A step is compiled, a prompt is not."""
        return (self._one if tokens.shape[1] == 1 else self._compute)(tokens, positions)

    def _compute_one(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        # attention as plain steps, which inductor fuses: for one query gpt-fast found that better than any kernel
        with sdpa_kernel(SDPBackend.MATH):
            return self._compute(tokens, positions)

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


class RoundedInt8(CompiledInt8):
    """What LLM.int8() computes, in full precision but for its two roundings: weights and what they multiply are int8.

    It is not timed: it tells how far off a peer may be that rounds so.
    """

    rounded = True
