"""triton_unfused: P is a distribution over live keys, and out and the gradients follow from it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from attnkit import oracle
from attnkit.mask import Boolean, Mask, Window
from attnkit.mask import name as mask_name
from attnkit.problem import Problem
from attnkit.variants import naive, triton_unfused
from attnkit.variants.triton_unfused import attention
from attnkit.variants.triton_unfused_kernel import probabilities
from tests.attnkit import by_hand

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

PROBLEMS = [
    Problem(b=2, hq=2, sq=64, d=32, dtype="fp32"),
    Problem(b=1, hq=4, hkv=2, sq=77, d=32, dv=48, dtype="fp32", mask="causal"),
    Problem(b=1, hq=2, sq=150, skv=45, d=32, dtype="fp16", mask="causal"),
    Problem(b=1, hq=6, hkv=2, sq=45, skv=177, d=24, dtype="bf16", mask="causal"),
    Problem(b=2, hq=2, sq=33, skv=50, d=40, dtype="bf16", layout="bhsd"),
    Problem(b=2, hq=2, sq=1, skv=50, d=64, dtype="fp16", layout="padded", mask="causal"),
    Problem(b=2, hq=2, sq=65, d=16, dtype="fp32", scale=-0.7, layout="packed", mask="causal"),
    Problem(b=2, hq=2, sq=40, d=160, dtype="fp16", layout="broadcast"),
]


def error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return float((value.detach().double() - truth).norm() / truth.norm().clamp_min(1e-30))


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_it_is_attention(problem: Problem) -> None:
    q, k, v, dout = problem.inputs(DEVICE, requires_grad=True)
    data = [t.detach() for t in (q, k, v)]
    truths = (
        oracle.forward(*data, mask=problem.mask, scale=problem.scale)[0],
        *oracle.gradients(*data, dout, mask=problem.mask, scale=problem.scale),
    )
    sides = []
    for call in (attention, naive.VARIANT.attention):
        out = call(q, k, v, mask=problem.mask, scale=problem.scale)
        sides.append((out, *torch.autograd.grad(out, (q, k, v), dout)))
    for name, ours, theirs, truth in zip(("out", "dq", "dk", "dv"), *sides, truths, strict=True):
        # both round P and the products: over a whole tensor the errors of two right ways are the same within noise
        assert error(ours, truth) <= 1.5 * error(theirs, truth) + 1e-6, name


@pytest.mark.parametrize("mask", ["causal", Window(20, 3), Window(0, 0), Boolean(0.1)], ids=mask_name)
@pytest.mark.parametrize(("sq", "skv"), [(200, 90), (90, 200), (130, 130)])
def test_rows_of_p_sum_to_one_over_live_keys(sq: int, skv: int, mask: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(b=1, hq=2, hkv=1, sq=sq, skv=skv, d=32, dtype="fp32", mask=mask)
    q, k, _, _ = problem.inputs(DEVICE)
    empty = torch.empty
    # whatever the kernel does not write stays NaN
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size, **options).fill_(float("nan")))
    p, _, _ = probabilities(q, k, mask=mask, scale=0.3)
    live = torch.tensor(by_hand.seen(problem), device=DEVICE)
    assert torch.equal(p > 0, live.expand_as(p))
    want = live.any(1).float().expand(p.shape[:3])
    torch.testing.assert_close(p.sum(-1), want)


def test_what_a_sink_takes_rows_of_p_do_not_have_and_a_score_that_is_capped_bends() -> None:
    problem = Problem(b=1, hq=2, sq=70, skv=50, d=16, dtype="fp32", mask=Window(9, 0), softcap=2.0, sink=True)
    q, k, _, _ = problem.inputs(DEVICE)
    p, bend, weight = probabilities(q, k, bends=True, **problem.options(DEVICE) | {"scale": 0.3})
    assert bend is not None
    assert weight is not None
    torch.testing.assert_close(p.sum(-1) + weight, torch.ones_like(weight))
    live = torch.tensor(by_hand.seen(problem), device=DEVICE)
    scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * 0.3
    torch.testing.assert_close(bend[:, :, live], 1 - (scores / 2)[:, :, live].tanh().square())
    assert bend.isfinite().all()


def test_a_last_dimension_that_is_not_contiguous_is_copied() -> None:
    q, k, v, _ = Problem(b=1, hq=2, sq=40, d=32, dtype="fp32").inputs(DEVICE)
    assert torch.equal(attention(*(t.mT.contiguous().mT for t in (q, k, v))), attention(q, k, v))


def test_what_it_cannot_do_it_says() -> None:
    rejects = triton_unfused.VARIANT.rejects
    assert "256" in (rejects(Problem(b=1, hq=1, sq=8, d=264), DEVICE, "fwd") or "")
    assert rejects(Problem(b=1, hq=1, sq=8, d=32, dv=300), DEVICE, "fwd+bwd") is None
