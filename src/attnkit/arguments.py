"""What attention is called with, refused where it does not fit together: a kernel would read what is not there.

Every variant of ours asks `check_mask`, and those whose kernels are ours ask the others before they launch one. Looks
at sizes, dtypes and devices alone, which the host knows without waiting. Knows nothing of variants.
"""

from __future__ import annotations

import torch

from attnkit import mask as masks
from attnkit import varlen as packing
from attnkit.mask import Mask
from attnkit.varlen import Varlen

__all__ = ["check_derivative", "check_mask", "check_modifiers", "check_tensors"]


def check_tensors(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, pages: bool = False) -> None:
    """Refuse what is not q ``[b, sq, hq, d]``, k ``[b, skv, hkv, d]`` and v ``[b, skv, hkv, dv]`` of one kind.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        pages: Whether k and v may have another number of batches than q.

    Raises:
        ValueError: Saying what was expected.
    """
    fit = q.ndim == k.ndim == v.ndim == 4 and k.shape[:3] == v.shape[:3] and q.shape[3] == k.shape[3]
    if not fit or not (pages or q.shape[0] == k.shape[0]):
        shapes = f"{list(q.shape)}, {list(k.shape)} and {list(v.shape)}"
        raise ValueError(f"q must be [b, sq, hq, d], k [b, skv, hkv, d] and v [b, skv, hkv, dv], got {shapes}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must have one dtype, got {q.dtype}, {k.dtype} and {v.dtype}")
    if not q.device == k.device == v.device:
        raise ValueError(f"q, k and v must be on one device, got {q.device}, {k.device} and {v.device}")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"hkv must divide hq, got hq={q.shape[2]} and hkv={k.shape[2]}")


def check_mask(
    mask: Mask, q: torch.Tensor, k: torch.Tensor, varlen: Varlen | None = None, lengths: torch.Tensor | None = None
) -> None:
    """Refuse what is no mask, and a mask that is not of these queries and keys.

    Args:
        mask: What was given for one.
        q: ``[b, sq, hq, d]``.
        k: ``[b, skv, hkv, d]``, or with lengths pages too.
        varlen: The sequences that are packed into one batch.
        lengths: ``[b]``, keys of each sequence in a cache.

    Raises:
        ValueError: Saying what was expected.
    """
    if varlen is not None:
        varlen.check(mask, q.shape[0], q.shape[1], k.shape[1])
    elif lengths is not None:
        packing.check(mask)
    else:
        masks.check(mask, q.shape[1], k.shape[1])


def check_modifiers(
    q: torch.Tensor, softcap: float | None, alibi: torch.Tensor | None, sink: torch.Tensor | None
) -> None:
    """Refuse a softcap that is not positive, and slopes and sinks that are not ``[hq]`` in float32 beside q.

    Raises:
        ValueError: Saying what was expected.
    """
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be positive, or None for none, got {softcap}")
    for name, x in (("alibi", alibi), ("sink", sink)):
        if x is not None and (x.shape != q.shape[2:3] or x.dtype != torch.float32 or x.device != q.device):
            got = f"{list(x.shape)}, {x.dtype} on {x.device}"
            raise ValueError(f"{name} must be [{q.shape[2]}], float32 on {q.device}, got {got}")


def check_derivative(name: str) -> None:
    """Refuse a backward that is to be differentiated itself: the kernels' results would be constants in it.

    Raises:
        RuntimeError: If autograd asks for one (``create_graph=True``).
    """
    if torch.is_grad_enabled():
        raise RuntimeError(f"{name} has no second derivative, got create_graph=True: take naive")
