"""Decoding: a few queries on a long cache, with the keys split over programs (Dao et al., Flash-Decoding, 2023).

One query a sequence cannot fill a GPU by heads and sequences alone, so each program takes a part of the keys. What they
found is combined by a second kernel, a row a program, or by the last program of a key head to finish, for which it
counts on a `Workspace`: a caller that decodes token after token keeps one, and saves the kernel that zeroes it. The
result does not depend on the order in which programs finish. The query heads of a key head, and up to eight queries,
are the rows of one tile, so the cache is read once.

The cache is contiguous, or in pages that a table finds (Kwon et al., vLLM, 2023): the same kernels, under two names in
the table of variants. How many keys of it there are is read on the device, so a graph captured once serves every
length. The kernels are in triton_splitkv_kernel.py, their tiles in triton_splitkv_tiles.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from attnkit import triton_device
from attnkit.arguments import check_mask, check_modifiers, check_tensors
from attnkit.mask import Window
from attnkit.problem import Mask, Pass, Problem
from attnkit.variant import Feature, Variant
from attnkit.variants.triton_splitkv_tiles import MAX_SPLITS, Form, choose, choose_splits, split_form

__all__ = ["PAGED", "VARIANT", "Workspace", "attend", "attention"]

LACKS: dict[Feature, str] = {
    "varlen": "sequences on a cache are not packed: they have lengths of their own",
    "fp8": "weights are multiplied in the dtype of the inputs, unscaled",
}
OF_ONE_LENGTH: tuple[Feature, ...] = ("causal-top-left", "documents", "boolean")
"""Masks that sequences of different lengths do not have."""
FORWARD_ONLY = "has no backward: it is made for decoding"
MAX_D = 256
MAX_ROWS = 128
"""Queries times the query heads of a key head: they are the rows of one tile."""
MAX_ROWS_WIDE = 16
"""The same of heads wider than 128 in float32: more rows would not fit, or be in memory and not in registers."""
MAX_SQ = 8


@dataclass(frozen=True, slots=True)
class Workspace:
    """What programs of one call leave for each other; calls that may run at the same time need one each.

    Attributes:
        partial: Unnormalised outputs of splits and what goes with them, float32.
        arrived: How many splits of a key head have finished, int32; zero between calls.
    """

    partial: torch.Tensor
    arrived: torch.Tensor

    @classmethod
    def of(
        cls,
        b: int,
        hkv: int,
        rows: int,
        dv: int,
        device: torch.device,
        splits: int = MAX_SPLITS,
        counted: bool = True,
    ) -> Workspace:
        """Allocate for calls of at most these sizes; rows are ``sq · hq / hkv``.

        What is not `counted` is for calls whose splits a kernel of its own combines, and saves one that zeroes.
        """
        size = b * hkv * splits * rows * (dv + 2)
        partial = torch.empty(size, dtype=torch.float32, device=device)
        arrived = (torch.zeros if counted else torch.empty)(b * hkv, dtype=torch.int32, device=device)
        return cls(partial, arrived)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: torch.Tensor | None = None,
    *,
    table: torch.Tensor | None = None,
    mask: Mask = "causal",
    scale: float | None = None,
    softcap: float | None = None,
    alibi: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    splits: int | None = None,
    workspace: Workspace | None = None,
    form: Form | None = None,
) -> torch.Tensor:
    """Attention of the newest queries on a cache.

    Args:
        q: ``[b, sq, hq, d]``, float16, bfloat16 or float32; sq at most 8, ``sq · hq / hkv`` at most 128, d at most 256;
            in float32 with d over 128 ``sq · hq / hkv`` at most 16.
        k: ``[b, skv, hkv, d]``, or with a table ``[pages, page, hkv, d]``; query head h reads ``h // (hq // hkv)``.
        v: ``[b, skv, hkv, dv]``, or ``[pages, page, hkv, dv]``.
        lengths: ``[b]``, int32: how many keys a sequence has, the queries' own among them; skv unless given.
        table: ``[b, n]``, int32: in which page a sequence's keys ``i · page ...`` are. Entries behind its length may be
            anything. Needs lengths.
        mask: ``causal``, query i sees key j where ``j <= i + length - sq``, ``full``, it sees all, a window along that
            diagonal, whose keys alone are read, or a prefix; without lengths any of mask.py.
        scale: ``1 / sqrt(d)`` unless given.
        softcap: Positive: scores stay between it and its negative.
        alibi: ``[hq]``, float32: what a key's score loses by its distance.
        sink: ``[hq]``, float32: a logit that takes weight and has no value.
        splits: Parts that the keys are split into, from 1 to 128; chosen from the sizes unless given.
        workspace: Kept from call to call it saves the allocation and a kernel that zeroes it.
        form: What the kernels are compiled for; chosen from dtype and sizes unless given.

    Returns:
        out ``[b, sq, hq, dv]`` in the dtype of q; 0 for a query without a live key.

    Raises:
        ValueError: For shapes, dtypes or numbers that do not fit together.
    """
    from attnkit.variants import triton_splitkv_kernel

    _check(q, k, v, lengths, table, splits, workspace)
    check_mask(mask, q, k, lengths=lengths)
    check_modifiers(q, softcap, alibi, sink)
    b, _, hq, d = q.shape
    hkv = k.shape[2]
    longest = k.shape[1] if table is None else table.shape[1] * k.shape[1]
    q, k, v = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k, v))
    lengths, table = (t if t is None else t.contiguous() for t in (lengths, table))
    alibi, sink = (x if x is None else x.detach().contiguous() for x in (alibi, sink))
    # keys that some query may see
    reach = min(longest, mask.left + q.shape[1]) if isinstance(mask, Window) and mask.left is not None else longest
    rows, dv = q.shape[1] * (hq // hkv), v.shape[3]
    if form is None and splits is None:
        form, splits = choose(q.dtype, rows, d, dv, b * hkv, reach, q.device)
    form = form or split_form(q.dtype, rows, d, dv)
    splits = splits or choose_splits(b * hkv, reach, q.device, form.block_n)
    if workspace is None:
        counted = splits > 1 and not form.apart
        workspace = Workspace.of(b, hkv, rows, dv, q.device, splits, counted)
    return triton_splitkv_kernel.attend(
        q,
        k,
        v,
        lengths,
        table,
        mask=mask,
        scale=d**-0.5 if scale is None else scale,
        softcap=softcap,
        alibi=alibi,
        sink=sink,
        splits=splits,
        longest=longest,
        partial=workspace.partial,
        arrived=workspace.arrived,
        form=form,
    )


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: torch.Tensor | None,
    table: torch.Tensor | None,
    splits: int | None,
    workspace: Workspace | None,
) -> None:
    """Refuse what the kernel would read or write out of bounds.

    Raises:
        ValueError: Says what does not fit.
    """
    check_tensors(q, k, v, pages=True)
    b, sq, hq, d = q.shape
    hkv, dv = v.shape[2:]
    if reason := _too_large(q.dtype, sq, hq // hkv, d, dv):
        raise ValueError(reason)
    if table is None and k.shape[0] != b:
        raise ValueError(f"q and k must have one batch, got {b} and {k.shape[0]}: pages need a table")
    if table is not None and lengths is None:
        raise ValueError("a table of pages needs lengths, got none")
    for name, numbers, ndim in (("lengths", lengths, 1), ("table", table, 2)):
        if numbers is not None and (numbers.ndim != ndim or numbers.shape[0] != b or numbers.dtype != torch.int32):
            raise ValueError(
                f"{name} must be int32 [{b}{', n' * (ndim - 1)}], got {numbers.dtype} {list(numbers.shape)}"
            )
    if splits is not None and not 1 <= splits <= MAX_SPLITS:
        raise ValueError(f"splits must be from 1 to {MAX_SPLITS}, got {splits}")
    if workspace is not None:
        needed = b * hkv * (splits or MAX_SPLITS) * sq * (hq // hkv) * (dv + 2)
        if workspace.partial.numel() < needed or workspace.arrived.numel() < b * hkv:
            raise ValueError(f"the workspace is too small: take Workspace.of({b}, {hkv}, {sq * hq // hkv}, {dv}, ...)")


def _too_large(dtype: torch.dtype, sq: int, group: int, d: int, dv: int) -> str | None:
    """Say which size exceeds what a program can hold."""
    if sq > MAX_SQ:
        return f"sq must be at most {MAX_SQ}, got {sq}: take another variant for longer prompts"
    if sq * group > MAX_ROWS:
        return f"sq times the query heads of a key head must be at most {MAX_ROWS}, got {sq} x {group}"
    if max(d, dv) > MAX_D:
        return f"d and dv must be at most {MAX_D}, got {d} and {dv}"
    if dtype == torch.float32 and max(d, dv) > 128 and sq * group > MAX_ROWS_WIDE:
        most = f"at most {MAX_ROWS_WIDE} in float32 with heads wider than 128"
        return f"sq times the query heads of a key head must be {most}, got {sq} x {group}: take 16 bits"
    return None


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, mask: Mask = "full", **options: Any
) -> torch.Tensor:
    """Attention of few queries: q ``[b, sq, hq, d]``, k, v ``[b, skv, hkv, ·]`` to out ``[b, sq, hq, dv]``.

    Options are scale and modifiers; see `attend`.
    """
    return attend(q, k, v, mask=mask, **options)


def rejects(problem: Problem, device: torch.device, pass_: Pass) -> str | None:
    """Say why this variant cannot compute a problem on a device."""
    if reason := _too_large(problem.torch_dtype, problem.sq, problem.group, problem.d, problem.dv):
        return reason
    return triton_device.rejects(device, problem.torch_dtype)


def rejects_all_but_pages(problem: Problem, device: torch.device, pass_: Pass) -> str | None:
    """Say why the same kernels with a table of pages cannot compute a problem on a device."""
    if problem.cache is None:
        return "made for a cache in pages: without pages take triton_splitkv, for up to 8 queries"
    return rejects(problem, device, pass_)


VARIANT = Variant(
    name="triton_splitkv",
    summary="Flash-Decoding in Triton: up to 8 queries, keys split over programs, grouped heads in one tile",
    attention=attention,
    rejects=rejects,
    absent=triton_device.absent,
    lacks=LACKS | {"paged": "pages are read by triton_paged"},
    forward_only=FORWARD_ONLY,
)
PAGED = Variant(
    name="triton_paged",
    summary="Flash-Decoding in Triton, with a table that says in which pages of a cache keys and values are",
    attention=attention,
    rejects=rejects_all_but_pages,
    absent=triton_device.absent,
    lacks=LACKS
    | {"cache": "a cache in one piece is read by triton_splitkv"}
    | dict.fromkeys(OF_ONE_LENGTH, "pages have full, causal, windows and a prefix: without pages take triton_splitkv"),
    forward_only=FORWARD_ONLY,
)
