"""The builds of the fused kernels: Llama-2-7B as the rungs launch it, on all of a device's multiprocessors.

A stage is a kernel of its own, with a ring as long as shared memory allows or with half of that, or all are one. They
copy in bulk, and so need a Hopper.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

from attnkit.ahead.build import Build
from attnkit.ahead.cuda_compiler import DEVICES, absent, compile_kernel
from attnkit.llama.config import LLAMA_2_7B
from attnkit.llama.fused import FORMS, MAX_BATCH, SOURCES, Launch
from attnkit.llama.sizes import Sizes

__all__ = ["BATCHES", "builds"]

BATCHES: dict[Launch, tuple[int, ...]] = {"stages": (1,), "overlapped": (1,), "persistent": (1, MAX_BATCH)}
"""Sequences. The one kernel has the code of all stages, so it stands for them where there are many."""


def builds(arch: int) -> Iterator[Build]:
    """Every kernel of every launch, with weights in bfloat16 and in int8."""
    if arch < 90:
        return
    for (launch, batches), int8 in itertools.product(BATCHES.items(), (False, True)):
        source, kernels = SOURCES[launch]
        for batch in batches:
            sizes = Sizes(LLAMA_2_7B, int8, batch, LLAMA_2_7B.positions, DEVICES[arch].sms, FORMS[launch])
            for kernel in kernels:
                name = f"cuda_llama/{kernel}/bf16-{'i8' if int8 else 'bf16'}-b{batch}-{launch}"
                compiled = partial(
                    compile_kernel, source, kernel, arch, sizes.options, threads=sizes.threads, shared=sizes.shared
                )
                yield Build(name, arch, compiled, absent)
