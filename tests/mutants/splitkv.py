"""Bugs in triton_splitkv: the splits, what combines them, the pages and the lengths."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant, planter

__all__ = ["CHECKS", "MUTANTS"]

CHECKS = ("splits", "parity triton_splitkv fwd", "workspace")

KERNEL = "variants/triton_splitkv_kernel.py"
HOST = "variants/triton_splitkv.py"
SHIFT = 'shift = tl.where(m_new == float("-inf"), 0.0, m_new)\n'

FEATURED = "parity triton_splitkv fwd featured"

kernel = planter("splitkv", KERNEL, *CHECKS)
cached = planter("splitkv", KERNEL, FEATURED)
paged = planter("splitkv", KERNEL, "parity triton_paged fwd featured")

MUTANTS = (
    kernel("sums-merged-without-weights", "wrong LSE merge", "tl.sum(l_theirs * beta, 0)", "tl.sum(l_theirs, 0)"),
    kernel(
        "outputs-merged-without-weights",
        "wrong LSE merge",
        "tl.sum(b_theirs * beta[:, None], 0)",
        "tl.sum(b_theirs, 0)",
    ),
    kernel("last-split-lost", "last split lost", "m_s = o_s < splits", "m_s = o_s < splits - 1"),
    kernel(
        "tiles-rounded-down",
        "last split lost",
        "tl.cdiv(tl.cdiv(n - i_first, BN), splits)",
        "tl.maximum(tl.cdiv(n - i_first, BN) // splits, 1)",
    ),
    kernel("last-but-one-combines", "stale accumulator", "if arrived == splits - 1:", "if arrived == splits - 2:"),
    kernel("records-overlap", "stale accumulator", "o_rows = i_split * ROWS + o_m", "o_rows = o_m"),
    kernel(
        "splits-without-keys-merged",
        "fully masked row",
        f"# a row of which no split has a live key has m_new = -inf\n        {SHIFT}",
        "shift = m_new\n",
    ),
    kernel(
        "no-live-key-sum",
        "fully masked row",
        "if splits == 1:\n        b_out = b_out / tl.where(l == 0.0, 1.0, l)[:, None]",
        "if splits == 1:\n        b_out = b_out / l[:, None]",
    ),
    kernel("output-not-rescaled", "lost rescale", "b_v, b_out * alpha[:, None], input", "b_v, b_out, input"),
    kernel("diagonal-ignores-length", "wrong alignment", "last = i_query + n - SQ", "last = i_query + skv - SQ"),
    kernel("diagonal-one-late", "mask off by one", "last = i_query + n - SQ", "last = i_query + n - SQ + 1"),
    kernel("length-ignored", "length ignored", "n = tl.load(p_lengths + i_b)", "n = skv"),
    kernel("length-of-first-sequence", "length ignored", "n = tl.load(p_lengths + i_b)", "n = tl.load(p_lengths)"),
    kernel("rows-packed-by-head", "wrong head under GQA", "i_query = o_m // GROUP", "i_query = o_m % SQ"),
    kernel(
        "heads-strided",
        "wrong head under GQA",
        "o_head = i_h * GROUP + o_m % GROUP",
        "o_head = i_h + o_m % GROUP * hkv",
    ),
    kernel("page-of-first-sequence", "paged cache", "p_table += i_b * tl.cast(s_tb, tl.int64)", "p_table += i_b * 0"),
    kernel("row-within-page", "paged cache", "(o_n % PAGE) * tl.cast", "(o_n - i_n) * tl.cast"),
    kernel(
        "tail-not-masked",
        "tail not masked",
        "mask=m_n[:, None] & (o_d < D)[None, :], other",
        "mask=(o_d < D)[None, :], other",
    ),
    kernel("values-by-stride-of-keys", "transposed stride", "i_end, s_vb, s_vs, DV", "i_end, s_kb, s_ks, DV"),
    kernel(
        "head-dim-not-masked",
        "padded head dim",
        "m_out = m_m[:, None] & (o_dv < DV)[None, :]",
        "m_out = m_m[:, None] & (o_dv < DV + 1)[None, :]",
    ),
    kernel("sink-in-every-split", "sink", "if i_split == 0:", "if i_split >= 0:"),
    kernel("sink-of-first-head", "sink", "tl.load(p_sink + o_head, mask", "tl.load(p_sink + o_head * 0, mask"),
    kernel("slope-of-first-head", "ALiBi", "tl.load(p_slope + o_head, mask", "tl.load(p_slope + o_head * 0, mask"),
    kernel(
        "first-tile-of-a-window-lost",
        "wrong block range",
        "tl.maximum(lower, 0) // BN * BN",
        "tl.cdiv(tl.maximum(lower, 0), BN) * BN",
    ),
    kernel("window-ignores-length", "length ignored", "upper += n - SQ", "upper += skv - SQ"),
    cached("key-behind-length", "length ignored", "n = tl.load(p_lengths + i_b)", "n = tl.load(p_lengths + i_b) + 1"),
    paged("page-behind-the-last", "paged cache", "p_table + o_n // PAGE, mask", "p_table + o_n // PAGE + 1, mask"),
    paged("page-of-a-tile", "paged cache", "p_table + o_n // PAGE, mask", "p_table + i_n // PAGE + o_n * 0, mask"),
    paged("rows-by-stride-of-pages", "transposed stride", "% PAGE) * tl.cast(s_row", "% PAGE) * tl.cast(s_block"),
    cached("window-of-capacity", "length ignored", "lower += n - SQ", "lower += skv - SQ"),
    cached("boolean-ignored", "wrong mask", "m_live & is_live(i_query, o_n, n - SQ, n, lower, upper, MASK)", "m_live"),
    cached("top-left-is-bottom-right", "wrong alignment", '"upper": sq - longest', '"upper": 0'),
    cached(
        "documents-before-seen",
        "wrong mask",
        'if MASK == "band" or MASK == "documents":',
        'if MASK == "band":',
    ),
    cached("slopes-of-capacity", "ALiBi", "o_n[None, :], n - SQ, scale_log2", "o_n[None, :], skv - SQ, scale_log2"),
    Mutant(
        "splitkv/weight-of-what-came-before",
        "wrong LSE merge",
        ("many-splits",),
        (Edit(KERNEL, "b_out * alpha + tl.sum(b_t", "b_out + tl.sum(b_t"),),
    ),
    Mutant(
        "splitkv/counter-left-behind",
        "stale state",
        ("workspace",),
        (Edit(KERNEL, "tl.store(p_arrived + i_bh, 0)", "tl.store(p_arrived + i_bh, 1)"),),
    ),
    Mutant(
        "splitkv/scale-by-width-of-values",
        "wrong scale",
        CHECKS[1:2],
        (Edit(HOST, "scale=d**-0.5 if", "scale=v.shape[3] ** -0.5 if"),),
    ),
    Mutant(
        "splitkv/record-of-one-query",
        "stale accumulator",
        CHECKS,
        (Edit(KERNEL, "o_rows = i_split * ROWS + o_m", "o_rows = i_split * GROUP + o_m"),),
    ),
)
