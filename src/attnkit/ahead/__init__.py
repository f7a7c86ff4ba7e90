"""Our kernels compiled ahead of time, for GPUs that are not there: their tunings as a list of builds.

Of what differs in names of types alone there are few, as float16 beside bfloat16, and of masks and modifiers a choice.

A family of kernels is a module here with a function ``builds(arch)``, and an entry in ``FAMILIES``. A build has a name,
the number of an architecture, and ``compile()``; that makes a binary, and needs neither a GPU nor a driver. Kernels in
Triton need a process in which TRITON_INTERPRET is not set: its interpreter and its compiler cannot share one. Those in
CUDA C++ need NVRTC, and ``absent()`` says where that is not there.
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

__all__ = ["ARCHS", "FAMILIES", "Binary", "Build", "builds"]

ARCHS = (80, 90, 100)
"""Ampere, Hopper and Blackwell."""

MODULES = (
    triton_flash, triton_unfused, triton_fa1, triton_splitkv, triton_append, triton_product, triton_dynamic,
    triton_softmax, cuda_matvec, cuda_llama,
)  # fmt: skip
FAMILIES = tuple(module.builds for module in MODULES)
"""Each takes an architecture's number and yields what is built for it."""


def builds() -> Iterator[Build]:
    """Every build, the architectures one after the other."""
    for arch in ARCHS:
        for family in FAMILIES:
            yield from family(arch)
