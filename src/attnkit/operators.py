"""triton_flash as an operator of torch: torch.compile takes it whole, and fake tensors know what it returns.

    attend = flash(mask="causal")
    out = attend(q, k, v)               # also in a function that is compiled with fullgraph=True

An operator of torch takes tensors and numbers. So what is neither (the mask), and what does not change from call to
call (scale, softcap), is part of the operator, and there is one for each of them, registered once in a process. The
variant itself is none: called eagerly it costs the host less.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from attnkit.mask import Mask
from attnkit.problem import dtype_of_out
from attnkit.variants import triton_flash

__all__ = ["Attention", "flash"]

NAMES = (f"attnkit::triton_flash_{n}" for n in itertools.count())


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention by an operator.

    Attributes:
        operator: ``(q, k, v, alibi, sink)`` to out and its log-sum-exp, as torch registered it.
    """

    operator: Callable[..., tuple[torch.Tensor, torch.Tensor]]

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        alibi: torch.Tensor | None = None,
        sink: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Out ``[b, sq, hq, dv]`` of tensors as `attnkit.variants.triton_flash.attention` takes them."""
        return self.operator(q, k, v, alibi, sink)[0]


@functools.cache
def flash(mask: Mask = "full", scale: float | None = None, softcap: float | None = None) -> Attention:
    """Attention with this mask, scale and softcap as an operator, forward and backward.

    Args:
        mask: Any of mask.py; causal is aligned bottom-right.
        scale: ``1 / sqrt(d)`` unless given.
        softcap: Positive: scores stay between it and its negative.
    """
    name = next(NAMES)
    fixed: dict[str, Any] = {"mask": mask, "scale": scale, "softcap": softcap}

    def forward(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, alibi: torch.Tensor | None, sink: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return triton_flash.attention_with_lse(q, k, v, alibi=alibi, sink=sink, **fixed)

    def backward(
        dout: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
        alibi: torch.Tensor | None, sink: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
        dq, dk, dv, dsink = triton_flash.gradients(dout, q, k, v, out, lse, alibi=alibi, sink=sink, **fixed)
        return dq, dk, dv, q.new_empty(0) if dsink is None else dsink

    computed = torch.library.custom_op(name, forward, mutates_args=())
    differentiated = torch.library.custom_op(f"{name}_backward", backward, mutates_args=())

    @computed.register_fake
    def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
        b, sq, hq, _d = q.shape
        out = q.new_empty((b, sq, hq, v.shape[3]), dtype=dtype_of_out(q.dtype))
        return out, q.new_empty((b, hq, sq), dtype=torch.float32)

    @differentiated.register_fake
    def _(dout: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> Any:
        sink = rest[-1]
        like = (x.new_empty(x.shape) for x in (q, k, v))
        return *like, q.new_empty(0) if sink is None else sink.new_empty(sink.shape)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        q, k, v, alibi, sink = inputs
        ctx.save_for_backward(q, k, v, *output, alibi, sink)
        ctx.mark_non_differentiable(output[1])

    def differentiate(ctx: Any, dout: torch.Tensor, _dlse: object) -> tuple[torch.Tensor | None, ...]:
        dq, dk, dv, dsink = differentiated(dout, *ctx.saved_tensors)
        return dq, dk, dv, None, None if ctx.saved_tensors[-1] is None else dsink

    computed.register_autograd(differentiate, setup_context=keep)

    return Attention(computed)
