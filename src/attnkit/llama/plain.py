"""Decoding in torch's operations, one after the other: the reference, and the frame of the ladder's lower rungs.

What computes attention and what multiplies by a matrix can be replaced; the rest is what transformers'
LlamaForCausalLM does, in the same order and the same dtypes. Runs wherever torch runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import linear, silu

from attnkit.llama import rotation
from attnkit.llama.decoder import check_prompt, check_rewind, check_room
from attnkit.llama.sampling import GREEDY, Sampling, pick
from attnkit.llama.weights import Layer, Weights
from attnkit.variant import Attention

__all__ = ["Length", "Plain", "Product", "ReadCache", "cut", "rmsnorm"]

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""x ``[..., columns]`` and a matrix ``[rows, columns]`` to ``[..., rows]``."""


@dataclass(frozen=True, slots=True)
class Length:
    """How many keys of the cache are there: as the host counts, and as a kernel reads it (``[b]``, int32)."""

    host: int
    device: torch.Tensor


class ReadCache(Protocol):
    """Attention of one query a sequence on the cache.

    q ``[b, 1, hq, d]``, k and v ``[b, capacity, hkv, d]``, of which the first `length` are there, to
    out ``[b, 1, hq, d]``.
    """

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, length: Length) -> torch.Tensor:
        """Compute attention."""
        ...


def cut(attention: Attention) -> ReadCache:
    """Let a variant see that part of the cache that is there. The host's count decides, so no graph can replay it."""

    def read(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, length: Length) -> torch.Tensor:
        return attention(q, k[:, : length.host], v[:, : length.host], mask="causal")

    return read


def rmsnorm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Scale ``x [..., hidden]`` to a mean square of 1 in float32, then by the weight (Zhang and Sennrich, 2019)."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)


class Plain:
    """A decoder in torch's operations; its attributes are those of `Decoder`."""

    def __init__(
        self,
        weights: Weights,
        batch: int,
        capacity: int,
        *,
        attention: ReadCache,
        prefill: Attention,
        product: Product = linear,
        sampling: Sampling = GREEDY,
    ) -> None:
        """Allocate the cache.

        Args:
            weights: Any dtype, any device.
            batch: Sequences.
            capacity: Tokens that the cache of a sequence holds.
            attention: Of a step.
            prefill: Of the prompt: the call of a variant.
            product: Of a step; the prompt's products are torch's.
            sampling: How the next token is chosen.

        Raises:
            ValueError: If the model has fewer positions than the capacity.
        """
        config = weights.config
        if not 1 <= capacity <= config.positions:
            raise ValueError(f"capacity must be from 1 to the model's {config.positions} positions, got {capacity}")
        self.weights, self.batch, self.capacity = weights, batch, capacity
        self.attention, self.prefill_attention, self.product = attention, prefill, product
        self.sampling = sampling
        device = weights.device
        self.turns = rotation.table(config, capacity, device)
        shape = (config.layers, batch, capacity, config.hkv, config.d)
        self.k_cache = torch.zeros(shape, dtype=weights.dtype, device=device)
        self.v_cache = torch.zeros(shape, dtype=weights.dtype, device=device)
        self.logits = torch.zeros((batch, config.vocab), dtype=torch.float32, device=device)
        self.tokens = torch.zeros((batch, capacity + 1), dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.length = 0

    @torch.no_grad()
    def prefill(self, prompt: torch.Tensor) -> None:
        """Read ``prompt [batch, s]`` from an empty cache; leave its logits, and the first token chosen from them."""
        check_prompt(self, prompt)
        length = prompt.shape[1]
        self.tokens[:, :length] = prompt
        positions = torch.arange(length, device=self.tokens.device)

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: int) -> torch.Tensor:
            return self.prefill_attention(q, k, v, mask="causal")

        self._forward(positions, attend, linear)
        self.position.fill_(length - 1)
        self.length = length
        self._choose()

    def step(self) -> None:
        """Read the newest token; leave its logits, and the next token chosen from them."""
        check_room(self)
        self.length += 1
        self.enqueue()

    @torch.no_grad()
    def enqueue(self) -> None:
        """Do the work of one step. A graph can capture it where `attention` reads lengths on the device."""
        self.position += 1
        length = Length(self.length, (self.position + 1).int().repeat(self.batch))

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
            return self.attention(q, self.k_cache[layer], self.v_cache[layer], length)

        self._forward(self.position, attend, self.product)
        self._choose()

    def rewind(self, length: int) -> None:
        """Forget what was read after the first `length` tokens; the next step reads the token after them again."""
        check_rewind(self, length)
        self.length = length
        self.position.fill_(length - 1)

    def _forward(
        self,
        positions: torch.Tensor,
        attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor],
        product: Product,
    ) -> None:
        """Read the tokens at ``positions [s]`` into the cache, and leave the last one's logits."""
        weights, epsilon = self.weights, self.weights.config.epsilon
        turns = self.turns[positions]
        x = weights.embedding[self.tokens[:, positions]]  # [b, s, hidden]
        for i, layer in enumerate(weights.layers):
            n = rmsnorm(x, layer.attention_norm, epsilon)
            q, k, v = self._project(n, layer, turns, product)
            self.k_cache[i].index_copy_(1, positions, k)
            self.v_cache[i].index_copy_(1, positions, v)
            x = x + product(attend(q, k, v, i).flatten(2), layer.out)
            n = rmsnorm(x, layer.mlp_norm, epsilon)
            x = x + product(silu(product(n, layer.gate)) * product(n, layer.up), layer.down)
        self.logits.copy_(product(rmsnorm(x[:, -1], weights.norm, epsilon), weights.head))

    def _project(
        self, n: torch.Tensor, layer: Layer, turns: torch.Tensor, product: Product
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``n [b, s, hidden]`` to q ``[b, s, hq, d]`` and k, v ``[b, s, hkv, d]``, q and k turned."""
        q, k, v = (product(n, w).unflatten(-1, (-1, self.weights.config.d)) for w in (layer.q, layer.k, layer.v))
        return rotation.rotate(q, turns), rotation.rotate(k, turns), v

    def _choose(self) -> None:
        """Choose the token after `position` and write it down."""
        chosen = pick(self.logits, self.sampling, self.position)
        self.tokens.index_copy_(1, self.position + 1, chosen[:, None])
