"""The sizes we defend, each with where it comes from.

`default` is what `nox -s perf` times in a few minutes; `full` adds the rest of each family (``--perf-suite full``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from attnkit.problem import Mask, Pass, Problem
from attnkit.variants import TABLE

__all__ = ["SUITES", "Lineup", "Suite", "decoding", "lineups"]

Suite = Literal["default", "full"]
SUITES: tuple[Suite, ...] = ("default", "full")

TIMED_ELSEWHERE = ("triton_fa1", "triton_splitkv", "triton_paged")  # as a rung of the Llama ladder, and in decoding
EVERY = tuple(variant.name for variant in TABLE if variant.name not in TIMED_ELSEWHERE)
TOO_SLOW = ("sdpa_math", "naive_compiled")  # at length: in float32, and tuned for seconds in each process
LIBRARIES = ("flash_attn", "flash_attn_3", "flash_attn_4", "flashinfer", "transformer_engine")
FUSED = ("sdpa_flash", "sdpa_cudnn", "flex", "triton_flash", *LIBRARIES)
WITHOUT_FLEX = tuple(name for name in FUSED if name != "flex")  # which takes seconds to compile for each problem
AGAINST_NAIVE = ("naive", *WITHOUT_FLEX)
DECODERS = (
    "naive",
    "sdpa_flash",
    "sdpa_cudnn",
    *LIBRARIES,
    "triton_flash",
    "triton_splitkv",
)
ON_CPU = ("naive", "sdpa_math", "sdpa_flash", "flex")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineup:
    """Variants that compute one problem, and the one that the others are compared with."""

    problem: Problem
    variants: tuple[str, ...]
    reference: str


def lineups(pass_: Pass, suite: Suite, device: str) -> list[Lineup]:
    """Return what is timed of one pass on one kind of device (``"cuda"`` or ``"cpu"``).

    A problem of several families is timed once, by the variants of the first that has it.
    """
    found: dict[Problem, Lineup] = {}
    for lineup in _on_cpu(pass_) if device == "cpu" else _on_cuda(pass_, suite):
        found.setdefault(lineup.problem, lineup)
    return list(found.values())


def _on_cuda(pass_: Pass, suite: Suite) -> Iterator[Lineup]:
    full, forward = suite == "full", pass_ == "fwd"

    # Sequence sweep at fixed batch, width (2048) and heads: "naive, SDPA, FlashAttention in a minimal block" and
    # "fusion only against flash" draw time and memory over it, naive until it runs out of memory.
    some: dict[Pass, list[int]] = {"fwd": [128, 1024, 4096, 8192], "bwd": [1024, 4096], "fwd+bwd": [1024, 8192]}
    for s in [128, 256, 512, 1024, 2048, 4096, 8192, 16384] if full else some[pass_]:
        variants = EVERY if forward or full else AGAINST_NAIVE
        if s > 4096 and not full:
            variants = tuple(name for name in variants if name not in TOO_SLOW)
        yield Lineup(problem=Problem(b=4, hq=16, sq=s, d=128), variants=variants, reference="naive")

    # The FlashAttention-3 paper's grid (Shah et al., 2024): 16k tokens, width 2048.
    grid: list[tuple[int, int, Mask]]
    if full:
        sizes = [512, 1024, 2048, 4096, 8192, 16384]
        grid = [(d, s, mask) for d in (64, 128, 256) for s in sizes for mask in ("full", "causal")]
    elif pass_ == "fwd+bwd":
        grid = [(128, 4096, "causal")]
    else:
        sizes = [1024, 4096, 16384] if forward else [4096, 16384]
        grid = [(128, s, mask) for s in sizes for mask in ("full", "causal")]
        grid += [(d, 16384, "causal") for d in (64, 256)]
    for d, s, mask in grid:
        problem = Problem(b=16384 // s, hq=2048 // d, sq=s, d=d, mask=mask)
        flex_too = full or (d, s, mask) in [(128, 4096, "causal"), (128, 16384, "full"), (64, 16384, "causal")]
        yield Lineup(problem=problem, variants=FUSED if flex_too else WITHOUT_FLEX, reference="sdpa_flash")

    # The same paper's fp8, d = 128 and the longest sequence. No other variant here has it: for speed naive is none to
    # compare with, since what it materialises is float32.
    if full and forward:
        for mask in ("full", "causal"):
            problem = Problem(b=1, hq=16, sq=16384, d=128, dtype="fp8", mask=mask)
            yield Lineup(problem=problem, variants=("triton_flash",), reference="triton_flash")

    # Prefill of one prompt: Llama-2-7B (32 heads) and Llama-3-8B (32 query and 8 key heads).
    for hkv, s in [(32, 4096), (8, 8192)] if not full else [(h, s) for h in (32, 8) for s in (512, 2048, 4096, 8192)]:
        problem = Problem(b=1, hq=32, hkv=hkv, sq=s, d=128, mask="causal")
        yield Lineup(problem=problem, variants=FUSED if full else WITHOUT_FLEX, reference="sdpa_flash")

    # The eight rows (batch x length x heads x head dim) of the source project with forward, backward and both.
    rows = [
        (1, 32, 4, 16),
        (1, 64, 8, 32),
        (2, 128, 8, 32),
        (4, 256, 16, 64),
        (8, 512, 16, 64),
        (16, 512, 32, 64),
        (32, 1024, 32, 128),
        (64, 1024, 64, 128),
    ]
    for b, s, h, d in rows if forward or full else rows[3:6] if pass_ == "bwd" else []:
        variants = EVERY if full else AGAINST_NAIVE
        yield Lineup(problem=Problem(b=b, sq=s, hq=h, d=d), variants=variants, reference="naive")


def _on_cpu(pass_: Pass) -> Iterator[Lineup]:
    # Small enough for a laptop, large enough that the materialised scores leave its caches.
    for s in (128, 512, 1024):
        yield Lineup(
            problem=Problem(b=1, hq=4, sq=s, d=64, dtype="fp32", mask="causal"), variants=ON_CPU, reference="naive"
        )


def decoding(pass_: Pass, suite: Suite, device: str) -> list[Lineup]:
    """Return what is timed of attention on a cache: one query a sequence, and up to eight."""
    if device == "cpu":
        problem = Problem(b=1, hq=4, hkv=2, sq=1, skv=1024, d=64, dtype="fp32", mask="causal")
        return [Lineup(problem=problem, variants=("naive", "sdpa_flash"), reference="naive")]

    # One sequence, where latency is all (TileOPs' Qwen3-30B-A3B, Llama-3-8B, Llama-2-7B), and batches, where bytes are.
    # batch, key heads of 32, keys
    sizes = [(1, 4, 4096), (1, 8, 4096), (32, 8, 4096)]
    if suite == "full":
        sizes += [(1, hkv, skv) for hkv in (4, 8, 32) for skv in (1024, 4096) if (1, hkv, skv) not in sizes]
        sizes += [(32, 32, 4096), (64, 8, 8192)]
        every = [(b, hkv, skv) for b in (1, 4, 16, 32, 64, 128) for hkv in (4, 8, 32) for skv in (1024, 4096, 16384)]
        # 16 GiB of cache at most, for the clock keeps several
        sizes += [size for size in every if size not in sizes and size[0] * size[1] * size[2] <= 2**25]
    rows = [(b, hkv, 1, skv) for b, hkv, skv in sizes]
    # several queries at once: what speculative decoding verifies
    rows += [(1, 8, sq, 4096) for sq in ((2, 4, 8) if suite == "full" else (4,))]
    return [
        Lineup(
            problem=Problem(b=b, hq=32, hkv=hkv, sq=sq, skv=skv, d=128, mask="causal"),
            variants=DECODERS,
            reference="sdpa_flash",
        )
        for b, hkv, sq, skv in rows
    ]
