"""The builds of triton_unfused: its one kernel, with the tiles that each dtype and head dim gets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch

from attnkit.ahead.build import Binary, Build
from attnkit.ahead.triton_compiler import absent, compile_kernel
from attnkit.ahead.triton_flash import MASKS

__all__ = ["binary", "builds"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WHOLE = ("bf16", "fp32")
"""The dtypes that have a build for everything."""
DS = (64, 128, 256)
"""The head dims that its tiles tell apart."""


def builds(arch: int) -> Iterator[Build]:
    """What a call can ask for; its lengths are never taken to be multiples of the tiles."""
    for dtype, d, mask in itertools.product(WHOLE, DS, ("causal", "full")):
        name = f"triton_unfused/probabilities/{dtype}-d{d}-{mask}"
        yield Build(name, arch, partial(binary, arch, dtype, d, mask), absent)
    for dtype, mask in (("fp16", "causal"), ("bf16", "prefix")):
        name = f"triton_unfused/probabilities/{dtype}-d128-{mask}"
        yield Build(name, arch, partial(binary, arch, dtype, 128, mask), absent)
    name = "triton_unfused/probabilities/bf16-d128-window-softcap-alibi-sink"
    yield Build(name, arch, partial(binary, arch, "bf16", 128, "band", modified=True), absent)


def binary(arch: int, dtype: str, d: int, mask: str, modified: bool = False) -> Binary:
    """Compile it."""
    from attnkit.variants import triton_unfused_kernel as unfused

    block_m, block_n, warps = unfused.tiles(DTYPES[dtype], d)
    constants: dict[str, object] = {
        "D": d, "DP": d, "BM": block_m, "BN": block_n, "MASK": mask,
        "PRECISION": "tf32x3" if dtype == "fp32" else "ieee",
    }  # fmt: skip
    types = dict.fromkeys(("p_q", "p_k", "p_p"), f"*{dtype}")
    if modified:
        types |= {"p_bend": f"*{dtype}", "scale_cap": "fp32", "cap_log2": "fp32"}
        types |= dict.fromkeys(("p_weight", "p_slope", "p_sink"), "*fp32")
    types |= MASKS[mask]
    optional = ("p_bend", "p_weight", "lower", "upper", "scale_cap", "cap_log2", "p_slope", "p_sink")
    constants |= {name: None for name in optional if name not in types}
    return compile_kernel(unfused.probabilities_kernel, arch, types, constants, num_warps=warps, num_stages=2)
