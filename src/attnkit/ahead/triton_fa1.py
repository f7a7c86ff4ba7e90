"""The builds of triton_fa1: its one kernel, with the tiles that each dtype and head dim gets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

from attnkit.ahead.build import Binary, Build
from attnkit.ahead.triton_compiler import compile_kernel

__all__ = ["binary", "builds"]

DTYPES = ("bf16", "fp32")
DS = (64, 128, 256)


def builds(arch: int) -> Iterator[Build]:
    """With the causal mask, which needs the most of everything."""
    for dtype, d in itertools.product(DTYPES, DS):
        yield Build(f"triton_fa1/forward/{dtype}-d{d}-causal", arch, partial(binary, arch, dtype, d))


def binary(arch: int, dtype: str, d: int) -> Binary:
    """Compile it, for more than 16 queries."""
    from attnkit.variants.triton_fa1_kernel import forward_kernel, padded

    wide = dtype == "fp32" or d > 128
    constants = {
        "D": d, "DP": padded(d), "DV": d, "DVP": padded(d), "BM": 16 if wide else 64, "BN": 32 if wide else 64,
        "CAUSAL": True, "PRECISION": "tf32x3" if dtype == "fp32" else "ieee",
    }  # fmt: skip
    types = dict.fromkeys(("p_q", "p_k", "p_v", "p_out"), f"*{dtype}") | dict.fromkeys(("p_o", "p_m", "p_l"), "*fp32")
    return compile_kernel(forward_kernel, arch, types, constants, num_warps=4, num_stages=1)
