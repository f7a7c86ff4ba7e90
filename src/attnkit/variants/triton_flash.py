"""FlashAttention-2 in plain Triton: the variant people can read (Dao, FlashAttention-2, 2023).

Forward keeps the log-sum-exp of every row; backward is deterministic. Every mask and modifier is a form of the same
kernels, and tiles that a mask hides are not visited, but for a boolean mask, which has no structure. The kernels are in
triton_flash_forward.py and triton_flash_backward.py, masks and scores in attnkit/triton_scores.py, the tile sizes in
triton_flash_tiles.py; this module is what the outside sees.

float32 products are three tf32 products on the tensor cores (``tf32x3``: each factor split into two tf32 numbers, the
smallest of the four partial products dropped), which keeps float32's accuracy; ``ieee`` would avoid tensor cores, spill
registers and be slower by an order of magnitude.

fp8 (float8_e4m3fn) is forward only, for GPUs whose tensor cores have it; out is bfloat16. Weights are rounded to e4m3
times 2^8, as in FlashAttention-3 (Shah et al., 2024), but their sum is not. Hopper's tensor cores keep fewer digits of
a sum of fp8 products than of others, and want V transposed, which costs a way through registers. Tiles are bfloat16's.

Inputs may have any strides; where the last dimension is not contiguous, or rows lie 2^23 elements apart or more, the
tensor is copied first. Hopper's copy engine (TMA) is used where addresses and strides are multiples of 16 bytes and
nothing is broadcast; ordinary loads do the rest. Without a GPU the kernels run in Triton's interpreter, if
TRITON_INTERPRET=1 was set before Triton was first imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from attnkit import triton_device
from attnkit.arguments import check_derivative, check_mask, check_modifiers, check_tensors
from attnkit.problem import TORCH_DTYPE, TRAINED, Mask, Pass, Problem, Varlen
from attnkit.variant import FOR_PROMPTS, Variant
from attnkit.variants.triton_flash_tiles import MAX_D, Config, Kernel, choose, copyable, form_here, form_of, loadable

__all__ = ["VARIANT", "Config", "attention", "attention_with_lse", "gradients"]

Configs = dict[Kernel, Config]
FP8_SINCE = (8, 9)
"""Compute capability of the first tensor cores that multiply fp8."""


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What attention is called with that has no gradient, beside the tiles by kernel that replace the table's."""

    mask: Mask
    scale: float
    softcap: float | None
    alibi: torch.Tensor | None
    configs: Configs
    varlen: Varlen | None = None

    def options(self) -> dict[str, Any]:
        """What the launchers are given."""
        names = ("mask", "scale", "softcap", "alibi", "varlen")
        return {name: getattr(self, name) for name in names}

    def config(self, kernel: Kernel, *loaded: torch.Tensor) -> Config:
        """The configuration for a kernel that loads these tensors: q, k, v and perhaps dout."""
        if kernel in self.configs:
            return self.configs[kernel]
        q, _, v = loaded[:3]
        widest = max(q.shape[3], v.shape[3])
        form = form_of(self.mask, any(x is not None for x in (self.softcap, self.alibi, self.varlen)))
        if kernel == "forward":
            form = form_here(form, q.shape[:3].numel(), q.device)
        # a tile that the copy engine loads would hold rows of the next sequence
        copied = self.varlen is None and all(map(copyable, loaded))
        return choose(kernel, q.device, q.dtype, widest, form, copied)


class Flash(torch.autograd.Function):
    """Forward and backward as one operation of autograd. The log-sum-exp has no gradient."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sink: torch.Tensor | None, call: Call
    ) -> tuple[torch.Tensor, torch.Tensor]:
        from attnkit.variants import triton_flash_forward

        q, k, v = loadable(q), loadable(k), loadable(v)
        config = call.config("forward", q, k, v)
        out, lse = triton_flash_forward.forward(q, k, v, sink=sink, config=config, **call.options())
        # what has no gradient is kept here, too: autograd sees to it that nobody changed it meanwhile
        ctx.save_for_backward(q, k, v, out, lse, sink, call.alibi)
        ctx.mark_non_differentiable(lse)
        ctx.call = call
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor, _dlse: object) -> tuple[torch.Tensor | None, ...]:
        check_derivative("triton_flash")
        q, k, v, out, lse, sink, _alibi = ctx.saved_tensors
        return *_gradients(dout, q, k, v, out, lse, sink, ctx.call), None


def _gradients(
    dout: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    sink: torch.Tensor | None, call: Call,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """dq, dk, dv and dsink of loadable q, k, v, with their out and its log-sum-exp."""
    from attnkit.variants import triton_flash_backward

    dout = loadable(dout)
    dkdv, dq = (call.config(kernel, q, k, v, dout) for kernel in ("dkdv", "dq"))
    return triton_flash_backward.backward(q, k, v, out, lse, dout, sink=sink, dkdv=dkdv, dq=dq, **call.options())


def attention_with_lse(
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
    configs: Configs | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and the log-sum-exp of its scores, as scaled and modified.

    Args:
        q: ``[b, sq, hq, d]``, float16, bfloat16, float32 or float8_e4m3fn.
        k: ``[b, skv, hkv, d]``, hkv divides hq: query head h reads key head ``h // (hq // hkv)``.
        v: ``[b, skv, hkv, dv]``.
        mask: Any of mask.py; causal is aligned bottom-right.
        scale: ``1 / sqrt(d)`` unless given.
        softcap: Positive: scores stay between it and its negative.
        alibi: ``[hq]``, float32: what a key's score loses by its distance. No gradient.
        sink: ``[hq]``, float32: a logit that takes weight and has no value; with a gradient.
        varlen: The sequences that are packed into one batch; the mask is that of each.
        configs: Tiles by kernel, in place of the table's.

    Returns:
        out ``[b, sq, hq, dv]`` in the dtype of q (bfloat16 where that is fp8), and lse ``[b, hq, sq]`` in float32
        (natural logarithm, no gradient), the sink in it. A query without a live key has out 0, and lse ``-inf`` or its
        sink.

    Raises:
        ValueError: For shapes, dtypes, a mask or modifiers that do not fit together.
    """
    check_tensors(q, k, v)
    if max(q.shape[3], v.shape[3]) > MAX_D:
        raise ValueError(f"d and dv must be at most {MAX_D}, got {q.shape[3]} and {v.shape[3]}")
    trained = [x for x in (q, k, v, sink) if x is not None and x.requires_grad]
    if q.dtype not in [TORCH_DTYPE[dtype] for dtype in TRAINED] and torch.is_grad_enabled() and trained:
        raise ValueError(f"{q.dtype} is forward only, got inputs that want gradients: take torch.no_grad()")
    check_mask(mask, q, k, varlen)
    if varlen is not None and any(config.loads != "pointer" for config in (configs or {}).values()):
        raise ValueError("packed sequences take tiles by pointer, got tma: leave configs out")
    check_modifiers(q, softcap, alibi, sink)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    alibi, sink = (None if x is None else x.contiguous() for x in (alibi, sink))
    return Flash.apply(q, k, v, sink, Call(mask, scale, softcap, alibi, configs or {}, varlen))


def gradients(
    dout: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    *, mask: Mask = "full", scale: float | None = None, softcap: float | None = None,
    alibi: torch.Tensor | None = None, sink: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """dq, dk, dv and dsink, of what `attention_with_lse` was given and what it returned.

    Args:
        dout: The gradient of out, ``[b, sq, hq, dv]`` in its dtype.
        q: ``[b, sq, hq, d]``, as it was given; so are all others but out and lse.
        k: ``[b, skv, hkv, d]``.
        v: ``[b, skv, hkv, dv]``.
        out: ``[b, sq, hq, dv]``, as it was returned.
        lse: ``[b, hq, sq]``, as it was returned.
        mask: Any of mask.py.
        scale: ``1 / sqrt(d)`` unless given.
        softcap: Of scores, or None.
        alibi: ``[hq]``, or None; it has no gradient.
        sink: ``[hq]``; where there is none, dsink is None.
    """
    scale = q.shape[3] ** -0.5 if scale is None else scale
    alibi, sink = (None if x is None else x.contiguous() for x in (alibi, sink))
    q, k, v = loadable(q), loadable(k), loadable(v)
    return _gradients(dout, q, k, v, out, lse, sink, Call(mask, scale, softcap, alibi, {}))


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    """q ``[b, sq, hq, d]``, k ``[b, skv, hkv, d]``, v ``[b, skv, hkv, dv]`` to out ``[b, sq, hq, dv]``.

    Options are those of `attention_with_lse`.
    """
    return attention_with_lse(q, k, v, **options)[0]


def rejects(problem: Problem, device: torch.device, pass_: Pass) -> str | None:
    """Why these kernels cannot compute a problem on a device. Forward and backward take the same problems, but fp8."""
    if max(problem.d, problem.dv) > MAX_D:
        return f"d and dv must be at most {MAX_D}, got {problem.d} and {problem.dv}"
    return triton_device.rejects(device, problem.torch_dtype, least=FP8_SINCE if problem.dtype == "fp8" else (8, 0))


VARIANT = Variant(
    name="triton_flash",
    summary="FlashAttention-2 in Triton: tiles and online softmax, deterministic backward",
    attention=attention,
    rejects=rejects,
    absent=triton_device.absent,
    lacks=FOR_PROMPTS,
)
