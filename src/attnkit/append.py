"""Append: the newest keys and values of every sequence go into a cache, in place.

    key lengths[n] + i of sequence n becomes k[n, i], for i < s        k [b, s, hkv, d], v [b, s, hkv, dv]

The cache is contiguous or in pages (see cache.py). How much of it there is already is read on the device, so a graph
captured once serves every length. What a sequence has no room for is not written: to see to that is the caller's
matter. `append` is one kernel; `append_plain` says what it does, a row after the other. Knows nothing of attention.
"""

from __future__ import annotations

import torch

from attnkit import triton_device

__all__ = ["append", "append_plain"]


def append(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    table: torch.Tensor | None = None,
) -> None:
    """Write new rows behind those that are there, by a Triton kernel.

    Args:
        k: ``[b, s, hkv, d]``, the new keys of every sequence.
        v: ``[b, s, hkv, dv]``.
        k_cache: ``[b, skv, hkv, d]``, or with a table ``[pages, page, hkv, d]``; it is written to.
        v_cache: ``[b, skv, hkv, dv]``, or ``[pages, page, hkv, dv]``.
        lengths: ``[b]``, int32: how many keys a sequence has before. They are left as they are.
        table: ``[b, n]``, int32: in which page a sequence's keys ``i · page ...`` are. No two sequences may share a
            page that is written to.

    Raises:
        ValueError: For shapes, dtypes and devices that do not fit together.
        RuntimeError: Where no Triton kernel runs; `append_plain` does.
    """
    check(k, v, k_cache, v_cache, lengths, table)
    if reason := triton_device.absent() or triton_device.rejects(k.device):
        raise RuntimeError(f"append is a Triton kernel: {reason}")
    from attnkit import append_kernel

    table = None if table is None else table.contiguous()
    append_kernel.launch(k, v, k_cache, v_cache, lengths.contiguous(), table)


def append_plain(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    table: torch.Tensor | None = None,
) -> None:
    """Do what `append` does in a loop over rows."""
    check(k, v, k_cache, v_cache, lengths, table)
    page = k_cache.shape[1]
    room = page if table is None else table.shape[1] * page
    for n, length in enumerate(lengths.tolist()):
        for i in range(min(k.shape[1], room - length)):
            block, row = divmod(length + i, page)
            block = n if table is None else int(table[n, block])
            k_cache[block, row], v_cache[block, row] = k[n, i], v[n, i]


def check(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    table: torch.Tensor | None,
) -> None:
    """Refuse what would be read or written out of bounds.

    Raises:
        ValueError: Says what does not fit.
    """
    if not (k.ndim == v.ndim == k_cache.ndim == v_cache.ndim == 4 and k.shape[:3] == v.shape[:3]):
        shapes = f"{list(k.shape)}, {list(v.shape)}, {list(k_cache.shape)} and {list(v_cache.shape)}"
        raise ValueError(f"k must be [b, s, hkv, d], v [b, s, hkv, dv], and a cache likewise, got {shapes}")
    for name, new, cache in (("k", k, k_cache), ("v", v, v_cache)):
        if cache.shape[:2] != k_cache.shape[:2] or cache.shape[2:] != new.shape[2:]:
            expected = f"[{k_cache.shape[0]}, {k_cache.shape[1]}, {new.shape[2]}, {new.shape[3]}]"
            raise ValueError(f"the cache of {name} must be {expected}, got {list(cache.shape)}")
        if new.dtype != cache.dtype or new.device != cache.device:
            got = f"{new.dtype} on {new.device} and {cache.dtype} on {cache.device}"
            raise ValueError(f"{name} and its cache must have one dtype and device, got {got}")
    b = k.shape[0]
    if table is None and k_cache.shape[0] != b:
        raise ValueError(f"k and its cache must have one batch, got {b} and {k_cache.shape[0]}: pages need a table")
    for name, numbers, ndim in (("lengths", lengths, 1), ("table", table, 2)):
        if numbers is not None and (numbers.ndim != ndim or numbers.shape[0] != b or numbers.dtype != torch.int32):
            shape = f"[{b}{', n' * (ndim - 1)}]"
            raise ValueError(f"{name} must be int32 {shape}, got {numbers.dtype} {list(numbers.shape)}")
