"""Laws that need no tolerance, at whatever problem is drawn; test_laws.py has them at problems that were chosen.

The log-sum-exp alone has one, that of sums in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from attnkit import oracle, testing
from attnkit.mask import Boolean, Documents, Prefix, Window
from attnkit.problem import Inputs, Problem
from attnkit.variant import Feature, Variant
from attnkit.variants import TABLE, variant
from tests.attnkit import by_hand
from tests.attnkit.strategies import UNCACHED, problems
from tests.attnkit.test_laws import GARBAGE
from tests.attnkit.test_parity import COMPILED, EXAMPLES, here
from tests.attnkit.test_parity import known as features

FLOAT32_ROUNDING = 2.0**-24
OURS = ("naive", "triton_unfused", "triton_flash", "triton_fa1", "triton_splitkv")
"""Variants that promise the same bits for the same inputs, and to keep what is not a number where it is."""
BY_TORCH = ("naive", "triton_unfused")
"""Of these what multiplies by torch, whose products on a CPU do not keep it there: one row's nan may come to others."""

ON_SCORES: tuple[Feature, ...] = ("causal-top-left", "window", "prefix", "documents", "boolean", "alibi", "sink")
"""All but what bends scores, and what is no such problem."""

# parity has the others: each of these computes a problem twice
fuzzed = settings(
    max_examples=max(1, EXAMPLES // 2), suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


def known(way: Variant) -> st.SearchStrategy[Problem]:
    """Draw a problem with the features that this variant has."""
    return problems([feature for feature in features(way) if feature in UNCACHED])


def hidden_keys(way: Variant, device: torch.device) -> Callable[[], None]:
    """What is in a key changes no bit of a query that does not see it; in ours it may be not a number."""

    @fuzzed
    @given(problem=known(way), seed=st.integers(0, 3), data=st.data())
    def holds(problem: Problem, seed: int, data: st.DataObject) -> None:
        assume(way.rejects(problem, device, "fwd") is None)
        blind = ~torch.tensor(by_hand.seen(problem), device=device)
        assume(bool(blind.any()))
        key = data.draw(st.sampled_from(blind.any(0).nonzero().flatten().tolist()), label="key")
        inputs, options = problem.inputs(device, seed), problem.options(device, seed)
        k, v = inputs.k.clone(), inputs.v.clone()
        before = way.attention(inputs.q, k, v, **options)
        garbage = min(GARBAGE, torch.finfo(k.dtype).max)
        kept = way.name in OURS and not (way.name in BY_TORCH and device.type == "cpu")
        k[:, key], v[:, key] = math.nan if kept else garbage, -garbage
        after = way.attention(inputs.q, k, v, **options)
        assert torch.equal(before[:, blind[:, key]], after[:, blind[:, key]])

    return holds


def order(way: Variant, device: torch.device) -> Callable[[], None]:
    """Batches and heads that come in another order are computed to the same bits, and nearly by products of torch.

    Where in 16 bytes a row begins decides there in which order it is added up.
    """

    @fuzzed
    @given(problem=known(way), seed=st.integers(0, 3), data=st.data())
    def holds(problem: Problem, seed: int, data: st.DataObject) -> None:
        assume(way.rejects(problem, device, "fwd") is None)
        batches = data.draw(st.permutations(range(problem.b)), label="batches")
        keys = data.draw(st.permutations(range(problem.hkv)), label="key heads")
        inside = data.draw(st.permutations(range(problem.group)), label="heads of a group")
        queries = [head * problem.group + i for head in keys for i in inside]
        inputs = Inputs(*(x.clone(memory_format=torch.contiguous_format) for x in problem.inputs(device, seed)))
        options = problem.options(device, seed)
        out = way.attention(inputs.q, inputs.k, inputs.v, **options)
        for name in ("alibi", "sink"):
            if name in options:
                options[name] = options[name][queries]  # type: ignore[literal-required]
        q, k, v = inputs.q[batches][:, :, queries], inputs.k[batches][:, :, keys], inputs.v[batches][:, :, keys]
        found, expected = way.attention(q, k, v, **options), out[batches][:, :, queries]
        if way.name in OURS and way.name not in BY_TORCH:
            assert torch.equal(found, expected)
        else:
            torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-5)

    return holds


def repeats(way: Variant, device: torch.device) -> Callable[[], None]:
    """The same inputs give the same bits, of gradients too where there are any."""

    @settings(fuzzed, max_examples=max(1, EXAMPLES // 5))
    @given(problem=known(way), seed=st.integers(0, 3))
    def holds(problem: Problem, seed: int) -> None:
        assume(way.rejects(problem, device, "fwd") is None)
        trainable = way.rejects(problem, device, "fwd+bwd") is None

        def computed() -> list[torch.Tensor]:
            q, k, v, dout = problem.inputs(device, seed, requires_grad=trainable)
            options = problem.options(device, seed, requires_grad=trainable)
            out = way.attention(q, k, v, **options)
            leaves = (q, k, v, options["sink"]) if problem.sink else (q, k, v)
            return [out, *(torch.autograd.grad(out, leaves, dout) if trainable else ())]

        for one, other in zip(computed(), computed(), strict=True):
            assert torch.equal(one, other)

    return holds


each = pytest.mark.parametrize("name", [way.name for way in TABLE if way.name not in COMPILED])


def ready(name: str, device: torch.device) -> Variant:
    """The variant; a test of one that is not here or runs elsewhere is skipped, with its reason."""
    way = here(name)
    if reason := way.rejects(Problem(b=1, hq=1, sq=1, d=16), device, "fwd"):
        pytest.skip(reason)
    return way


@each
def test_what_is_in_a_key_that_a_query_does_not_see_does_not_matter(name: str, device: torch.device) -> None:
    hidden_keys(ready(name, device), device)()


@each
def test_the_order_of_batches_and_heads_does_not_matter(name: str, device: torch.device) -> None:
    order(ready(name, device), device)()


@pytest.mark.parametrize("name", OURS)
def test_the_same_inputs_give_the_same_bits(name: str, device: torch.device) -> None:
    repeats(ready(name, device), device)()


def log_sum_exp(problem: Problem, seed: int) -> None:
    """The kernel's is that of the scores, as far as sums in float32 can tell."""
    triton_flash = pytest.importorskip("attnkit.variants.triton_flash")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if reason := variant("triton_flash").why_not(problem, device, "fwd"):
        pytest.skip(reason)
    q, k, v, _ = problem.inputs(device, seed)
    options = problem.options(device, seed)
    _, lse = triton_flash.attention_with_lse(q, k, v, **options)
    _, truth = oracle.forward(q, k, v, **options)
    live = truth.isfinite()
    assert torch.equal(lse.isfinite(), live)
    # a log-sum-exp moves by no more than the score that moves most, a sum of d products in float32; then come as many
    # summands as keys; and in units of the result a bias, a sink and the logarithm
    scale = problem.d**-0.5 if problem.scale is None else problem.scale
    keys = k.repeat_interleave(problem.group, dim=2).double().abs()
    products = torch.einsum("bihd,bjhd->bhij", q.double().abs(), keys).amax(-1) * scale
    allowed = FLOAT32_ROUNDING * ((problem.d + 4) * products + problem.skv + 8 * truth.abs() + 1)
    assert ((lse.double() - truth).abs() <= allowed)[live].all()


@fuzzed
@given(
    problem=testing.problems(features=ON_SCORES, value_dims=(), scales=(None, 1.0, 0.05)),
    seed=st.integers(0, 3),
)
def test_the_log_sum_exp_is_that_of_the_scores(problem: Problem, seed: int) -> None:
    log_sum_exp(problem, seed)


@pytest.mark.parametrize(
    "more",
    [
        {"mask": "causal-top-left"},
        {"mask": Window(3, 1)},
        {"mask": Prefix(5)},
        {"mask": Documents((9, 12, 12))},
        {"mask": Boolean(0.3)},
        {"mask": "causal", "alibi": True},
        {"mask": Window(4, 0), "sink": True},
    ],
    ids=str,
)
def test_the_log_sum_exp_is_that_of_the_scores_under_every_mask(more: dict[str, Any]) -> None:
    log_sum_exp(Problem(b=2, hq=4, hkv=2, sq=33, d=16, dtype="fp32", **more), seed=1)
