"""Fuzz an attention function against the oracle: problems for hypothesis to draw, and one check.

    @settings(deadline=None)
    @given(problem=problems())
    def test_my_attention_is_right(problem):
        check(my_attention, problem)

`my_attention(q, k, v, *, mask, scale)` is called like every variant (`attnkit.variant.Attention`); what it cannot do is
left out of `problems` by its arguments. docs/fuzzing.md has the whole of it. Needs hypothesis, which the extra ``test``
brings.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st

from attnkit.cache import Cache
from attnkit.mask import Boolean, Documents, Mask, Plain, Prefix, Window, whole
from attnkit.parity import parity
from attnkit.problem import DTYPES, LAYOUTS, PASSES, Dtype, Layout, Pass, Problem
from attnkit.variant import FEATURES, Attention, Feature, Variant
from attnkit.varlen import Varlen

__all__ = ["check", "masks", "problems"]

# on both sides of what tiles are as long as
EDGES = (1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 96, 127, 128, 129, 257, 512)
HEAD_DIMS = (16, 24, 32, 40, 64, 72, 96, 128, 192, 256)
MOST_HEADS = 6
MODIFIERS: dict[Feature, tuple[dict[str, Any], ...]] = {
    # the smaller softcap is small beside the scores, and bends them
    "softcap": ({"softcap": 2.0}, {"softcap": 30.0}),
    "alibi": ({"alibi": True},),
    "sink": ({"sink": True},),
}

OF_A_SEQUENCE: tuple[Feature, ...] = ("window", "prefix", "softcap", "alibi", "sink", "fp8")
"""What there is beside sequences of different lengths."""
SELDOM = 4
"""How many times as often sequences are of one length as they are packed or cached, and each dtype comes as fp8."""
PAGES: dict[Feature, tuple[int | None, ...]] = {"cache": (None,), "paged": (1, 16, 48)}
CACHED: tuple[Layout, ...] = ("bshd", "bhsd", "padded")
NEWEST = (1, 2, 3, 8)
"""Queries on a cache: few numbers, since a kernel may be compiled for each."""


def known(name: str, asked: Sequence[object], names: Sequence[str]) -> None:
    """Refuse names that nobody knows."""
    if unknown := [one for one in asked if one not in names]:
        raise ValueError(f"{name} must be among {', '.join(names)}, got {', '.join(map(repr, unknown))}")


@st.composite
def masks(draw: st.DrawFn, sq: int, skv: int, features: Sequence[Feature] = FEATURES) -> Mask:
    """Draw a mask for these sizes: full or causal most often, else one of those features that are masks."""
    known("features", features, FEATURES)
    # narrow ones too, which hide whole tiles
    reach = st.integers(0, 8) | st.integers(0, max(sq, skv) + 1)
    cuts = draw(st.sets(st.integers(1, sq - 1), max_size=4)) if "documents" in features and sq == skv > 1 else set()
    lengths = tuple(end - begin for begin, end in itertools.pairwise((0, *sorted(cuts), sq)))
    top_left: Plain = "causal-top-left"
    ways: dict[Feature, list[st.SearchStrategy[Mask]]] = {
        "causal-top-left": [st.just(top_left)],
        "window": [
            st.builds(Window, reach, st.none() | reach),
            st.builds(Window, st.none(), reach.map(lambda n: n + 1)),
        ],
        "prefix": [st.builds(Prefix, st.integers(1, skv))],
        "documents": [st.builds(Documents, st.just(lengths), st.booleans())] if sq == skv else [],
        "boolean": [st.builds(Boolean, st.sampled_from((0.5, 0.05, 1.0)))],
    }
    others = [strategy for feature, found in ways.items() if feature in features for strategy in found]
    plain: st.SearchStrategy[Mask] = st.sampled_from(("full", "causal"))
    # chosen first: one_of counts each strategy of a one_of inside it, and plain masks would be few
    return draw(draw(st.sampled_from((plain, plain, st.one_of(others)))) if others else plain)


@st.composite
def sequences(draw: st.DrawFn, longest: int) -> Varlen:
    """Draw lengths of packed sequences: none, one or many queries and keys, equal or not, a token of each in all."""
    length = st.just(0) | st.sampled_from([s for s in EDGES if s <= longest]) | st.integers(0, longest)
    queries = draw(st.lists(length, min_size=1, max_size=4).filter(any))
    if draw(st.booleans()):
        return Varlen(tuple(queries), tuple(queries))
    keys = draw(st.lists(length, min_size=len(queries), max_size=len(queries)).filter(any))
    return Varlen(tuple(queries), tuple(keys))


def problems(
    *,
    features: Sequence[Feature] = FEATURES,
    dtypes: Sequence[Dtype] = DTYPES,
    layouts: Sequence[Layout] = LAYOUTS,
    head_dims: Sequence[int] = HEAD_DIMS[:-2],
    value_dims: Sequence[int] = (16, 40),
    groups: Sequence[int] = (1, 2, 3, 5),
    scales: Sequence[float | None] = (None, None, None, 1.0, 0.05, -0.2),
    longest: int = 96,
) -> st.SearchStrategy[Problem]:
    """Draw a problem: every size from one, ragged tiles, groups of heads, keys that are more or fewer than queries.

    Small ones: what is special happens at the edges of tiles, of heads and of masks, and a failing example is to be
    read. What it shrinks to is one token, one head, the first dtype, no mask.

    Args:
        features: Masks and modifiers beyond full and causal.
        dtypes: Of the inputs; fp8 where `features` has it, too, and less often.
        layouts: How they lie in memory.
        head_dims: d.
        value_dims: dv where it is not d; none of them makes dv = d always.
        groups: Query heads that read one key head.
        scales: None is 1 / sqrt(d). Negative: the smallest product has the largest weight.
        longest: Bound of sq and skv; of packed sequences each has half of it at most.

    Raises:
        ValueError: For names that are unknown, and where nothing is left to draw from.
    """
    known("features", features, FEATURES)
    known("dtypes", dtypes, DTYPES)
    known("layouts", layouts, LAYOUTS)
    choices = {"dtypes": dtypes, "layouts": layouts, "head_dims": head_dims, "groups": groups, "scales": scales}
    if empty := [name for name, several in choices.items() if not several]:
        raise ValueError(f"{' and '.join(empty)} must not be empty: leave out what is not to be bounded")
    if set(dtypes) == {"fp8"} and "fp8" not in features:
        raise ValueError(f"dtypes must have another one than fp8 where features have it not, got {dtypes!r}")
    whole("longest", longest, 2 if "varlen" in features else 1)
    return drawn(features, dtypes, layouts, head_dims, value_dims, groups, scales, longest)


@st.composite
def drawn(
    draw: st.DrawFn,
    features: Sequence[Feature],
    dtypes: Sequence[Dtype],
    layouts: Sequence[Layout],
    head_dims: Sequence[int],
    value_dims: Sequence[int],
    groups: Sequence[int],
    scales: Sequence[float | None],
    longest: int,
) -> Problem:
    """Draw a problem within bounds that leave some."""
    length = st.sampled_from([s for s in EDGES if s <= longest]) | st.integers(1, longest)
    layout = draw(st.sampled_from(layouts))
    sq, d = draw(length), draw(st.sampled_from(head_dims))
    skv = sq if layout == "packed" else draw(st.just(sq) | length)
    dv = d if layout == "packed" else draw(st.sampled_from((d, d, d, *value_dims)))
    varlen = cache = None
    pages = [page for feature, ways in PAGES.items() if feature in features for page in ways]
    differing = [*(["varlen"] if "varlen" in features else []), *(["cache"] if pages else [])]
    if differing and (chosen := draw(st.sampled_from((*[""] * SELDOM, *differing)))):
        features = [feature for feature in features if feature in OF_A_SEQUENCE]
        if chosen == "varlen":
            varlen = draw(sequences(longest // 2))
            varlen = Varlen(varlen.queries, varlen.queries) if layout == "packed" else varlen
            sq, skv = sum(varlen.queries), sum(varlen.keys)
        else:
            layout = layout if layout in CACHED else "bshd"
            lengths = st.lists(st.just(skv) | st.integers(0, skv), min_size=1, max_size=3).filter(any)
            cache = Cache(tuple(draw(lengths)), draw(st.sampled_from(pages)))
            sq = draw(st.sampled_from(NEWEST))
    group = draw(st.sampled_from(groups))
    # few heads altogether: more of the same find no more, and an interpreted kernel takes its time for each
    hkv = draw(st.integers(1, max(1, MOST_HEADS // (group + 1))))
    weighed = [x for x in dtypes for _ in range(SELDOM if x != "fp8" else int("fp8" in features))]
    modifiers = [way for feature, ways in MODIFIERS.items() if feature in features for way in ways]
    every = {name: value for way in modifiers for name, value in way.items()}
    return Problem(
        b=batch(draw, varlen, cache),
        hq=hkv * group,
        hkv=hkv,
        sq=sq,
        skv=skv,
        d=d,
        dv=dv,
        dtype=draw(st.sampled_from(weighed)),
        mask=draw(masks(sq, skv, features)),
        scale=draw(st.sampled_from(scales)),
        varlen=varlen,
        cache=cache,
        layout=layout,
        # large: a few keys have all the weight, and scores have errors that exp makes larger
        magnitude=draw(st.sampled_from((1.0, 1.0, 0.25, 4.0))),
        **draw(st.sampled_from(({},) * 10 + (*modifiers, every))),
    )


def batch(draw: st.DrawFn, varlen: Varlen | None, cache: Cache | None) -> int:
    """Draw a batch, where sequences do not say it."""
    if varlen is not None:
        return 1
    return draw(st.integers(1, 3)) if cache is None else len(cache.lengths)


def check(
    attention: Attention, problem: Problem, device: torch.device | str = "cpu", pass_: Pass = "fwd", seed: int = 0
) -> None:
    """Compute a problem by a function and hold it against the oracle, by the rule of `attnkit.parity`.

    Args:
        attention: q [b, sq, hq, d], k [b, skv, hkv, d], v [b, skv, hkv, dv] to out [b, sq, hq, dv], with the keywords
            of `attnkit.problem.Options`: mask and scale, and what the problem has of the others.
        problem: What is computed.
        device: Where.
        pass_: ``fwd``, or ``fwd+bwd`` to hold the gradients against the oracle's too.
        seed: Of the inputs.

    Raises:
        AssertionError: With a sentence for each part of the rule that is broken.
        TypeError: Where the function returns no tensor.
        ValueError: For a pass that there is not, or that the problem has not, and a device that is not there.
    """
    known("pass_", [pass_], PASSES)
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device must be there, got {device} and torch finds no CUDA device: take cpu")
    name = getattr(attention, "__name__", "attention")
    way = Variant(name, "on trial", attention, lambda *_: None, lacks={})
    if reason := way.rejects(problem, device, pass_):
        raise ValueError(f"{reason}: take pass_='fwd' for {problem.name}, got {pass_!r}")
    found = parity(way, problem, device, pass_, seed)
    if not found.ok:
        raise AssertionError(f"{name} is wrong at {problem.name}: {'; '.join(found.failures)}")
