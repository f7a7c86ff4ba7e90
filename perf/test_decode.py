"""Attention of the newest queries on a cache: of every variant, and by one of them on a cache in pages."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from attnkit.parity import parity
from attnkit.problem import Cache, Pass, Problem
from attnkit.variants import triton_splitkv
from perf.attention import time_attention, work
from perf.problems import Lineup, decoding
from perfgate.plugin import GpuBenchmark

PASS: Pass = "fwd"
LINEUPS = decoding
PAGE = 16

IN_ONE_PIECE = [Problem(b=b, hq=32, hkv=8, sq=1, skv=4096, d=128, mask="causal") for b in (1, 32)]


def in_pages(problem: Problem) -> Problem:
    """The same, with keys and values in pages of a cache."""
    return dataclasses.replace(problem, cache=Cache((problem.skv,) * problem.b, page=PAGE))


def test_decode(gpu_benchmark: GpuBenchmark, lineup: Lineup, variant_name: str, device: torch.device) -> None:
    kept = {"workspace": workspace(lineup.problem, device)} if variant_name == triton_splitkv.VARIANT.name else {}
    time_attention(gpu_benchmark, lineup, variant_name, PASS, device, title="decode", kept=kept)


def workspace(problem: Problem, device: torch.device) -> triton_splitkv.Workspace:
    """What a decoder allocates once, as others plan their splits once."""
    return triton_splitkv.Workspace.of(problem.b, problem.hkv, problem.sq * problem.group, problem.dv, device)


@pytest.mark.parametrize("problem", IN_ONE_PIECE, ids=lambda problem: problem.name)
def test_decode_in_pages(gpu_benchmark: GpuBenchmark, problem: Problem, device: torch.device) -> None:
    way = triton_splitkv.PAGED
    if device.type != "cuda":
        pytest.skip("times a kernel, which needs a CUDA device")
    if reason := way.why_not(in_pages(problem), device, PASS):
        pytest.skip(f"{way.name} cannot: {reason}")
    lengths = torch.full((problem.b,), problem.skv, dtype=torch.int32, device=device)
    kept = workspace(problem, device)

    def inputs(i: int) -> tuple[torch.Tensor, ...]:
        q, k, v, _ = problem.inputs(device, seed=i)
        pages = problem.b * problem.skv // PAGE
        order = torch.randperm(pages, generator=torch.Generator().manual_seed(i)).to(device)
        shuffled = [t.reshape(pages, PAGE, problem.hkv, -1)[order] for t in (k, v)]
        return q, *shuffled, order.argsort().int().view(problem.b, -1)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return triton_splitkv.attend(q, k, v, lengths, table=table, workspace=kept)

    def check(out: torch.Tensor) -> dict[str, float]:
        found = parity(way, in_pages(problem), device, PASS)
        if not found.ok:
            pytest.fail(f"{way.name} is wrong at {problem.name}: {'; '.join(found.failures)}", pytrace=False)
        q, k, v, _ = problem.inputs(device, seed=0)
        # the same keys in the same order: the same sums
        if not torch.equal(out, triton_splitkv.attend(q, k, v, lengths)):
            pytest.fail(f"{way.name} in pages differs from itself at {problem.name}", pytrace=False)
        return found.errors

    gpu_benchmark(
        call,
        inputs=inputs,
        work=work(problem, PASS),
        name=f"decode/{triton_splitkv.VARIANT.name}_paged/{problem.name}",  # as baselines have it
        group=f"decode/{problem.name}",
        check=check,
    )
