"""triton_splitkv: however the keys are split, paged and how many there are, it is attention on those that are there."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from attnkit import oracle
from attnkit.mask import Documents, Mask, Prefix, Window
from attnkit.problem import Problem
from attnkit.variants import naive, triton_splitkv
from attnkit.variants.triton_splitkv import Workspace, attend
from attnkit.variants.triton_splitkv_tiles import Form, choose, choose_splits, whole_form
from attnkit.varlen import cut

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BLOCK_N = Form().block_n
EXAMPLES = max(1, settings().max_examples // 5)
SPLITS = (None, 2, 3, 7)
FORMS = (Form(apart=False), Form(), Form(block_n=32, again=False, apart=False), Form(block_n=128, again=False))
MASKS: tuple[Mask, ...] = ("causal", "full", Window(9, 0), Window(70, 2), Window(200, None), Prefix(20))
CACHES = (1, 2, 5, BLOCK_N, BLOCK_N + 1, 3 * BLOCK_N - 1, 3 * BLOCK_N, 4 * BLOCK_N + 1)
"""Fewer keys than queries, and whole tiles of keys and not."""


def error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm().clamp_min(1e-30))


def in_pages(t: torch.Tensor, page: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``t [b, s, h, d]`` in pages that lie in any order, NaN where nothing is, and the table that finds them."""
    b, s, h, d = t.shape
    n = -(-s // page)
    order = torch.randperm(b * n + 3, generator=torch.Generator().manual_seed(seed))[: b * n]
    pages = torch.full((b * n + 3, page, h, d), float("nan"), dtype=t.dtype)
    table = order.int().view(b, n)
    for i in range(b):
        for j in range(n):
            rows = t[i, j * page : (j + 1) * page].cpu()
            pages[table[i, j], : len(rows)] = rows
    return pages.to(DEVICE), table.to(DEVICE)


def test_many_rows_of_wide_heads_in_float32_are_refused() -> None:
    q, k = (torch.zeros(1, s, h, 136, device=DEVICE) for s, h in ((5, 4), (20, 1)))
    said = "must be at most 16 in float32 with heads wider than 128, got 5 x 4: take 16 bits"
    with pytest.raises(ValueError, match=said):
        attend(q, k, k)
    problem = Problem(b=1, hq=4, hkv=1, sq=5, skv=20, d=136, dtype="fp32", mask="causal")
    assert said in str(triton_splitkv.VARIANT.rejects(problem, torch.device(DEVICE), "fwd"))
    assert attend(q.half(), k.half(), k.half()).shape == q.shape
    assert attend(q[:, :4], k, k).shape == (1, 4, 4, 136)


@settings(max_examples=EXAMPLES)
@given(
    b=st.integers(1, 2),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3), (5, 1)]),
    sq=st.integers(1, 8),
    skv=st.sampled_from(CACHES) | st.integers(1, 300),
    d=st.sampled_from([16, 24, 64]),
    page=st.sampled_from([None, 1, 16, 48]),
    dtype=st.sampled_from(["fp32", "bf16"]),
    full=st.booleans(),
    splits=st.sampled_from(SPLITS),
    modifiers=st.sampled_from([{}, {}, {"softcap": 2.0}, {"alibi": True, "sink": True}]),
    seed=st.integers(0, 3),
)
@example(
    # queries that see no key of any split
    b=1, heads=(2, 1), sq=8, skv=5, d=16, page=None, dtype="fp32", full=True, splits=3, modifiers={}, seed=0
)  # fmt: skip
@example(
    # tiles that the splits do not divide
    b=1, heads=(2, 1), sq=2, skv=300, d=16, page=None, dtype="fp32", full=True, splits=3, modifiers={}, seed=0
)  # fmt: skip
def test_any_split_of_any_cache_is_attention_on_the_keys_that_are_there(
    b: int,
    heads: tuple[int, int],
    sq: int,
    skv: int,
    d: int,
    page: int | None,
    dtype: str,
    full: bool,
    splits: int | None,
    modifiers: dict[str, Any],
    seed: int,
) -> None:
    hq, hkv = heads
    problem = Problem(b=b, hq=hq, hkv=hkv, sq=sq, skv=skv, d=d, dtype=dtype, **modifiers)
    q, k, v, _ = problem.inputs(DEVICE, seed)
    lengths = torch.randint(1, skv + 1, (b,), generator=torch.Generator().manual_seed(seed)).int()
    if full:
        lengths[-1] = skv
    # what lies behind a sequence's length must not be read
    for i, length in enumerate(lengths):
        k[i, length:] = float("nan")
        v[i, length:] = float("nan")
    table = None
    keys, values = k, v
    if page is not None:
        keys, table = in_pages(k, page, seed)
        values, _ = in_pages(v, page, seed)
    # every mask on one cache, whole and split: of what is drawn one by one, little is long, masked and split at once
    for turn, (mask, parts) in enumerate(itertools.product(MASKS, (1, splits))):
        form = FORMS[(turn + seed) % len(FORMS)]
        options = problem.options(DEVICE, seed) | {"mask": mask}
        out = attend(q, keys, values, lengths.to(DEVICE), table=table, splits=parts, form=form, **options)
        for i, length in enumerate(lengths):
            one = (q[i : i + 1], k[i : i + 1, :length], v[i : i + 1, :length])
            truth = oracle.forward(*one, **options)[0]
            plain = naive.VARIANT.attention(*one, **options | {"mask": cut(mask, int(length))})
            # both round P and the output; ours rounds P before it is normalised, and of few keys naive's may be exact
            allowed = 1.5 * error(plain, truth) + torch.finfo(q.dtype).eps / 2 + 1e-6
            assert error(out[i : i + 1], truth) <= allowed, f"{mask} in {parts} splits, {form}"


@pytest.mark.parametrize("right", [0, 9, None])
def test_a_window_wider_than_queries_and_keys_together_hides_nothing_more(right: int | None) -> None:
    problem = Problem(b=1, hq=1, sq=8, skv=5, d=16, dtype="fp32", mask=Window(50, right))
    q, k, v, _ = problem.inputs(DEVICE)
    torch.testing.assert_close(attend(q, k, v, mask=problem.mask), naive.VARIANT.attention(q, k, v, mask=problem.mask))


@pytest.mark.parametrize("splits", [1, 3])
def test_keys_before_a_window_are_not_read(splits: int) -> None:
    q, k, v, _ = Problem(b=1, hq=2, sq=2, skv=300, d=16, dtype="fp32").inputs(DEVICE)
    window = Window(100, 0)
    expected = attend(q, k, v, mask=window, splits=splits)
    begin = (300 - 2 - 100) // BLOCK_N * BLOCK_N
    k[:, :begin], v[:, :begin] = float("nan"), float("nan")
    assert torch.equal(attend(q, k, v, mask=window, splits=splits), expected)


def test_one_length_may_stand_for_all() -> None:
    q, k, v, _ = Problem(b=3, hq=2, sq=1, skv=90, d=32, dtype="fp32").inputs(DEVICE)
    length = torch.tensor([70, 1, 1], dtype=torch.int32, device=DEVICE)[:1]
    expected = attend(q, k[:, :70], v[:, :70], splits=2)
    torch.testing.assert_close(attend(q, k, v, length.expand(3), splits=2), expected)


def test_splits_are_combined_in_one_order_so_results_repeat() -> None:
    q, k, v, _ = Problem(b=2, hq=4, hkv=2, sq=2, skv=500, d=32, dtype="fp32").inputs(DEVICE)
    first = attend(q, k, v, splits=5)
    assert all(torch.equal(attend(q, k, v, splits=5), first) for _ in range(3))


@pytest.mark.parametrize("form", [Form(apart=False), Form()], ids=["last", "apart"])
def test_many_splits_are_combined_a_few_at_a_time(form: Form) -> None:
    problem = Problem(b=1, hq=4, hkv=1, sq=2, skv=3000, d=32, dtype="fp32", mask="causal")
    q, k, v, _ = problem.inputs(DEVICE)
    truth = oracle.forward(q, k, v, **problem.options(DEVICE))[0]
    # more that have keys than are read at a time, and some that have none
    assert error(attend(q, k, v, splits=100, form=form), truth) <= 1e-5


def test_a_workspace_serves_call_after_call() -> None:
    q, k, v, _ = Problem(b=2, hq=4, hkv=2, sq=1, skv=300, d=32, dtype="fp32").inputs(DEVICE)
    workspace = Workspace.of(2, 2, 2, 32, DEVICE)
    expected = attend(q, k, v, splits=4)
    for form in [Form(apart=False), Form()] * 3:
        workspace.partial.fill_(float("nan"))
        assert torch.equal(attend(q, k, v, splits=4, workspace=workspace, form=form), expected)
        assert not workspace.arrived.any()


def test_every_element_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def poisoned(*size: Any, **options: Any) -> torch.Tensor:
        made = empty(*size, **options)
        return made.fill_(float("nan") if made.is_floating_point() else -7)

    monkeypatch.setattr(torch, "empty", poisoned)
    q, k, v, _ = Problem(b=1, hq=3, hkv=1, sq=5, skv=3, d=24, dv=40, dtype="fp32").inputs(DEVICE)
    out = attend(q, k, v, splits=3)
    assert torch.equal(out[:, :2], torch.zeros_like(out[:, :2])), "two queries see no key"
    assert out.isfinite().all()


def test_keys_are_split_where_heads_are_few_and_then_combined_apart() -> None:
    cpu = torch.device("cpu")
    few = choose(torch.bfloat16, 8, 128, 128, 4, 4096, cpu)
    assert few == (Form(apart=True), choose_splits(4, 4096, cpu))
    assert few[1] > 1
    assert whole_form(torch.bfloat16, 8, 128, 128, 9) == Form(block_n=128)
    assert whole_form(torch.bfloat16, 8, 128, 128, 8) is None, "shared memory of an Ampere is too small"
    for dtype, rows, d in [(torch.float32, 8, 128), (torch.bfloat16, 32, 128), (torch.bfloat16, 8, 256)]:
        assert whole_form(dtype, rows, d, d, 9) is None
    assert choose(torch.float32, 32, 256, 16, 1024, 4096, cpu)[0] == Form(stages=2, again=False, apart=True)


@pytest.mark.parametrize("heads", [1, 4, 32, 133, 1024])
@pytest.mark.parametrize("longest", [1, 64, 1000, 4096, 131072])
def test_the_chosen_splits_leave_no_processor_much_more_than_its_share(heads: int, longest: int) -> None:
    splits = choose_splits(heads, longest, torch.device("cpu"))
    tiles = -(-longest // BLOCK_N)
    assert 1 <= splits <= min(tiles, 128)
    if tiles == 1:
        assert splits == 1
    slots = 132

    def tiles_in_a_row(splits: int) -> int:
        return -(-heads * splits // slots) * -(-tiles // splits)

    # no split at all is a choice too, and so is the finest; combining may cost what a few tiles do
    assert tiles_in_a_row(splits) <= tiles_in_a_row(1)
    assert tiles_in_a_row(splits) <= 2 * min(map(tiles_in_a_row, range(1, min(tiles, 128) + 1))) + 2 + 128 // 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": (1, 9, 4, 32)}, "sq must be at most 8, got 9"),
        ({"q": (1, 1, 3, 32)}, "hkv must divide hq, got hq=3 and hkv=2"),
        ({"q": (2, 1, 4, 32)}, "one batch, got 2 and 1: pages need a table"),
        ({"k": (1, 5, 2, 32)}, r"q must be \[b, sq, hq, d\]"),
        (
            {"mask": "causal-top-left", "lengths": torch.ones(1, dtype=torch.int32)},
            "the mask of sequences must be full, causal, a Window or a Prefix, got 'causal-top-left'",
        ),
        ({"mask": Documents((9,))}, "sum to sq = skv, got 9, sq=1"),
        ({"mask": "diagonal"}, "mask must be one of"),
        ({"sink": torch.zeros(3)}, r"sink must be \[4\], float32 on .*, got \[3\]"),
        ({"splits": 0}, "splits must be from 1 to 128, got 0"),
        ({"lengths": torch.ones(1)}, r"lengths must be int32 \[1\], got torch.float32"),
        ({"table": torch.zeros(1, 2, dtype=torch.int32)}, "needs lengths"),
        ({"workspace": Workspace.of(1, 1, 1, 8, DEVICE)}, "the workspace is too small"),
    ],
    ids=lambda part: part if isinstance(part, str) else next(iter(part)),
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    arguments = {"q": (1, 1, 4, 32), "k": (1, 9, 2, 32), "v": (1, 9, 2, 32)} | change
    tensors = {name: torch.zeros(x, device=DEVICE) if isinstance(x, tuple) else x for name, x in arguments.items()}
    with pytest.raises(ValueError, match=message):
        attend(**tensors)  # type: ignore[arg-type]


def test_what_it_cannot_do_it_says() -> None:
    rejects = triton_splitkv.VARIANT.rejects
    assert "backward" in (rejects(Problem(b=1, hq=1, sq=1, d=16), DEVICE, "bwd") or "")
    assert "sq must" in (rejects(Problem(b=1, hq=1, sq=9, d=16), DEVICE, "fwd") or "")
    assert "128" in (rejects(Problem(b=1, hq=32, hkv=1, sq=8, d=16), DEVICE, "fwd") or "")
    assert rejects(Problem(b=1, hq=16, hkv=1, sq=8, skv=9, d=256), DEVICE, "fwd") is None
