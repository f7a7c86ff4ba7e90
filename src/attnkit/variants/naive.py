"""Attention as a textbook writes it in torch: every step a tensor in memory, in the dtype of the inputs.

    S = Q Kᵀ · scale, modified          P = softmax(S, over live keys)          O = P V          [b, hq, sq, skv] scores

It is what the others are compared with: in speed and memory, and in error (a fused kernel that rounds less often
must not be further from the truth). Good for small sizes and for reading; bad for anything long, since S and P are
written to memory and read again, forward and backward.

In fp8 the products are of e4m3 numbers and summed in float32, and so is everything between them. P is rounded to e4m3
as in FlashAttention-3 (Shah et al., 2024): not normalised, and times 2^8, so that weights down to 2^-14 of a row's
largest have all the digits there are. out is bfloat16. There is no backward.

`naive_compiled` is the same by torch.compile, which makes few kernels of the steps between the two products and stays
in float32 inside of one: what a compiler gains that knows nothing of attention. It compiles for exactly these sizes,
strides and dtypes at the first call with them, which takes seconds. The mask is made before, as booleans in memory.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable

import torch

from attnkit import torch_compiler
from attnkit.arguments import check_mask
from attnkit.mask import dense
from attnkit.problem import FP8, Boolean, Mask, Pass, Prefix, Problem, Varlen, Window, dtype_of_out
from attnkit.variant import Feature, Variant
from attnkit.varlen import cut

__all__ = ["COMPILED", "VARIANT"]

BATCHES: tuple[Feature, ...] = ("varlen", "cache", "paged")
FP8_RANGE = 2.0**8  # what the largest weight of a row becomes before it is rounded; e4m3 ends at 448


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: Mask = "full",
    scale: float | None = None,
    softcap: float | None = None,
    alibi: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    varlen: Varlen | None = None,
    lengths: torch.Tensor | None = None,
    table: torch.Tensor | None = None,
) -> torch.Tensor:
    """Materialised attention: q [b, sq, hq, d], k [b, skv, hkv, d], v [b, skv, hkv, dv] to out [b, sq, hq, dv].

    Keys and values are repeated for each query head that reads them. Slopes `alibi` and logits `sink` are [hq].
    Packed sequences are computed one after the other. Of a cache the pages are gathered first (by `table` [b, n]), and
    what lies behind `lengths` [b] is replaced by zeros.

    Raises:
        ValueError: For what is no mask, or none of these sizes.
    """
    check_mask(mask, q, k, varlen, lengths)
    if varlen is not None:
        alone = functools.partial(attention, scale=scale, softcap=softcap, alibi=alibi, sink=sink)
        parts = [(q[:, i], k[:, j], v[:, j]) for i, j in varlen.slices()]
        return torch.cat([alone(*part, mask=cut(mask, part[1].shape[1])) for part in parts], dim=1)
    fp8 = q.dtype == FP8
    if fp8:
        q, k, v = (x.float() for x in (q, k, v))  # exact, as are products of two
    if lengths is not None:
        k, v = (cached(x, lengths, table) for x in (k, v))
        unseen = hidden_in_cache(mask, q.shape[1], k.shape[1], lengths)
        return steps(q, k, v, unseen, True, scale, softcap, alibi, sink, lengths, fp8)
    dead, empty = hidden(q, k, mask)
    return steps(q, k, v, dead, empty, scale, softcap, alibi, sink, fp8=fp8)


def hidden(q: torch.Tensor, k: torch.Tensor, mask: Mask) -> tuple[torch.Tensor | None, bool]:
    """Return which keys a query does not see [sq, skv], none for the full mask, and whether some may see no key."""
    sq, skv = q.shape[1], k.shape[1]
    if mask == "full":
        return None, False
    return dense(mask, sq, skv, q.device).logical_not(), sq > skv or isinstance(mask, Window | Boolean)


def steps(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dead: torch.Tensor | None,
    empty: bool,
    scale: float | None,
    softcap: float | None,
    alibi: torch.Tensor | None,
    sink: torch.Tensor | None,
    lengths: torch.Tensor | None = None,
    fp8: bool = False,
) -> torch.Tensor:
    """Compute attention where `dead` are the pairs [sq, skv] that do not meet, and some rows may be `empty`.

    Where keys are a cache with these `lengths` [b], pairs are [b, 1, sq, skv]. Inputs that were fp8 are float32 here.
    """
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [b, h, s, d]
    if group > 1:
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = (q @ k.transpose(-2, -1)) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)  # [b, hq, sq, skv]
    sq, skv = scores.shape[-2:]
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if alibi is not None:
        scores = scores - (alibi[:, None, None] * distance(sq, skv, q.device, lengths)).to(q.dtype)
    if dead is not None:
        scores = scores.masked_fill(dead, -math.inf)
    if sink is not None:
        # one key more, which takes its weight and has no value
        scores = torch.cat((scores, sink.to(q.dtype)[:, None, None].expand(*scores.shape[:3], 1)), dim=-1)
    if fp8:
        return weighed_in_fp8(scores, v).transpose(1, 2)
    weights = scores.softmax(dim=-1)
    if sink is not None:
        weights = weights[..., :skv]
    elif dead is not None and empty:
        # a softmax over nothing is nan
        weights = weights.masked_fill(dead, 0)
    return (weights @ v).transpose(1, 2)


def weighed_in_fp8(scores: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return softmax(scores [.., skv or one more]) V with weights that are rounded to e4m3, in bfloat16."""
    # one score more, lower than all: where nothing is seen it has the weight, and has no value
    scores = torch.nn.functional.pad(scores, (0, 1), value=torch.finfo(scores.dtype).min)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    rounded = (weights[..., : v.shape[-2]] * FP8_RANGE).to(FP8).float()
    return (rounded @ v / (weights.sum(-1, keepdim=True) * FP8_RANGE)).to(dtype_of_out(FP8))


def distance(sq: int, skv: int, device: torch.device, lengths: torch.Tensor | None) -> torch.Tensor:
    """Return how far query i lies from key j, [sq, skv], where the last query lies at the last key.

    In a cache that is the last one of each sequence: [b, 1, sq, skv].
    """
    i, j = torch.arange(sq, device=device)[:, None], torch.arange(skv, device=device)
    end = skv if lengths is None else lengths[:, None, None, None]
    return (i + (end - sq) - j).abs()


def cached(x: torch.Tensor, lengths: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
    """Return keys or values of a cache as [b, skv, hkv, d], with zeros behind the lengths."""
    if table is not None:
        x = x[table].flatten(1, 2)
    behind = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
    return x.masked_fill(behind[..., None, None], 0)


def hidden_in_cache(mask: Mask, sq: int, skv: int, lengths: torch.Tensor) -> torch.Tensor:
    """Return which keys of a cache queries do not see, [b, 1, sq, skv]; see `attnkit.cache`."""
    i, j = torch.arange(sq, device=lengths.device)[:, None], torch.arange(skv, device=lengths.device)
    end = lengths[:, None, None, None]
    own = i + end - sq
    match mask:
        case Window(left, right):
            before = own - (skv + sq if left is None else left)
            dead = (j < before) | (j > own + (skv + sq if right is None else right))
        case Prefix(length):
            dead = (j >= length) & (j > own)
        case _:
            dead = j > (own if mask == "causal" else end)
    return dead | (j >= end)


@functools.cache
def compiled() -> Callable[..., torch.Tensor]:
    """Return the compiled steps, which keep what was compiled for each kind of input."""
    return torch_compiler.compiled(steps)


def attention_compiled(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: Mask = "full",
    scale: float | None = None,
    softcap: float | None = None,
    alibi: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the same, by one compiled function."""
    check_mask(mask, q, k)
    dead, empty = hidden(q, k, mask)
    return compiled()(q, k, v, dead, empty, scale, softcap, alibi, sink)


def rejects(problem: Problem, device: torch.device, pass_: Pass) -> str | None:
    """Take everything: only memory sets a limit."""
    return None


def rejects_uncompiled(problem: Problem, device: torch.device, pass_: Pass) -> str | None:
    """Say which compiler is missing where nothing can be computed without one."""
    if device.type == "cpu":
        return torch_compiler.absent_on_cpu()
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed, which torch compiles by: pip install triton"
    return None


VARIANT = Variant("naive", "materialised in torch, every step in the inputs' dtype", attention, rejects, lacks={})
COMPILED = Variant(
    name="naive_compiled",
    summary="naive, compiled by torch for each size",
    attention=attention_compiled,
    rejects=rejects_uncompiled,
    lacks=dict.fromkeys(BATCHES, "compiled for batches of one length")
    | {"fp8": "made of the steps in the dtype of the inputs"},
)
