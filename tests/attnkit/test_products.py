"""Every way to multiply agrees with float64, within the rounding of its sums and of its result."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from attnkit.agreement import agreement
from attnkit.product import Product, Rounding
from attnkit.products import TABLE, choose, product, torch_dynamic, triton_dynamic, triton_product
from attnkit.products.product_tiles import ANY, copyable, fitting, tiles
from attnkit.products.product_tiles import TABLE as TILES
from attnkit.products.triton_product import Tiles, multiply

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = [
    Tiles(16, 16, 32, 4, 2),
    Tiles(16, 64, 32, 4, 2, left=True),
    Tiles(32, 64, 64, 4, 2, "tma", left=True),
    Tiles(16, 32, 32, 4, 2, "tma"),
]
LARGE = Tiles(128, 128, 32, 4, 2)


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
        elsewhere = "not installed" in reason or "on a GPU x must have more than 16 rows" in reason
        if not (ours or elsewhere or (given[2] is None and "int8" in reason)):
            raise AssertionError(f"{way.name} rejects what it should take: {reason}")
        return
    out = way.multiply(*given)
    assert agreement(out, *given, explained=way.explains(*given) if way.explains else None).wrong == 0


@settings(max_examples=25)
@given(data=st.data())
def test_tiles_do_not_matter(data: st.DataObject) -> None:
    given = operands(data, 70)
    form = data.draw(st.sampled_from(SMALL), label="form")
    assert agreement(multiply(*given, form=form), *given).wrong == 0


EXTREMES = st.sampled_from([0.0, 1e-38, 1e-7, 1e-3, 1.0, 100.0])
"""Of rows: the least two are below the normal numbers of float32 and float16, with the largest no result is beyond."""


def laid(data: st.DataObject, x: torch.Tensor) -> torch.Tensor:
    """x, one row after the other or with a row between two of them."""
    return torch.stack([x, x.flip(0)], 1)[:, 0] if data.draw(st.booleans(), label="strided") else x


@settings(max_examples=40)
@given(data=st.data())
def test_integers_are_the_product_of_what_x_was_rounded_to(data: st.DataObject) -> None:
    m, n = data.draw(st.integers(1, 70), label="m"), data.draw(st.integers(1, 70), label="n")
    k = data.draw(st.integers(1, 300), label="k")
    dtype = data.draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]), label="dtype")
    torch.manual_seed(data.draw(st.integers(0, 2**16), label="seed"))
    sizes = torch.tensor(data.draw(st.lists(EXTREMES, min_size=m, max_size=m), label="sizes"))
    x = torch.empty(m, k).uniform_(-1, 1)
    x[:, data.draw(st.integers(0, k - 1), label="outlier")] *= data.draw(st.sampled_from([0, 1, 2]), label="times")
    x = laid(data, (x * sizes[:, None]).to(dtype).to(DEVICE))
    weight = torch.randint(-128, 128, (n, k), dtype=torch.int8).to(DEVICE)
    scale, bias = (torch.rand(n) / 64).to(DEVICE), torch.zeros(n, dtype=dtype, device=DEVICE)
    steps, unit = triton_dynamic.rounded(x)
    largest = x.float().abs().amax(1)
    # a row uses the whole range, and none of its elements is off by more than half a unit
    used = largest > 127 * torch.finfo(torch.float32).tiny
    assert (steps.int().abs().amax(1)[used] == 127).all()
    off = (steps.double() * unit[:, None].double() - x.double()).abs()
    assert (off <= torch_dynamic.HALF_A_STEP * unit[:, None].double()).all()
    # the product of those integers is exact: what is left are three roundings in float32 and that of the result
    form = data.draw(st.sampled_from([None, *SMALL]), label="form")
    out = triton_dynamic.multiply(x, weight, scale, bias, form=form)
    exact = (steps.double() @ weight.double().T) * unit[:, None].double() * scale.double()
    least = 2 * torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    allowed = exact.abs() * (torch.finfo(dtype).eps / 2 + 4 * 2.0**-24) + least
    assert ((out.double() - exact).abs() <= allowed).all()


ROUNDING = [torch_dynamic.ROUNDING, triton_dynamic.ROUNDING]
by_rounding = pytest.mark.parametrize("way", ROUNDING, ids=lambda way: way.product.name)


@by_rounding
@settings(max_examples=40)
@given(data=st.data())
def test_a_residual_is_added_before_the_result_is_rounded(way: Rounding, data: st.DataObject) -> None:
    m, n = data.draw(st.integers(1, 70), label="m"), data.draw(st.integers(1, 70), label="n")
    k = data.draw(st.integers(1, 300), label="k")
    dtype = data.draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]), label="dtype")
    torch.manual_seed(data.draw(st.integers(0, 2**16), label="seed"))
    x, weight = (
        torch.randn(m, k, device=DEVICE).to(dtype),
        torch.randint(-128, 128, (n, k), dtype=torch.int8).to(DEVICE),
    )
    scale = (torch.rand(n) / 64).to(DEVICE)
    bias = torch.randn(n, device=DEVICE).to(dtype) if data.draw(st.booleans(), label="bias") else None
    residual = torch.randn(m, n, device=DEVICE).to(dtype) * data.draw(st.sampled_from([1, 100]), label="residual")
    if way.product.rejects(x, weight, scale, bias) is not None:
        return  # what cuBLAS does not multiply
    steps, unit = way.rounded(x)
    options = {"form": data.draw(st.sampled_from([None, *SMALL, LARGE]))} if way is triton_dynamic.ROUNDING else {}
    out = way.multiply(steps, unit, weight, scale, bias, dtype=dtype, residual=residual, **options)
    product_ = (steps.double() @ weight.double().T) * unit[:, None].double() * scale.double()
    added = [residual.double()] if bias is None else [residual.double(), bias.double()]
    exact = product_ + sum(added)
    # each of the roundings in float32 is of what was added up so far
    size = product_.abs() + sum(part.abs() for part in added)
    least = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    allowed = exact.abs() * torch.finfo(dtype).eps / 2 + size * 6 * 2.0**-24 + least
    assert out.dtype == dtype
    assert ((out.double() - exact).abs() <= allowed).all()


@by_rounding
@settings(max_examples=40)
@given(data=st.data())
def test_what_is_rounded_is_the_norm(way: Rounding, data: st.DataObject) -> None:
    m, k = data.draw(st.integers(1, 40), label="m"), data.draw(st.integers(1, 300), label="k")
    dtype = data.draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]), label="dtype")
    torch.manual_seed(data.draw(st.integers(0, 2**16), label="seed"))
    affine, biased = data.draw(st.booleans(), label="affine"), data.draw(st.booleans(), label="bias")
    norm = torch.nn.LayerNorm(k, eps=data.draw(st.sampled_from([1e-5, 1e-2])), elementwise_affine=affine, bias=biased)
    norm = norm.to(DEVICE, dtype).requires_grad_(False)
    for parameter in norm.parameters():
        parameter.normal_()
    x = torch.randn(m, k) * data.draw(st.sampled_from([0, 1e-3, 1, 30]), label="size")
    x = laid(data, (x + data.draw(st.sampled_from([0, 1, -20]), label="mean")).to(dtype).to(DEVICE))
    steps, unit = way.rounded(x, norm)
    exact = x.double()
    centred = exact - exact.mean(1, keepdim=True)
    inverse = (centred.pow(2).mean(1, keepdim=True) + norm.eps).rsqrt()
    gain = torch.ones(k, device=DEVICE, dtype=dtype) if norm.weight is None else norm.weight
    shift = torch.zeros_like(gain) if norm.bias is None else norm.bias
    h = centred * inverse * gain.double() + shift.double()
    # in float32 a mean is off by so many roundings of the largest, and so is the deviation
    lost = (k + 8) * 2.0**-24 * exact.abs().amax(1, keepdim=True) * inverse
    lost = lost * (1 + centred.abs() * inverse) * gain.double().abs() + (k + 8) * 2.0**-24 * (h.abs() + shift.abs())
    lost = lost + torch.finfo(dtype).eps / 2 * (h.abs() + lost) + torch.finfo(dtype).tiny
    off = (steps.double() * unit[:, None].double() - h).abs()
    assert (off <= torch_dynamic.HALF_A_STEP * unit[:, None].double() + lost).all()
    # a row uses the whole range, of a largest element that is a number of x's dtype
    largest = unit.double() * 127
    used = largest > 127 * torch.finfo(torch.float32).tiny
    assert (steps.int().abs().amax(1)[used] == 127).all()
    assert ((largest - largest.to(dtype)).abs() <= 2.0**-23 * largest)[used].all()


@by_rounding
@pytest.mark.parametrize("what", [float("inf"), float("-inf"), float("nan")])
def test_a_row_that_holds_no_number_has_no_norm_and_others_do_not_see_it(way: Rounding, what: float) -> None:
    x = torch.randn(20, 48, device=DEVICE).half()
    norm = torch.nn.LayerNorm(48).to(DEVICE).half().requires_grad_(False)
    weight, scale = torch.randint(-127, 128, (24, 48), dtype=torch.int8).to(DEVICE), torch.rand(24, device=DEVICE)
    residual = torch.randn(20, 24, device=DEVICE).half()

    def out() -> torch.Tensor:
        return way.multiply(*way.rounded(x, norm), weight, scale, dtype=x.dtype, residual=residual)

    whole = out()
    x[7, 11] = what
    residual[3, 5] = what
    found = out()
    assert found[7].isnan().all()
    torch.testing.assert_close(found[3, 5], residual[3, 5], equal_nan=True)
    seen = torch.zeros(20, 24, dtype=torch.bool, device=DEVICE)
    seen[7], seen[3, 5] = True, True
    assert torch.equal(found[~seen], whole[~seen])


@by_rounding
def test_a_norm_and_a_residual_that_do_not_belong_to_x_are_refused(way: Rounding) -> None:
    x, weight, scale = torch.randn(20, 48).half(), torch.zeros(24, 48, dtype=torch.int8), torch.ones(24)
    x, weight, scale = x.to(DEVICE), weight.to(DEVICE), scale.to(DEVICE)
    for said, norm in {
        "expected a norm of rows of 48 elements, got [40]": torch.nn.LayerNorm(40),
        "expected a norm of rows of 48 elements, got [20, 48]": torch.nn.LayerNorm([20, 48]),
        f"contiguous, in torch.float16 and on {x.device}, got torch.float32": torch.nn.LayerNorm(48).to(DEVICE),
        f"contiguous, in torch.float16 and on {x.device}, got torch.float16 on meta": torch.nn.LayerNorm(48)
        .to("meta")
        .half(),
        "has no backward": torch.nn.LayerNorm(48).to(DEVICE).half(),
    }.items():
        with pytest.raises(ValueError, match=f"{way.product.name} cannot: .*{re.escape(said)}"):
            way.rounded(x, norm)
    steps, unit = way.rounded(x)
    residual = torch.zeros(20, 24, device=DEVICE).half()
    for said, wrong in {
        f"expected a residual [20, 24] in torch.float16 on {x.device}, got [24]": residual[0],
        f"in torch.float16 on {x.device}, got [20, 24] in torch.float32": residual.float(),
        f"in torch.float16 on {x.device}, got [20, 24] in torch.float16 on meta": residual.to("meta"),
        "the residual must be contiguous": torch.zeros(24, 20, device=DEVICE).half().T,
        "has no backward": residual.clone().requires_grad_(),
    }.items():
        with pytest.raises(ValueError, match=f"{way.product.name} cannot: .*{re.escape(said)}"):
            way.multiply(steps, unit, weight, scale, dtype=torch.float16, residual=wrong)


def test_what_was_not_rounded_is_not_multiplied() -> None:
    """A kernel would read past its end, or read other bytes."""
    steps, unit, weight = torch.zeros(20, 48, dtype=torch.int8), torch.ones(20), torch.zeros(24, 48, dtype=torch.int8)
    scale = torch.ones(24)
    many = torch.zeros(48, 24, dtype=torch.int8).T
    for operands_ in ((steps, unit[:19], weight), (steps.half(), unit, weight), (steps, unit, many)):
        with pytest.raises(ValueError, match="expected rows of int8 and a unit for each of x"):
            triton_dynamic.multiply_rounded(*operands_, scale, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"expected x \[m, k\] and weight \[n, k\]"):
        triton_dynamic.multiply_rounded(steps, unit, weight[:, :32], scale, dtype=torch.float16)


@pytest.mark.parametrize("name", ["torch_dynamic", "triton_dynamic"])
@pytest.mark.parametrize("what", [float("inf"), float("-inf"), float("nan")])
def test_a_row_that_holds_no_number_gives_none_and_others_do_not_see_it(name: str, what: float) -> None:
    x = torch.randn(20, 48, device=DEVICE).half()
    weight = torch.randint(-127, 128, (24, 48), dtype=torch.int8, device=DEVICE)
    scale = torch.rand(24, device=DEVICE)
    whole = product(name).multiply(x, weight, scale)
    x[7, 11] = what
    out = product(name).multiply(x, weight, scale)
    assert out[7].isnan().all()
    others = torch.arange(20, device=DEVICE) != 7
    assert torch.equal(out[others], whole[others])


@pytest.mark.parametrize("name", ["triton_product", "triton_dynamic"])
def test_operands_that_do_not_belong_together_are_refused(name: str) -> None:
    """A kernel would read past their ends."""
    x, weight = torch.randn(20, 48).bfloat16(), torch.zeros(24, 48, dtype=torch.int8)
    scale, bias = torch.ones(24), torch.zeros(24).bfloat16()
    for said, operands_ in {
        "expected x [m, k] and weight [n, k], got [20, 48] and [24, 32]": (x, weight[:, :32].contiguous(), scale, bias),
        "expected x [m, k] and weight [n, k], got [48] and [24, 48]": (x[0], weight, scale, bias),
        "expected a scale [24], one a row of weight, got [5]": (x, weight, scale[:5], bias),
        "expected a bias [24], one a row of weight, got [1, 24]": (x, weight, scale, bias[None]),
        "weight must be on x's device, got meta and cpu": (x, weight.to("meta"), scale, bias),
        "scale must be on x's device, got meta and cpu": (x, weight, scale.to("meta"), bias),
    }.items():
        assert product(name).rejects(*operands_) == said


@pytest.mark.parametrize("which", ["scale", "bias"])
@pytest.mark.parametrize("way", TABLE, ids=lambda way: way.name)
def test_scale_and_bias_that_are_scattered_are_read_right_or_refused(way: Product, which: str) -> None:
    x, weight = torch.randn(20, 64).half(), torch.randint(-127, 128, (24, 64), dtype=torch.int8)
    x, weight = x.to(DEVICE), weight.to(DEVICE)
    many = {"scale": torch.rand(48, device=DEVICE) / 64, "bias": torch.randn(48, device=DEVICE).half()}
    vectors = {name: vector[:24] for name, vector in many.items()}
    # every second, and one for all
    for odd in (many[which][::2], many[which][:1].expand(24)):
        given = vectors | {which: odd}
        if way.rejects(x, weight, given["scale"], given["bias"]) is None:
            wanted = way.multiply(x, weight, **(given | {which: odd.contiguous()}))
            torch.testing.assert_close(way.multiply(x, weight, **given), wanted)


def test_rows_that_lie_anyhow_are_rounded_to_rows_one_after_the_other() -> None:
    x = torch.randn(64, 32, device=DEVICE)
    steps, unit = torch_dynamic.rounded(x.T)
    assert steps.is_contiguous()
    for found, wanted in zip((steps, unit), torch_dynamic.rounded(x.T.contiguous()), strict=True):
        assert torch.equal(found, wanted)


def test_what_cublas_does_not_multiply_is_known() -> None:
    x, weight = torch.zeros(17, 64), torch.zeros(40, 64, dtype=torch.int8)
    wide = torch.zeros(40, 72, dtype=torch.int8)
    refuses = torch_dynamic.beyond_cublas
    assert refuses(x, weight) is None
    assert refuses(x, wide[:, 8:]) is None
    assert "more than 16 rows" in str(refuses(x[:16], weight))
    assert "multiples of 8" in str(refuses(x, weight[:39]))
    assert "multiples of 8" in str(refuses(x, weight[:0]))
    apart = torch.zeros(40, 65, dtype=torch.int8)[:, :64]
    for scattered in (torch.zeros(64, 40, dtype=torch.int8).T, wide[:, 1:65], apart):
        assert "begin at multiples of 8 bytes" in str(refuses(x, scattered))


def test_nothing_is_multiplied_by_what_needs_something() -> None:
    x, weight, scale = torch.zeros(20, 64).half(), torch.zeros(24, 64, dtype=torch.int8), torch.ones(24)
    for kernel in (triton_product, triton_dynamic):
        for few, less, width in ((0, 24, 64), (20, 0, 64), (20, 24, 0)):
            given = (t.to(DEVICE) for t in (x[:few, :width], weight[:less, :width], scale[:less]))
            assert kernel.rejects(*given) is not None


def test_the_copy_engine_is_asked_for_what_it_can_load_alone() -> None:
    form = Tiles(16, 32, 32, 4, 2, "tma")
    whole = torch.zeros(4, 64, dtype=torch.int8)
    assert fitting(form, whole, whole) == form
    assert fitting(form, whole, whole[:, 1:]).loads == "pointer"
    assert [copyable(t) for t in (whole[:, 16:], whole[:, 8:], whole[:1].expand(4, 64), torch.zeros(4, 40).T)] == [
        True, False, False, False,
    ]  # fmt: skip
    assert not copyable(torch.zeros(4, 24, dtype=torch.int8))


@pytest.mark.parametrize("arch", TILES)
def test_every_size_has_a_form_and_every_form_a_size(arch: int) -> None:
    for kind, lines in TILES[arch].items():
        sizes = [(m, n) for m in (1, 16, 17, 64, 65, 128, 129, 256, 257, 512, 513, 4096) for n in (1, 4096, 12288)]
        assert {tiles(arch, kind, *size) for size in sizes} == {form for _, _, form in lines}
        assert lines[-1][:2] == (ANY, ANY)


GUARDED = """
import ctypes, mmap
import torch
from tests.attnkit import interpreter
from attnkit.products.triton_dynamic import multiply as multiply_integers, multiply_rounded, rounded
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
for way, form in (
    (multiply, Tiles(16, 16, 32, 4, 2)),
    (multiply, Tiles(16, 64, 32, 4, 2, left=True)),
    (multiply_integers, Tiles(16, 16, 32, 4, 2)),
):
    out = way(*map(at_the_end, (x, weight, scale, bias)), form=form)
    torch.testing.assert_close(out, way(x, weight, scale, bias))

norm = torch.nn.LayerNorm(45).half().requires_grad_(False)
guarded = torch.nn.LayerNorm(45).half().requires_grad_(False)
guarded.weight.data, guarded.bias.data = at_the_end(norm.weight), at_the_end(norm.bias)
row, residual = x[:1, :45], torch.randn(1, 21).half()
steps, unit = rounded(at_the_end(row), guarded)
for found, wanted in zip((steps, unit), rounded(row, norm), strict=True):
    assert torch.equal(found, wanted)
form, narrow = Tiles(16, 16, 32, 4, 2), weight[:, :45].contiguous()
given = dict(dtype=torch.float16, form=form)
out = multiply_rounded(steps, unit, narrow, scale, **given, residual=at_the_end(residual))
torch.testing.assert_close(out, multiply_rounded(steps, unit, narrow, scale, **given, residual=residual))
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
    for kernel in (triton_product, triton_dynamic, torch_dynamic):
        assert "has no backward" in str(kernel.rejects(x.detach(), weight, scale.detach().requires_grad_(), None))


def test_what_a_product_cannot_do_is_said() -> None:
    x, weight = torch.randn(2, 32, device=DEVICE), torch.randn(4, 32, device=DEVICE)
    assert "float16 or bfloat16" in str(product("triton_product").rejects(x, weight, None, None))
    assert "of x's dtype" in str(product("triton_product").rejects(x.half(), weight, None, None))
    assert "a scale is for int8" in str(product("torch").rejects(x, weight, torch.ones(4), None))
    with pytest.raises(ValueError, match="no product is called 'fast': take one of torch, triton_product, cuda_matvec"):
        product("fast")


def test_activations_are_rounded_where_there_are_many_rows_and_no_gradient_is_wanted() -> None:
    x, weight = torch.randn(32, 64, device=DEVICE), torch.randint(-128, 128, (80, 64), dtype=torch.int8, device=DEVICE)
    scale = torch.rand(80, device=DEVICE)
    rounding = "torch_dynamic" if DEVICE.type == "cpu" else "triton_dynamic"
    assert choose(x, weight, scale, activations="int8").name == rounding
    assert choose(x[:9], weight, scale, activations="int8").name == rounding
    assert "dynamic" not in choose(x[:8], weight, scale, activations="int8").name
    assert "dynamic" not in choose(x, weight, scale).name
    wanted = x.requires_grad_()
    assert choose(wanted, weight, scale, activations="int8").name == "torch"
    with torch.no_grad():
        assert choose(wanted, weight, scale, activations="int8").name == rounding
    with pytest.raises(ValueError, match="triton_dynamic cannot: has no backward"):
        triton_dynamic.multiply(wanted, weight, scale)
    for way in (triton_dynamic.multiply, torch_dynamic.multiply):
        with pytest.raises(ValueError, match=r"weight must be int8 with a scale, got torch\.int8 without one"):
            way(x.detach(), weight)
        long, one = torch.zeros(1, 2**16 + 1, dtype=torch.int8, device=DEVICE), torch.ones(1, device=DEVICE)
        with pytest.raises(ValueError, match=r"x must have rows of 1 to 65536 elements, got"):
            way(long.float(), long, one)


def test_a_few_rows_of_a_gpu_go_to_the_kernel_for_them() -> None:
    if DEVICE.type != "cuda":
        pytest.skip("needs a CUDA device")
    x = torch.randn(9, 64, device=DEVICE).bfloat16()
    weight = torch.randint(-128, 128, (80, 64), dtype=torch.int8, device=DEVICE)
    assert choose(x[:8], weight).name == "cuda_matvec"
    assert choose(x, weight).name == "triton_product"
    assert choose(x, weight.bfloat16()).name == "torch"
