"""The kernel of append: a program has one new token of one sequence, with all its heads.

Letters: D and DV the head dims, HP, DP and DVP heads and head dims rounded up to a power of two, PAGE the keys of a
page (0: the cache is contiguous).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from attnkit.triton_device import current

__all__ = ["append_kernel", "launch"]


@triton.jit
def copy_token(
    p_new, p_cache, o_new, o_cache, s_nh, s_nd, s_ch, s_cd, fits, hkv,
    D: tl.constexpr, HP: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """All heads of one token, from a row of the new ones to a row of the cache."""
    o_h = tl.arange(0, HP)[:, None]
    o_d = tl.arange(0, DP)[None, :]
    m = (o_h < hkv) & (o_d < D) & fits
    b_row = tl.load(p_new + (o_new + o_h * tl.cast(s_nh, tl.int64) + o_d * tl.cast(s_nd, tl.int64)), mask=m)
    tl.store(p_cache + (o_cache + o_h * tl.cast(s_ch, tl.int64) + o_d * tl.cast(s_cd, tl.int64)), b_row, mask=m)


@triton.jit(do_not_specialize=["s", "room"])
def append_kernel(
    p_k, p_v, p_k_cache, p_v_cache, p_lengths, p_table,
    s_kb, s_ks, s_kh, s_kd, s_vb, s_vs, s_vh, s_vd, s_kcb, s_kcs, s_kch, s_kcd, s_vcb, s_vcs, s_vch, s_vcd, s_tb,
    s, room, hkv,
    D: tl.constexpr, DP: tl.constexpr, DV: tl.constexpr, DVP: tl.constexpr, HP: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    i_b = tl.program_id(0) // s
    i_s = tl.program_id(0) % s
    i_row = tl.load(p_lengths + i_b) + i_s
    fits = i_row < room
    i_block = i_b
    if PAGE != 0:
        i_block = tl.load(p_table + i_b * tl.cast(s_tb, tl.int64) + i_row // PAGE, mask=fits, other=0)
        i_row = i_row % PAGE
    o_k = i_b * tl.cast(s_kb, tl.int64) + i_s * tl.cast(s_ks, tl.int64)
    o_v = i_b * tl.cast(s_vb, tl.int64) + i_s * tl.cast(s_vs, tl.int64)
    o_k_cache = i_block * tl.cast(s_kcb, tl.int64) + i_row * tl.cast(s_kcs, tl.int64)
    o_v_cache = i_block * tl.cast(s_vcb, tl.int64) + i_row * tl.cast(s_vcs, tl.int64)
    copy_token(p_k, p_k_cache, o_k, o_k_cache, s_kh, s_kd, s_kch, s_kcd, fits, hkv, D, HP, DP)
    copy_token(p_v, p_v_cache, o_v, o_v_cache, s_vh, s_vd, s_vch, s_vcd, fits, hkv, DV, HP, DVP)


def launch(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    table: torch.Tensor | None,
) -> None:
    """k ``[b, s, hkv, d]`` and v ``[b, s, hkv, dv]`` into their caches, contiguous or with a table in pages."""
    b, s, hkv, d = k.shape
    dv, page = v.shape[3], k_cache.shape[1]
    if b * s == 0:
        return
    with current(k.device):
        append_kernel[(b * s,)](
            k, v, k_cache, v_cache, lengths, lengths if table is None else table,
            *k.stride(), *v.stride(), *k_cache.stride(), *v_cache.stride(), 0 if table is None else table.stride(0),
            s, page if table is None else table.shape[1] * page, hkv,
            D=d, DP=triton.next_power_of_2(d), DV=dv, DVP=triton.next_power_of_2(dv), HP=triton.next_power_of_2(hkv),
            PAGE=0 if table is None else page,
        )  # fmt: skip
