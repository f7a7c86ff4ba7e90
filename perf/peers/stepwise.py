"""What peers that read a token at a time share: tokens and positions on the device, and `forward` to logits."""

from __future__ import annotations

import abc
from typing import Any

import torch

from attnkit.llama import Weights
from attnkit.llama.decoder import check_prompt, check_rewind, check_room

__all__ = ["COMPILE", "Stepwise"]

COMPILE: dict[str, Any] = {"mode": "reduce-overhead", "fullgraph": True}
"""How a step is compiled: whole, and replayed as a CUDA graph."""


class Stepwise(abc.ABC):
    """A decoder but for `forward`."""

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
