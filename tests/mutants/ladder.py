"""Bugs in the rungs below FlashAttention-2: naive and the masks in memory, triton_unfused, triton_fa1."""

from __future__ import annotations

from tests.mutants.mutant import planter

__all__ = ["FA1", "MUTANTS", "NAIVE", "UNFUSED"]

NAIVE = ("float64", "mask")
UNFUSED = ("parity triton_unfused fwd", "parity triton_unfused fwd+bwd")
FEATURED = tuple(f"{check} featured" for check in UNFUSED)
FA1 = ("parity triton_fa1 fwd",)
FA1_FEATURED = ("parity triton_fa1 fwd featured",)
FA1_BACKWARD = "variants/triton_fa1_backward.py"

naive = planter("naive", "variants/naive.py", "float64")
on_cache = planter("naive", "variants/naive.py", "float64-cached")
mask = planter("mask", "mask.py", "float64", "mask")
unfused = planter("unfused", "variants/triton_unfused_kernel.py", *UNFUSED)
product = planter("unfused", "variants/triton_unfused.py", *UNFUSED)
featured = planter("unfused", "variants/triton_unfused_kernel.py", *FEATURED)
product_featured = planter("unfused", "variants/triton_unfused.py", FEATURED[1])
fa1 = planter("fa1", "variants/triton_fa1_kernel.py", *FA1)
fa1_featured = planter("fa1", "variants/triton_fa1_kernel.py", *FA1_FEATURED)
fa1_sequence = planter("fa1", "variants/triton_fa1_kernel.py", "other-sequence triton_fa1")
fa1_backward = planter("fa1-backward", FA1_BACKWARD, "parity triton_fa1 fwd+bwd")
fa1_backward_featured = planter("fa1-backward", FA1_BACKWARD, "parity triton_fa1 fwd+bwd featured")
fa1_backward_sequence = planter("fa1-backward", FA1_BACKWARD, "other-sequence triton_fa1")
fa1_far = planter("fa1-backward", FA1_BACKWARD, "far-sequences-fa1")
fa1_far_below = planter("fa1-backward", FA1_BACKWARD, "far-below")
fa1_no_sink = planter("fa1-backward", FA1_BACKWARD, "no-sink")

MUTANTS = (
    naive(
        "heads-repeated-in-turn",
        "wrong head under GQA",
        "x.repeat_interleave(group, dim=1)",
        "x.repeat(1, group, 1, 1)",
    ),
    naive("scale-by-width-of-values", "wrong scale", "1 / math.sqrt(q.shape[-1])", "1 / math.sqrt(v.shape[-1])"),
    naive("no-live-key", "fully masked row", "weights.masked_fill(dead, 0)", "weights"),
    naive("sink-has-a-value", "sink", "[..., :skv]", "[..., -skv:]"),
    naive("softcap-not-scaled-back", "softcap", ".tanh() * softcap", ".tanh()"),
    naive("alibi-with-a-sign", "ALiBi", "(i + (end - sq) - j).abs()", "(i + (end - sq) - j)"),
    on_cache("keys-behind-length-seen", "length ignored", "return dead | (j >= end)", "return dead"),
    on_cache("diagonal-of-capacity", "length ignored", "own = i + end - sq", "own = i + skv - sq"),
    on_cache("distance-to-capacity", "ALiBi", "end = skv if lengths is None else", "end = skv if sq else"),
    naive("alibi-top-left", "wrong alignment", "(i + (end - sq) - j).abs()", "(i - j).abs()"),
    mask(
        "causal-top-left",
        "wrong alignment",
        'case "causal":\n            return live.tril_(shift)',
        'case "causal":\n            return live.tril_()',
    ),
    mask("window-one-short", "mask off by one", "live.triu_(shift - left)", "live.triu_(shift - left + 1)"),
    mask("prefix-alone", "wrong mask", "live.tril_(shift)[:, :length] = True", "live.zero_()[:, :length] = True"),
    mask(
        "documents-see-the-one-before",
        "wrong mask",
        "live[end - n : end, end - n : end] = True",
        "live[end - n : end, : end] = True",
    ),
    unfused("sum-not-rescaled", "lost rescale", "l = l * tl.exp2(m - shift) + tl.sum", "l = l + tl.sum"),
    unfused("maximum-never-kept", "stale state", "        m = m_new\n", "        m = m\n"),
    unfused("no-live-key", "fully masked row", "inverse = 1.0 / tl.where(l == 0.0, 1.0, l)", "inverse = 1.0 / l"),
    unfused(
        "key-head-of-query-head",
        "wrong head under GQA",
        "(i_h // group) * tl.cast(s_kh",
        "(i_h % (hq // group)) * tl.cast(s_kh",
    ),
    unfused(
        "mask-forgotten",
        "wrong mask",
        'return tl.where(live, b_s, float("-inf"))',
        'return tl.where(o_n[None, :] < skv, b_s, float("-inf"))',
    ),
    unfused(
        "zeros-not-written",
        "output not written",
        "for i_n in tl.range(i_hidden, skv, BN)",
        "for i_n in tl.range(skv, skv, BN)",
    ),
    featured(
        "zeros-before-a-window-not-written",
        "output not written",
        "for i_n in tl.range(0, i_begin, BN)",
        "for i_n in tl.range(i_begin, i_begin, BN)",
    ),
    unfused("natural-exponent", "exp for exp2", "weight, scale * LOG2E,", "weight, scale,"),
    featured("sink-of-first-head", "sink", "tl.load(p_sink + i_h)", "tl.load(p_sink)"),
    product("ds-without-rowsum", "delta", "p * (dp - inner)", "p * dp"),
    product("ds-without-scale", "dropped scale", "(dp - inner) * ctx.scale", "(dp - inner)"),
    product("dp-in-16-bits", "lost precision", "dp = (dout @ v.mT).float()", "dp = (dout @ v.mT).half().float()"),
    product_featured("ds-of-capped-scores", "softcap", "ds * by_group(bend, k.shape[1])", "ds"),
    fa1("output-not-weighed", "lost rescale", "kept = l * tl.exp2(m - shift)", "kept = tl.exp2(m - shift)"),
    fa1("sum-not-rescaled", "lost rescale", "l_new = kept + tl.sum(b_p, 1)", "l_new = l + tl.sum(b_p, 1)"),
    fa1(
        "maximum-not-stored", "stale state", "tl.store(p_m + o_m, m_new, mask=m_m)", "tl.store(p_m + o_m, m, mask=m_m)"
    ),
    fa1(
        "tail-not-masked",
        "tail not masked",
        "live = (o_n < skv)[None, :] & m_m[:, None]",
        "live = (o_n >= 0)[None, :] & m_m[:, None]",
    ),
    fa1(
        "diagonal-hidden",
        "mask off by one",
        "o_n[None, :] <= o_m[:, None] + diagonal",
        "o_n[None, :] < o_m[:, None] + diagonal",
    ),
    fa1(
        "first-tile-of-queries-lost",
        "wrong block range",
        "queries_of(i_n, diagonal, sq",
        "queries_of(i_n + BM, diagonal, sq",
    ),
    fa1(
        "last-tile-of-queries-lost",
        "wrong block range",
        "tl.range(i_begin, i_end, BM)",
        "tl.range(i_begin, i_end // BM * BM, BM)",
    ),
    fa1("no-live-key", "fully masked row", "b_o / tl.where(l_new == 0.0, 1.0, l_new)[:, None]", "b_o / l_new[:, None]"),
    fa1(
        "output-by-width-of-keys",
        "transposed stride",
        "p_o + (o_m[:, None] * DV",
        "p_o + (o_m[:, None] * D",
    ),
    fa1(
        "values-of-query-head",
        "wrong head under GQA",
        "(i_h // group) * tl.cast(s_vh",
        "(i_h % (hq // group)) * tl.cast(s_vh",
    ),
    fa1(
        "head-dim-not-masked",
        "padded head dim",
        "(o_row < n_rows)[:, None] & (o_d < D)[None, :]",
        "(o_row < n_rows)[:, None]",
    ),
    fa1_featured(
        "spans-of-queries",
        "wrong mask",
        'mask_arguments(mask, sq, skv, q.device, of="keys")',
        'mask_arguments(mask, sq, skv, q.device, of="queries")',
    ),
    fa1_featured("queries-before-a-span-see-it", "wrong mask", "live & (o_m[:, None] >= first[None, :])", "live"),
    fa1_featured("queries-behind-a-span-see-it", "wrong mask", " & (o_m[:, None] <= last[None, :])", ""),
    fa1_featured(
        "last-query-of-a-span-lost", "mask off by one", "o_m[:, None] <= last[None, :]", "o_m[:, None] < last[None, :]"
    ),
    fa1_featured(
        "boolean-ignored",
        "wrong mask",
        "live & is_live(o_m, o_n, diagonal, skv, lower, upper, MASK)",
        "live",
    ),
    fa1_featured("sink-without-weight", "sink", "l.fill_(1.0)", "l.fill_(0.0)"),
    fa1_featured("sink-in-base-e", "exp for exp2", "sink[:, None] * LOG2E", "sink[:, None]"),
    fa1_featured("slope-of-first-head", "ALiBi", "tl.load(p_slope + i_h)", "tl.load(p_slope)"),
    fa1_featured(
        "distance-top-left", "wrong alignment", "o_n[None, :], diagonal, scale_log2", "o_n[None, :], 0, scale_log2"
    ),
    fa1_featured(
        "softcap-of-unscaled",
        "softcap",
        "score_arguments(scale, softcap, alibi)",
        "score_arguments(1.0, softcap, alibi)",
    ),
    fa1_featured(
        "length-is-end",
        "wrong length",
        "skv = tl.load(p_starts_k + i_b + 1) - o_k",
        "skv = tl.load(p_starts_k + i_b + 1)",
    ),
    fa1_featured(
        "keys-begin-as-queries", "wrong sequence", "o_k = tl.load(p_starts_k + i_b)", "o_k = tl.load(p_starts_q + i_b)"
    ),
    fa1_featured(
        "band-not-moved",
        "wrong alignment",
        "lower += diagonal\n        upper += diagonal",
        "lower += 0\n        upper += 0",
    ),
    fa1_featured(
        "band-of-the-sum",
        "wrong alignment",
        "mask_arguments(mask, sq + skv, sq + skv,",
        "mask_arguments(mask, sq, skv,",
    ),
    fa1_featured(
        "rows-of-its-own-length",
        "wrong head",
        "i_row = i_h * tl.cast(total, tl.int64) + o_q",
        "i_row = i_h * tl.cast(sq, tl.int64) + o_q",
    ),
    fa1_featured(
        "values-of-first-sequence", "wrong sequence", "p_v += o_k * tl.cast(s_vs, tl.int64)", "p_v += o_k * 0"
    ),
    fa1_featured(
        "output-of-first-sequence", "wrong sequence", "p_out += o_q * tl.cast(s_os, tl.int64)", "p_out += o_q * 0"
    ),
    fa1_sequence(
        "value-of-the-next",
        "padding takes part",
        "b_v = rows_of(p_v, s_vs, i_n, skv, BN",
        "b_v = rows_of(p_v, s_vs, i_n, skv + 1, BN",
    ),
    fa1_backward("delta-left-out", "delta", "b_pt * (b_dpt - b_delta[None, :])", "b_pt * b_dpt"),
    fa1_backward("delta-without-dout", "delta", "tl.sum(b_out * b_dout, 1)", "tl.sum(b_out, 1)"),
    fa1_backward("lse-without-sum", "wrong LSE", "b_lse2 = m + tl.log2(l)", "b_lse2 = m"),
    fa1_backward(
        "dq-of-last-tile", "stale accumulator", "tl.trans(b_dst), b_k, b_dq, input", "tl.trans(b_dst), b_k, input"
    ),
    fa1_backward("dk-of-last-tile", "stale accumulator", "b_dst, b_q, b_dk, input", "b_dst, b_q, input"),
    fa1_backward("dv-of-last-tile", "stale accumulator", "b_dout, b_dv, input", "b_dout, input"),
    fa1_backward("dq-begins-with-what-was-there", "stale accumulator", "dq = torch.zeros(", "dq = torch.ones("),
    fa1_backward("dk-without-scale", "dropped scale", "(b_dk * scale)", "b_dk"),
    fa1_backward("dq-without-scale", "dropped scale", "dq.mul_(scale)", "dq"),
    fa1_backward("ds-in-bf16", "lost precision", "b_dst.to(b_q.dtype)", "b_dst.to(tl.bfloat16).to(b_q.dtype)"),
    fa1_backward(
        "dk-of-first-head",
        "dK over wrong heads",
        "for i_g in range(group):\n            i_h",
        "for i_g in range(1):\n            i_h",
    ),
    fa1_backward(
        "dk-of-strided-heads",
        "dK over wrong heads",
        "            i_h = i_hkv * group + i_g",
        "            i_h = i_g * hkv + i_hkv",
    ),
    fa1_backward("dq-of-key-head", "wrong head under GQA", "p_dq + i_h * tl.cast", "p_dq + i_hkv * tl.cast"),
    fa1_backward("statistics-of-key-head", "wrong head under GQA", "(i_b * hkv + i_hkv) * group * rows", "0 * rows"),
    fa1_backward("causal-top-left", "wrong alignment", "diagonal = skv - sq", "diagonal = 0"),
    fa1_backward(
        "first-tile-of-queries-lost",
        "wrong block range",
        "queries_of(i_n, diagonal, sq",
        "queries_of(i_n + BM, diagonal, sq",
    ),
    fa1_backward(
        "last-tile-of-queries-lost",
        "wrong block range",
        "tl.range(i_begin, i_end, BM)",
        "tl.range(i_begin, i_end // BM * BM, BM)",
    ),
    fa1_backward(
        "last-column-unwritten",
        "output not written",
        "mask=m_n & (o_dv < DV)[None, :]",
        "mask=m_n & (o_dv < DV - 1)[None, :]",
    ),
    fa1_backward_featured("dk-and-dq-of-capped-scores", "softcap", "b_dst *= b_bend", "b_dst *= 1.0"),
    fa1_backward_featured("sink-gradient-with-its-sign-lost", "sink", "grad_sink = -(torch", "grad_sink = (torch"),
    fa1_backward_featured("sink-in-base-e", "exp for exp2", "sink[:, None] * LOG2E - lse2", "sink[:, None] - lse2"),
    fa1_backward_featured("slope-of-first-head", "ALiBi", "tl.load(p_slope + i_h)", "tl.load(p_slope)"),
    fa1_backward_featured(
        "masks-but-causal-forgotten", "mask not in backward", 'if MASK != "full":', 'if MASK == "causal":'
    ),
    fa1_backward_featured(
        "spans-of-queries",
        "wrong mask",
        'mask_arguments(mask, sq, skv, q.device, of="keys")',
        'mask_arguments(mask, sq, skv, q.device, of="queries")',
    ),
    fa1_backward_featured(
        "band-not-moved",
        "wrong alignment",
        "lower += diagonal\n        upper += diagonal",
        "lower += 0\n        upper += 0",
    ),
    fa1_backward_featured(
        "keys-begin-as-queries", "wrong sequence", "o_k = tl.load(p_starts_k + i_b)", "o_k = tl.load(p_starts_q + i_b)"
    ),
    fa1_backward_featured(
        "rows-of-its-own-length",
        "wrong head",
        "    rows = tl.cast(sq, tl.int64)\n",
        "    rows = tl.cast(sq, tl.int64) - (tl.load(p_starts_q + 1) if p_starts_q is not None else 0)\n",
    ),
    fa1_backward_featured("delta-of-first-sequence", "wrong sequence", "p_delta += o_q", "p_delta += 0"),
    fa1_backward_featured(
        "dq-of-first-sequence", "wrong sequence", "p_dq += o_q * tl.cast(s_dqs, tl.int64)", "p_dq += o_q * 0"
    ),
    fa1_backward_featured(
        "dk-of-first-sequence", "wrong sequence", "p_dk += o_k * tl.cast(s_dks, tl.int64)", "p_dk += o_k * 0"
    ),
    fa1_backward_sequence(
        "key-of-the-next",
        "padding takes part",
        "b_k = rows_of(p_k, s_ks, i_n, skv, BN",
        "b_k = rows_of(p_k, s_ks, i_n, skv + 1, BN",
    ),
    fa1_far("offset-of-queries-in-int32", "int32 offset", "p_q += o_q * tl.cast(s_qs, tl.int64)", "p_q += o_q * s_qs"),
    fa1_far(
        "offset-of-dout-in-int32", "int32 offset", "p_dout += o_q * tl.cast(s_gs, tl.int64)", "p_dout += o_q * s_gs"
    ),
    fa1_far_below("tail-not-masked", "tail not masked", "live = (o_n < skv)[:, None]", "live = (o_n >= 0)[:, None]"),
    fa1_no_sink("no-live-key", "fully masked row", 'tl.where(b_lse2 == float("-inf"), float("inf"), b_lse2)', "b_lse2"),
)
