"""A decoder: what every rung of the ladder is to those that use it, and generating text with one.

All sequences of a batch have the same length. Tokens, positions and logits stay on the device: no step asks the host
for anything, and the host knows the length because it counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol

import torch

__all__ = ["Decoder", "check_prompt", "generate", "stream"]


class Decoder(Protocol):
    """Predicts a token at a time for a batch of sequences.

    Attributes:
        batch: Sequences.
        capacity: Tokens that the cache of a sequence holds.
        length: Tokens in the cache: the prompt, and what `step` has read since.
    """

    batch: int
    capacity: int
    length: int

    @property
    def logits(self) -> torch.Tensor:
        """``[batch, vocab]``, of the token that comes next, in float32."""
        ...

    @property
    def tokens(self) -> torch.Tensor:
        """``[batch, capacity + 1]``: the prompt and all that was chosen since."""
        ...

    def prefill(self, prompt: torch.Tensor) -> None:
        """Read ``prompt [batch, s]`` from an empty cache; leave its logits, and the first token chosen from them."""
        ...

    def step(self) -> None:
        """Read the newest token; leave its logits, and the next token chosen from them."""
        ...

    def rewind(self, length: int) -> None:
        """Forget what was read after the first `length` tokens; the next step reads the token after them again."""
        ...


def generate(decoder: Decoder, prompt: torch.Tensor, count: int) -> torch.Tensor:
    """Continue ``prompt [batch, s]`` by `count` tokens ``[batch, count]``, which are on the decoder's device.

    Raises:
        ValueError: If the prompt is not a batch of the decoder's, or the cache is too small.
    """
    check_count(decoder, prompt, count)
    length = prompt.shape[1]
    decoder.prefill(prompt)
    for _ in range(count - 1):
        decoder.step()
    return decoder.tokens[:, length : length + count].clone()


def stream(
    decoder: Decoder, prompt: torch.Tensor, count: int, *, ends: Collection[int] = (), every: int = 16
) -> Iterator[list[int]]:
    """Continue ``prompt [1, s]`` by at most `count` tokens, and yield them as the host gets to see them.

    The host looks at the first token, and then once in `every` steps: only there does it wait for the device, and only
    there does it notice one of `ends`. That token, and what was decoded after it meanwhile, is not yielded.

    Raises:
        ValueError: If the prompt is not a batch of the decoder's or of more than one sequence, the cache is too small,
            or the host would never look.
    """
    check_count(decoder, prompt, count)
    if decoder.batch != 1:
        raise ValueError(f"a stream is of one sequence, got a batch of {decoder.batch}")
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    decoder.prefill(prompt)
    seen, last = prompt.shape[1], prompt.shape[1] + count
    while seen < last:
        chosen = decoder.length + 1
        chunk: list[int] = decoder.tokens[0, seen:chosen].tolist()
        end = next((i for i, token in enumerate(chunk) if token in ends), None)
        yield chunk[:end]
        if end is not None:
            return
        seen = chosen
        for _ in range(min(every, last - seen)):
            decoder.step()


def check_count(decoder: Decoder, prompt: torch.Tensor, count: int) -> None:
    """Refuse a prompt of another shape, or more tokens than the cache has room for.

    Raises:
        ValueError: Says which of these it is.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    check_prompt(decoder, prompt)
    length = prompt.shape[1]
    if length + count > decoder.capacity + 1:
        needed = length + count - 1
        raise ValueError(f"{length} tokens and {count} more need a capacity of {needed}, got {decoder.capacity}")


def check_prompt(decoder: Decoder, prompt: torch.Tensor) -> None:
    """Refuse a prompt that is not ``[batch, s]`` with 1 <= s <= capacity.

    Raises:
        ValueError: Says which of these it is not.
    """
    if prompt.ndim != 2 or prompt.shape[0] != decoder.batch:
        raise ValueError(f"prompt must be [batch, s] with a batch of {decoder.batch}, got {list(prompt.shape)}")
    if not 1 <= prompt.shape[1] <= decoder.capacity:
        raise ValueError(f"prompt must have 1 to {decoder.capacity} tokens, got {prompt.shape[1]}")


def check_room(decoder: Decoder) -> None:
    """Refuse a step for which the cache has no room, or to which no prompt has led.

    Raises:
        ValueError: Says which of these it is.
    """
    if decoder.length == 0:
        raise ValueError("there is nothing to continue: prefill a prompt first")
    if decoder.length >= decoder.capacity:
        raise ValueError(f"the cache is full: {decoder.capacity} tokens; take a decoder of a larger capacity")


def check_rewind(decoder: Decoder, length: int) -> None:
    """Refuse to go back to where the decoder has not been.

    Raises:
        ValueError: If it has read fewer tokens, or the length is not positive.
    """
    if not 1 <= length <= decoder.length:
        raise ValueError(f"length must be from 1 to the {decoder.length} tokens that were read, got {length}")
