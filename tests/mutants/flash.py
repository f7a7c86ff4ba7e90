"""Bugs in triton_flash: forward, backward, and the host's part of both."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant, planter

__all__ = ["CHECKS", "MUTANTS"]

CHECKS = ("parity triton_flash fwd", "parity triton_flash fwd+bwd")

FEATURED = tuple(f"{check} featured" for check in CHECKS)

FORWARD = "variants/triton_flash_forward.py"
BACKWARD = "variants/triton_flash_backward.py"
SCORES = "triton_scores.py"
TILES = "variants/triton_flash_tiles.py"
HOST = "variants/triton_flash.py"

forward = planter("flash-forward", FORWARD, *CHECKS)
backward = planter("flash-backward", BACKWARD, CHECKS[1])
scores = planter("flash-scores", SCORES, *CHECKS)
transposed = planter("flash-scores", SCORES, CHECKS[1])
featured = planter("flash-scores", SCORES, *FEATURED)
featured_backward = planter("flash-scores", SCORES, FEATURED[1])
forward_featured = planter("flash-forward", FORWARD, *FEATURED)
backward_featured = planter("flash-backward", BACKWARD, FEATURED[1])
tiles = planter("flash-tiles", TILES, *CHECKS)

MUTANTS = (
    forward("output-not-rescaled", "lost rescale", "b_out = b_out * alpha[:, None]", "b_out = b_out"),
    forward("sum-not-rescaled", "lost rescale", "l = l * alpha + tl.sum(b_p, 1)", "l = l + tl.sum(b_p, 1)"),
    forward("sum-of-last-tile", "softmax state reset", "l = l * alpha + tl.sum(b_p, 1)", "l = tl.sum(b_p, 1)"),
    forward(
        "state-reset-behind-diagonal",
        "softmax state reset",
        "        alpha = tl.exp2(m - shift)",
        "        alpha = tl.where(i_n >= i_full, 0.0, tl.exp2(m - shift))",
    ),
    forward("maximum-never-kept", "stale state", "        m = m_new\n", "        m = m\n"),
    forward("accumulator-not-added-to", "stale accumulator", "b_v, b_out, input_precision", "b_v, input_precision"),
    forward("causal-top-left", "wrong alignment", "diagonal = skv - sq", "diagonal = 0"),
    forward("key-head-of-query-head", "wrong head under GQA", "i_hkv = i_h // group", "i_hkv = i_h // group * 0"),
    forward("head-dim-not-masked", "padded head dim", "m_d = (o_d < D)[None, :]", "m_d = (o_d < DP)[None, :]"),
    forward(
        "no-live-key-shift",
        "fully masked row",
        'shift = tl.where(m_new == float("-inf"), 0.0, m_new)',
        "shift = m_new",
    ),
    forward("no-live-key-sum", "fully masked row", "l_safe = tl.where(l == 0.0, 1.0, l)", "l_safe = l"),
    forward("natural-exponent", "exp for exp2", "out, lse, scale * LOG2E,", "out, lse, scale,"),
    forward("lse-in-base-2", "wrong LSE", "(m + tl.log2(l_safe)) * LN2", "(m + tl.log2(l_safe))"),
    forward("lse-without-maximum", "wrong LSE", "(m + tl.log2(l_safe)) * LN2", "tl.log2(l_safe) * LN2"),
    forward("lse-of-last-row-unwritten", "output not written", "b_lse, mask=o_m < sq)", "b_lse, mask=o_m < sq - 1)"),
    forward(
        "last-column-unwritten",
        "output not written",
        "m_out = (o_m < sq)[:, None] & (o_d < DV)[None, :]",
        "m_out = (o_m < sq)[:, None] & (o_d < DV - 1)[None, :]",
    ),
    forward("weights-in-bf16", "lost precision", "b_p.to(b_v.dtype), b_v", "b_p.to(tl.bfloat16).to(b_v.dtype), b_v"),
    forward("value-rows-by-query-stride", "transposed stride", "load_tile(v, s_vs,", "load_tile(v, s_vh,"),
    backward("delta-left-out-of-dk", "delta", "b_pt * (b_dpt - b_delta[None, :])", "b_pt * b_dpt"),
    backward("delta-left-out-of-dq", "delta", "b_p * (b_dp - b_delta[:, None])", "b_p * b_dp"),
    backward("delta-without-dout", "delta", "tl.sum(b_out * b_dout, 1)", "tl.sum(b_out, 1)"),
    backward("dk-without-scale", "dropped scale", "(b_dk * scale)", "b_dk"),
    backward("dq-without-scale", "dropped scale", "(b_dq * scale)", "b_dq"),
    backward("dk-of-strided-heads", "dK over wrong heads", "i_h = i_hkv * group + i_g", "i_h = i_g * hkv + i_hkv"),
    backward("dk-of-first-head", "dK over wrong heads", "for i_g in range(group)", "for i_g in range(1)"),
    backward("dv-of-last-tile", "stale accumulator", "b_dout, b_dv, input_precision", "b_dout, input_precision"),
    backward("dq-of-last-tile", "stale accumulator", "b_k, b_dq, input_precision", "b_k, input_precision"),
    backward("dq-key-head", "wrong head under GQA", "i_hkv = i_h // group", "i_hkv = i_h // group * 0"),
    backward(
        "no-live-key-takes-part",
        "fully masked row",
        'tl.where(b_lse == float("-inf"), float("inf"), b_lse * BASE_2)',
        "b_lse * BASE_2",
    ),
    backward("lse-in-base-e", "wrong LSE", "b_lse * BASE_2", "b_lse"),
    backward("ds-in-bf16", "lost precision", "b_ds.to(b_k.dtype)", "b_ds.to(tl.bfloat16).to(b_k.dtype)"),
    backward("launch-of-dv-lost", "output not written", "((True, False), (False, True)) if", "((True, False),) if"),
    forward("values-by-stride-of-keys", "transposed stride", "*v.stride()[:3], *out", "*k.stride()[:3], *out"),
    forward_featured("sink-in-base-e", "sink", "tl.load(p_sink + i_h) * BASE_2", "tl.load(p_sink + i_h)"),
    forward_featured("sink-of-first-head", "sink", "tl.load(p_sink + i_h)", "tl.load(p_sink)"),
    backward_featured("sink-gradient-with-its-sign-lost", "sink", "grad_sink = -(torch", "grad_sink = (torch"),
    backward_featured("dk-of-capped-scores", "softcap", "b_dst *= b_bend", "b_dst *= 1.0"),
    backward_featured("dq-of-capped-scores", "softcap", "b_ds *= b_bend", "b_ds *= 1.0"),
    featured("bend-not-squared", "softcap", "1.0 - b_tanh * b_tanh", "1.0 - b_tanh"),
    featured("tanh-of-its-size", "softcap", "tl.where(x < 0.0, -y, y)", "y"),
    featured("alibi-top-left", "ALiBi", "tl.abs(o_m + diagonal - o_n)", "tl.abs(o_m - o_n)"),
    featured("alibi-with-a-sign", "ALiBi", "tl.abs(o_m + diagonal - o_n)", "(o_m + diagonal - o_n)"),
    featured("alibi-in-base-e", "ALiBi", "slope * BASE_2 * tl.abs", "slope * tl.abs"),
    scores("negative-scale-behind-the-mask", "wrong scale", " or scale <= 0,", ","),
    scores(
        "diagonal-hidden",
        "mask off by one",
        "live = o_n[None, :] <= last[:, None]",
        "live = o_n[None, :] < last[:, None]",
    ),
    scores("tail-not-masked", "tail not masked", "last = first + (skv - 1)", "last = first + (skv + 4095)"),
    featured(
        "window-one-short-on-the-left",
        "mask off by one",
        "first = tl.maximum(o_m + lower, 0)",
        "first = tl.maximum(o_m + lower + 1, 0)",
    ),
    featured(
        "window-left-edge-not-masked",
        "wrong mask",
        'if MASK == "band" or MASK == "documents":\n            live',
        'if MASK == "documents":\n            live',
    ),
    featured(
        "prefix-of-causal-rows-lost",
        "wrong mask",
        "tl.minimum(last, tl.maximum(o_m + diagonal, upper - 1))",
        "tl.minimum(last, o_m * 0 + upper - 1)",
    ),
    featured(
        "documents-not-causal",
        "wrong mask",
        "(first, own, own, last) if mask.causal",
        "(first, last, own, last) if mask.causal",
    ),
    featured(
        "boolean-by-row-of-queries",
        "transposed stride",
        "o_m[:, None] * tl.cast(skv, tl.int64)",
        "o_m[:, None] * tl.cast(skv - diagonal, tl.int64)",
    ),
    featured(
        "top-left-as-bottom-right",
        "wrong alignment",
        'kind, lower, upper = "band", -beyond, 0',
        'kind, lower, upper = "band", -beyond, diagonal',
    ),
    featured("window-top-left", "wrong alignment", "max(diagonal - left, -beyond)", "max(-left, -beyond)"),
    scores(
        "diagonal-tile-not-masked",
        "wrong block range",
        "tl.maximum(i_m + diagonal + 1, 0) // BN * BN",
        "tl.cdiv(tl.maximum(i_m + diagonal + 1, 0), BN) * BN",
    ),
    scores("last-tile-of-keys-lost", "wrong block range", "i_m + BM + diagonal)", "i_m + diagonal)"),
    featured(
        "first-tile-of-a-window-lost", "wrong block range", "return first // BN * BN", "return tl.cdiv(first, BN) * BN"
    ),
    featured(
        "edges-of-a-window-not-masked",
        "wrong block range",
        "(i_tile < i_left) | (i_tile >= i_full)",
        "i_tile >= i_full",
    ),
    transposed(
        "diagonal-hidden-from-dk",
        "mask off by one",
        "live = o_n[:, None] <= o_m[None, :] + diagonal",
        "live = o_n[:, None] < o_m[None, :] + diagonal",
    ),
    featured_backward(
        "queries-of-a-window-lost",
        "mask off by one",
        "last = tl.minimum(last, o_n - lower)",
        "last = tl.minimum(last, o_n - lower - 1)",
    ),
    featured_backward(
        "queries-of-a-prefix-lost",
        "wrong mask",
        "tl.where(o_n < upper, 0, tl.maximum(o_n - diagonal, 0))",
        "tl.maximum(o_n - diagonal, 0)",
    ),
    featured_backward(
        "first-tile-of-queries-lost",
        "wrong block range",
        "i_begin = first // BM * BM",
        "i_begin = tl.cdiv(first, BM) * BM",
    ),
    featured_backward(
        "last-tile-of-queries-lost",
        "wrong block range",
        '    i_end = last + 1\n    if MASK == "boolean":\n        i_full = 0\n    return i_begin',
        '    i_end = last // BM * BM\n    if MASK == "boolean":\n        i_full = 0\n    return i_begin',
    ),
    transposed(
        "dk-edge-not-masked", "wrong block range", "partial = i_tile < i_left\n", "partial = i_tile < i_left - 64\n"
    ),
    backward(
        "first-causal-tile-of-queries-lost",
        "wrong block range",
        "i_begin = tl.maximum(i_n - diagonal, 0) // BM * BM",
        "i_begin = tl.cdiv(tl.maximum(i_n - diagonal, 0), BM) * BM",
    ),
    tiles("tail-promised-even", "tail not masked", "k.shape[1] % config.block_n == 0", "k.shape[1] % 16 == 0"),
    tiles("copy-engine-s-and-h-swapped", "transposed stride", "for i in (0, 2, 1)", "for i in (0, 1, 2)"),
    Mutant(
        "flash-forward/mask-added",
        "NaN behind the mask",
        ("hidden-keys triton_flash",),
        (
            Edit(
                FORWARD,
                'b_s = tl.where(is_live(o_m, o_n, diagonal, skv, lower, upper, MASK), b_s, float("-inf"))',
                'b_s += tl.where(is_live(o_m, o_n, diagonal, skv, lower, upper, MASK), 0.0, float("-inf"))',
            ),
        ),
    ),
    Mutant(
        "flash-forward/lse-in-base-2-on-both-sides",
        "wrong LSE",
        ("lse",),
        (
            Edit(FORWARD, "(m + tl.log2(l_safe)) * LN2", "(m + tl.log2(l_safe))"),
            Edit(BACKWARD, "b_lse * BASE_2", "b_lse"),
        ),
    ),
    Mutant(
        "flash-forward/offset-of-batch-in-int32",
        "int32 offset",
        ("far-apart",),
        (Edit(FORWARD, "q += i_b * tl.cast(s_qb, tl.int64)", "q += i_b * s_qb"),),
    ),
    Mutant(
        "flash-tiles/rows-too-far-apart",
        "int32 offset",
        ("far-rows",),
        (Edit(TILES, " and t.stride(1) < MAX_ROW_STRIDE", ""),),
    ),
    Mutant(
        "flash-tiles/last-dim-taken-for-contiguous",
        "strided input",
        ("strided",),
        (Edit(TILES, "t.stride(3) == 1 and ", ""),),
    ),
)
