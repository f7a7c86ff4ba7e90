"""Masks and scores of our Triton kernels: which tiles a mask hides, what it hides in a tile, and how a cap bends."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

import triton
import triton.language as tl

from attnkit.mask import Boolean, Mask
from attnkit.problem import Problem
from attnkit.testing import masks
from attnkit.triton_scores import (
    first_tile,
    is_live,
    is_live_transposed,
    is_partial,
    keys_of,
    mask_arguments,
    queries_of,
    tanh,
)
from tests.attnkit import by_hand

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BM, BN = 16, 32
EXAMPLES = max(1, settings().max_examples // 2)


@triton.jit
def note(p_live, p_visited, p_masked, o_tile, inside, live, partial):
    tl.store(p_live + o_tile, live.to(tl.int8), mask=inside)
    tl.store(p_visited + o_tile, tl.where(inside, 1, 0).to(tl.int8), mask=inside)
    tl.store(p_masked + o_tile, tl.where(inside & partial, 1, 0).to(tl.int8), mask=inside)


@triton.jit
def keys_kernel(
    p_live, p_visited, p_masked, sq, skv, lower, upper, BM: tl.constexpr, BN: tl.constexpr, MASK: tl.constexpr
):
    i_m = tl.program_id(0) * BM
    o_m = i_m + tl.arange(0, BM)
    diagonal = skv - sq
    i_left, i_full, i_end = keys_of(i_m, diagonal, skv, lower, upper, BM, BN, MASK)
    i_begin = 0
    if MASK == "band" or MASK == "documents":
        i_begin = first_tile(i_m, diagonal, skv, lower, upper, BN, MASK)
    for i_n in tl.range(i_begin, i_end, BN):
        o_n = i_n + tl.arange(0, BN)
        inside = (o_m < sq)[:, None] & (o_n < skv)[None, :]
        live = is_live(o_m, o_n, diagonal, skv, lower, upper, MASK)
        partial = is_partial(i_n, i_left, i_full, MASK, "keys")
        note(p_live, p_visited, p_masked, o_m[:, None] * skv + o_n[None, :], inside, live, partial)


@triton.jit
def queries_kernel(
    p_live, p_visited, p_masked, sq, skv, lower, upper, BM: tl.constexpr, BN: tl.constexpr, MASK: tl.constexpr
):
    i_n = tl.program_id(0) * BN
    o_n = i_n + tl.arange(0, BN)
    diagonal = skv - sq
    i_begin, i_left, i_full, i_end = queries_of(i_n, diagonal, sq, lower, upper, BM, BN, MASK)
    for i_m in tl.range(i_begin, i_end, BM):
        o_m = i_m + tl.arange(0, BM)
        inside = (o_m < sq)[None, :] & (o_n < skv)[:, None]
        live = is_live_transposed(o_m, o_n, diagonal, sq, lower, upper, MASK)
        partial = is_partial(i_m, i_left, i_full, MASK, "queries")
        note(p_live, p_visited, p_masked, o_m[None, :] * skv + o_n[:, None], inside, live, partial)


def by_tiles(x: torch.Tensor) -> torch.Tensor:
    """[tiles of queries, tiles of keys, elements]; what lies outside of x repeats its edge."""

    def tiled(size: int, step: int) -> torch.Tensor:
        return torch.arange(triton.cdiv(size, step) * step).clamp_max(size - 1)

    x = x[tiled(x.shape[0], BM)][:, tiled(x.shape[1], BN)]
    return x.unflatten(1, (-1, BN)).unflatten(0, (-1, BM)).transpose(1, 2).flatten(2)


@st.composite
def sizes_and_masks(draw: st.DrawFn) -> tuple[int, int, Mask]:
    sq = draw(st.integers(1, 100))
    skv = draw(st.just(sq) | st.integers(1, 100))
    # full and causal have code of their own in the kernels that own keys
    return sq, skv, draw(masks(sq, skv).filter(lambda mask: mask not in ("full", "causal")))


@pytest.mark.parametrize("of", ["keys", "queries"])
def test_tiles_that_a_mask_hides_are_not_visited_and_those_it_cuts_are_masked(of: str) -> None:
    @settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
    @given(drawn=sizes_and_masks())
    def law(drawn: tuple[int, int, Mask]) -> None:
        sq, skv, mask = drawn
        seen = torch.tensor(by_hand.seen(Problem(b=1, hq=1, sq=sq, skv=skv, d=16, mask=mask)))
        found = torch.zeros((3, sq, skv), dtype=torch.int8, device=DEVICE)
        if of == "keys":
            arguments = mask_arguments(mask, sq, skv, DEVICE, "queries")
            keys_kernel[(triton.cdiv(sq, BM),)](*found, sq, skv, BM=BM, BN=BN, **arguments)
        else:
            arguments = mask_arguments(mask, sq, skv, DEVICE, "keys")
            queries_kernel[(triton.cdiv(skv, BN),)](*found, sq, skv, BM=BM, BN=BN, **arguments)
        live, visited, masked = found.bool().cpu()
        assert torch.equal(live, seen & visited)
        if isinstance(mask, Boolean):
            assert visited.all()
            assert masked.all()
            return
        tiles = by_tiles(seen)
        some, every = tiles.any(-1), tiles.all(-1)
        assert torch.equal(by_tiles(visited).any(-1), some)
        masked = by_tiles(masked).any(-1)
        assert torch.equal(masked | every, some | every)
        # where the last tile is ragged it is masked whatever it sees
        whole = (slice(None), slice(skv // BN)) if of == "keys" else (slice(sq // BM), slice(None))
        assert not (masked & every)[whole].any()

    law()


@triton.jit
def tanh_kernel(p_x, p_y):
    o_x = tl.arange(0, 1024)
    tl.store(p_y + o_x, tanh(tl.load(p_x + o_x)))


def test_a_hyperbolic_tangent_is_right_to_a_few_units_of_its_last_place() -> None:
    x = torch.cat([torch.linspace(-4, 4, 512), torch.logspace(-30, 5, 510), torch.tensor([0.0, -1e30])]).to(DEVICE)
    y = torch.empty_like(x)
    tanh_kernel[(1,)](x, y)
    truth = x.double().tanh()
    assert ((y.double() - truth).abs() <= 4 * torch.finfo(torch.float32).eps * truth.abs()).all()
