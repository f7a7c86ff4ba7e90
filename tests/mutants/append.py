"""Bugs in append: where a new row goes, and what else is written."""

from __future__ import annotations

from dataclasses import replace

from tests.mutants.mutant import Mutant, planter

__all__ = ["MUTANTS"]

append = planter("append", "append_kernel.py", "appended", "append-then-attend")
full = planter("append", "append_kernel.py", "no-room")
far = planter("append", "append_kernel.py", "far-pages")


def trampling(mutant: Mutant) -> Mutant:
    """The same, known to write where nothing of the cache is."""
    return replace(mutant, tramples=True)


MUTANTS = (
    append("one-row-late", "length ignored", "tl.load(p_lengths + i_b) + i_s", "tl.load(p_lengths + i_b) + i_s + 1"),
    append("length-of-first-sequence", "length ignored", "tl.load(p_lengths + i_b)", "tl.load(p_lengths)"),
    append("first-page-alone", "paged cache", "tl.int64) + i_row // PAGE, mask", "tl.int64), mask"),
    append("page-of-first-sequence", "paged cache", "i_b * tl.cast(s_tb, tl.int64) +", "i_b * 0 +"),
    trampling(append("row-of-cache-in-page", "paged cache", "i_row = i_row % PAGE", "i_row = i_row")),
    append("head-of-first", "wrong head under GQA", "o_h * tl.cast(s_nh, tl.int64)", "o_h * 0"),
    trampling(
        append("values-by-stride-of-keys", "transposed stride", "i_row * tl.cast(s_vcs,", "i_row * tl.cast(s_kcs,")
    ),
    trampling(append("head-dim-not-masked", "padded head dim", "(o_d < D) & fits", "(o_d < DP) & fits")),
    append("last-head-lost", "output not written", "m = (o_h < hkv)", "m = (o_h < hkv - 1)"),
    trampling(full("writes-over-the-end", "output elsewhere", "fits = i_row < room", "fits = i_row < room + 1")),
    trampling(far("offset-of-page-in-int32", "int32 offset", "i_block * tl.cast(s_kcb, tl.int64)", "i_block * s_kcb")),
)
