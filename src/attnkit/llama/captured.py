"""A decoder whose step is one CUDA graph: what launches a token's kernels is the device, not Python."""

from __future__ import annotations

from typing import Protocol

import torch

from attnkit.graph import Backend, CudaBackend
from attnkit.llama.decoder import Decoder, check_room

__all__ = ["Captured"]


class Capturable(Decoder, Protocol):
    """A decoder whose kernels read positions and lengths on the device."""

    def enqueue(self) -> None:
        """Launch the kernels of one step."""
        ...


class Captured:
    """A decoder whose step replays a graph; its attributes are those of `Decoder`."""

    def __init__(self, decoder: Capturable, backend: Backend | None = None) -> None:
        """Capture a step, after one that compiles and allocates whatever it needs.

        Args:
            decoder: Nothing has been read by it yet.
            backend: What captures; CUDA's if None.

        Raises:
            CaptureError: If a step cannot be captured.
        """
        self._decoder = decoder
        self.batch, self.capacity = decoder.batch, decoder.capacity
        self.logits, self.tokens = decoder.logits, decoder.tokens
        decoder.enqueue()
        self._replay, _ = (backend or CudaBackend()).capture(decoder.enqueue)

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._decoder.length

    @length.setter
    def length(self, length: int) -> None:
        self._decoder.length = length

    def prefill(self, prompt: torch.Tensor) -> None:
        """Read ``prompt [batch, s]`` from an empty cache; leave its logits, and the first token chosen from them."""
        self._decoder.prefill(prompt)

    def rewind(self, length: int) -> None:
        """Forget what was read after the first `length` tokens; the next step reads the token after them again."""
        self._decoder.rewind(length)

    def step(self) -> None:
        """Read the newest token; leave its logits, and the next token chosen from them."""
        check_room(self)
        self.length += 1
        self._replay()
