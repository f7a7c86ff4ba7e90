"""Triton's compiler, told the signature that a launch would have found out."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from typing import Any

from attnkit.ahead.build import REMEDY, Binary

__all__ = ["ALIGNMENT", "absent", "compile_kernel"]

ALIGNMENT = 16
"""What addresses and strides of almost every tensor are multiples of, and what a launch tells the compiler then."""


def absent() -> str | None:
    """Say that there is no Triton, with the remedy; None if there is."""
    return None if importlib.util.find_spec("triton") else f"the package triton is not installed: {REMEDY}"


def compile_kernel(
    kernel: Any,
    arch: int,
    types: Mapping[str, str],
    constants: Mapping[str, object],
    *,
    aligned: Collection[str] = (),
    unaligned: Collection[str] = (),
    **options: Any,
) -> Binary:
    """Compile a kernel for an architecture.

    Args:
        kernel: Made by ``triton.jit``, or by ``gluon.jit``.
        arch: The architecture's number, such as 90.
        types: Of the arguments that are no constants, in Triton's words, such as ``*bf16`` or
            ``tensordesc<bf16[1,1,64,128]>``. What is not here is a 32-bit integer, and a float32 if it is a scale.
            Pointers, strides (``s_...``) and ``rows`` are multiples of `ALIGNMENT`.
        constants: By name; what the kernel does not take is left out.
        aligned: Sizes that are multiples of `ALIGNMENT` too.
        unaligned: Strides that are not.
        options: The compiler's own: ``num_warps``, ``num_stages``, ``maxnreg``.

    Raises:
        RuntimeError: Under Triton's interpreter.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    if triton.knobs.runtime.interpret:
        raise RuntimeError("compiling needs a process without Triton's interpreter, got TRITON_INTERPRET=1: unset it")
    names = kernel.arg_names
    signature = {
        name: "constexpr" if name in constants else types.get(name, "fp32" if name.startswith("scale") else "i32")
        for name in names
    }
    multiples = {n for n in names if signature[n].startswith("*") or n.startswith("s_") or n == "rows"}
    multiples = (multiples | set(aligned)) - set(unaligned)
    source = (GluonASTSource if kernel.is_gluon() else ASTSource)(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items() if name in names},
        {(names.index(name),): [["tt.divisibility", ALIGNMENT]] for name in names if name in multiples},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    metadata = compiled.metadata
    compiler = f"triton {triton.__version__}"
    cubin, ptx = compiled.asm["cubin"], compiled.asm["ptx"]
    return Binary(cubin, metadata.name, metadata.num_warps, metadata.shared, compiler, ptx)
