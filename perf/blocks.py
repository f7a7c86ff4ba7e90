"""Blocks that are timed: their rungs, from the textbook's to the fastest, and whether one is right.

    standard      three projections, attention with its scores in memory
    flash         fused projections, a fused attention kernel
    graph         the same, captured in a CUDA graph
    int8          the same, with int8 weights
    int8_dynamic  the same, with what they multiply rounded to int8, too; norm and sum are part of the products' kernels

A rung is made anew for each experiment, all from the same weights.
"""

from __future__ import annotations

import copy
import functools
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
from attnkit.products import Activations, rounds
from attnkit.variant import Attention
from attnkit.variants import variant
from perfgate import Work

__all__ = ["RUNGS", "Rung", "Shape", "error", "graphed", "made"]

Rung = Literal["standard", "flash", "graph", "int8", "int8_dynamic"]
RUNGS: tuple[Rung, ...] = ("standard", "flash", "graph", "int8", "int8_dynamic")
SEEN = 64
"""Queries whose result is compared with the truth."""
ROUNDINGS = 8
"""On the way of a number through a block: norm, projection (twice: queries and keys), scores, weights, attention's
result, output projection, sum."""
ROUNDED_FOR = 3
"""Queries, keys and values: what is made of a norm's result that was rounded to int8."""
STEPS = 127
"""From nothing to the largest element of a row in int8."""


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


@functools.lru_cache(maxsize=2)  # drawing on the host takes long
def _drawn(width: int, heads: int, device: torch.device, dtype: torch.dtype) -> Block:
    """A block whose weights nobody has changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = Block(width, heads, attention=variant("naive").attention)
    return block.to(device, dtype).eval().requires_grad_(False)


def made(
    shape: Shape,
    device: torch.device,
    attention: Attention,
    *,
    fused: bool,
    int8: bool = False,
    activations: Activations = None,
) -> Block:
    """A fresh block; the same weights for all blocks of a shape."""
    block = copy.deepcopy(_drawn(shape.width, shape.heads, device, shape.problem.torch_dtype))
    block.attention = attention
    if fused:
        block = block.with_fused_projections()
    if int8:
        quantize_(block, activations=activations)
    return block


def graphed(rung: Rung, shape: Shape, device: torch.device, fast: str) -> tuple[Block, Callable[..., Any]]:
    """A rung's block, and how it is called: ``fast`` is the variant above standard."""
    attention = variant("naive" if rung == "standard" else fast).attention
    int8 = rung in ("int8", "int8_dynamic")
    activations: Activations = "int8" if rung == "int8_dynamic" else None
    block = made(shape, device, attention, fused=rung != "standard", int8=int8, activations=activations)
    return block, Graphed(block) if int8 or rung == "graph" else block


def exact(layer: nn.Module) -> torch.Tensor:
    """The weight that a layer stands for, in float64."""
    if isinstance(layer, Int8Linear):
        return dequantize(layer.weight, layer.scale).double()
    return layer.get_parameter("weight").double()


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true of the first batch of x, in float64.

    Attributes:
        normed: What the projections multiply, ``[s, width]``.
        attended: What the output projection multiplies, for the queries seen.
        added: What attention adds to these.
    """

    normed: torch.Tensor
    attended: torch.Tensor
    added: torch.Tensor


def truth(block: Block, x: torch.Tensor, seen: torch.Tensor) -> Truth:
    """What is true of the queries ``seen`` of the first batch."""
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
    attended = torch.cat(out, -1)
    return Truth(h, attended, attended @ exact(block.output).T)


def rounding(layer: nn.Module, rows: torch.Tensor, many: int) -> float:
    """How far rounding to int8 moves the rows that a layer multiplies, as a part of their size; 0 where it does not.

    A rounding is spread evenly over a step of its row, so it is off by a step over the root of twelve in the mean.

    Args:
        layer: Which may round.
        rows: ``[s, width]``, or some of them.
        many: How many the layer has in one call.
    """
    if not (isinstance(layer, Int8Linear) and rounds(layer.activations, many)):
        return 0.0
    step = rows.abs().amax(1) / STEPS
    return float(step.pow(2).mean().sqrt() / math.sqrt(12) / rows.pow(2).mean().sqrt())


def error(block: Block, out: torch.Tensor, x: torch.Tensor) -> tuple[float, float]:
    """How far a block's result is from the truth, in the mean over some queries of the first batch, and how far it may.

    Each rounding on the way is off by at most half a unit of what it rounds; the last one is of x and result together.
    What a layer rounds to int8 is off by much more, and a product carries that on as the part of its result that it is
    of its rows. All of these are added up as if they pointed the same way.
    """
    seen = torch.linspace(0, x.shape[1] - 1, min(SEEN, x.shape[1]), device=x.device).long()
    true = truth(block, x, seen)
    added = true.added
    whole = x[0, seen].double() + added
    unit = torch.finfo(x.dtype).eps / 2
    off = float((out[0, seen].double() - whole).pow(2).mean().sqrt())
    many = x.shape[0] * x.shape[1]
    int8 = ROUNDED_FOR * rounding(block.projections[0], true.normed, many)
    int8 += rounding(block.output, true.attended, many)
    may = float((ROUNDINGS * unit + int8) * added.pow(2).mean().sqrt() + unit * whole.pow(2).mean().sqrt())
    return off, may
