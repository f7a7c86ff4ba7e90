"""The oracle: attention and its gradients the way the papers write them, in float64.

    S   = Q Kᵀ · scale, -inf where the mask hides a key                              [b, hq, sq, skv]
    lse = log Σ exp S            P = exp(S - lse)            O = P V
    dV = Pᵀ dO       dP = dO Vᵀ       dS = P ∘ (dP - rowsum(P ∘ dP)) · scale       dQ = dS K       dK = dSᵀ Q

Written from the formulas (Dao et al., FlashAttention, 2022, appendix B), not differentiated by autograd.
It materialises the [sq, skv] scores, so use it on small problems or on a slice of a large one. It also says how much of
a result no computation in float32 can know.
Variants must not import it, nor it them: an oracle that shares code with its suspect proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from attnkit.problem import Mask

__all__ = ["Gradients", "Uncertainty", "forward", "gradients", "inherited", "uncertainty"]

BLOCK_ELEMENTS = 2**26  # scores of one block of rows: 512 MiB in float64
FLOAT32 = torch.finfo(torch.float32).eps


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


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, mask: Mask, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return out [b, sq, hq, dv] and lse [b, hq, sq], in float64.

    Rows are worked on in blocks, so that memory grows with skv and not with sq * skv. A row that sees no key has out 0
    and lse -inf.

    Args:
        q: Queries [b, sq, hq, d], of any dtype.
        k: Keys [b, skv, hkv, d].
        v: Values [b, skv, hkv, dv].
        mask: Which keys a query sees; causal is aligned bottom-right.
        scale: What scores are multiplied with; None is 1 / sqrt(d).
    """
    q, k, v = heads_first(q, k, v)
    out, lse = q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1])
    for rows in row_blocks(q, k):
        weights, lse[..., rows] = softmax(q[..., rows, :], k, rows, q.shape[-2], mask, scale)
        out[..., rows, :] = weights @ v
    return heads_last(out), lse.flatten(1, 2)


def gradients(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor, *, mask: Mask, scale: float | None
) -> Gradients:
    """Return the gradients of sum(out * dout) by q, k and v, in float64; dk and dv are summed over a group's heads.

    Args:
        q: Queries [b, sq, hq, d], of any dtype.
        k: Keys [b, skv, hkv, d].
        v: Values [b, skv, hkv, dv].
        dout: The gradient that comes back for out [b, sq, hq, dv].
        mask: Which keys a query sees; causal is aligned bottom-right.
        scale: What scores are multiplied with; None is 1 / sqrt(d).
    """
    hkv, factor = k.shape[2], default_scale(q, scale)
    dout = grouped(dout, hkv)
    q, k, v = heads_first(q, k, v)
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for rows in row_blocks(q, k):
        weights, _ = softmax(q[..., rows, :], k, rows, q.shape[-2], mask, scale)  # [b, hkv, group, rows, skv]
        b_dout = dout[..., rows, :]
        dweights = b_dout @ v.mT
        dscores = weights * (dweights - (weights * dweights).sum(-1, keepdim=True)) * factor
        dq[..., rows, :] = dscores @ k
        dk += (dscores.mT @ q[..., rows, :]).sum(2, keepdim=True)
        dv += (weights.mT @ b_dout).sum(2, keepdim=True)
    return Gradients(heads_last(dq), heads_last(dk), heads_last(dv))


def uncertainty(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor, *, mask: Mask, scale: float | None
) -> Uncertainty:
    """Return how far right results may lie from the truth because sums are made in float32, to first order.

    A sum of products in float32 is known to eps · (the same sum of absolute values), eps = 2⁻²³ (Higham, Accuracy and
    Stability of Numerical Algorithms, 2002, section 3.1; the factor n of its bound is not met by sums made in blocks):

        exponent   S - lse to           e = eps · (1 + |lse| + max |Q||K|ᵀ · |scale|), of each row; so P to e P
        dP         to                   eps · |dO||V|ᵀ         rowsum(P ∘ dP) to  eps · rowsum(P ∘ |dO||V|ᵀ)
        dS         to  P ∘ ( e (|dP| + |rowsum(P ∘ dP)|) + eps (|dO||V|ᵀ + rowsum(P ∘ |dO||V|ᵀ)) ) · |scale|

    from where it goes on through the matrix products of out, dq, dk and dv with absolute values. Inputs as for
    `gradients`.
    """
    hkv, factor = k.shape[2], abs(default_scale(q, scale))
    dout = grouped(dout, hkv)
    q, k, v = heads_first(q, k, v)
    out, dq, dk, dv = torch.empty_like(dout), torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for rows in row_blocks(q, k):
        b_q, b_dout = q[..., rows, :], dout[..., rows, :]
        weights, lse = softmax(b_q, k, rows, q.shape[-2], mask, scale)  # [b, hkv, group, rows, skv]
        # the largest of the keys that have a weight: a row that sees none has 0, and an lse that is not finite
        largest = (b_q.abs() @ k.abs().mT * factor).where(weights > 0, 0.0).amax(-1)
        exponent = FLOAT32 * (1 + lse.abs().where(lse.isfinite(), 0.0) + largest)[..., None]
        dweights, sums = b_dout @ v.mT, b_dout.abs() @ v.abs().mT
        inner, inner_sums = ((weights * x).sum(-1, keepdim=True) for x in (dweights, sums))
        dscores = exponent * (dweights.abs() + inner.abs()) + FLOAT32 * (sums + inner_sums)
        dscores *= weights * factor
        out[..., rows, :] = exponent * (weights @ v.abs())
        dq[..., rows, :] = dscores @ k.abs()
        dk += (dscores.mT @ b_q.abs()).sum(2, keepdim=True)
        dv += (weights.mT @ (exponent * b_dout.abs())).sum(2, keepdim=True)
    return Uncertainty(*(heads_last(x) for x in (out, dq, dk, dv)))


def inherited(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor, *, mask: Mask, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how far dq and dk must be expected off because backward takes rowsum(P ∘ dP) as rowsum(dO ∘ O).

    That is how FlashAttention does it, with the O that forward stored in the dtype of q; its eps is the distance of two
    numbers next to 1. Independent errors of eps |O| add up by their squares; in a row of S they are one and the same:

        rowsum(dO ∘ O) to e = eps · √ rowsum((dO ∘ O)²)     dQ to e |P K| · |scale|     dK to √ ((P²)ᵀ (e Q)²) · |scale|

    Inputs as for `gradients`; the results have the shapes of dq and dk and are not negative.
    """
    factor, dtype, sq = abs(default_scale(q, scale)), q.dtype, q.shape[1]
    dout = grouped(dout, k.shape[2])
    q, k, v = heads_first(q, k, v)
    dq, dk = torch.empty_like(q), torch.zeros_like(k)
    for rows in row_blocks(q, k):
        b_q = q[..., rows, :]
        weights, _ = softmax(b_q, k, rows, sq, mask, scale)  # [b, hkv, group, rows, skv]
        out = weights @ v
        out = out.where(out != out.to(dtype), 0.0)  # what the dtype has is stored as it is, as the v of a lone key
        error = (dout[..., rows, :] * out).square().sum(-1, keepdim=True).sqrt() * torch.finfo(dtype).eps * factor
        dq[..., rows, :] = error * (weights @ k).abs()
        dk += (weights.square().mT @ (error * b_q).square()).sum(2, keepdim=True)
    return heads_last(dq), heads_last(dk.sqrt())


def softmax(
    b_q: torch.Tensor, k: torch.Tensor, rows: slice, sq: int, mask: Mask, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return P and lse of these rows; a row that sees no key has P 0 and lse -inf."""
    scores = b_q @ k.mT * default_scale(b_q, scale)
    if mask == "causal":
        skv = k.shape[-2]
        i = torch.arange(rows.start, rows.stop, device=k.device)[:, None]
        j = torch.arange(skv, device=k.device)[None, :]
        scores = torch.where(j <= i + skv - sq, scores, -math.inf)
    lse = scores.logsumexp(-1)
    # -inf - -inf is nan: a dead row is told apart by its lse
    return torch.where(lse[..., None] == -math.inf, 0.0, (scores - lse[..., None]).exp()), lse


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
