"""Times one pass of one variant on one problem, after it has been checked at this very problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from attnkit.parity import parity
from attnkit.problem import Pass, Problem
from attnkit.variants import variant
from perf.problems import Lineup
from perfgate import Work
from perfgate.plugin import GpuBenchmark

__all__ = ["TITLE", "time_attention", "work"]

TITLE: dict[Pass, str] = {"fwd": "forward", "bwd": "backward", "fwd+bwd": "forward+backward"}


def work(problem: Problem, pass_: Pass) -> Work:
    """Operations and bytes of a pass, and the tokens of a problem."""
    return Work(flops=problem.flops(pass_), bytes=problem.bytes(pass_), tokens=problem.tokens, dtype=problem.dtype)


def time_attention(
    gpu_benchmark: GpuBenchmark,
    lineup: Lineup,
    name: str,
    pass_: Pass,
    device: torch.device,
    title: str | None = None,
    kept: Mapping[str, Any] | None = None,
) -> None:
    """Time a pass; skip what the variant states it cannot do, fail what it gets wrong.

    The case's name begins with `title`, or with the pass's own. `kept` are further options of the variant: what its
    caller keeps from call to call.

    Backward alone is timed with the forward's results among its inputs, so they count neither for time nor for memory.
    """
    problem, way = lineup.problem, variant(name)
    if reason := way.why_not(problem, device, pass_):
        pytest.skip(f"{name} cannot: {reason}")

    options = {**problem.options(device), **(kept or {})}

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return way.attention(q, k, v, **options)

    def backward(out: torch.Tensor, inputs: tuple[torch.Tensor, ...], dout: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(out, inputs, dout, retain_graph=True)

    def both(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(forward(q, k, v), (q, k, v), dout)

    def inputs(i: int) -> tuple[Any, ...]:
        q, k, v, dout = problem.inputs(device, seed=i, requires_grad=pass_ != "fwd")
        if pass_ == "fwd":
            return q, k, v
        return (forward(q, k, v), (q, k, v), dout) if pass_ == "bwd" else (q, k, v, dout)

    def check(_: object) -> dict[str, float]:
        timed = replace(way, attention=partial(way.attention, **kept)) if kept else way
        found = parity(timed, problem, device, pass_)
        if not found.ok:
            pytest.fail(f"{name} is wrong at {problem.name}: {'; '.join(found.failures)}", pytrace=False)
        return found.errors

    title = title or TITLE[pass_]
    calls: dict[Pass, Callable[..., object]] = {"fwd": forward, "bwd": backward, "fwd+bwd": both}
    gpu_benchmark(
        calls[pass_],
        inputs=inputs,
        work=work(problem, pass_),
        name=f"{title}/{name}/{problem.name}",
        group=f"{title}/{problem.name}",
        reference=name == lineup.reference,
        check=check,
    )
