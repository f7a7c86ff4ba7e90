"""Append: what is in the cache then is what was in it and the new rows, and attention on it is that on both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

import attnkit
from attnkit.append import append, append_plain
from attnkit.problem import Cache, Layout, Problem
from attnkit.variants import naive, triton_flash
from attnkit.variants.triton_splitkv import attend

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EXAMPLES = max(1, settings().max_examples // 3)
PAGES = (None, 1, 5, 16)


def room_for(lengths: tuple[int, ...], s: int, page: int | None, layout: Layout = "bshd", seed: int = 0) -> Problem:
    """A problem whose cache has the lengths that there are after s tokens more; its inputs are those after them."""
    longer = tuple(n + s for n in lengths)
    return Problem(
        b=len(lengths), hq=4, hkv=2, sq=s, skv=max(longer) + seed, d=24, dv=16, dtype="fp32", mask="causal",
        layout=layout, cache=Cache(longer, page),
    )  # fmt: skip


def taken_back(problem: Problem, held: torch.Tensor, s: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The cache as it was before its last s tokens, which are not numbers in it, and these, [b, s, hkv, d]."""
    assert problem.cache is not None
    before, new = held.clone(), []
    table, page = problem.options(DEVICE).get("table"), held.shape[1]
    for n, length in enumerate(problem.cache.lengths):
        places = [divmod(i, page) for i in range(length - s, length)]
        where = [(n if table is None else int(table[n, block]), row) for block, row in places]
        new.append(torch.stack([held[place] for place in where]))
        for place in where:
            before[place] = torch.nan
    return before, torch.stack(new)


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


drawn = given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=3).map(tuple),
    s=st.integers(1, 8),
    page=st.sampled_from(PAGES),
    layout=st.sampled_from(["bshd", "bhsd", "padded"]),
    spare=st.integers(0, 9),
)


@settings(max_examples=EXAMPLES)
@drawn
def test_the_cache_then_holds_the_new_rows_and_what_it_held(
    lengths: tuple[int, ...], s: int, page: int | None, layout: Layout, spare: int
) -> None:
    problem = room_for(lengths, s, page, layout, spare)
    _, k, v, _ = problem.inputs(DEVICE)
    (k_before, new_k), (v_before, new_v) = (taken_back(problem, x, s) for x in (k, v))
    table = problem.options(DEVICE).get("table")
    there = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    for way in (append, append_plain):
        k_cache, v_cache = k_before.clone(), v_before.clone()
        way(new_k, new_v, k_cache, v_cache, there, table)
        same(k_cache, k)
        same(v_cache, v)
    assert there.tolist() == [*lengths]


@settings(max_examples=max(1, EXAMPLES // 3))
@drawn
def test_append_then_attend_is_attention_on_both(
    lengths: tuple[int, ...], s: int, page: int | None, layout: Layout, spare: int
) -> None:
    problem = room_for(lengths, s, page, layout, spare)
    q, k, v, _ = problem.inputs(DEVICE)
    options = problem.options(DEVICE)
    expected = attend(q, k, v, **options, splits=2)
    (k_cache, new_k), (v_cache, new_v) = (taken_back(problem, x, s) for x in (k, v))
    # a token after the other is all at once
    for i in range(s):
        there = torch.tensor([n + i for n in lengths], dtype=torch.int32, device=DEVICE)
        append(new_k[:, i : i + 1], new_v[:, i : i + 1], k_cache, v_cache, there, options.get("table"))
    assert torch.equal(attend(q, k_cache, v_cache, **options, splits=2), expected)


@pytest.mark.parametrize("page", PAGES[1:])
def test_where_pages_lie_changes_no_bit(page: int) -> None:
    problem = room_for((30, 0, 17), 3, page)
    q, k, v, _ = problem.inputs(DEVICE)
    options = problem.options(DEVICE)
    expected = attend(q, k, v, **options, splits=2)
    order = torch.randperm(k.shape[0], generator=torch.Generator().manual_seed(1)).to(DEVICE)
    # page n moves to where order has it
    moved = dict(options) | {"table": order.argsort()[options["table"]].int()}
    assert torch.equal(attend(q, k[order], v[order], **moved, splits=2), expected)
    assert torch.equal(naive.attention(q, k[order], v[order], **moved), naive.attention(q, k, v, **options))


@pytest.mark.parametrize("page", PAGES)
def test_a_prompt_and_then_a_token_after_the_other_is_the_whole_at_once(page: int | None) -> None:
    tokens, prompt = 40, 33
    whole = Problem(b=2, hq=4, hkv=2, sq=tokens, d=16, dtype="fp32", mask="causal", alibi=True)
    q, k, v, _ = whole.inputs(DEVICE)
    alibi = whole.options(DEVICE)["alibi"]
    expected = triton_flash.attention(q, k, v, mask="causal", alibi=alibi)
    cache = Cache((tokens, tokens), page)
    table = None if page is None else cache.table(tokens).to(DEVICE)
    k_cache, v_cache = (torch.full_like(cache.placed(x), torch.nan) for x in (k, v))
    for begin, end in ((0, prompt), *((i, i + 1) for i in range(prompt, tokens))):
        there = torch.full((2,), begin, dtype=torch.int32, device=DEVICE)
        append(k[:, begin:end], v[:, begin:end], k_cache, v_cache, there, table)
        if end > prompt:
            out = attend(q[:, begin:end], k_cache, v_cache, there + 1, table=table, alibi=alibi)
            torch.testing.assert_close(out, expected[:, begin:end])


@pytest.mark.parametrize("way", [append, append_plain])
@pytest.mark.parametrize("page", [None, 4])
def test_what_there_is_no_room_for_is_not_written(way: object, page: int | None) -> None:
    new = torch.ones(2, 3, 1, 8, device=DEVICE)
    cache = torch.zeros((2, 8, 1, 8) if page is None else (4, 4, 1, 8), device=DEVICE)
    table = None if page is None else torch.tensor([[0, 1], [2, 3]], dtype=torch.int32, device=DEVICE)
    lengths = torch.tensor([6, 8], dtype=torch.int32, device=DEVICE)
    way(new, new, cache, cache.clone(), lengths, table)  # type: ignore[operator]
    assert cache.view(2, 8, 8)[:, :, 0].tolist() == [[0] * 6 + [1] * 2, [0] * 8]


def test_pages_may_lie_more_than_two_to_the_31_elements_apart() -> None:
    # memory that is never touched is never taken
    memory = torch.empty(2**31 + 64, dtype=torch.float16, device=DEVICE)
    cache = memory.as_strided((3, 2, 1, 16), (2**30, 16, 16, 1))
    table, lengths = (torch.tensor(x, dtype=torch.int32, device=DEVICE) for x in ([[0, 2]], [3]))
    new = torch.arange(16, dtype=torch.float16, device=DEVICE).view(1, 1, 1, 16)
    append(new, new, cache, cache, lengths, table)
    assert torch.equal(cache[2, 1], new[0, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (1, 1, 2)}, r"k must be \[b, s, hkv, d\]"),
        ({"k_cache": (1, 9, 3, 8)}, r"the cache of k must be \[1, 9, 2, 8\], got \[1, 9, 3, 8\]"),
        ({"v_cache": (1, 8, 2, 8)}, r"the cache of v must be \[1, 9, 2, 8\], got \[1, 8, 2, 8\]"),
        ({"k_cache": (2, 9, 2, 8), "v_cache": (2, 9, 2, 8)}, "one batch, got 1 and 2: pages need a table"),
        ({"v": torch.zeros(1, 1, 2, 8, dtype=torch.float16)}, "v and its cache must have one dtype and device"),
        ({"lengths": torch.zeros(1)}, r"lengths must be int32 \[1\], got torch.float32"),
        ({"table": torch.zeros(2, 2, dtype=torch.int32)}, r"table must be int32 \[1, n\], got torch.int32 \[2, 2\]"),
    ],
    ids=lambda part: part if isinstance(part, str) else next(iter(part)),
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    arguments = {"k": (1, 1, 2, 8), "v": (1, 1, 2, 8), "k_cache": (1, 9, 2, 8), "v_cache": (1, 9, 2, 8)} | change
    arguments.setdefault("lengths", torch.zeros(1, dtype=torch.int32))
    tensors = {name: torch.zeros(x) if isinstance(x, tuple) else x for name, x in arguments.items()}
    with pytest.raises(ValueError, match=message):
        append(**tensors)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the kernel is compiled")
def test_where_no_kernel_runs_it_says_so() -> None:
    code = """
import torch
from attnkit.append import append

new, cache = torch.zeros(1, 1, 1, 8), torch.zeros(1, 9, 1, 8)
try:
    append(new, new, cache, cache, torch.zeros(1, dtype=torch.int32))
except RuntimeError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(attnkit.__file__).parents[1]), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.startswith("append is a Triton kernel: runs on a CUDA device, got cpu")
