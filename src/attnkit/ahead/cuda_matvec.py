"""The builds of cuda_matvec: every form in its tables, at the first sizes of Llama-2-7B that get it.

Forms that overlap with the kernel before them, and those with bulk copies, need a Hopper.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch

from attnkit import nvrtc
from attnkit.ahead.build import Build
from attnkit.ahead.cuda_compiler import DEVICES, absent, compile_kernel
from attnkit.products.matvec_tiles import MAX_ROWS, Config, Weights, choose, launch_shape

__all__ = ["builds", "forms"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
WEIGHTS: tuple[Weights, ...] = ("half", "int8")
SHAPES = {"gate_up": (22016, 4096), "out": (4096, 4096), "down": (4096, 11008)}
"""Rows and columns of weight."""
ROWS = (1, MAX_ROWS)
"""Of x."""


def builds(arch: int) -> Iterator[Build]:
    """A kernel for each form in bfloat16; in float16, whose conversions of int8 are others, all that may convert it.

    Forms that overlap with the kernel before them convert as the others do.
    """
    for (dtype, element), weights, overlap in itertools.product(DTYPES.items(), WEIGHTS, (False, True)):
        for name, (config, m, n, k) in forms(arch, weights, overlap).items():
            if dtype == "fp16" and (overlap or (m > 1 and weights == "half")):
                continue
            named = f"cuda_matvec/{config.design}/{dtype}-{dtype if weights == 'half' else 'i8'}-{name}"
            shape = launch_shape(config, weights, m, n, k, DEVICES[arch].sms)
            compiled = partial(
                compile_kernel, nvrtc.SOURCES / config.source, "matvec", arch, config.options(element, weights),
                threads=config.threads, shared=shape.shared,
            )  # fmt: skip
            yield Build(named, arch, compiled, absent)


def forms(arch: int, weights: Weights, overlap: bool) -> dict[str, tuple[Config, int, int, int]]:
    """The forms that a device is given, each with the first ``m, n, k`` that get it, by the name of those."""
    found: dict[str, tuple[Config, int, int, int]] = {}
    for (shape, (n, k)), m in itertools.product(SHAPES.items(), ROWS):
        config = choose(weights, m, n, k, DEVICES[arch], overlap=overlap)
        able = config.why_not(weights, m, n, k, DEVICES[arch]) is None
        if able and config not in [form for form, *_ in found.values()]:
            found[f"{shape}-m{m}" + "-overlap" * overlap] = (config, m, n, k)
    return found
