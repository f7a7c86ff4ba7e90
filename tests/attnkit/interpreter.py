"""bfloat16 as it is, in Triton's interpreter, which otherwise computes on its bits as if they were integers.

Triton 3.6 to 3.9 keep bfloat16 in uint16 arrays and never convert: a product of two tiles multiplies bit patterns, and
a cast from float32 cuts the lower half off where a GPU rounds to nearest (triton#11584). With what is installed here

    tl.dot      multiplies the numbers, exactly as on a GPU: the product of two bfloat16 fits a float32
    casts       round to nearest, ties to even
    the rest    (arithmetic, comparisons, reductions on bfloat16) raises: kernels compute in float32

and a loop may have a bound that is known at run time alone, which Triton 3.6 cannot do with recent numpy.
Must be installed before the first launch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

__all__ = ["from_bits", "install", "to_bits"]

QUIET_NAN = np.uint16(0x7FC0)
PAST_OPERATORS = ("create_fma", "create_clampf", "create_rsqrt", "create_erf")
"""Builders of arithmetic that pass by `binary_op` and `unary_op`."""


def from_bits(bits: np.ndarray) -> np.ndarray:
    """Return the float32 that these bfloat16 are: their bits are its upper half."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bits(numbers: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16, to nearest and ties to even."""
    numbers = np.ascontiguousarray(numbers, dtype=np.float32)
    bits = numbers.view(np.uint32)
    # just under half of what is cut off, and one more if what stays is odd: a carry is a step up
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(numbers), QUIET_NAN, rounded)


def install() -> None:
    """Change Triton's interpreter as above.

    Raises:
        pytest.UsageError: If Triton was imported, and with it compiled kernels chosen, before the tests could say.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    if not isinstance(tl.zeros, interpreter.InterpretedFunction):
        raise pytest.UsageError(
            "without a GPU triton must be imported with TRITON_INTERPRET=1, but was imported without it: "
            "set it, or run the tests of attnkit alone"
        )
    builder = interpreter.InterpreterBuilder

    def is_bf16(handle: Any) -> bool:
        return isinstance(handle, interpreter.TensorHandle) and handle.dtype.scalar == tl.bfloat16

    def as_float32(handle: Any) -> Any:
        return interpreter.TensorHandle(from_bits(handle.data), tl.float32) if is_bf16(handle) else handle

    # as on a GPU inf and nan are made without a word, where numpy would warn
    silent = np.errstate(all="ignore")

    def refusing(original: Callable[..., Any]) -> Callable[..., Any]:
        """Let the original have anything but bfloat16."""

        def checked(self: Any, *arguments: Any) -> Any:
            operands = arguments[0] if isinstance(arguments[0], tuple) else arguments
            if any(is_bf16(getattr(operand, "handle", operand)) for operand in operands):
                raise NotImplementedError(f"{original.__name__} of bfloat16 in an interpreted kernel: take float32")
            return original(self, *arguments)

        return silent(checked)

    cast, dot, convert = builder.cast_impl, builder.create_dot, builder.create_fp_to_fp

    def exact_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, as_float32(a), as_float32(b), *rest)

    def rounding_cast(self: Any, source: Any, target: Any) -> Any:
        source = as_float32(source)
        if target.scalar == tl.bfloat16:
            return interpreter.TensorHandle(to_bits(source.data.astype(np.float32)), tl.bfloat16)
        return cast(self, source, target)

    def rounding_convert(self: Any, source: Any, target: Any, mode: Any) -> Any:
        if is_bf16(source) or target.scalar == tl.bfloat16:
            return rounding_cast(self, source, target)
        return convert(self, source, target, mode)

    builder.create_dot, builder.cast_impl = silent(exact_dot), silent(rounding_cast)
    builder.create_fp_to_fp = silent(rounding_convert)
    for name in ("binary_op", "unary_op", *PAST_OPERATORS):
        setattr(builder, name, refusing(getattr(builder, name)))
    for operations in (interpreter.ReduceOps, interpreter.ScanOps):
        operations.apply_impl = refusing(operations.apply_impl)

    patch = interpreter._patch_lang_tensor

    def patch_with_index(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        # upstream's int() of an array of one element is an error since numpy 2.4
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_with_index
