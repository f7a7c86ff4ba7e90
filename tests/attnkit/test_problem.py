"""Problems: names, sizes, work by counting, and inputs that are what the layout says."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnkit import mask
from attnkit.cache import Cache
from attnkit.mask import PLAIN, Boolean, Documents, Mask, Prefix, Window, dense, live_keys, live_pairs
from attnkit.problem import DTYPES, LAYOUTS, PADDING, Problem
from attnkit.varlen import Varlen
from tests.attnkit.by_hand import alone, seen
from tests.attnkit.strategies import UNCACHED, problems

SMALL: dict[str, Any] = {"b": 1, "hq": 4, "sq": 8, "d": 16}


def pairs(problem: Problem) -> int:
    """Count the pairs of a query and a key it sees, one by one."""
    return sum(map(sum, seen(problem)))


@given(problem=problems(UNCACHED))
def test_live_pairs_are_those_that_one_counts(problem: Problem) -> None:
    assert problem.live_pairs == pairs(problem)


def small_masks(sq: int, skv: int) -> Iterator[Mask]:
    """Every mask there is of these sizes, but few boolean ones."""
    yield from PLAIN
    reach = (None, *range(max(sq, skv) + 2))
    yield from (Window(left, right) for left in reach for right in reach if left is not None or right)
    yield from map(Prefix, range(1, skv + 1))
    yield from (Boolean(density) for density in (0.0, 0.3, 1.0))
    if sq == skv:
        cuts = (cut for n in range(sq) for cut in itertools.combinations(range(1, sq), n))
        lengths = (tuple(end - begin for begin, end in itertools.pairwise((0, *cut, sq))) for cut in cuts)
        yield from (Documents(parts, causal) for parts in lengths for causal in (True, False))


@pytest.mark.parametrize("skv", range(1, 5))
@pytest.mark.parametrize("sq", range(1, 5))
def test_every_mask_of_a_few_queries_and_keys_is_what_one_counts(sq: int, skv: int) -> None:
    for one in small_masks(sq, skv):
        rows = seen(Problem(b=1, hq=1, sq=sq, skv=skv, d=8, mask=one))
        assert dense(one, sq, skv, "cpu").tolist() == rows, one
        assert live_pairs(one, sq, skv) == sum(map(sum, rows)), one
        assert live_keys(one, sq, skv) == sum(map(any, zip(*rows, strict=True))), one


@given(problem=problems(UNCACHED))
def test_a_mask_in_memory_is_its_definition(problem: Problem) -> None:
    assert dense(problem.mask, problem.sq, problem.skv, "cpu").tolist() == alone(problem.mask, problem.sq, problem.skv)


@pytest.mark.parametrize("mask", ["full", "causal", Window(1, 0), Window(0, 2), Window(None, 1), Prefix(2)], ids=str)
def test_live_keys_and_pairs_of_packed_sequences_are_what_one_counts(mask: Mask) -> None:
    lengths = list(itertools.product(range(4), repeat=2))
    for first, second in itertools.product(lengths, repeat=2):
        packed = Varlen(*zip(first, second, strict=True))
        sq, skv = sum(packed.queries), sum(packed.keys)
        if sq and skv >= 2:
            problem = Problem(b=1, hq=1, sq=sq, skv=skv, d=8, mask=mask, varlen=packed)
            rows = seen(problem)
            assert problem.live_pairs == sum(map(sum, rows))
            assert problem.live_keys == sum(map(any, zip(*rows, strict=True)))


CACHED = Problem(b=3, hq=4, hkv=2, sq=2, skv=20, d=8, dtype="fp32", cache=Cache((20, 0, 7)))


@pytest.mark.parametrize("layout", ["bshd", "bhsd", "padded"])
@pytest.mark.parametrize("page", [None, 1, 6, 32])
def test_a_cache_holds_the_numbers_of_a_batch_and_none_behind_its_lengths(page: int | None, layout: Any) -> None:
    plain = dataclasses.replace(CACHED, cache=None).inputs("cpu")
    problem = dataclasses.replace(CACHED, cache=Cache((20, 0, 7), page), layout=layout)
    inputs, options = problem.inputs("cpu"), problem.options("cpu")
    assert options["lengths"].tolist() == [20, 0, 7]
    assert torch.equal(inputs.q, plain.q)
    for held, numbers in ((inputs.k, plain.k), (inputs.v, plain.v)):
        rows = held if page is None else held[options["table"]].flatten(1, 2)
        for n, length in enumerate((20, 0, 7)):
            assert torch.equal(rows[n, :length], numbers[n, :length])
            assert rows[n, length:].isnan().all()
        assert int((~held.isnan()).sum()) == 27 * 2 * 8, "nothing else is a number"


def test_pages_lie_in_another_order_than_keys_and_none_is_taken_twice() -> None:
    table = Cache((40, 9, 33), 4).table(40)
    used = [int(page) for row, length in zip(table, (40, 9, 33), strict=True) for page in row[: -(-length // 4)]]
    assert len({*used}) == len(used)
    assert used != sorted(used)
    assert 0 not in used
    assert not table[1, 3:].any()


@given(problem=problems(("window", "prefix", "alibi", "cache", "paged")))
def test_what_is_cached_is_packed_sequences(problem: Problem) -> None:
    packed, inputs = problem.packed(problem.inputs("cpu"))
    assert packed.cache is None
    assert packed.flops("fwd") == problem.flops("fwd")
    if problem.cache is None:
        assert packed == problem
        return
    assert packed.varlen == Varlen((problem.sq,) * problem.b, problem.cache.lengths)
    assert all(x.float().isfinite().all() for x in inputs)
    assert inputs.k.shape == (1, sum(problem.cache.lengths), problem.hkv, problem.d)
    pages = 0 if problem.cache.page is None else sum(-(-n // problem.cache.page) for n in problem.cache.lengths)
    # where sequences begin is no matter of a cache: it has lengths, and perhaps a table
    assert problem.bytes("fwd") - packed.bytes("fwd") == 4 * (problem.b + pages) - 8 * (problem.b + 1)


def test_what_is_cached_is_not_sliced_before_it_is_packed() -> None:
    with pytest.raises(ValueError, match="what is cached must be packed before it is sliced"):
        CACHED.slice(0, 0)


def test_sequences_lie_behind_each_other() -> None:
    packed = Varlen((3, 0, 2), (1, 4, 0))
    assert [tuple(starts.tolist()) for starts in packed.starts(torch.device("cpu"))] == [(0, 3, 3, 5), (0, 1, 5, 5)]
    assert [*packed.slices()] == [(slice(0, 3), slice(0, 1)), (slice(3, 3), slice(1, 5)), (slice(3, 5), slice(5, 5))]


def test_the_head_of_a_module_draws_its_masks_right() -> None:
    title, *rows = (
        line.split() for line in str(mask.__doc__).split("Here sq = 3 and skv = 5:\n\n")[1].splitlines()[:4]
    )
    assert title == ["causal", "causal-top-left", "Window(1,", "0)", "Prefix(4)"]
    drawn: tuple[Mask, ...] = ("causal", "causal-top-left", Window(1, 0), Prefix(4))
    for number, one in enumerate(drawn):
        picture = [[cell == "x" for cell in row[5 * number : 5 * number + 5]] for row in rows]
        assert dense(one, 3, 5, "cpu").tolist() == picture


@given(problem=problems(UNCACHED))
def test_operations_are_those_of_the_matrix_products(problem: Problem) -> None:
    scores = problem.b * problem.hq * pairs(problem)
    over_d, over_dv = 2 * scores * problem.d, 2 * scores * problem.dv
    # S and O; S again, dQ, dK over d, and dP, dV over dv
    assert problem.flops("fwd") == over_d + over_dv
    assert problem.flops("bwd") == 3 * over_d + 2 * over_dv
    assert problem.flops("fwd+bwd") == problem.flops("fwd") + problem.flops("bwd")
    if problem.d == problem.dv:
        assert problem.flops("bwd") == 2.5 * problem.flops("fwd")


@given(problem=problems(UNCACHED))
def test_bytes_are_those_of_the_tensors_read_and_written(problem: Problem) -> None:
    q, k, v, dout = problem.inputs("cpu")

    def stored(*tensors: torch.Tensor) -> int:
        """Bytes of distinct elements in memory; what a stride of 0 repeats is one."""
        sizes = (
            x.itemsize * math.prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride or n == 1)
            for x in tensors
        )
        return sum(sizes)

    lse = 4 * problem.b * problem.hq * problem.sq
    out = dout
    live = sum(map(any, zip(*seen(problem), strict=True)))
    k, v = k[:, :live], v[:, :live]
    beside = problem.sq * problem.skv if isinstance(problem.mask, Boolean) else 0
    options = problem.options("cpu")
    beside += 0 if problem.varlen is None else sum(4 * x.numel() for x in problem.varlen.starts(torch.device("cpu")))
    beside += sum(4 * options[name].numel() for name in ("alibi", "sink") if name in options)  # type: ignore[literal-required]
    dsink = 4 * problem.hq if problem.sink else 0
    gradients = sum(x.numel() for x in problem.inputs("cpu")[:3]) * problem.torch_dtype.itemsize
    assert problem.bytes("fwd") == stored(q, k, v, out) + beside
    assert problem.bytes("bwd") == stored(q, k, v, out, dout) + lse + beside + gradients + dsink
    assert problem.bytes("fwd+bwd") == problem.bytes("fwd") + problem.bytes("bwd")


@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        ({"b": 1, "hq": 32, "hkv": 8, "sq": 4096, "d": 128, "mask": "causal"}, "b1-hq32-hkv8-s4096-d128-bf16-causal"),
        ({"b": 2, "hq": 4, "sq": 1, "skv": 4096, "d": 64, "dtype": "fp16"}, "b2-h4-sq1-skv4096-d64-fp16"),
        ({"b": 1, "hq": 1, "sq": 7, "d": 192, "dv": 128}, "b1-h1-s7-d192-dv128-bf16"),
        ({"b": 1, "hq": 1, "sq": 7, "d": 8, "scale": 0.5, "layout": "padded"}, "b1-h1-s7-d8-bf16-scale0.5-padded"),
        ({"b": 1, "hq": 1, "sq": 7, "d": 8, "magnitude": 4.0}, "b1-h1-s7-d8-bf16-magnitude4.0"),
        (SMALL | {"mask": "causal-top-left"}, "b1-h4-s8-d16-bf16-causal-top-left"),
        (SMALL | {"mask": Window(64, 0)}, "b1-h4-s8-d16-bf16-window-l64-r0"),
        (SMALL | {"mask": Window(3, None), "scale": 2.0}, "b1-h4-s8-d16-bf16-window-l3-scale2.0"),
        (SMALL | {"mask": Window(None, 5)}, "b1-h4-s8-d16-bf16-window-r5"),
        (SMALL | {"mask": Prefix(3)}, "b1-h4-s8-d16-bf16-prefix3"),
        (SMALL | {"mask": Documents((4, 2, 2))}, "b1-h4-s8-d16-bf16-documents4_2x2-causal"),
        (SMALL | {"mask": Documents((1, 7), causal=False)}, "b1-h4-s8-d16-bf16-documents1_7"),
        (SMALL | {"mask": Boolean(0.25, 3)}, "b1-h4-s8-d16-bf16-boolean0.25-seed3"),
        (SMALL | {"softcap": 30, "alibi": True, "sink": True}, "b1-h4-s8-d16-bf16-softcap30.0-alibi-sink"),
        (SMALL | {"varlen": Varlen((3, 0, 5), (3, 0, 5))}, "b1-h4-s8-d16-bf16-varlen3_0_5"),
        (SMALL | {"skv": 9, "cache": Cache((7,))}, "b1-h4-sq8-skv9-d16-bf16-cache7"),
        (SMALL | {"b": 3, "cache": Cache((0, 2, 2), 16)}, "b3-h4-s8-d16-bf16-cache0_2x2-page16"),
        (
            SMALL | {"mask": "causal", "varlen": Varlen((4, 4, 0), (1, 7, 0))},
            "b1-h4-s8-d16-bf16-causal-varlen4x2_0-on1_7_0",
        ),
    ],
)
def test_a_name_never_changes(sizes: dict[str, Any], name: str) -> None:
    assert Problem(**sizes).name == name


@given(one=problems(), other=problems())
def test_problems_that_differ_have_names_that_differ(one: Problem, other: Problem) -> None:
    assert (one.name == other.name) == (one == other)


@pytest.mark.parametrize(
    ("field", "value"),
    [("b", 2), ("hkv", 2), ("skv", 9), ("d", 24), ("dv", 24), ("dtype", "fp32"), ("mask", "causal"), ("scale", 2.0),
     ("softcap", 5.0), ("alibi", True), ("sink", True), ("varlen", Varlen((8,), (8,))), ("cache", Cache((8,))),
     ("layout", "bhsd"), ("magnitude", 2.0)],
)  # fmt: skip
def test_every_field_is_in_the_name(field: str, value: object) -> None:
    assert Problem(**SMALL).name != Problem(**(SMALL | {field: value})).name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hkv": 3}, "hkv must divide hq, got hq=4 and hkv=3"),
        ({"sq": 0}, "sq must be a whole number of at least 1, got 0"),
        ({"d": 1.5}, "d must be a whole number of at least 1, got 1.5"),
        ({"b": True}, "b must be a whole number of at least 1, got True"),
        ({"skv": -1}, "skv must be a whole number of at least 1, got -1"),
        ({"dtype": "fp4"}, "dtype must be one of fp16, bf16, fp32, fp8, got 'fp4'"),
        ({"mask": "window"}, "mask must be one of full, causal, causal-top-left, or a Window, .* got 'window'"),
        ({"mask": Prefix(9)}, "a prefix must not be longer than skv, got 9 and skv=8"),
        ({"mask": Documents((4, 5))}, "lengths of documents must sum to sq = skv, got 9, sq=8, skv=8"),
        ({"mask": Documents((8,)), "skv": 9}, "lengths of documents must sum to sq = skv, got 8, sq=8, skv=9"),
        ({"varlen": Varlen((9,), (8,))}, "sq must be that of all sequences together, 9, got 8"),
        ({"varlen": Varlen((8,), (0,))}, "skv must be that of all sequences together, 0, got 8"),
        ({"varlen": Varlen((8,), (8,)), "b": 2}, "packed sequences are one batch: b must be 1, got 2"),
        (
            {"varlen": Varlen((8,), (8,)), "mask": Boolean()},
            "the mask of sequences must be full, causal, a Window or a Prefix, got Boolean",
        ),
        ({"cache": Cache((8, 8))}, "a length for each of b=1 sequences, got 2"),
        ({"cache": Cache((9,))}, "must have room for its longest sequence, 9, got skv=8"),
        ({"cache": Cache((8,)), "mask": "causal-top-left"}, "the mask of sequences must be full, causal, a Window"),
        ({"cache": Cache((8,)), "layout": "packed"}, "a cache is laid out bshd, bhsd or padded"),
        ({"cache": Cache((8,)), "varlen": Varlen((8,), (8,))}, "and not packed otherwise"),
        ({"softcap": 0.0}, "softcap must be finite and positive, or None for none, got 0.0"),
        ({"layout": "sbhd"}, "layout must be one of bshd, bhsd, packed, padded, broadcast, got 'sbhd'"),
        ({"scale": math.nan}, "scale must be finite, or None"),
        ({"scale": "x"}, r"scale must be finite, or None for 1/sqrt\(d\), got 'x'"),
        ({"softcap": "30"}, "softcap must be finite and positive, or None for none, got '30'"),
        ({"magnitude": "1"}, "magnitude must be finite and positive, got '1'"),
        ({"magnitude": 0.0}, "magnitude must be finite and positive, got 0.0"),
        ({"layout": "packed", "skv": 9}, "the packed layout needs sq = skv and d = dv, got sq=8, skv=9"),
    ],
)
def test_what_is_no_problem_is_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Problem(**(SMALL | wrong))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window(-1, 0), "left of a window must be a whole number of at least 0, got -1"),
        (lambda: Window(1, 0.5), "right of a window must be a whole number of at least 0, got 0.5"),
        (lambda: Window(None, 0), "say 'causal'"),
        (lambda: Window(None, None), "say 'full'"),
        (lambda: Prefix(0), "length of a prefix must be a whole number of at least 1, got 0"),
        (lambda: Documents(()), "lengths of documents must be a tuple that is not empty"),
        (lambda: Documents([4, 4]), "lengths of documents must be a tuple"),
        (lambda: Documents((4, 0)), "length of a document must be a whole number of at least 1, got 0"),
        (lambda: Boolean(1.5), "density of a boolean mask must be from 0 to 1, got 1.5"),
        (lambda: Boolean("x"), "density of a boolean mask must be from 0 to 1, got 'x'"),
        (lambda: Cache((0, 0)), "lengths of a cache must be a tuple with a key in it"),
        (lambda: Cache((3, -1)), "length of a sequence must be a whole number of at least 0, got -1"),
        (lambda: Cache((3,), 0), "page must be a whole number of at least 1, got 0"),
        (lambda: Varlen((), ()), "queries of sequences must be a tuple that is not empty"),
        (lambda: Varlen((1,), [1]), "keys of sequences must be a tuple that is not empty"),
        (lambda: Varlen((1,), (-1,)), "keys of a sequence must be a whole number of at least 0, got -1"),
        (lambda: Varlen((1, 2), (1,)), "as many lengths of queries as of keys, got 2 and 1"),
        (lambda: Boolean(0.5, -1), "seed of a boolean mask must be a whole number of at least 0, got -1"),
    ],
)
def test_what_is_no_mask_is_refused_by_name(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("heads", "exponents"),
    [
        (1, [8]),
        (4, [2, 4, 6, 8]),
        (3, [4, 8, 2]),
        (6, [2, 4, 6, 8, 1, 3]),
        (12, [*range(1, 9), *(x + 0.5 for x in range(4))]),
    ],
)
def test_slopes_are_those_of_the_paper(heads: int, exponents: list[float]) -> None:
    options = Problem(**(SMALL | {"hq": heads, "alibi": True})).options("cpu")
    torch.testing.assert_close(options["alibi"], torch.tensor([2.0**-x for x in exponents]))


def test_heads_have_slopes_and_sinks_of_their_own_and_a_part_has_those_of_its_heads() -> None:
    problem = Problem(**(SMALL | {"hkv": 2, "alibi": True, "sink": True}))
    options = problem.options("cpu", seed=1, requires_grad=True)
    assert options["sink"].requires_grad
    assert len({*options["sink"].tolist()}) == len({*options["alibi"].tolist()}) == 4
    for head in range(2):
        part = problem.options("cpu", seed=1, kv_head=head)
        for name in ("alibi", "sink"):
            assert torch.equal(part[name], options[name][2 * head : 2 * head + 2])  # type: ignore[literal-required]
    assert not torch.equal(problem.options("cpu", seed=2)["sink"], options["sink"])
    assert {*Problem(**SMALL).options("cpu")} == {"mask", "scale"}


@given(problem=problems(UNCACHED), seed=st.integers(0, 2**31))
def test_the_same_seed_gives_the_same_inputs(problem: Problem, seed: int) -> None:
    for one, other in zip(problem.inputs("cpu", seed), problem.inputs("cpu", seed), strict=True):
        assert torch.equal(one, other)


@given(problem=problems(UNCACHED))
def test_the_layout_only_places_the_numbers(problem: Problem) -> None:
    plain = dataclasses.replace(problem, layout="bshd").inputs("cpu")
    placed = problem.inputs("cpu")
    batches = 1 if problem.layout == "broadcast" else problem.b
    assert torch.equal(placed.q, plain.q)
    assert torch.equal(placed.dout, plain.dout)
    for one, other in ((placed.k, plain.k), (placed.v, plain.v)):
        assert one.shape == other.shape
        assert torch.equal(one[:batches], other[:batches])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_has_its_strides(layout: Any) -> None:
    b, s, hq, hkv, d = 2, 5, 4, 2, 16
    q, k, v, dout = Problem(b=b, hq=hq, hkv=hkv, sq=s, d=d, layout=layout).inputs("cpu", requires_grad=True)
    expected = {
        "bshd": ((s * hq * d, hq * d, d, 1), (s * hkv * d, hkv * d, d, 1)),
        "bhsd": ((s * hq * d, d, s * d, 1), (s * hkv * d, d, s * d, 1)),
        "packed": ((s * (hq + 2 * hkv) * d, (hq + 2 * hkv) * d, d, 1),) * 2,
        "padded": tuple((s * h * (d + PADDING), h * (d + PADDING), d + PADDING, 1) for h in (hq, hkv)),
        "broadcast": ((s * hq * d, hq * d, d, 1), (0, hkv * d, d, 1)),
    }[layout]
    assert (q.stride(), k.stride()) == expected
    assert v.stride() == k.stride()
    assert all(x.is_leaf and x.requires_grad for x in (q, k, v))
    assert not dout.requires_grad
    if layout == "packed":
        assert q.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()


def test_behind_the_rows_of_the_padded_layout_is_nan() -> None:
    for x in Problem(**SMALL, layout="padded").inputs("cpu"):
        rows = x.as_strided((*x.shape[:3], x.shape[3] + PADDING), x.stride())
        assert rows[..., x.shape[3] :].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_have_the_dtype_and_the_magnitude(dtype: Any) -> None:
    q, k, v, dout = Problem(b=4, hq=8, sq=128, d=64, dtype=dtype, magnitude=8.0).inputs("cpu")
    n = q.numel()
    assert dout.dtype == (torch.bfloat16 if dtype == "fp8" else q.dtype)
    for x, deviation in ((q, 8.0), (k, 8.0), (v, 8.0), (dout, 1.0)):
        assert x is dout or x.dtype == Problem(**SMALL, dtype=dtype).torch_dtype
        # the variance of n normal numbers has a relative deviation of sqrt(2 / n): five of them never happen
        assert float(x.float().square().mean()) == pytest.approx(deviation**2, rel=5 * math.sqrt(2 / n))


@given(problem=problems(UNCACHED), data=st.data())
def test_a_slice_is_what_one_key_head_of_one_batch_computes(problem: Problem, data: st.DataObject) -> None:
    batch, head = data.draw(st.integers(0, problem.b - 1)), data.draw(st.integers(0, problem.hkv - 1))
    part, inputs = problem.slice(batch, head), problem.inputs("cpu").slice(batch, head)
    assert (part.b, part.hq, part.hkv) == (1, problem.group, 1)
    assert inputs.q.shape == (1, part.sq, part.hq, part.d)
    assert inputs.k.shape == (1, part.skv, 1, part.d)
    assert inputs.v.shape == (1, part.skv, 1, part.dv)
    assert inputs.dout.shape == (1, part.sq, part.hq, part.dv)
    assert part.flops("fwd") * problem.b * problem.hkv == problem.flops("fwd")


def test_there_is_no_slice_beyond_the_last() -> None:
    with pytest.raises(ValueError, match="kv_head must be from 0 to 3, got 4"):
        Problem(**SMALL).slice(0, 4)
