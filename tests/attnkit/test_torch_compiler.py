"""What variants ask of torch.compile: as many kinds of input as there are, and graphs that can be walked again."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.config

from attnkit import torch_compiler
from attnkit.problem import Problem
from attnkit.variants import variant

LIMITS = ("recompile_limit", "accumulated_recompile_limit")


@pytest.mark.parametrize(("before", "after"), [(8, 4096), (5000, 5000)])
def test_a_function_may_be_compiled_for_thousands_of_kinds_of_input(
    before: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, object]] = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: seen.append(options) or function)
    for limit in LIMITS:
        monkeypatch.setattr(torch._dynamo.config, limit, before)
    assert torch_compiler.compiled(len) is torch_compiler.compiled(len, mode="best") is len
    given = {"dynamic": False, "fullgraph": True}
    assert seen == [{**given, "mode": None}, {**given, "mode": "best"}]
    assert [getattr(torch._dynamo.config, limit) for limit in LIMITS] == [after, after]


@pytest.mark.parametrize("name", ["naive_compiled", "flex"])
def test_a_graph_may_be_walked_twice_whatever_was_compiled_for_one_walk(name: str, device: torch.device) -> None:
    way, problem = variant(name), Problem(b=1, hq=2, sq=16, d=16, dtype="fp32")
    if reason := way.absent() or way.rejects(problem, device, "bwd"):
        pytest.skip(reason)
    q, k, v, dout = problem.inputs(device, seed=0, requires_grad=True)
    walks = []
    for again in (False, True, True, False):
        out = way.attention(q, k, v, **problem.options(device))
        walks.append(torch.autograd.grad(out, (q, k, v), dout, retain_graph=again))
    for walk in walks[1:]:
        torch.testing.assert_close(walk, walks[0], rtol=0, atol=0)
