"""FlexAttention, compiled: torch generates a fused kernel from a Python mask (Dong et al., Flex Attention, 2024).

Masks and modifiers are functions of the indices, from which torch makes the kernel. Compiled for exactly these sizes,
strides and dtypes at the first call with them, which takes seconds; blocks of keys that a mask hides from a whole block
of queries are skipped. On the CPU it needs a C++ compiler and has no backward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from attnkit import torch_compiler
from attnkit.arguments import check_mask
from attnkit.mask import dense
from attnkit.problem import Documents, Mask, Pass, Prefix, Problem, Varlen, Window
from attnkit.variant import Feature, Variant

__all__ = ["VARIANT"]

DECODING_ROWS = 128  # torch takes its kernel for decoding below, and with a block mask a tile of that has no more rows
MAX_D_FP32 = 128
MIN_D = 16  # what torch's kernels ask of d and dv on CUDA
NO_CACHE = "lengths that change with every token would be a block mask each"
LACKS: dict[Feature, str] = {
    "sink": "a function of a score cannot add a logit beside those of keys",
    "cache": NO_CACHE,
    "paged": NO_CACHE,
    "fp8": "made for training, which is done in 16 bits and more",
}


@functools.cache
def compiled() -> Callable[..., torch.Tensor]:
    """Return the compiled function, which keeps what it compiled for each kind of input."""
    return torch_compiler.compiled(flex_attention)


@functools.lru_cache(maxsize=64)
def block_mask(mask: Mask, varlen: Varlen | None, sq: int, skv: int, device: torch.device) -> BlockMask | None:
    """Return a mask as blocks of 128 queries and keys, none for the full one. It is made once."""
    if mask == "full" and varlen is None:
        return None
    seen = live(mask, sq, skv, device) if varlen is None else live_within(mask, varlen, device)
    return create_block_mask(seen, None, None, sq, skv, device=device)


def live_within(mask: Mask, varlen: Varlen, device: torch.device) -> Callable[..., torch.Tensor]:
    """Return whether query i sees key j of the same sequence, counted over all that are packed."""
    of_query, of_key = (number(lengths, device) for lengths in (varlen.queries, varlen.keys))
    starts = varlen.starts(device).keys
    own = diagonal(varlen, device)
    match mask:
        case "causal":
            return lambda b, h, i, j: (of_query[i] == of_key[j]) & (j <= own[i])
        case Window(left, right):
            far = sum(varlen.queries) + sum(varlen.keys)
            before, behind = (far if side is None else side for side in (left, right))
            return lambda b, h, i, j: (of_query[i] == of_key[j]) & (j >= own[i] - before) & (j <= own[i] + behind)
        case Prefix(length):
            return lambda b, h, i, j: (of_query[i] == of_key[j]) & ((j < starts[of_query[i]] + length) | (j <= own[i]))
        case _:
            return lambda b, h, i, j: of_query[i] == of_key[j]


def number(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return of each token which sequence it belongs to."""
    return torch.arange(len(lengths), device=device).repeat_interleave(torch.tensor(lengths, device=device))


@functools.lru_cache(maxsize=64)
def diagonal(varlen: Varlen, device: torch.device) -> torch.Tensor:
    """Return the key at which each query's causal diagonal ends, counted over all that are packed."""
    keys = torch.cat([torch.arange(j.stop - i.stop + i.start, j.stop) for i, j in varlen.slices()])
    return keys.to(device)


def live(mask: Mask, sq: int, skv: int, device: torch.device) -> Callable[..., torch.Tensor]:
    """Return whether query i sees key j, as a function of batch, head, i and j."""
    shift = skv - sq
    match mask:
        case "causal":
            return lambda b, h, i, j: j <= i + shift
        case "causal-top-left":
            return lambda b, h, i, j: j <= i
        case Window(left, right):
            # a bound that is not there is one that no key reaches
            before, behind = (sq + skv if side is None else side for side in (left, right))
            return lambda b, h, i, j: (j >= i + (shift - before)) & (j <= i + (shift + behind))
        case Prefix(length):
            return lambda b, h, i, j: (j < length) | (j <= i + shift)
        case Documents(lengths, causal):
            of = number(lengths, device)
            if causal:
                return lambda b, h, i, j: (of[i] == of[j]) & (j <= i)
            return lambda b, h, i, j: of[i] == of[j]
        case _:
            seen = dense(mask, sq, skv, device)
            return lambda b, h, i, j: seen[i, j]


def modifier(
    softcap: float | None, alibi: torch.Tensor | None, shift: int, own: torch.Tensor | None
) -> Callable[..., torch.Tensor] | None:
    """Return what becomes of a score, as a function of it, batch, head, i and j; None where it stays what it is.

    The key at the end of query i's diagonal is i + shift, or own[i] in packed sequences.
    """
    if softcap is None and alibi is None:
        return None

    def modified(
        score: torch.Tensor, b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor
    ) -> torch.Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if alibi is None:
            return score
        return score - alibi[h] * ((i + shift if own is None else own[i]) - j).abs()

    return modified


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: Mask = "full",
    scale: float | None = None,
    softcap: float | None = None,
    alibi: torch.Tensor | None = None,
    varlen: Varlen | None = None,
) -> torch.Tensor:
    """FlexAttention: q [b, sq, hq, d], k [b, skv, hkv, d], v [b, skv, hkv, dv] to out [b, sq, hq, dv].

    Raises:
        ValueError: For what is no mask, or none of these sizes.
    """
    check_mask(mask, q, k, varlen)
    blocks = block_mask(mask, varlen, q.shape[1], k.shape[1], q.device)
    own = None if varlen is None else diagonal(varlen, q.device)
    score_mod = modifier(softcap, alibi, k.shape[1] - q.shape[1], own)
    # its kernel for decoding holds all queries of a group in one tile, and where they do not fit torch finds no kernel
    tile = 2 ** (q.shape[1] - 1).bit_length() * (q.shape[2] // k.shape[2])
    too_large = blocks is not None and q.shape[1] < DECODING_ROWS < tile
    options = {"FORCE_USE_FLEX_ATTENTION": True} if too_large else None
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [b, h, s, d]
    out = compiled()(
        q,
        k,
        v,
        score_mod=score_mod,
        block_mask=blocks,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
        kernel_options=options,
    )
    return out.transpose(1, 2)


def rejects(problem: Problem, device: torch.device, pass_: Pass) -> str | None:
    """Say why it cannot compute a problem on a device."""
    if device.type == "cpu":
        if pass_ != "fwd":
            return "has no backward on the CPU"
        return torch_compiler.absent_on_cpu()
    if min(problem.d, problem.dv) < MIN_D:
        return f"d and dv must be at least {MIN_D}, got d={problem.d} and dv={problem.dv}"
    if problem.dtype == "fp32" and max(problem.d, problem.dv) > MAX_D_FP32:
        return f"its tiles in fp32 need more shared memory than there is for d above {MAX_D_FP32}"
    return None


VARIANT = Variant("flex", "FlexAttention, compiled by torch for each size", attention, rejects, lacks=LACKS)
