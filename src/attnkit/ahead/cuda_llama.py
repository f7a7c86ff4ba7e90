"""The builds of the fused kernels: Llama-2-7B as the rungs launch it, on all of a device's multiprocessors.

A stage is a kernel of its own, with a ring as long as shared memory allows or with half of that, or all are one. What
attends is other code where heads share their keys, and is built for Llama-3-8B too. All copy in bulk, and so need a
Hopper.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial

from attnkit.ahead.build import Build
from attnkit.ahead.cuda_compiler import DEVICES, absent, compile_kernel
from attnkit.llama.config import LLAMA_2_7B, LLAMA_3_8B, Config
from attnkit.llama.fused import FORMS, MAX_BATCH, SOURCES, Launch
from attnkit.llama.sizes import Sizes

__all__ = ["builds"]

BATCHES = (1, MAX_BATCH)
"""Sequences: the least and the most."""
GROUPED = ("attend_kernel", "decode")
"""The kernels that attend."""


def builds(arch: int) -> Iterator[Build]:
    """Every kernel of every launch, with weights in bfloat16 and in int8."""
    if arch < 90:
        return
    for launch, int8, batch in itertools.product(SOURCES, (False, True), BATCHES):
        yield from launched(arch, LLAMA_2_7B, launch, SOURCES[launch][1], int8, batch)
    for launch, (_, kernels) in SOURCES.items():
        grouped = [kernel for kernel in kernels if kernel in GROUPED]
        yield from launched(arch, LLAMA_3_8B, launch, grouped, False, 1, "-llama3")


def launched(
    arch: int, config: Config, launch: Launch, kernels: Sequence[str], int8: bool, batch: int, suffix: str = ""
) -> Iterator[Build]:
    """Some kernels of a launch, for one model."""
    sizes = Sizes(config, int8, batch, config.positions, DEVICES[arch].sms, FORMS[launch])
    for kernel in kernels:
        name = f"cuda_llama/{kernel}/bf16-{'i8' if int8 else 'bf16'}-b{batch}-{launch}{suffix}"
        compiled = partial(
            compile_kernel, SOURCES[launch][0], kernel, arch, sizes.options,
            threads=sizes.threads, shared=sizes.shared,
        )  # fmt: skip
        yield Build(name, arch, compiled, absent)
