"""Sampling draws from the softmax, greedy takes the likeliest, and what cannot be is refused."""

from __future__ import annotations

import math

import pytest
import torch

from attnkit.llama import GREEDY, Sampling
from attnkit.llama.sampling import gumbel, pick

LOGITS = torch.tensor([2.0, 0.0, 1.0, -1.0, 0.5, -30.0])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tokens_come_as_often_as_the_softmax_says(temperature: float) -> None:
    draws = 20000
    sampling = Sampling(temperature=temperature, seed=5)
    tokens = pick(LOGITS.expand(draws, -1), sampling, torch.tensor([3]))
    found = torch.bincount(tokens, minlength=len(LOGITS)) / draws
    expected = (LOGITS / temperature).softmax(0)
    # four standard deviations of a share: one run in some thousands would fail if the seed were drawn
    assert ((found - expected).abs() <= 4 * (expected * (1 - expected) / draws).sqrt() + 1e-4).all()


def test_noise_of_positions_sequences_and_seeds_is_not_related() -> None:
    rows = [gumbel(seed, torch.tensor([position]), 2, 4000) for seed in (0, 1) for position in (7, 8)]
    noise = torch.cat(rows)  # eight rows of their own
    related = torch.corrcoef(noise) - torch.eye(len(noise))
    assert related.abs().max() < 5 / math.sqrt(4000)
    assert abs(float(noise.mean()) - 0.5772) < 0.03, "Euler's constant is the mean of Gumbel's distribution"
    assert noise.isfinite().all()


def test_greedy_takes_the_likeliest() -> None:
    assert pick(LOGITS[None], GREEDY, torch.tensor([0])).tolist() == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1.0}, "temperature must be finite and not negative, got -1.0"),
        ({"temperature": math.nan}, "temperature must be finite"),
        ({"seed": -1}, "seed must be a whole number from 0 to 2"),
        ({"seed": 2**32}, "seed must be a whole number from 0 to 2"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**change)  # type: ignore[arg-type]
