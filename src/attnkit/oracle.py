"""The oracle: attention and its gradients the way the papers write them, in float64.

    S   = Q Kᵀ · scale                                                                [b, hq, sq, skv]
    S   = softcap · tanh(S / softcap) - slope · |i + skv - sq - j|, -inf where the mask hides key j from query i
    lse = log (Σ exp S + exp sink)            P = exp(S - lse)            O = P V
    dV  = Pᵀ dO        dP = dO Vᵀ        D = rowsum(P ∘ dP)        dS = P ∘ (dP - D) · scale · (1 - tanh² (S / softcap))
    dQ  = dS K         dK = dSᵀ Q        dsink = -Σ exp(sink - lse) · D

Of packed sequences i and j count within a sequence, sq and skv are its own, and keys of another one are hidden.

Written from the formulas (Dao et al., FlashAttention, 2022, appendix B), not differentiated by autograd. The masks too
are written here once more, from their definitions.
It materialises the [sq, skv] scores, so use it on small problems or on a slice of a large one. It also says how much of
a result no computation in float32 can know.
Variants must not import it, nor it them: an oracle that shares code with its suspect proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Unpack

import torch

from attnkit.problem import FP8, Boolean, Documents, Mask, Options, Prefix, Varlen, Window

__all__ = [
    "Gradients",
    "Uncertainty",
    "forward",
    "gradients",
    "inherited",
    "inherited_by_sink",
    "of_rounded_weights",
    "sink_gradient",
    "uncertainty",
]

BLOCK_ELEMENTS = 2**26  # scores of one block of rows: 512 MiB in float64
FLOAT32 = torch.finfo(torch.float32).eps
FP8_SUMS = 2.0**-13
"""To what a Hopper's tensor cores know a sum of products in fp8: they keep about 14 bits of it (DeepSeek-AI,
DeepSeek-V3 Technical Report, 2024, section 3.3.2)."""


class Gradients(NamedTuple):
    """What backward gives: dq [b, sq, hq, d], dk [b, skv, hkv, d], dv [b, skv, hkv, dv], in float64."""

    dq: torch.Tensor
    dk: torch.Tensor
    dv: torch.Tensor


class Uncertainty(NamedTuple):
    """How far out, dq, dk and dv are left open by float32, each in its own shape, in float64 and not negative."""

    out: torch.Tensor
    dq: torch.Tensor
    dk: torch.Tensor
    dv: torch.Tensor


class Rows(NamedTuple):
    """The softmax of some rows.

    Attributes:
        weights: P [b, hkv, group, rows, skv]; 0 in a row that sees no key.
        lse: Log-sum-exp [b, hkv, group, rows], the sink in it; -inf in a row that sees neither key nor sink.
        sink: Weight of the sink [b, hkv, group, rows]; 0 where there is none.
        bend: Derivative of a capped score by the score, in shape of P; None where there is no softcap.
        bias: What ALiBi takes off, not negative, [hkv, group, rows, skv]; None where there is none.
    """

    weights: torch.Tensor
    lse: torch.Tensor
    sink: torch.Tensor
    bend: torch.Tensor | None
    bias: torch.Tensor | None


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Unpack[Options]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return out [b, sq, hq, dv] and lse [b, hq, sq], in float64.

    Rows are worked on in blocks, so that memory grows with skv and not with sq * skv. A row that sees no key has out 0,
    and lse -inf or its sink.

    Args:
        q: Queries [b, sq, hq, d], of any dtype.
        k: Keys [b, skv, hkv, d].
        v: Values [b, skv, hkv, dv].
        options: Mask, scale and modifiers: `Problem.options`.
    """
    q, k, v = heads_first(q, k, v)
    out, lse = q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1])
    for rows in row_blocks(q, k):
        found = softmax(q[..., rows, :], k, rows, q.shape[-2], options)
        lse[..., rows] = found.lse
        out[..., rows, :] = found.weights @ v
    return heads_last(out), lse.flatten(1, 2)


def gradients(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor, **options: Unpack[Options]
) -> Gradients:
    """Return the gradients of sum(out * dout) by q, k and v, in float64; dk and dv are summed over a group's heads.

    Args:
        q: Queries [b, sq, hq, d], of any dtype.
        k: Keys [b, skv, hkv, d].
        v: Values [b, skv, hkv, dv].
        dout: The gradient that comes back for out [b, sq, hq, dv].
        options: Mask, scale and modifiers: `Problem.options`.
    """
    hkv, factor = k.shape[2], default_scale(q, options["scale"])
    dout = grouped(dout, hkv)
    q, k, v = heads_first(q, k, v)
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for rows in row_blocks(q, k):
        weights, _, _, bend, _ = softmax(q[..., rows, :], k, rows, q.shape[-2], options)
        b_dout = dout[..., rows, :]
        dweights = b_dout @ v.mT
        dscores = weights * (dweights - (weights * dweights).sum(-1, keepdim=True)) * factor
        dscores = dscores if bend is None else dscores * bend
        dq[..., rows, :] = dscores @ k
        dk += (dscores.mT @ q[..., rows, :]).sum(2, keepdim=True)
        dv += (weights.mT @ b_dout).sum(2, keepdim=True)
    return Gradients(heads_last(dq), heads_last(dk), heads_last(dv))


def sink_gradient(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor, **options: Unpack[Options]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient of sum(out * dout) by the sinks, [hq], in float64, and its `Uncertainty`.

    That is Σ p (e |D| + eps · rowsum(P ∘ |dO||V|ᵀ)) over the rows of a head, with p the weight of the sink and the rest
    as in `uncertainty`. Inputs as for `gradients`; the options have a sink.
    """
    factor = abs(default_scale(q, options["scale"]))
    dout = grouped(dout, k.shape[2])
    q, k, v = heads_first(q, k, v)
    dsink, unknown = (q.new_zeros(q.shape[1:3]) for _ in range(2))  # [hkv, group]
    for rows in row_blocks(q, k):
        b_q, b_dout = q[..., rows, :], dout[..., rows, :]
        found = softmax(b_q, k, rows, q.shape[-2], options)
        inner = (found.weights * (b_dout @ v.mT)).sum(-1)
        sums = (found.weights * (b_dout.abs() @ v.abs().mT)).sum(-1)
        exponent, _ = rounding_of_exponents(b_q, k, found, factor)
        dsink -= (found.sink * inner).sum((0, 3))
        unknown += (found.sink * (exponent * inner.abs() + FLOAT32 * sums)).sum((0, 3))
    return dsink.flatten(), unknown.flatten()


def uncertainty(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor, **options: Unpack[Options]
) -> Uncertainty:
    """Return how far right results may lie from the truth because sums are made in float32, to first order.

    A sum of products in float32 is known to eps · (the same sum of absolute values), eps = 2⁻²³ (Higham, Accuracy and
    Stability of Numerical Algorithms, 2002, section 3.1; the factor n of its bound is not met by sums made in blocks):

        exponent   S - lse to  e = eps · (1 + |lse| + max A), A = |Q||K|ᵀ · |scale| + |bias|, of each row; so P to e P
        again      in backward to  e' = e + eps · rowsum(P ∘ A), for S is made again, and lse is of the sums before
        dP         to                   eps · |dO||V|ᵀ         rowsum(P ∘ dP) to  eps · rowsum(P ∘ |dO||V|ᵀ)
        dS         to  P ∘ ( e' (|dP| + |rowsum(P ∘ dP)|) + eps (|dO||V|ᵀ + rowsum(P ∘ |dO||V|ᵀ)) ) · |scale|

    from where it goes on through the matrix products of out, dq, dk and dv with absolute values. Scores of fp8 are
    known to FP8_SUMS of |Q||K|ᵀ alone: no matter where that is small, but where it is 500 they are known to 0.06. A
    softcap multiplies dS by 1 - t², t = tanh(S / softcap): t is known to
    eps · (1 + |Q||K|ᵀ · |scale| / softcap · (1 - t²)), and 1 - t² to twice that. Inputs as for `gradients`.
    """
    hkv, factor = k.shape[2], abs(default_scale(q, options["scale"]))
    dout = grouped(dout, hkv)
    of_scores = FP8_SUMS if q.dtype == FP8 else FLOAT32
    q, k, v = heads_first(q, k, v)
    out, dq, dk, dv = torch.empty_like(dout), torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for rows in row_blocks(q, k):
        b_q, b_dout = q[..., rows, :], dout[..., rows, :]
        found = softmax(b_q, k, rows, q.shape[-2], options)
        weights, bend = found.weights, found.bend
        exponent, again = (e[..., None] for e in rounding_of_exponents(b_q, k, found, factor, of_scores))
        dweights, sums = b_dout @ v.mT, b_dout.abs() @ v.abs().mT
        inner, inner_sums = ((weights * x).sum(-1, keepdim=True) for x in (dweights, sums))
        dscores = again * (dweights.abs() + inner.abs()) + FLOAT32 * (sums + inner_sums)
        if bend is not None:
            unbent = 1 + b_q.abs() @ k.abs().mT * factor / options["softcap"] * bend
            dscores = dscores * bend + 2 * FLOAT32 * unbent * (dweights - inner).abs()
        dscores *= weights * factor
        out[..., rows, :] = exponent * (weights @ v.abs())
        dq[..., rows, :] = dscores @ k.abs()
        dk += (dscores.mT @ b_q.abs()).sum(2, keepdim=True)
        dv += (weights.mT @ (again * b_dout.abs())).sum(2, keepdim=True)
    return Uncertainty(*(heads_last(x) for x in (out, dq, dk, dv)))


def inherited(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor, **options: Unpack[Options]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how far dq and dk must be expected off because backward takes rowsum(P ∘ dP) as rowsum(dO ∘ O).

    That is how FlashAttention does it, with the O that forward stored in the dtype of q; its eps is the distance of two
    numbers next to 1. Independent errors of eps |O| add up by their squares; in a row of S they are one and the same:

        rowsum(dO ∘ O) to e = eps · √ rowsum((dO ∘ O)²)     dQ to e |P K| · |scale|     dK to √ ((P²)ᵀ (e Q)²) · |scale|

    Inputs as for `gradients`; the results have the shapes of dq and dk and are not negative.
    """
    factor, dtype, sq = abs(default_scale(q, options["scale"])), q.dtype, q.shape[1]
    dout = grouped(dout, k.shape[2])
    q, k, v = heads_first(q, k, v)
    dq, dk = torch.empty_like(q), torch.zeros_like(k)
    for rows in row_blocks(q, k):
        b_q = q[..., rows, :]
        weights, _, _, bend, _ = softmax(b_q, k, rows, sq, options)
        error = of_a_rounded_out(weights @ v, dout[..., rows, :], dtype)[..., None] * factor
        weights = weights if bend is None else weights * bend
        dq[..., rows, :] = error * (weights @ k).abs()
        dk += (weights.square().mT @ (error * b_q).square()).sum(2, keepdim=True)
    return heads_last(dq), heads_last(dk.sqrt())


def inherited_by_sink(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor, **options: Unpack[Options]
) -> torch.Tensor:
    """Return how far dsink [hq] must be expected off for the same reason: √ Σ (p e)², p the weight of the sink.

    Inputs as for `sink_gradient`.
    """
    dtype, sq = q.dtype, q.shape[1]
    dout = grouped(dout, k.shape[2])
    q, k, v = heads_first(q, k, v)
    squares = q.new_zeros(q.shape[1:3])  # [hkv, group]
    for rows in row_blocks(q, k):
        found = softmax(q[..., rows, :], k, rows, sq, options)
        squares += (found.sink * of_a_rounded_out(found.weights @ v, dout[..., rows, :], dtype)).square().sum((0, 3))
    return squares.sqrt().flatten()


def of_a_rounded_out(out: torch.Tensor, dout: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return e of `inherited`, how far rowsum(dO ∘ O) of each row is off where O was stored in a dtype."""
    info = torch.finfo(dtype)
    spacing = out.abs().clamp(min=info.smallest_normal) * info.eps  # below it numbers lie no closer
    spacing = torch.minimum(spacing, 2 * out.abs())  # what is smaller still becomes 0
    spacing = spacing.where(out != out.to(dtype), 0.0)  # what the dtype has is stored as it is, as the v of a lone key
    return (dout * spacing).square().sum(-1).sqrt()


def of_rounded_weights(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dtype: torch.dtype, **options: Unpack[Options]
) -> torch.Tensor:
    """Return how far out may be off where P is rounded to a dtype: √ (P² V²) · eps / 2, in shape of out.

    No weight is off by more than eps / 2 of it, and weights are rounded independently. Inputs as for `forward`.
    """
    most = torch.finfo(dtype).eps / 2
    q, k, v = heads_first(q, k, v)
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    for rows in row_blocks(q, k):
        weights = softmax(q[..., rows, :], k, rows, q.shape[-2], options).weights
        out[..., rows, :] = (weights.square() @ v.square()).sqrt() * most
    return heads_last(out)


def softmax(b_q: torch.Tensor, k: torch.Tensor, rows: slice, sq: int, options: Options) -> Rows:
    """Return P of these rows of the queries, and what goes with it."""
    skv = k.shape[-2]
    i = torch.arange(rows.start, rows.stop, device=k.device)[:, None]
    j = torch.arange(skv, device=k.device)[None, :]
    own = i + skv - sq  # the key on the diagonal that ends bottom-right
    same = torch.ones_like(j, dtype=torch.bool)
    if "varlen" in options:
        i, j, own, same = within(options["varlen"], i, j)
    scores = b_q @ k.mT * default_scale(b_q, options["scale"])
    bend = bias = None
    if "softcap" in options:
        capped = (scores / options["softcap"]).tanh()
        scores, bend = capped * options["softcap"], 1 - capped.square()
    if "alibi" in options:
        bias = by_head(options["alibi"], b_q)[..., None, None] * (own - j).abs()
        scores = scores - bias
    scores = torch.where(same & live(options["mask"], i, j, own, sq, skv), scores, -math.inf)
    lse = scores.logsumexp(-1)
    sink = torch.zeros_like(lse)
    if "sink" in options:
        logit = by_head(options["sink"], b_q)[..., None]
        lse = torch.logaddexp(lse, logit)
        sink = (logit - lse).exp()
    # -inf - -inf is nan: a dead row is told apart by its lse
    weights = torch.where(lse[..., None] == -math.inf, 0.0, (scores - lse[..., None]).exp())
    return Rows(weights, lse, sink, bend, bias)


def within(
    varlen: Varlen, i: torch.Tensor, j: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Count queries i and keys j in their sequences; with the key on i's diagonal, and whether they are of one."""
    queries, keys = (torch.tensor(lengths, device=i.device) for lengths in (varlen.queries, varlen.keys))
    of_query, of_key = (torch.repeat_interleave(lengths)[at] for lengths, at in ((queries, i), (keys, j)))
    i, j = i - (queries.cumsum(0) - queries)[of_query], j - (keys.cumsum(0) - keys)[of_key]
    return i, j, i + (keys - queries)[of_query], of_query == of_key


def live(mask: Mask, i: torch.Tensor, j: torch.Tensor, own: torch.Tensor, sq: int, skv: int) -> torch.Tensor:
    """Say which of the queries i [rows, 1] sees which of the keys j [1, skv], by the definitions of mask.py."""
    match mask:
        case "full":
            return (j >= 0).expand(i.shape[0], -1)
        case "causal":
            return j <= own
        case "causal-top-left":
            return j <= i
        case Window(left, right):
            return (j >= (-math.inf if left is None else own - left)) & (
                j <= (math.inf if right is None else own + right)
            )
        case Prefix(length):
            return (j < length) | (j <= own)
        case Documents(lengths, causal):
            document = torch.repeat_interleave(torch.tensor(lengths, device=j.device))
            same = document[i] == document[j]
            return same & (j <= i) if causal else same
        case Boolean():
            return mask.drawn(sq, skv).to(j.device)[i, j]


def rounding_of_exponents(
    b_q: torch.Tensor, k: torch.Tensor, found: Rows, factor: float, of_scores: float = FLOAT32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return e and e' of `uncertainty` for these rows, [b, hkv, group, rows] each.

    Sums of products are known to `of_scores`.
    """
    sizes = b_q.abs() @ k.abs().mT * (of_scores * factor)
    sizes = sizes if found.bias is None else sizes + FLOAT32 * found.bias
    # the largest of the keys that have a weight: a row that sees none has 0, and an lse that is not finite
    sizes = sizes.where(found.weights > 0, 0.0)
    exponent = FLOAT32 * (1 + found.lse.abs().where(found.lse.isfinite(), 0.0)) + sizes.amax(-1)
    return exponent, exponent + (found.weights * sizes).sum(-1)


def by_head(x: torch.Tensor, b_q: torch.Tensor) -> torch.Tensor:
    """Return what each query head has of its own [hq] as float64 [hkv, group]."""
    return x.detach().to(torch.float64).view(b_q.shape[1:3])


def default_scale(q: torch.Tensor, scale: float | None) -> float:
    """Return the scale, 1 / sqrt(d) when None."""
    return 1 / math.sqrt(q.shape[-1]) if scale is None else scale


def grouped(x: torch.Tensor, hkv: int) -> torch.Tensor:
    """Return [b, s, h, d] as float64 [b, hkv, h / hkv, s, d]: query head h reads key head h // (hq / hkv)."""
    return x.detach().to(torch.float64).unflatten(2, (hkv, -1)).permute(0, 2, 3, 1, 4)


def heads_first(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the three of them grouped by key head."""
    return tuple(grouped(x, k.shape[2]) for x in (q, k, v))


def heads_last(x: torch.Tensor) -> torch.Tensor:
    """Return [b, hkv, group, s, d] as [b, s, h, d]."""
    return x.permute(0, 3, 1, 2, 4).flatten(2, 3)


def row_blocks(q: torch.Tensor, k: torch.Tensor) -> Iterator[slice]:
    """Yield blocks of rows whose scores, over all heads and batches, stay within a bound."""
    sq = q.shape[-2]
    step = max(1, BLOCK_ELEMENTS // (q.shape[:-2].numel() * k.shape[-2]))
    for start in range(0, sq, step):
        yield slice(start, min(start + step, sq))
