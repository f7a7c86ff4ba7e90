"""The ladder: each rung is the one before it with something replaced.

    build(rung("persistent"), Model(weights), batch=1, capacity=1024)

The lower rungs are torch's operations with one of them replaced by a kernel; the upper ones are the fused kernels,
which are launched in ever fewer pieces and read ever fewer bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch.nn.functional import linear

from attnkit.llama import fused
from attnkit.llama.captured import Captured
from attnkit.llama.config import Config
from attnkit.llama.decoder import Decoder
from attnkit.llama.fused import Fused, Launch
from attnkit.llama.plain import Length, Plain, Product, ReadCache, cut
from attnkit.llama.sampling import GREEDY, Sampling
from attnkit.llama.weights import Packed, Weights
from attnkit.problem import Dtype, Problem
from attnkit.products import cuda_matvec
from attnkit.variant import Attention
from attnkit.variants import triton_splitkv, variant

__all__ = ["BATCHED", "LADDER", "Model", "Rung", "build", "fastest_prefill", "rung"]

DTYPE: dict[torch.dtype, Dtype] = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
PREFILL = {"cuda": ("sdpa_cudnn", "triton_flash", "sdpa_flash", "naive"), "cpu": ("sdpa_flash", "naive")}
"""Variants for the prompt on a GPU and elsewhere, the fastest first; the first that takes the problem computes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """How a token is decoded.

    Attributes:
        name: Stable; it is part of the name of every case that times it.
        adds: What it replaces in the rung before it, in one line.
        attention: Of a step on the cache.
        product: Of a step with a matrix.
        launch: How the fused kernels are launched, which then do everything; None for torch's operations.
        int8: Whether the matrices are int8.
        graph: Whether a step is one CUDA graph.
    """

    name: str
    adds: str
    attention: Literal["naive", "softmax", "triton_fa1", "triton_splitkv"] = "naive"
    product: Literal["torch", "matvec"] = "torch"
    launch: Launch | None = None
    int8: bool = False
    graph: bool = False

    def why_not(self, config: Config, batch: int, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why this rung cannot decode such a model for so many sequences on this device, or None if it can."""
        if self.graph and device.type != "cuda":
            return f"a CUDA graph needs a CUDA device, got {device.type}"
        if self.launch:
            if dtype != torch.bfloat16:
                return f"weights must be bfloat16, got {dtype}"
            return fused.rejects(config, batch, device)
        if self.attention != "naive":
            way = variant(self.attention if self.attention != "softmax" else "triton_unfused")
            problem = Problem(
                b=batch, hq=config.hq, hkv=config.hkv, sq=1, d=config.d, dtype=DTYPE[dtype], mask="causal"
            )
            if reason := way.why_not(problem, device, "fwd"):
                return reason
        if self.product == "matvec":
            x, weight = (torch.empty(n, config.hidden, dtype=dtype, device=device) for n in (batch, config.hidden))
            return cuda_matvec.rejects(x, weight)
        return None


MATMUL = Rung(name="matmul", adds="matrix products, and attention with its scores in memory")
SOFTMAX = replace(MATMUL, name="softmax", adds="one kernel for scale and softmax", attention="softmax")
FA1 = replace(SOFTMAX, name="fa1", adds="attention in FlashAttention's first loop order", attention="triton_fa1")
MATVEC = replace(FA1, name="matvec", adds="matrix-vector kernels at the speed of memory", product="matvec")
FUSED = replace(
    MATVEC,
    name="fused",
    adds="five kernels a layer: norm, rotation, cache, residual and gate fused into the products, keys split",
    launch="stages",
)
GRAPH = replace(FUSED, name="graph", adds="one CUDA graph a token", graph=True)
GRAPH_INT8 = replace(GRAPH, name="graph_int8", adds="int8 weights", int8=True)
OVERLAP = replace(
    GRAPH, name="overlap", adds="each kernel reads its weights while the one before ends", launch="overlapped"
)
OVERLAP_INT8 = replace(OVERLAP, name="overlap_int8", adds="int8 weights", int8=True)
PERSISTENT = replace(
    GRAPH, name="persistent", adds="one kernel a token, with weights streaming across its stages", launch="persistent"
)
PERSISTENT_INT8 = replace(PERSISTENT, name="persistent_int8", adds="int8 weights", int8=True)

LADDER = (
    MATMUL, SOFTMAX, FA1, MATVEC, FUSED, GRAPH, GRAPH_INT8, OVERLAP, OVERLAP_INT8, PERSISTENT, PERSISTENT_INT8,
)  # fmt: skip

BATCHED = replace(
    MATMUL,
    name="batched",
    adds="matrix products, split keys and one CUDA graph: for more sequences than the fused kernels take",
    attention="triton_splitkv",
    graph=True,
)


class Model:
    """Weights in every form that a rung may want, each made when it is first asked for."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    @functools.cached_property
    def packed(self) -> Packed:
        """As the fused kernels read them."""
        return Packed.of(self.weights)

    @functools.cached_property
    def int8(self) -> Packed:
        """The same in int8."""
        return Packed.of(self.weights, int8=True)


def rung(name: str) -> Rung:
    """Return the rung of that name.

    Raises:
        ValueError: If there is none.
    """
    known = (*LADDER, BATCHED)
    for entry in known:
        if entry.name == name:
            return entry
    raise ValueError(f"no rung is called {name!r}: take one of {', '.join(entry.name for entry in known)}")


def build(rung: Rung, model: Model, *, batch: int, capacity: int, sampling: Sampling = GREEDY) -> Decoder:
    """Make a rung's decoder.

    Args:
        rung: Of the ladder.
        model: The weights.
        batch: Sequences.
        capacity: Tokens that the cache of a sequence holds.
        sampling: How the next token is chosen.

    Raises:
        ValueError: If the rung cannot decode this model here; the message says why.
    """
    weights = model.weights
    if reason := rung.why_not(weights.config, batch, weights.device, weights.dtype):
        raise ValueError(f"{rung.name} cannot: {reason}")
    prefill = fastest_prefill(weights.config, batch, capacity, weights.device, weights.dtype)
    decoder: Fused | Plain
    if rung.launch:
        packed = model.int8 if rung.int8 else model.packed
        decoder = Fused(packed, batch, capacity, prefill=prefill, launch=rung.launch, sampling=sampling)
    else:
        attention = _attention(rung, weights.config, batch, weights.device)
        product: Product = _matvec if rung.product == "matvec" else linear
        decoder = Plain(
            weights, batch, capacity, attention=attention, prefill=prefill, product=product, sampling=sampling
        )
    return Captured(decoder) if rung.graph else decoder


def fastest_prefill(config: Config, batch: int, capacity: int, device: torch.device, dtype: torch.dtype) -> Attention:
    """Return the call of the fastest variant that can compute a prompt's attention here."""
    problem = Problem(
        b=batch, hq=config.hq, hkv=config.hkv, sq=capacity, d=config.d, dtype=DTYPE[dtype], mask="causal"
    )  # fmt: skip
    ways = (variant(name) for name in PREFILL["cuda" if device.type == "cuda" else "cpu"])
    return next(way.attention for way in ways if way.why_not(problem, device, "fwd") is None)


def _matvec(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``x [..., columns]``, of at most eight rows, times ``weight [rows, columns]`` transposed."""
    return cuda_matvec.matvec(x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], -1)


def _attention(rung: Rung, config: Config, batch: int, device: torch.device) -> ReadCache:
    makers: dict[str, Callable[[], ReadCache]] = {
        "softmax": lambda: _softmax_attention,
        "triton_splitkv": lambda: _split_keys(config, batch, device),
    }
    return makers.get(rung.attention, lambda: cut(variant(rung.attention).attention))()


def _softmax_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, length: Length) -> torch.Tensor:
    """Two matrix products with a softmax kernel between them; the query heads of a key head are a matrix's rows."""
    from attnkit.llama.softmax_kernel import softmax

    b, _, hq, d = q.shape
    hkv = k.shape[2]
    keys, values = (t[:, : length.host].transpose(1, 2) for t in (k, v))  # [b, hkv, s, d]
    scores = q.view(b, hkv, hq // hkv, d) @ keys.mT  # [b, hkv, group, s]
    return (softmax(scores, d**-0.5) @ values).reshape(b, 1, hq, d)


def _split_keys(config: Config, batch: int, device: torch.device) -> ReadCache:
    """triton_splitkv with a workspace of its own: its lengths are the device's."""
    workspace = triton_splitkv.Workspace.of(batch, config.hkv, config.group, config.d, device)

    def read(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, length: Length) -> torch.Tensor:
        return triton_splitkv.attend(q, k, v, length.device, workspace=workspace)

    return read
