"""Blocks that are timed: their rungs, from the textbook's to the fastest, and whether one is right.

    standard    three projections, attention with its scores in memory
    flash       fused projections, a fused attention kernel
    graph       the same, captured in a CUDA graph
    int8        the same, with int8 weights

A rung is made anew for each experiment, all from the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from attnkit.block import Block
from attnkit.graph import Graphed
from attnkit.linear import Int8Linear, dequantize, quantize_
from attnkit.problem import Dtype, Problem
from attnkit.variant import Attention
from attnkit.variants import variant
from perfgate import Work

__all__ = ["RUNGS", "Rung", "Shape", "error", "graphed", "made"]

Rung = Literal["standard", "flash", "graph", "int8"]
RUNGS: tuple[Rung, ...] = ("standard", "flash", "graph", "int8")
SEEN = 64
"""Queries whose result is compared with the truth."""
ROUNDINGS = 8
"""On the way of a number through a block: norm, projection (twice: queries and keys), scores, weights, attention's
result, output projection, sum."""


@dataclass(frozen=True, slots=True)
class Shape:
    """x ``[b, s, width]`` and heads; Llama-2-7B's width and heads if not given."""

    b: int
    s: int
    width: int = 4096
    heads: int = 32
    dtype: Dtype = "bf16"

    @property
    def problem(self) -> Problem:
        """The attention in it."""
        return Problem(b=self.b, hq=self.heads, sq=self.s, d=self.width // self.heads, dtype=self.dtype)

    @property
    def name(self) -> str:
        """What a case of it is called by."""
        return f"b{self.b}-s{self.s}-w{self.width}-h{self.heads}-{self.dtype}"

    def work(self, int8: bool) -> Work:
        """Operations, and the bytes of x, weights and result; tokens are those of x."""
        problem, tokens = self.problem, self.b * self.s
        wide, weights = problem.torch_dtype.itemsize, 4 * self.width**2
        moved = 2 * tokens * self.width * wide + weights * (1 if int8 else wide)
        flops = problem.flops("fwd") + 2 * tokens * weights
        return Work(flops=flops, bytes=moved, tokens=tokens, dtype=self.dtype)

    def x(self, device: torch.device, seed: int = 0) -> torch.Tensor:
        """Input, normally distributed."""
        generator = torch.Generator(device).manual_seed(seed)
        x = torch.randn(self.b, self.s, self.width, generator=generator, device=device)
        return x.to(self.problem.torch_dtype)


def made(shape: Shape, device: torch.device, attention: Attention, *, fused: bool, int8: bool = False) -> Block:
    """A fresh block; the same weights for all blocks of a shape."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = Block(shape.width, shape.heads, attention=attention)
    block = block.to(device, shape.problem.torch_dtype).eval().requires_grad_(False)
    if fused:
        block = block.with_fused_projections()
    if int8:
        quantize_(block)
    return block


def graphed(rung: Rung, shape: Shape, device: torch.device, fast: str) -> tuple[Block, Callable[..., Any]]:
    """A rung's block, and how it is called: ``fast`` is the variant above standard."""
    attention = variant("naive" if rung == "standard" else fast).attention
    block = made(shape, device, attention, fused=rung != "standard", int8=rung == "int8")
    return block, Graphed(block) if rung in ("graph", "int8") else block


def exact(layer: nn.Module) -> torch.Tensor:
    """The weight that a layer stands for, in float64."""
    if isinstance(layer, Int8Linear):
        return dequantize(layer.weight, layer.scale).double()
    return layer.get_parameter("weight").double()


def truth(block: Block, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """What attention adds to the queries ``seen`` of the first batch, in float64, ``[len(seen), width]``."""
    h = F.layer_norm(
        x[0].double(), (block.width,), block.norm.weight.double(), block.norm.bias.double(), block.norm.eps
    )
    weight = torch.cat([exact(part) for part in block.projections])
    sizes = [heads * block.d for heads in (block.hq, block.hkv, block.hkv)]
    wq, wk, wv = weight.split(sizes)
    q, k, v = h[seen] @ wq.T, h @ wk.T, h @ wv.T
    out = []
    for head in range(block.hq):
        mine = slice(head * block.d, (head + 1) * block.d)
        shared = head * block.hkv // block.hq
        theirs = slice(shared * block.d, (shared + 1) * block.d)
        scores = q[:, mine] @ k[:, theirs].T / math.sqrt(block.d)  # [seen, s]
        if block.mask == "causal":
            keys = torch.arange(len(h), device=x.device)
            scores = scores.masked_fill(keys > seen[:, None], -math.inf)
        out.append(scores.softmax(-1) @ v[:, theirs])
    return torch.cat(out, -1) @ exact(block.output).T


def error(block: Block, out: torch.Tensor, x: torch.Tensor) -> tuple[float, float]:
    """How far a block's result is from the truth, in the mean over some queries of the first batch, and how far it may.

    Each rounding on the way is off by at most half a unit of what it rounds; the last one is of x and result together.
    """
    seen = torch.linspace(0, x.shape[1] - 1, min(SEEN, x.shape[1]), device=x.device).long()
    added = truth(block, x, seen)
    whole = x[0, seen].double() + added
    unit = torch.finfo(x.dtype).eps / 2
    off = float((out[0, seen].double() - whole).pow(2).mean().sqrt())
    may = unit * float(ROUNDINGS * added.pow(2).mean().sqrt() + whole.pow(2).mean().sqrt())
    return off, may
