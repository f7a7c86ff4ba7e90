"""Masks and attention done by hand, from the definitions: loops over heads, queries and keys."""

from __future__ import annotations

import math

import torch

from attnkit.mask import Boolean, Documents, Mask, Prefix, Window
from attnkit.problem import Options, Problem

__all__ = ["attention", "seen"]


def seen(problem: Problem) -> list[list[bool]]:
    """Whether query i sees key j, by rows."""
    rows: list[list[bool]] = []
    for before, sq, skv in sequences(problem):
        behind = problem.skv - before - skv
        rows += [[False] * before + row + [False] * behind for row in alone(problem.mask, sq, skv)]
    return rows


def sequences(problem: Problem) -> list[tuple[int, int, int]]:
    """Of each sequence that is packed into one: keys before it, queries and keys."""
    if problem.varlen is None:
        return [(0, problem.sq, problem.skv)]
    return [(sum(problem.varlen.keys[:n]), sq, skv) for n, (sq, skv) in enumerate(problem.varlen)]


def alone(mask: Mask, sq: int, skv: int) -> list[list[bool]]:
    """Whether query i sees key j of one sequence, by rows."""
    if isinstance(mask, Boolean):
        return mask.drawn(sq, skv).tolist()
    owner = [n for n, length in enumerate(mask.lengths) for _ in range(length)] if isinstance(mask, Documents) else []

    def sees(i: int, j: int) -> bool:
        own = i + skv - sq
        if isinstance(mask, Window):
            return (mask.left is None or own - j <= mask.left) and (mask.right is None or j - own <= mask.right)
        if isinstance(mask, Prefix):
            return j < mask.length or j <= own
        if isinstance(mask, Documents):
            return owner[i] == owner[j] and (j <= i or not mask.causal)
        return {"full": True, "causal": j <= own, "causal-top-left": j <= i}[mask]

    return [[sees(i, j) for j in range(skv)] for i in range(sq)]


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem, options: Options) -> torch.Tensor:
    """Attention as a loop over heads and queries, each over a list of the keys it sees; in float64."""
    scale = 1 / math.sqrt(problem.d) if problem.scale is None else problem.scale
    out = torch.zeros(problem.b, problem.sq, problem.hq, problem.dv, dtype=torch.float64)
    rows = [[j for j, live in enumerate(row) if live] for row in seen(problem)]

    # the key at the end of each query's diagonal
    own = [before + i + skv - sq for before, sq, skv in sequences(problem) for i in range(sq)]

    def score(b: int, h: int, i: int, j: int) -> torch.Tensor:
        found = q[b, i, h].dot(k[b, j, h // problem.group]) * scale
        if problem.softcap is not None:
            found = torch.tanh(found / problem.softcap) * problem.softcap
        if problem.alibi:
            found = found - options["alibi"][h].to(found.dtype) * abs(own[i] - j)
        return found

    for b in range(problem.b):
        for h in range(problem.hq):
            for i, keys in enumerate(rows):
                scores = [score(b, h, i, j) for j in keys]
                if problem.sink:
                    scores.append(options["sink"][h].to(q.dtype))
                if keys:
                    weights = torch.stack(scores).softmax(0)[: len(keys)]
                    out[b, i, h] = sum(w * v[b, j, h // problem.group] for w, j in zip(weights, keys, strict=True))
    return out
