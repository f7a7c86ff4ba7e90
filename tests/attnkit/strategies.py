"""Problems for hypothesis to draw: every size from one, ragged tiles, groups of heads, each dtype and layout.

Small ones: what is special happens at the edges of tiles, of heads and of masks, and a failing example is to be read.
On a GPU they may be longer than several tiles of any kernel.
"""

from __future__ import annotations

import itertools

import torch
from hypothesis import strategies as st

from attnkit.mask import PLAIN, Boolean, Documents, Mask, Prefix, Window
from attnkit.problem import DTYPES, LAYOUTS, Problem

__all__ = ["problems"]

LONGEST = 600 if torch.cuda.is_available() else 96
LARGEST_D = 256 if torch.cuda.is_available() else 128
EDGES = tuple(s for s in (1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 96, 127, 128, 129, 257, 512) if s <= LONGEST)
HEAD_DIMS = tuple(d for d in (16, 24, 32, 40, 64, 72, 96, 128, 192, 256) if d <= LARGEST_D)


MODIFIERS: tuple[dict[str, object], ...] = (
    # the smaller softcap is small beside the scores, and bends them
    {"softcap": 2.0},
    {"softcap": 30.0},
    {"alibi": True},
    {"sink": True},
    {"softcap": 2.0, "alibi": True, "sink": True},
)


@st.composite
def masks(draw: st.DrawFn, sq: int, skv: int) -> Mask:
    """Draw a mask for these sizes: most often full or causal, for few variants take the others."""
    plain: st.SearchStrategy[Mask] = st.sampled_from(PLAIN + ("full", "causal") * 2)
    reach = st.integers(0, max(sq, skv) + 1)
    windows = st.builds(Window, reach, st.none() | reach) | st.builds(Window, st.none(), reach.map(lambda n: n + 1))
    others = [windows, st.builds(Prefix, st.integers(1, skv)), st.builds(Boolean, st.sampled_from((0.5, 0.05, 1.0)))]
    if sq == skv:
        cuts = draw(st.sets(st.integers(1, sq - 1), max_size=4)) if sq > 1 else set()
        edges = [0, *sorted(cuts), sq]
        lengths = tuple(end - begin for begin, end in itertools.pairwise(edges))
        others.append(st.builds(Documents, st.just(lengths), st.booleans()))
    return draw(st.one_of(plain, plain, plain, st.one_of(others)))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Draw a problem; what it shrinks to is one token, one head, d = 16, fp16, no mask."""
    length = st.sampled_from(EDGES) | st.integers(1, LONGEST)
    layout = draw(st.sampled_from(LAYOUTS))
    sq, d = draw(length), draw(st.sampled_from(HEAD_DIMS))
    skv = sq if layout == "packed" else draw(st.just(sq) | length)
    dv = d if layout == "packed" else draw(st.sampled_from((d, d, d, 16, 40)))
    hkv, group = draw(st.sampled_from(((1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (3, 1), (1, 5))))
    return Problem(
        b=draw(st.integers(1, 3)),
        hq=hkv * group,
        hkv=hkv,
        sq=sq,
        skv=skv,
        d=d,
        dv=dv,
        dtype=draw(st.sampled_from(DTYPES)),
        mask=draw(masks(sq, skv)),
        # negative: the smallest product has the largest weight
        scale=draw(st.sampled_from((None, None, None, 1.0, 0.05, -0.2))),
        layout=layout,
        # large: a few keys have all the weight, and scores have errors that exp makes larger
        magnitude=draw(st.sampled_from((1.0, 1.0, 0.25, 4.0))),
        **draw(st.sampled_from(({},) * 10 + MODIFIERS)),
    )
