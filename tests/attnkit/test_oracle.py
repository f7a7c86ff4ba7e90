"""The oracle is right: it agrees with autograd in float64, with finite differences, and with attention done by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from attnkit import oracle
from attnkit.mask import Boolean, Documents, Prefix, Window
from attnkit.problem import Dtype, Options, Problem, Varlen
from tests.attnkit import by_hand

PROBLEMS = [
    Problem(b=2, hq=2, sq=7, d=4),
    Problem(b=1, hq=6, hkv=2, sq=5, skv=9, d=3, dv=5, mask="causal"),
    Problem(b=1, hq=4, hkv=1, sq=9, skv=4, d=2, mask="causal", scale=0.7),
    Problem(b=3, hq=1, sq=1, d=8, mask="causal", scale=-0.3),
    Problem(b=2, hq=2, sq=1, skv=6, d=4, layout="broadcast"),
    Problem(b=1, hq=1, sq=8, d=4, mask="causal", magnitude=30.0),
    Problem(b=1, hq=2, sq=7, skv=5, d=3, mask="causal-top-left"),
    Problem(b=1, hq=2, hkv=1, sq=5, skv=7, d=3, mask=Window(2, 0)),
    Problem(b=1, hq=1, sq=7, skv=4, d=3, mask=Window(1, 1), sink=True),
    Problem(b=1, hq=1, sq=6, d=3, mask=Window(None, 2)),
    Problem(b=1, hq=1, sq=6, d=3, mask=Window(1, None), scale=-0.4),
    Problem(b=1, hq=2, sq=6, skv=8, d=3, mask=Prefix(4)),
    Problem(b=1, hq=2, sq=6, d=3, mask=Documents((1, 3, 2))),
    Problem(b=1, hq=2, sq=6, d=3, mask=Documents((4, 2), causal=False)),
    Problem(b=2, hq=1, sq=5, skv=6, d=3, mask=Boolean(0.2)),
    Problem(b=1, hq=4, hkv=2, sq=5, d=3, dv=2, mask="causal", softcap=1.5, magnitude=2.0),
    Problem(b=2, hq=3, hkv=1, sq=4, skv=7, d=3, alibi=True, sink=True),
    Problem(b=1, hq=2, sq=6, skv=3, d=3, mask="causal", softcap=0.5, alibi=True, sink=True),
    Problem(b=1, hq=2, sq=7, skv=8, d=3, mask="causal", alibi=True, varlen=Varlen((2, 0, 4, 1), (3, 2, 3, 0))),
    Problem(b=1, hq=2, hkv=1, sq=7, d=3, sink=True, varlen=Varlen((0, 3, 4), (4, 0, 3))),
    Problem(b=1, hq=1, sq=9, skv=6, d=3, mask=Window(1, 0), varlen=Varlen((3, 6), (5, 1))),
    Problem(b=1, hq=1, sq=6, skv=8, d=3, mask=Prefix(4), varlen=Varlen((2, 4), (2, 6))),
]

by_name = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)


def in_float64(problem: Problem, seed: int = 0) -> tuple[torch.Tensor, ...]:
    return tuple(x.double() for x in problem.inputs("cpu", seed))


@by_name
def test_forward_is_attention_done_by_hand(problem: Problem) -> None:
    q, k, v, _ = in_float64(problem)
    out, _ = oracle.forward(q, k, v, **problem.options("cpu"))
    torch.testing.assert_close(out, by_hand.attention(q, k, v, problem, problem.options("cpu")))


@by_name
def test_gradients_are_those_of_autograd(problem: Problem) -> None:
    q, k, v, dout = (x.clone().requires_grad_() for x in in_float64(problem))
    options = problem.options("cpu", requires_grad=True)
    leaves = (q, k, v, options["sink"]) if problem.sink else (q, k, v)
    expected = torch.autograd.grad(by_hand.attention(q, k, v, problem, options), leaves, dout)
    found = [*oracle.gradients(q, k, v, dout, **options)]
    if problem.sink:
        found.append(oracle.sink_gradient(q, k, v, dout, **options)[0].float())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"mask": "causal"},
        {"mask": Window(1, 1)},
        {"mask": Prefix(2)},
        {"scale": -0.7, "softcap": 0.5},
        {"mask": "causal", "alibi": True},
        {"mask": Window(2, 0), "sink": True, "softcap": 2.0},
    ],
    ids=str,
)
def test_gradients_are_finite_differences(more: dict[str, Any]) -> None:
    problem = Problem(b=1, hq=2, hkv=1, sq=3, skv=4, d=2, **more)
    *data, dout = in_float64(problem)
    options = problem.options("cpu")
    step = 1e-5  # the error of a central difference is of order step², that of rounding eps / step

    def loss() -> float:
        return float((oracle.forward(*data[:3], **options)[0] * dout).sum())

    found = [*oracle.gradients(*data, dout, **options)]
    if problem.sink:
        options["sink"] = options["sink"].double()
        data.append(options["sink"])
        found.append(oracle.sink_gradient(*data[:3], dout, **options)[0])
    for x, gradient in zip(data, found, strict=True):
        flat = x.view(-1)
        for i in range(flat.numel()):
            at = float(flat[i])
            flat[i] = at + step
            above = loss()
            flat[i] = at - step
            below = loss()
            flat[i] = at
            assert float(gradient.reshape(-1)[i]) == pytest.approx((above - below) / (2 * step), rel=1e-6, abs=1e-8)


@by_name
def test_the_log_sum_exp_makes_a_distribution_of_each_live_row(problem: Problem) -> None:
    q, k, v, _ = in_float64(problem)
    _, lse = oracle.forward(q, k, v, **problem.options("cpu"))
    ones, _ = oracle.forward(q, k, torch.ones_like(v), **problem.options("cpu"))
    live = torch.tensor(by_hand.seen(problem)).any(1)[:, None].double()
    assert lse.shape == (problem.b, problem.hq, problem.sq)
    if problem.sink:
        # what is missing is the sink's
        live = live * (1 - (problem.options("cpu")["sink"] - lse.transpose(1, 2)).exp())
    torch.testing.assert_close(ones, live[..., None].expand_as(ones))


def test_a_query_without_a_live_key_gives_zero_and_gets_zero() -> None:
    problem = Problem(b=1, hq=2, sq=6, skv=2, d=4, mask="causal")
    q, k, v, dout = in_float64(problem)
    out, lse = oracle.forward(q, k, v, mask="causal", scale=None)
    dq, dk, dv = oracle.gradients(q, k, v, dout, mask="causal", scale=None)
    assert torch.equal(out[:, :4], torch.zeros_like(out[:, :4]))
    assert torch.equal(dq[:, :4], torch.zeros_like(dq[:, :4]))
    assert torch.equal(lse[..., :4], torch.full_like(lse[..., :4], -math.inf))
    assert all(x.isfinite().all() for x in (out, dq, dk, dv))


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(b=2, hq=4, hkv=2, sq=13, skv=7, d=4, mask="causal", softcap=2.0, alibi=True, sink=True)
    q, k, v, dout = in_float64(problem)

    def compute() -> list[torch.Tensor]:
        options = problem.options("cpu")
        return [
            *oracle.forward(q, k, v, **options),
            *oracle.gradients(q, k, v, dout, **options),
            *oracle.uncertainty(q, k, v, dout, **options),
            *oracle.sink_gradient(q, k, v, dout, **options),
        ]

    whole = compute()
    monkeypatch.setattr(oracle, "BLOCK_ELEMENTS", 3 * 2 * 4 * 7)
    for ours, theirs in zip(compute(), whole, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_scores_too_large_for_exp_are_no_trouble() -> None:
    q, k, v, dout = in_float64(Problem(b=1, hq=1, sq=5, d=4, magnitude=1e4))
    out, _ = oracle.forward(q, k, v, mask="full", scale=1.0)
    assert out.isfinite().all()
    assert all(x.isfinite().all() for x in oracle.gradients(q, k, v, dout, mask="full", scale=1.0))


@by_name
def test_what_float32_leaves_open_has_the_shapes_of_the_results(problem: Problem) -> None:
    q, k, v, dout = in_float64(problem)
    found = oracle.uncertainty(q, k, v, dout, **problem.options("cpu"))
    for x, like in zip(found, (dout, q, k, v), strict=True):
        assert x.shape == like.shape
        assert x.isfinite().all()
        assert (x >= 0).all()


def test_what_float32_leaves_open_grows_with_the_scores() -> None:
    q, k, v, dout = in_float64(Problem(b=1, hq=2, sq=5, skv=6, d=4))
    # the same weights from scores that are all larger: a product with a part that every key shares
    larger_q, larger_k = torch.cat((q, torch.full_like(q, 100.0)), -1), torch.cat((k, torch.ones_like(k)), -1)
    options: Options = {"mask": "full", "scale": 0.5}
    torch.testing.assert_close(
        oracle.forward(larger_q, larger_k, v, **options)[0], oracle.forward(q, k, v, **options)[0]
    )
    small, large = (oracle.uncertainty(*data, v, dout, **options) for data in ((q, k), (larger_q, larger_k)))
    assert float((large.out / small.out).min()) > 10
    assert float((large.dv / small.dv).min()) > 10


@by_name
def test_a_computation_in_float32_stays_within_what_it_leaves_open(problem: Problem) -> None:
    data = in_float64(problem)
    options = problem.options("cpu", requires_grad=True)
    q, k, v, dout = (x.float().requires_grad_() for x in data)
    out = by_hand.attention(q, k, v, problem, options)
    leaves = (q, k, v, options["sink"]) if problem.sink else (q, k, v)
    results = (out.float(), *torch.autograd.grad(out, leaves, dout.double()))
    truth = [oracle.forward(*data[:3], **options)[0], *oracle.gradients(*data, **options)]
    bounds = [*oracle.uncertainty(*data, **options)]
    if problem.sink:
        dsink, unknown = oracle.sink_gradient(*data, **options)
        truth.append(dsink)
        bounds.append(unknown)
    for x, right, bound in zip(results, truth, bounds, strict=True):
        # it is a bound to first order, which does not know of numbers too small for float32
        assert ((x - right).abs() <= bound + torch.finfo(torch.float32).tiny).all()


def test_backward_makes_scores_again_that_are_known_no_better_than_those_of_the_forward() -> None:
    q, k, v, dout = (x.double() for x in Problem(b=1, hq=1, sq=1, d=8, dtype="fp32").inputs("cpu"))
    found = oracle.uncertainty(q, k, v, dout, mask="full", scale=1.0)
    score, sums = float((q * k).sum()), float((q * k).abs().sum())
    torch.testing.assert_close(found.out, 2**-23 * (1 + abs(score) + sums) * v.abs())
    torch.testing.assert_close(found.dv, 2**-23 * (1 + abs(score) + 2 * sums) * dout.abs())


def test_what_float32_leaves_open_grows_with_what_distance_costs() -> None:
    q, k, v, dout = (torch.zeros(1, s, 1, 4) for s in (1, 40, 40, 1))
    options = Problem(b=1, hq=1, sq=1, skv=40, d=4, alibi=True).options("cpu") | {"alibi": torch.ones(1)}
    with_bias = oracle.uncertainty(q, k, v + 1, dout, **options).out
    without = oracle.uncertainty(q, k, v + 1, dout, mask="full", scale=None).out
    assert float((with_bias / without).min()) > 5


def test_what_a_softcap_makes_flat_inherits_nothing_and_what_it_leaves_alone_the_same() -> None:
    q, k, v, dout = Problem(b=1, hq=2, sq=5, d=4, dtype="bf16").inputs("cpu")
    without = oracle.inherited(q, k, v, dout, mask="full", scale=None)
    for found, error in zip(
        oracle.inherited(q, k, v, dout, mask="full", scale=None, softcap=1e6), without, strict=True
    ):
        torch.testing.assert_close(found, error)
    for found, error in zip(
        oracle.inherited(q, k, v, dout, mask="full", scale=None, softcap=1e-3), without, strict=True
    ):
        assert float(found.max()) < 0.01 * float(error.max())


@pytest.mark.parametrize(("dtype", "size"), [("fp16", 1.0), ("bf16", 1.0), ("fp16", 1e-5)])
def test_what_a_sink_inherits_of_a_rounded_out_is_as_large_as_what_rounding_does(dtype: Dtype, size: float) -> None:
    problem = Problem(b=2, hq=256, hkv=1, sq=20, d=8, dtype=dtype, mask="causal", sink=True)
    q, k, v, dout = problem.inputs("cpu")
    v = v * size  # below the smallest normal number others lie no closer
    options = problem.options("cpu")
    out, lse = oracle.forward(q, k, v, **options)
    weight = (options["sink"].double()[:, None] - lse).exp()
    rounded = -(weight * (out.to(q.dtype).double() * dout.double()).sum(-1).mT).sum((0, 2))
    errors = rounded - oracle.sink_gradient(q, k, v, dout, **options)[0]
    inherited = oracle.inherited_by_sink(q, k, v, dout, **options)
    # eps is the distance of two numbers next to 1; rounding is uniform within half of it, or of less for other numbers
    ratio = float(errors.square().mean().sqrt() / inherited.square().mean().sqrt())
    assert 0.15 < ratio < 0.3


def test_an_out_that_a_dtype_has_no_number_for_is_off_by_itself() -> None:
    out, dout = torch.full((1, 8), 1e-12, dtype=torch.float64), torch.ones(1, 8, dtype=torch.float64)
    assert 1e-12 < float(oracle.of_a_rounded_out(out, dout, torch.float16)) < 1e-11


def test_large_scores_of_fp8_are_open_by_what_tensor_cores_keep_of_a_sum() -> None:
    def open_part(dtype: Dtype, scale: float) -> float:
        problem = Problem(b=1, hq=1, sq=20, d=64, dtype=dtype)
        q, k, v, dout = (x.to(torch.float8_e4m3fn) for x in problem.inputs("cpu"))
        same = [x.to(problem.torch_dtype) for x in (q, k, v)]
        found = oracle.uncertainty(*same, dout.float(), mask="full", scale=scale).out
        return float((found / (oracle.forward(*same, mask="full", scale=scale)[0].abs() + 1e-3)).median())

    assert open_part("fp8", 1.0) > 100 * open_part("bf16", 1.0)
    # a distance is no product: it is added in float32
    q, k, v, dout = (x.to(torch.float8_e4m3fn) for x in Problem(b=1, hq=1, sq=4, skv=600, d=16).inputs("cpu"))
    with_bias, without = (
        oracle.uncertainty(q, k, v, dout.float(), mask="causal", scale=None, **bias).out
        for bias in ({"alibi": torch.ones(1)}, {})
    )
    assert float(with_bias.max()) < 3 * float(without.max())
    # a softmax of ordinary scores is known far better than weights in e4m3 are
    assert open_part("fp8", 1 / 8) < torch.finfo(torch.float8_e4m3fn).eps / 10


def test_a_query_without_a_live_key_leaves_nothing_open() -> None:
    q, k, v, dout = in_float64(Problem(b=1, hq=2, sq=6, skv=2, d=4, mask="causal"))
    out, dq, _, _ = oracle.uncertainty(q, k, v, dout, mask="causal", scale=None)
    assert not out[:, :4].any()
    assert not dq[:, :4].any()
    assert out[:, 4:].all()
