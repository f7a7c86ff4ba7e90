"""Every way to multiply agrees with float64, within the rounding of its sums and of its result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from attnkit.agreement import agreement
from attnkit.product import Product
from attnkit.products import TABLE, choose, product
from attnkit.products.triton_product import Tiles, multiply

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = Tiles(16, 16, 32, 4, 2)


def operands(data: st.DataObject, most_rows: int = 20) -> tuple[torch.Tensor, ...]:
    """x, weight, scale and bias, of sizes that tiles do not divide."""
    m, n = data.draw(st.integers(1, most_rows), label="m"), data.draw(st.integers(1, 70), label="n")
    k = 16 * data.draw(st.integers(1, 20), label="k / 16")
    dtype = data.draw(st.sampled_from([torch.bfloat16, torch.float16]), label="dtype")
    torch.manual_seed(data.draw(st.integers(0, 2**16), label="seed"))
    x, bias = torch.randn(m, k).to(dtype), torch.randn(n).to(dtype)
    # one feature far larger than the others, as large language models have them
    x[:, data.draw(st.integers(0, k - 1), label="outlier")] *= data.draw(st.sampled_from([1, 100]), label="times")
    if data.draw(st.booleans(), label="int8"):
        weight, scale = torch.randint(-128, 128, (n, k), dtype=torch.int8), torch.rand(n) / 64
        weight[data.draw(st.integers(0, n - 1), label="row of zeros")] = 0
        return x.to(DEVICE), weight.to(DEVICE), scale.to(DEVICE), bias.to(DEVICE)
    return x.to(DEVICE), torch.randn(n, k).to(dtype).to(DEVICE), None, bias.to(DEVICE)  # type: ignore[return-value]


@pytest.mark.parametrize("way", TABLE, ids=lambda way: way.name)
@settings(max_examples=25)
@given(data=st.data())
def test_it_is_the_product(way: Product, data: st.DataObject) -> None:
    given = operands(data)
    if reason := way.rejects(*given):
        ours = way.name.startswith("cuda_matvec")
        if not (ours or "not installed" in reason or (given[2] is None and "int8" in reason)):
            raise AssertionError(f"{way.name} rejects what it should take: {reason}")
        return
    out = way.multiply(*given)
    assert agreement(out, *given, explained=way.explains(*given) if way.explains else None).wrong == 0


@settings(max_examples=25)
@given(data=st.data())
def test_tiles_do_not_matter(data: st.DataObject) -> None:
    given = operands(data, 70)
    assert agreement(multiply(*given, form=SMALL), *given).wrong == 0


GUARDED = """
import ctypes, mmap
import torch
from tests.attnkit import interpreter
from attnkit.products.triton_product import Tiles, multiply

interpreter.install()
libc, kept = ctypes.CDLL(None, use_errno=True), []

def at_the_end(tensor):
    # a copy whose last byte is the last that may be read: behind it is a page that may not
    size = -(-tensor.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, size + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    assert libc.mprotect(ctypes.c_void_p(start + size), mmap.PAGESIZE, 0) == 0
    kept.append(pages)
    room = (ctypes.c_char * tensor.nbytes).from_address(start + size - tensor.nbytes)
    return torch.frombuffer(room, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)

x, weight = torch.randn(3, 48).half(), torch.randint(-128, 128, (21, 48), dtype=torch.int8)
scale, bias = torch.rand(21), torch.randn(21).half()
out = multiply(*map(at_the_end, (x, weight, scale, bias)), form=Tiles(16, 16, 32, 4, 2))
torch.testing.assert_close(out, multiply(x, weight, scale, bias))
"""


@pytest.mark.skipif(DEVICE.type == "cuda", reason="guards memory of the host: for the interpreter")
def test_nothing_is_read_outside_of_the_operands() -> None:
    done = run("-c", GUARDED, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr[-1000:]


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: the interpreter and the compiler cannot share one, and a bad address ends one."""
    root = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | variables
    environment["PYTHONPATH"] = os.pathsep.join([str(root / "src"), str(root), environment.get("PYTHONPATH", "")])
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_a_gradient_is_not_lost() -> None:
    x = torch.randn(3, 32, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    weight = torch.randint(-128, 128, (5, 32), dtype=torch.int8, device=DEVICE)
    scale = torch.rand(5, device=DEVICE)
    way = choose(x, weight, scale)
    way.multiply(x, weight, scale).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.float(), (weight * scale[:, None]).sum(0).expand(3, 32), rtol=2e-2, atol=2e-2)
    with pytest.raises(ValueError, match="has no backward"):
        multiply(x, weight, scale)


def test_what_a_product_cannot_do_is_said() -> None:
    x, weight = torch.randn(2, 32, device=DEVICE), torch.randn(4, 32, device=DEVICE)
    assert "float16 or bfloat16" in str(product("triton_product").rejects(x, weight, None, None))
    assert "of x's dtype" in str(product("triton_product").rejects(x.half(), weight, None, None))
    assert "a scale is for int8" in str(product("torch").rejects(x, weight, torch.ones(4), None))
    with pytest.raises(ValueError, match="no product is called 'fast': take one of torch, triton_product, cuda_matvec"):
        product("fast")


def test_a_few_rows_of_a_gpu_go_to_the_kernel_for_them() -> None:
    if DEVICE.type != "cuda":
        pytest.skip("needs a CUDA device")
    x = torch.randn(9, 64, device=DEVICE).bfloat16()
    weight = torch.randint(-128, 128, (80, 64), dtype=torch.int8, device=DEVICE)
    assert choose(x[:8], weight).name == "cuda_matvec"
    assert choose(x, weight).name == "triton_product"
    assert choose(x, weight.bfloat16()).name == "torch"
