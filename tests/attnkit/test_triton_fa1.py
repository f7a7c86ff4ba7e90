"""triton_fa1: what its backward must keep beside gradients that are right. The parity suite draws problems."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from attnkit.problem import Dtype, Problem
from attnkit.variants import variant
from attnkit.variants.triton_fa1 import attention
from tests.attnkit.test_parity import hold

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(("d", "dv"), [(64, 64), (128, 16), (40, 256)])
def test_every_size_of_tiles_gives_gradients(dtype: Dtype, d: int, dv: int) -> None:
    problem = Problem(b=1, hq=2, hkv=1, sq=50, skv=70, d=d, dv=dv, dtype=dtype, mask="causal")
    hold(variant("triton_fa1"), problem, DEVICE, "fwd+bwd")


def test_a_key_behind_the_last_takes_no_weight_where_scores_are_far_below_0() -> None:
    # the products of such a key are 0, and the exponential of 0 above them all is infinite
    q, k, v, dout = Problem(b=1, hq=1, sq=20, skv=40, d=16, dtype="fp32").inputs(DEVICE)
    q, k, v = q.fill_(10.0).requires_grad_(), k.fill_(-10.0).requires_grad_(), v.requires_grad_()
    for gradient in torch.autograd.grad(attention(q, k, v), (q, k, v), dout):
        assert torch.isfinite(gradient).all()


def test_a_sink_of_no_weight_has_no_gradient_and_changes_none() -> None:
    # the first queries see no key
    problem = Problem(b=1, hq=2, sq=50, skv=20, d=16, dtype="fp32", mask="causal")
    q, k, v, dout = problem.inputs(DEVICE, requires_grad=True)
    without = torch.autograd.grad(attention(q, k, v, mask="causal"), (q, k, v), dout)
    sink = torch.full((2,), float("-inf"), device=DEVICE, requires_grad=True)
    *with_sink, dsink = torch.autograd.grad(attention(q, k, v, mask="causal", sink=sink), (q, k, v, sink), dout)
    assert not dsink.any()
    for one, other in zip(with_sink, without, strict=True):
        assert torch.equal(one, other)


def test_two_numbers_a_row_are_kept_beside_inputs_and_output() -> None:
    q, k, v, _ = Problem(b=1, hq=2, sq=20, d=16, dtype="fp32").inputs(DEVICE, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        attention(q, k, v)
    assert [t.shape for t in kept[4:]] == [(1, 2, 20)] * 2


def test_backward_leaves_what_was_kept_as_it_is() -> None:
    problem = Problem(b=1, hq=4, hkv=2, sq=40, skv=70, d=16, dtype="fp16", mask="causal", sink=True)
    q, k, v, dout = problem.inputs(DEVICE, requires_grad=True)
    options = problem.options(DEVICE)
    wanted = (q, k, v, options["sink"].requires_grad_())
    out = attention(q, k, v, **options)
    once = torch.autograd.grad(out, wanted, dout, retain_graph=True)
    for one, other in zip(once, torch.autograd.grad(out, wanted, dout), strict=True):
        assert torch.equal(one, other)


def test_every_element_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    q, k, v, dout = Problem(b=2, hq=4, hkv=2, sq=37, skv=51, d=24, dtype="fp16", mask="causal").inputs(
        DEVICE, requires_grad=True
    )
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size, **options).fill_(float("nan")))
    out = attention(q, k, v, mask="causal")
    for t in (out, *torch.autograd.grad(out, (q, k, v), dout)):
        assert torch.isfinite(t).all()
