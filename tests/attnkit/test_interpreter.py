"""bfloat16 and fp8 in Triton's interpreter are torch's, and what it cannot do it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.runtime import interpreter

from attnkit import triton_device
from attnkit.problem import Dtype, Problem
from attnkit.variants import variant
from tests.attnkit.interpreter import from_bits, from_fp8, to_bits, to_fp8

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU kernels are compiled")

CAST = 0
DOT = 1
ADD = 2
SUM = 3


@triton.jit
def kernel(p_x, p_y, p_count, WHAT: tl.constexpr):  # type: ignore[no-untyped-def]
    o_x = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    for _ in range(tl.load(p_count)):
        x = tl.load(p_x + o_x)
        if WHAT == 0:
            y = x.to(p_y.dtype.element_ty)
        elif WHAT == 1:
            y = tl.dot(x, x)
        elif WHAT == 2:
            y = x + x
        else:
            y = tl.sum(x, 1)[:, None] + tl.zeros([16, 16], tl.float32)
        tl.store(p_y + o_x, y)


def run(what: int, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    y = torch.zeros(16, 16, dtype=dtype)
    # how often is known at run time alone
    kernel[(1,)](x, y, torch.ones(1, dtype=torch.int32), WHAT=what)
    return y


def numbers() -> torch.Tensor:
    """Return what is hard to round: ties, carries into the exponent, the largest, the smallest, and noise."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (4096,), generator=generator, dtype=torch.int64).to(torch.int32)
    ties = torch.arange(0, 2**16, dtype=torch.int32) * 2**16 + 2**15
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 3.4e38, 1e-45, 1.0 + 2**-8, 1.0 + 3 * 2**-8])
    return torch.cat([bits.view(torch.float32), ties.view(torch.float32), special])


def test_it_rounds_as_torch_does() -> None:
    x = numbers()
    want = x.bfloat16()
    got = torch.from_numpy(to_bits(x.numpy()).view(np.int16)).view(torch.bfloat16)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    back = torch.from_numpy(from_bits(want.view(torch.int16).numpy().view(np.uint16)))
    torch.testing.assert_close(back, want.float(), rtol=0, atol=0, equal_nan=True)


def test_a_kernel_casts_and_multiplies_numbers() -> None:
    x = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(CAST, x, torch.bfloat16), x.bfloat16())
    # stored, it is cast without being asked
    assert torch.equal(run(SUM, x, torch.bfloat16), run(SUM, x, torch.float32).bfloat16())
    y = x.bfloat16()
    torch.testing.assert_close(run(DOT, y, torch.float32), y.float() @ y.float())


def test_fp8_rounds_to_the_nearest_and_ends_at_the_largest() -> None:
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    e4m3 = every.view(torch.float8_e4m3fn).float()
    torch.testing.assert_close(torch.from_numpy(from_fp8(every.numpy())), e4m3, rtol=0, atol=0, equal_nan=True)
    known = e4m3[e4m3.isfinite()].sort().values
    x = torch.cat([(known[1:] + known[:-1]) / 2, torch.linspace(-500, 500, 4001), torch.linspace(-0.02, 0.02, 4001)])
    got = torch.from_numpy(from_fp8(to_fp8(x.numpy())))
    nearest = (x[:, None] - known).abs().amin(1)
    torch.testing.assert_close((x - got).abs(), nearest, rtol=0, atol=0)
    ties = torch.tensor([1.0625, 1.1875, 2.0**-10, 3 * 2.0**-10, 1e4, -1e4])
    assert from_fp8(to_fp8(ties.numpy())).tolist() == [1.0, 1.25, 0.0, 2.0**-8, 448.0, -448.0]


def test_a_kernel_casts_and_multiplies_fp8() -> None:
    x = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) * 0.1
    y = x.to(torch.float8_e4m3fn)
    assert torch.equal(run(CAST, x, torch.float8_e4m3fn).view(torch.uint8), y.view(torch.uint8))
    torch.testing.assert_close(run(DOT, y, torch.float32), y.float() @ y.float())


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bfloat16"), (torch.float8_e4m3fn, "fp8")])
@pytest.mark.parametrize("what", [ADD, SUM])
def test_what_a_kernel_should_not_do_in_few_bits_is_refused(what: int, dtype: torch.dtype, name: str) -> None:
    with pytest.raises(Exception, match=f"of {name} in an interpreted kernel: take float32"):
        run(what, torch.ones(16, 16).to(dtype), torch.float32)


@pytest.mark.parametrize("what", [ADD, DOT])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_overflow_is_infinity_and_no_error(what: int, dtype: torch.dtype) -> None:
    assert run(what, torch.full((16, 16), 3e38), dtype).isinf().all()


@triton.jit
def total(x):  # type: ignore[no-untyped-def]
    return tl.sum(x, 0)


@triton.jit
def calling(p_x, p_y):  # type: ignore[no-untyped-def]
    x = tl.load(p_x + tl.arange(0, 16))
    tl.store(p_y, total(x) + tl.sum(x, 0))


@pytest.mark.parametrize("dtype", ["bf16", "fp8", "fp16"])
def test_what_the_interpreter_as_it_is_would_misread_is_refused(dtype: Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(interpreter.InterpreterBuilder, triton_device.REPAIRED)
    way, problem = variant("triton_flash"), Problem(b=1, hq=1, sq=4, d=16, dtype=dtype)
    reason, (q, k, v, _) = way.rejects(problem, torch.device("cpu"), "fwd"), problem.inputs("cpu")
    if dtype == "fp16":
        assert reason is None
        return
    assert reason is not None
    assert reason.startswith("would be wrong in Triton's interpreter, which misreads torch.")
    with pytest.raises(ValueError, match=r"a Triton kernel would be wrong .* take float16 or float32 there"):
        way.attention(q, k, v)


def test_a_launch_takes_back_what_it_patched_also_where_it_calls_functions() -> None:
    x, y = torch.arange(16, dtype=torch.float32), torch.zeros(1)
    for _ in range(2):
        calling[(1,)](x, y.zero_())
        assert y.item() == 240
        assert tl.core.is_builtin(tl.load)
        assert tl.core.is_builtin(tl.tensor.__add__)


def test_a_tensor_has_its_own_shape_and_type() -> None:
    # what was found out of another one of its shape or its type is not its own
    block = [tl.core.block_type(dtype, shape) for dtype in (tl.float32, tl.int32) for shape in ([16], [4, 4], [16])]
    assert [str(one) for one in block] == [f"<{one.shape}, {one.element_ty}>" for one in block]
    assert [(one.element_ty.name, one.numel) for one in block] == [("fp32", 16)] * 3 + [("int32", 16)] * 3
    assert [len(one.shape) for one in block] == [1, 2, 1] * 2
    made = [tl.core.tensor(f"handle {i}", one) for i, one in enumerate(block)]
    assert [(one.handle, one.type, one.dtype) for one in made] == [
        (f"handle {i}", one, one.element_ty) for i, one in enumerate(block)
    ]
    assert [[size.value for size in one.shape] for one in made] == [[16], [4, 4], [16]] * 2
