"""Problems for hypothesis to draw: every size from one, ragged tiles, groups of heads, each dtype and layout.

Small ones: what is special happens at the edges of tiles, of heads and of masks, and a failing example is to be read.
On a GPU they may be longer than several tiles of any kernel.
"""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from attnkit.problem import DTYPES, LAYOUTS, MASKS, Problem

__all__ = ["problems"]

LONGEST = 600 if torch.cuda.is_available() else 96
LARGEST_D = 256 if torch.cuda.is_available() else 128
EDGES = tuple(s for s in (1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 96, 127, 128, 129, 257, 512) if s <= LONGEST)
HEAD_DIMS = tuple(d for d in (16, 24, 32, 40, 64, 72, 96, 128, 192, 256) if d <= LARGEST_D)


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
        mask=draw(st.sampled_from(MASKS)),
        # negative: the smallest product has the largest weight
        scale=draw(st.sampled_from((None, None, None, 1.0, 0.05, -0.2))),
        layout=layout,
        # large: a few keys have all the weight, and scores have errors that exp makes larger
        magnitude=draw(st.sampled_from((1.0, 1.0, 0.25, 4.0))),
    )
