"""Torch's scaled_dot_product_attention, one variant a backend, each forced so that no other one is timed in its name.

    sdpa_math        materialised; 16-bit inputs are computed in fp32
    sdpa_efficient   CUTLASS kernels that came from xFormers (CUDA only)
    sdpa_flash       FlashAttention-2 on CUDA; on the CPU torch's own flash kernel
    sdpa_cudnn       cuDNN's fused attention (CUDA only)

Grouped heads go in by ``enable_gqa``, which math, flash and cuDNN take; efficient takes it in no release up to 2.13,
and repeating k and v for it would time a copy, so it rejects them. For the same reason head dims that torch would pad
first are rejected.

Torch's ``is_causal`` is aligned top-left, ours bottom-right. They agree for sq = skv; these three are made to agree:

    sq > skv > 1   the first sq - skv queries see no key: they are cut off before and put back as zeros
    sq = 1         the one query sees every key: no mask
    1 < sq < skv   flash and efficient have a bottom-right mask in the kernel on CUDA (torch.nn.attention.bias); math,
                   and flash on the CPU, take a boolean mask in memory; cuDNN rejects it, since its backward with such
                   a mask gives NaN on Hopper (pytorch#196678)

Every other mask goes to math and efficient as booleans in memory, and ALiBi as a bias in the dtype of q; flash and
cuDNN have no other mask than the causal one, which for sq = skv is the one aligned top-left too.

Torch keeps cuDNN's backward by the strides of q, k and v, and uses it again for a gradient of out that lies otherwise
(pytorch#191576): here that gradient always lies as [b, sq, hq, dv] does, and is copied where it comes otherwise.
"""

from __future__ import annotations

import functools
import warnings

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnkit.arguments import check_mask
from attnkit.mask import dense
from attnkit.problem import Mask, Pass, Problem
from attnkit.variant import Feature, Variant, features

__all__ = ["VARIANTS"]

MATH, EFFICIENT = SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION
FLASH, CUDNN = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION

# What torch says of a backend on a GPU: the checks that the dispatcher itself makes.
CAN_USE = {
    EFFICIENT: torch.backends.cuda.can_use_efficient_attention,
    FLASH: torch.backends.cuda.can_use_flash_attention,
    CUDNN: torch.backends.cuda.can_use_cudnn_attention,
}
UNMODIFIED: dict[Feature, str] = {
    "softcap": "torch's SDPA has no function of a score",
    "sink": "torch's SDPA has no logit beside those of keys",
    "varlen": "torch's SDPA takes batches of one length: for packed ones there is torch_varlen",
    "cache": "torch's SDPA takes batches of one length",
    "paged": "torch's SDPA takes batches of one length",
    "fp8": "torch's SDPA has 16 bits and more",
}
NO_KEY = "queries may see no key, which this backend is not known to answer with 0"
IN_MEMORY: tuple[Feature, ...] = ("window", "prefix", "documents", "boolean", "alibi")
LACKS: dict[SDPBackend, dict[Feature, str]] = {
    MATH: UNMODIFIED,
    EFFICIENT: UNMODIFIED | {"boolean": NO_KEY},
    FLASH: UNMODIFIED | dict.fromkeys(IN_MEMORY, "on CUDA torch gives this backend neither mask nor bias from memory"),
    CUDNN: UNMODIFIED
    | dict.fromkeys(IN_MEMORY, "its backward with a mask in memory gives NaN on Hopper (pytorch#196678)"),
}
INT32 = 2**31
CUDNN_BACKWARD_DIMS = ((192, 128), (256, 256))  # beyond 128, the pairs of d and dv that its backward takes on Hopper


def attention(
    backend: SDPBackend,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: Mask = "full",
    scale: float | None = None,
    alibi: torch.Tensor | None = None,
) -> torch.Tensor:
    """One backend of SDPA: q [b, sq, hq, d], k [b, skv, hkv, d], v [b, skv, hkv, dv] to out [b, sq, hq, dv].

    Raises:
        ValueError: For what is no mask, or none of these sizes.
    """
    check_mask(mask, q, k)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [b, h, s, d]
    sq, skv = q.shape[2], k.shape[2]
    if mask == "causal-top-left" and sq == skv:
        mask = "causal"
    if alibi is not None or mask not in ("full", "causal"):
        seen = dense(mask, sq, skv, q.device) if alibi is None else biases(alibi, mask, sq, skv).to(q.dtype)
        with sdpa_kernel([backend]):
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=seen, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            )
        return out.transpose(1, 2)
    dead = max(0, sq - skv) if mask == "causal" else 0
    causal = mask == "causal" and sq > 1
    bias = None
    if causal and sq < skv:
        causal = False
        in_kernel = backend in (FLASH, EFFICIENT) and q.is_cuda
        bias = lower_right(sq, skv) if in_kernel else live_pairs(sq, skv, q.device)
    with sdpa_kernel([backend]):
        out = F.scaled_dot_product_attention(
            q[:, :, dead:], k, v, attn_mask=bias, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
    if backend is CUDNN and out.requires_grad:
        out.register_hook(rows_first)
    return (F.pad(out, (0, 0, dead, 0)) if dead else out).transpose(1, 2)


def lower_right(sq: int, skv: int) -> torch.Tensor:
    """Return torch's name for the mask that a kernel has itself."""
    from torch.nn.attention.bias import causal_lower_right  # with it comes torch's compiler, which takes a second

    return causal_lower_right(sq, skv)


def rows_first(gradient: torch.Tensor) -> torch.Tensor:
    """Return a gradient [b, h, s, d] that lies in memory as [b, s, h, d], itself where it does."""
    return gradient.transpose(1, 2).contiguous().transpose(1, 2)


def live_pairs(sq: int, skv: int, device: torch.device) -> torch.Tensor:
    """Return which query sees which key, [sq, skv]: torch's boolean masks say what is kept."""
    return torch.ones(sq, skv, dtype=torch.bool, device=device).tril(skv - sq)


def biases(alibi: torch.Tensor, mask: Mask, sq: int, skv: int) -> torch.Tensor:
    """Return what is added to scores, [1, hq, sq, skv]: -inf where a key is hidden, else what its distance costs."""
    i, j = torch.arange(sq, device=alibi.device)[:, None], torch.arange(skv, device=alibi.device)
    costs = -alibi[:, None, None] * (i + (skv - sq) - j).abs()
    return costs.where(dense(mask, sq, skv, alibi.device), -torch.inf)[None]


def rejects(backend: SDPBackend, problem: Problem, device: torch.device, pass_: Pass) -> str | None:
    """Say why this backend cannot compute a problem on a device."""
    if backend is MATH:
        return None
    if backend in (FLASH, CUDNN) and problem.mask == "causal-top-left" and problem.sq != problem.skv:
        return f"its causal mask is ours for sq = skv alone, got sq={problem.sq} and skv={problem.skv}"
    if backend in (FLASH, CUDNN) and problem.scale is not None and problem.scale <= 0:
        return f"scale must be positive (a key is hidden by a score of -inf, which is then scaled), got {problem.scale}"
    if device.type == "cpu":
        if backend is not FLASH:
            return "runs on a CUDA device, got cpu"
        return None if problem.d == problem.dv else f"d must equal dv, got d={problem.d} and dv={problem.dv}"
    if backend is EFFICIENT and problem.group > 1:
        return f"needs a key head for each query head, got hq={problem.hq} and hkv={problem.hkv}"
    if backend is EFFICIENT and features(problem):
        if problem.layout == "broadcast" and problem.skv % 32 == 1:
            return f"wrong with a mask and keys of stride 0 for skv % 32 = 1 (pytorch#191937), got skv={problem.skv}"
        if problem.sq > problem.skv and problem.mask != "causal-top-left":
            return f"{NO_KEY}, got sq={problem.sq} and skv={problem.skv}"
    if backend is FLASH and problem.d % 8:
        return f"d must be a multiple of 8 (torch would copy q, k and v to pad them), got {problem.d}"
    if backend is FLASH and pass_ != "fwd" and (sums := sums_of_dq(problem)) > INT32:
        return f"its backward counts what dq is summed up in by 32 bits (#1500, #2260), and {sums} is more"
    if backend is CUDNN:
        if problem.mask == "causal" and 1 < problem.sq < problem.skv:
            return f"its causal mask is aligned top-left: needs sq = skv, got sq={problem.sq} and skv={problem.skv}"
        dims = (problem.d, problem.dv)
        if pass_ != "fwd" and max(dims) > 128 and dims not in CUDNN_BACKWARD_DIMS:
            return f"backward needs d and dv of at most 128, or {CUDNN_BACKWARD_DIMS}, got {dims}"
    return torch_rejects(backend, problem, device, pass_)


def sums_of_dq(problem: Problem) -> int:
    """Return in how many numbers FlashAttention-2's backward sums up dq: queries and head dim are padded."""
    d = 256 if problem.d > 192 else -(-problem.d // 32) * 32
    return problem.b * problem.hq * -(-problem.sq // 128) * 128 * d


def torch_rejects(backend: SDPBackend, problem: Problem, device: torch.device, pass_: Pass) -> str | None:
    """Ask torch whether its dispatcher would take this backend, by tensors of these shapes that hold one row."""

    def row(s: int, h: int, d: int) -> torch.Tensor:
        data = torch.empty(d, dtype=problem.torch_dtype, device=device, requires_grad=pass_ != "fwd")
        return data.expand(problem.b, h, s, d)

    q, k = row(problem.sq, problem.hq, problem.d), row(problem.skv, problem.hkv, problem.d)
    v = row(problem.skv, problem.hkv, problem.dv)
    params = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, False, problem.group > 1)
    with sdpa_kernel([backend]), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if CAN_USE[backend](params, debug=True):
            return None
    reasons = "; ".join(str(warning.message).partition(" (Triggered")[0] for warning in said)
    return f"torch {torch.__version__}: {reasons or 'its dispatcher does not take these sizes'}"


def of(name: str, backend: SDPBackend, summary: str, blur: float = 1.0) -> Variant:
    """Return the variant of one backend."""
    call, limits = functools.partial(attention, backend), functools.partial(rejects, backend)
    return Variant(name, summary, call, limits, lacks=LACKS[backend], blur=blur)


THRICE_TF32 = 8.0
"""A float32 product made of three in TF32 (CUTLASS's OpMultiplyAddFastF32) is known to 2⁻²⁰, one by itself to 2⁻²³."""


VARIANTS: tuple[Variant, ...] = (
    of("sdpa_math", MATH, "torch's SDPA, materialised; 16-bit inputs are computed in fp32"),
    of("sdpa_efficient", EFFICIENT, "torch's SDPA, memory-efficient CUTLASS kernels", THRICE_TF32),
    of("sdpa_flash", FLASH, "torch's SDPA, FlashAttention-2; on the CPU torch's own flash kernel"),
    of("sdpa_cudnn", CUDNN, "torch's SDPA, cuDNN's fused attention"),
)
