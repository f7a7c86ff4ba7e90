"""A block: what surrounds attention in a transformer, and nothing else.

    h = LayerNorm(x)        q, k, v = h Wqᵀ, h Wkᵀ, h Wvᵀ        out = x + attention(q, k, v) Woᵀ

No MLP, no dropout, no positions: what is left is what the choice of attention and of projections changes. The three
projections are three products or, fused, a single one whose result is cut in three, with the same weights either way.
Where they are int8 and round what they multiply, norm and sum are part of their kernels: see attnkit.linear.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from attnkit.linear import of_norm, plus_residual
from attnkit.problem import Mask
from attnkit.variant import Attention

__all__ = ["Block"]


class Block(nn.Module):
    """Attention between two projections, with a norm before and a residual around: x ``[b, s, width]`` to the same.

    Args:
        width: Of x. The head dim is ``width / hq``.
        hq: Query heads; they divide width.
        hkv: Key heads; they divide hq. As many as hq if None.
        attention: How attention is computed, as every variant is called. It can be replaced at any time.
        mask: Which keys a query sees.
        fused: Whether queries, keys and values are one product.

    Raises:
        ValueError: If heads do not divide.
    """

    def __init__(
        self,
        width: int,
        hq: int,
        hkv: int | None = None,
        *,
        attention: Attention,
        mask: Mask = "full",
        fused: bool = False,
    ) -> None:
        super().__init__()
        hkv = hq if hkv is None else hkv
        if min(width, hq, hkv) < 1 or width % hq or hq % hkv:
            raise ValueError(f"hq must divide width and hkv must divide hq, got width={width}, hq={hq}, hkv={hkv}")
        self.width, self.hq, self.hkv, self.d = width, hq, hkv, width // hq
        self.attention, self.mask = attention, mask
        self.norm = nn.LayerNorm(width)
        rows = [hq * self.d, hkv * self.d, hkv * self.d]
        self.projections = nn.ModuleList(nn.Linear(width, n, bias=False) for n in ([sum(rows)] if fused else rows))
        self.output = nn.Linear(hq * self.d, width, bias=False)

    @property
    def fused(self) -> bool:
        """Whether queries, keys and values are one product."""
        return len(self.projections) == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it.

        Raises:
            ValueError: If x is not ``[b, s, width]``.
        """
        if x.ndim != 3 or x.shape[2] != self.width:
            raise ValueError(f"expected x [b, s, {self.width}], got {list(x.shape)}")
        heads = [part.unflatten(2, (-1, self.d)) for part in of_norm(self.projections, self.norm, x)]  # [b, s, h, d]
        if self.fused:
            heads = list(heads[0].split((self.hq, self.hkv, self.hkv), 2))
        q, k, v = heads
        return plus_residual(self.output, self.attention(q, k, v, mask=self.mask).flatten(2), x)

    def with_fused_projections(self) -> Block:
        """A copy whose queries, keys and values are one product, with the same weights.

        Raises:
            ValueError: If the projections are no longer nn.Linear: fuse first, quantise then.
        """
        if not all(type(part) is nn.Linear for part in self.projections):
            kinds = ", ".join(sorted({type(part).__name__ for part in self.projections}))
            raise ValueError(f"only nn.Linear can be fused, got {kinds}: fuse before quantising")
        other = copy.deepcopy(self)
        if not self.fused:
            weight = torch.cat(
                [part.get_parameter("weight") for part in self.projections]
            ).detach()  # [(hq + 2 hkv) d, width]
            with torch.device("meta"):  # its own numbers are not wanted, nor drawn
                whole = nn.Linear(self.width, len(weight), bias=False)
            whole.weight = nn.Parameter(weight, requires_grad=self.output.weight.requires_grad)
            other.projections = nn.ModuleList([whole.train(self.training)])
        return other

    def extra_repr(self) -> str:
        """Sizes."""
        return f"width={self.width}, hq={self.hq}, hkv={self.hkv}, mask={self.mask}, fused={self.fused}"
