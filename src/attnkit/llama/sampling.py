"""Which token comes next: the likeliest, or one drawn at a temperature, without asking the host.

A draw from softmax(logits / t) is the largest of logits / t + g, where each g is its own draw from Gumbel's
distribution (Gumbel, 1954; Maddison et al., 2014). So sampling is an argmax like greedy decoding. The noise is a hash
of seed, position, sequence and token: the same seed gives the same text, whichever rung of the ladder makes the
logits. The fused kernels compute the same hash.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

__all__ = ["GREEDY", "Sampling", "gumbel", "pick"]

LOW_32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the likeliest; the higher, the more even the draw.
        seed: From 0 to 2^32 - 1.

    Raises:
        ValueError: For a temperature or a seed out of range.
    """

    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be finite and not negative, got {self.temperature!r}")
        if not (isinstance(self.seed, int) and 0 <= self.seed <= LOW_32):
            raise ValueError(f"seed must be a whole number from 0 to 2^32 - 1, got {self.seed!r}")


GREEDY = Sampling()


def mix(x: torch.Tensor) -> torch.Tensor:
    """Scatter 32 bits, held in int64, over 32 bits (the finaliser of Wellons' hash prospector, "lowbias32")."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & LOW_32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & LOW_32
    return x ^ (x >> 16)


def gumbel(seed: int, position: torch.Tensor, batch: int, vocab: int) -> torch.Tensor:
    """Return noise ``[batch, vocab]`` in float32 for the token after `position`, a tensor of one number."""
    device = position.device
    start = mix(mix(torch.full((1,), seed, dtype=torch.int64, device=device)) ^ position.long())
    rows = mix(start ^ torch.arange(batch, device=device))
    bits = mix(rows[:, None] ^ torch.arange(vocab, device=device))
    # the middles of 2^23 steps: each is a float32, and neither 0 nor 1
    uniform = ((bits >> 9).float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform))


def pick(logits: torch.Tensor, sampling: Sampling, position: torch.Tensor) -> torch.Tensor:
    """Choose from ``logits [b, vocab]`` the tokens ``[b]`` that follow `position`, a tensor of one number."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    noise = gumbel(sampling.seed, position, *logits.shape)
    return (logits.float() / sampling.temperature + noise).argmax(-1)
