"""bfloat16 and fp8 as they are, in Triton's interpreter, which otherwise computes on bits as if they were integers.

Triton 3.6 to 3.9 keep bfloat16 in uint16 arrays and never convert: a product of two tiles multiplies bit patterns, and
a cast from float32 cuts the lower half off where a GPU rounds to nearest (triton#11584). Its casts to fp8 (float8e4nv
alone is meant here) lose carries and subnormal numbers. With what is installed here

    tl.dot      multiplies the numbers, exactly as on a GPU: the product of two fits a float32
    casts       round to nearest, ties to even; to fp8 what is too large becomes the largest
    the rest    (arithmetic, comparisons, reductions on either) raises: kernels compute in float32

and a loop may have a bound that is known at run time alone, which Triton 3.6 cannot do with recent numpy. What Triton
finds out again and again is found out once, which halves the time of most kernels. Must be installed before the first
launch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

__all__ = ["from_bits", "from_fp8", "install", "to_bits", "to_fp8"]

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
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


def from_fp8(bits: np.ndarray) -> np.ndarray:
    """Return the float32 that these e4m3 are."""
    return torch.from_numpy(np.ascontiguousarray(bits)).view(torch.float8_e4m3fn).float().numpy()


def to_fp8(numbers: np.ndarray) -> np.ndarray:
    """Round float32 to e4m3, to nearest and ties to even; what is too large becomes the largest."""
    x = torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.float32)).clamp(-FP8_MAX, FP8_MAX)
    return x.to(torch.float8_e4m3fn).view(torch.uint8).numpy()


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
    builder.reads_narrow = True  # attnkit would refuse otherwise

    # float32 of the bits, bits of float32, and a name
    narrow = {tl.bfloat16: (from_bits, to_bits, "bfloat16"), tl.float8e4nv: (from_fp8, to_fp8, "fp8")}

    def is_narrow(handle: Any) -> bool:
        return isinstance(handle, interpreter.TensorHandle) and handle.dtype.scalar in narrow

    def as_float32(handle: Any) -> Any:
        if not is_narrow(handle):
            return handle
        return interpreter.TensorHandle(narrow[handle.dtype.scalar][0](handle.data), tl.float32)

    # as on a GPU inf and nan are made without a word, where numpy would warn
    silent = np.errstate(all="ignore")

    def refusing(original: Callable[..., Any]) -> Callable[..., Any]:
        """Let the original have anything but bfloat16 and fp8."""

        def checked(self: Any, *arguments: Any) -> Any:
            operands = arguments[0] if isinstance(arguments[0], tuple) else arguments
            for handle in (getattr(operand, "handle", operand) for operand in operands):
                if is_narrow(handle):
                    what = f"{original.__name__} of {narrow[handle.dtype.scalar][2]}"
                    raise NotImplementedError(f"{what} in an interpreted kernel: take float32")
            return original(self, *arguments)

        return silent(checked)

    cast, dot, convert = builder.cast_impl, builder.create_dot, builder.create_fp_to_fp

    def exact_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, as_float32(a), as_float32(b), *rest)

    def rounding_cast(self: Any, source: Any, target: Any) -> Any:
        source = as_float32(source)
        if target.scalar in narrow:
            return interpreter.TensorHandle(narrow[target.scalar][1](source.data.astype(np.float32)), target.scalar)
        return cast(self, source, target)

    def rounding_convert(self: Any, source: Any, target: Any, mode: Any) -> Any:
        if is_narrow(source) or target.scalar in narrow:
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
    _quicken(interpreter)


def _quicken(interpreter: Any) -> None:
    """Have Triton's interpreter find out once what cannot have changed since, and leave out what nobody looks at."""
    from triton.language import core

    # sums that are computed again, in 64 bits, for an assertion that is made where `debug` is set
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=builder.options.debug)

    # A launch patches the modules that its kernel sees, and takes it back. Each call of a function in it looks all of
    # them through again; what it patches, because the kernel does not see it, is not taken back by anyone.
    patch, of_launch, for_good = interpreter._patch_lang, set[int](), set[int]()

    def patch_once(function: Any) -> Any:
        modules = {id(value) for value in function.__globals__.values() if value is core or value is interpreter.tl}
        if of_launch and modules <= of_launch | for_good:
            return interpreter._LangPatchScope()  # with nothing to take back
        scope = patch(function)
        if of_launch:
            for_good.update(modules)
            return scope
        of_launch.update(modules)
        restore = scope.restore

        def restored() -> None:
            of_launch.clear()
            restore()

        scope.restore = restored
        return scope

    interpreter._patch_lang = patch_once

    # a type is what its name says
    numbers: dict[str, np.dtype[Any]] = {}
    look_up = interpreter._get_np_dtype

    def look_up_once(dtype: Any) -> np.dtype[Any]:
        if (found := numbers.get(dtype.name)) is None:
            found = numbers[dtype.name] = look_up(dtype)
        return found

    interpreter._get_np_dtype = look_up_once

    blocks: dict[tuple[Any, ...], dict[str, Any]] = {}
    create_block = core.block_type.__init__

    def create_block_once(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *(size.value if isinstance(size, core.constexpr) else size for size in shape))
        if (found := blocks.get(key)) is None:
            create_block(self, element_ty, shape)
            blocks[key] = {name: value for name, value in vars(self).items() if name != "element_ty"}
        else:
            self.__dict__.update(found, element_ty=element_ty)

    core.block_type.__init__ = create_block_once

    tensors: dict[str, dict[str, Any]] = {}
    create_tensor = core.tensor.__init__

    def create_tensor_once(self: Any, handle: Any, type: Any) -> None:
        if (found := tensors.get(type.name)) is None:
            create_tensor(self, handle, type)
            tensors[type.name] = {name: self.__dict__[name] for name in vars(self).keys() - {"handle", "type", "dtype"}}
        else:
            self.__dict__.update(found, handle=handle, type=type, dtype=type.scalar)

    core.tensor.__init__ = create_tensor_once
