"""What peers that read a token at a time share: tokens and positions on the device, and `forward` to logits."""

from __future__ import annotations

import abc
from typing import Any

import torch

from attnkit.llama import Weights
from attnkit.llama.decoder import check_prompt, check_rewind, check_room

__all__ = ["COMPILE", "SEARCHED", "Stepwise", "graphs_skipped", "static"]

COMPILE: dict[str, Any] = {"mode": "reduce-overhead", "fullgraph": True}
"""How a step is compiled: whole, and replayed as a CUDA graph."""
SEARCHED: dict[str, Any] = {
    "options": {"triton.cudagraphs": True, "coordinate_descent_tuning": True},
    "fullgraph": True,
}
"""The same with a search for tiles, without which inductor leaves matrix-vector products to cuBLAS."""


def static(tensor: torch.Tensor) -> None:
    """Let compiled code find it where it lies. Of others a graph has copies; where one is written there is no graph.

    A module's parameters and buffers are so by themselves.
    """
    from torch._dynamo import mark_static_address  # a second to import, which only a peer need wait for

    mark_static_address(tensor)


def graphs_skipped() -> int:
    """How often in this process compiled code that should be replayed as a graph was not; torch does but log it."""
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["cudagraph_skips"])


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
