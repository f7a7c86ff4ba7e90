"""Our kernels compiled ahead of time, for GPUs that are not there: their tunings as a list of builds.

float16 has a few of them: in attention it differs from bfloat16 in names of types alone. Conversions of int8 and
kernels of rows are other code in it, and have builds of their own. Of masks and modifiers there is a choice.

A family of kernels is a module here with a function ``builds(arch)``, and an entry in ``MODULES``. A build has a name,
the number of an architecture, and ``compile()``; that makes a binary, and needs neither a GPU nor a driver. Kernels in
Triton need a process in which TRITON_INTERPRET is not set: its interpreter and its compiler cannot share one. Those in
CUDA C++ need NVRTC. A build's ``absent()`` says where its compiler is not there.
"""

from __future__ import annotations

from collections.abc import Iterator

from attnkit.ahead import (
    cuda_llama,
    cuda_matvec,
    triton_append,
    triton_dynamic,
    triton_fa1,
    triton_flash,
    triton_product,
    triton_softmax,
    triton_splitkv,
    triton_unfused,
)
from attnkit.ahead.build import Binary, Build

__all__ = ["ARCHS", "MODULES", "Binary", "Build", "builds"]

ARCHS = (80, 90, 100)
"""Ampere, Hopper and Blackwell."""

MODULES = (
    triton_flash, triton_unfused, triton_fa1, triton_splitkv, triton_append, triton_product, triton_dynamic,
    triton_softmax, cuda_matvec, cuda_llama,
)  # fmt: skip
"""The ``builds`` of each takes an architecture's number and yields what is built for it."""


def builds() -> Iterator[Build]:
    """Every build, the architectures one after the other."""
    for arch in ARCHS:
        for module in MODULES:
            yield from module.builds(arch)
