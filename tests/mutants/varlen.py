"""Bugs with packed sequences: where they begin, where they end, and what lies behind."""

from __future__ import annotations

from dataclasses import replace

from tests.mutants.flash import BACKWARD, FEATURED, FORWARD, HOST
from tests.mutants.mutant import Edit, Mutant, planter

__all__ = ["MUTANTS"]

BATCH = "variants/triton_flash_batch.py"
STARTS = "varlen.py"

batch = planter("varlen", BATCH, *FEATURED)
forward = planter("varlen", FORWARD, *FEATURED)
backward = planter("varlen", BACKWARD, FEATURED[1])
other_sequence = planter("varlen", BATCH, "other-sequence triton_flash")
far_forward = planter("varlen", FORWARD, "far-sequences")
far_backward = planter("varlen", BACKWARD, "far-sequences")

MUTANTS = (
    replace(batch("length-is-end", "wrong length", "i_b + 1) - start", "i_b + 1)"), tramples=True),
    batch("all-begin-at-0", "wrong sequence", "return start, tl", "return start * 0, tl"),
    batch("programs-for-the-mean", "output not written", "max(varlen.queries), max", "sum(varlen.queries) // 2, max"),
    batch(
        "programs-for-keys-as-queries", "output not written", "max(varlen.keys), varlen", "max(varlen.queries), varlen"
    ),
    batch("tail-promised-even", "tail not masked", 'found |= {"EVEN_Q": False, "EVEN_KV": False}', "found |= {}"),
    batch(
        "band-of-the-longest",
        "wrong alignment",
        "mask_arguments(mask, longest, longest,",
        "mask_arguments(mask, self.sq, self.skv,",
    ),
    other_sequence(
        "statistics-of-the-next", "padding takes part", "mask=o_m < sq, other=beyond", "mask=o_m >= 0, other=beyond"
    ),
    forward("keys-begin-as-queries", "wrong sequence", "sequence(p_starts_k, i_b)", "sequence(p_starts_q, i_b)"),
    forward(
        "band-not-moved",
        "wrong alignment",
        "lower += diagonal\n        upper += diagonal",
        "lower += 0\n        upper += 0",
    ),
    forward("no-keys-no-output", "output not written", "if i_m >= sq:", "if (i_m >= sq) | (skv == 0):"),
    forward("last-block-lost", "output not written", "if i_m >= sq:", "if i_m + BM >= sq + BM // 2:"),
    forward("lse-of-longest", "wrong LSE", "i_h * tl.cast(total, tl.int64) + o_q", "i_h * tl.cast(sq, tl.int64) + o_q"),
    forward("lse-at-first", "wrong LSE", "i_h * tl.cast(total, tl.int64) + o_q", "i_h * tl.cast(total, tl.int64)"),
    forward("values-of-first-sequence", "wrong sequence", "v += o_k * tl.cast(s_vs, tl.int64)", "v += o_k * 0"),
    backward("no-queries-no-gradient", "output not written", "if i_n >= skv:", "if (i_n >= skv) | (sq == 0):"),
    backward("statistics-of-sequence-as-head", "wrong head", "        i_bh = i_h\n", "        i_bh = i_bh\n"),
    backward("dk-of-first-sequence", "wrong sequence", "p_dk += o_k * tl.cast(s_dks, tl.int64)", "p_dk += o_k * 0"),
    backward("dq-of-first-sequence", "wrong sequence", "p_dq += o_q * tl.cast(s_dqs, tl.int64)", "p_dq += o_q * 0"),
    far_forward("offset-of-queries-in-int32", "int32 offset", "q += o_q * tl.cast(s_qs, tl.int64)", "q += o_q * s_qs"),
    far_forward("offset-of-keys-in-int32", "int32 offset", "k += o_k * tl.cast(s_ks, tl.int64)", "k += o_k * s_ks"),
    far_forward("offset-of-values-in-int32", "int32 offset", "v += o_k * tl.cast(s_vs, tl.int64)", "v += o_k * s_vs"),
    Mutant(
        "varlen/forgotten-in-backward",
        "mask not in backward",
        FEATURED[1:],
        (Edit(HOST, '"softcap", "alibi", "varlen")', '"softcap", "alibi")'),),
    ),
    Mutant(
        "varlen/starts-are-lengths",
        "wrong sequence",
        FEATURED,
        (Edit(STARTS, "([0, *accumulate(lengths)] for", "([0, *lengths] for"),),
    ),
)
