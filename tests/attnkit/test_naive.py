"""The yardstick is right: parity allows each variant a multiple of naive's error, and so cannot find naive's own."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from attnkit import oracle, testing
from attnkit.problem import Cache, Inputs, Prefix, Problem, Window
from attnkit.variant import Feature
from attnkit.variants import naive
from tests.attnkit.strategies import UNCACHED, kept, problems
from tests.attnkit.test_oracle import PROBLEMS, in_float64

CACHES: tuple[Feature, ...] = ("window", "prefix", "softcap", "alibi", "sink", "cache", "paged")


def hold(problem: Problem, seed: int) -> None:
    q, k, v, dout = (x.clone().requires_grad_() for x in in_float64(problem, seed))
    options = problem.options("cpu", requires_grad=True)
    out = naive.attention(q, k, v, **options)
    leaves = (q, k, v, options["sink"]) if problem.sink else (q, k, v)
    found = (out, *torch.autograd.grad(out, leaves, dout))
    truth = [oracle.forward(q, k, v, **options)[0], *oracle.gradients(q, k, v, dout, **options)]
    if problem.sink:
        truth.append(oracle.sink_gradient(q, k, v, dout, **options)[0].float())
    for ours, theirs in zip(found, truth, strict=True):
        torch.testing.assert_close(ours, theirs)


@kept(PROBLEMS, seed=0)
@given(problem=testing.problems(features=UNCACHED, longest=40), seed=st.integers(0, 3))
def test_in_float64_it_is_the_oracle(problem: Problem, seed: int) -> None:
    hold(problem, seed)


CACHED = [
    Problem(b=2, hq=2, sq=3, skv=9, d=4, mask="causal", alibi=True, cache=Cache((9, 5))),
    Problem(b=3, hq=2, hkv=1, sq=2, skv=9, d=4, mask=Window(2, 0), cache=Cache((0, 9, 4), page=2)),
    Problem(b=1, hq=1, sq=4, skv=9, d=4, mask=Window(None, 1), sink=True, cache=Cache((3,), page=4)),
    Problem(b=1, hq=1, sq=3, skv=9, d=4, alibi=True, cache=Cache((5,))),
    Problem(b=2, hq=1, sq=4, skv=9, d=4, mask=Prefix(3), cache=Cache((2, 8))),
]


@kept(CACHED, seed=0)
@given(problem=problems(CACHES), seed=st.integers(0, 3))
def test_in_float64_it_is_the_oracle_on_what_is_cached(problem: Problem, seed: int) -> None:
    inputs = Inputs(*(x.double() for x in problem.inputs("cpu", seed)))
    out = naive.attention(*inputs[:3], **problem.options("cpu", seed))
    packed, (q, k, v, _) = problem.packed(inputs)
    truth, _ = oracle.forward(q, k, v, **packed.options("cpu", seed))
    torch.testing.assert_close(out if problem.cache is None else out.flatten(0, 1)[None], truth)
