"""Hopper's own product of integers: every form is right for all that the copy engine can load.

That it compiles as it should is held in test_triton_compile.py, without a GPU.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from attnkit.product import Product
from attnkit.products import torch_dynamic, triton_dynamic
from attnkit.products.product_tiles import Tiles, fitting, hopper, tiles
from perf.tune_product import CANDIDATES

FORMS = [form for form in CANDIDATES["dynamic"] if form.loads == "async"]
HERE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
on_hopper = pytest.mark.skipif(
    not hopper(HERE), reason="needs a GPU of compute capability 9: Gluon has no interpreter"
)  # fmt: skip
SIZES = [
    (1, 1, 1, True, True), (1, 40, 16, False, True), (70, 33, 127, True, False), (64, 128, 128, False, False),
    (65, 129, 129, True, True), (129, 1003, 1040, True, False), (256, 256, 384, True, True),
    (300, 520, 4096, False, False), (1000, 9000, 256, True, True), (3000, 4112, 640, False, False),
    (520, 12288, 4096, True, True),
]  # fmt: skip
"""m, n, k, bias, residual. The last three have more tiles than a GPU has programs at a time, and the last one has more
tiles of k than any ring has stages, too."""
GUARD = 64
"""Elements before and behind a result, which must stay as they were."""


def rows(n: int, k: int) -> torch.Tensor:
    """int8 ``[n, k]`` whose rows begin at multiples of 16 bytes, with something else between them."""
    return torch.randint(-128, 128, (n, -(-k // 16) * 16 + 16), dtype=torch.int8, device=HERE)[:, :k]


@on_hopper
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_it_is_the_product_and_writes_nothing_else(form: Tiles, dtype: torch.dtype) -> None:
    from attnkit.products.triton_dynamic_hopper import launch

    torch.manual_seed(0)
    for m, n, k, *which in SIZES if dtype == torch.bfloat16 else SIZES[4:7]:
        steps, weight = rows(m, k), rows(n, k)
        assert fitting(form, steps, weight) == form
        unit, scale = torch.rand(m, device=HERE) + 0.5, torch.rand(n, device=HERE) / 1024 + 0.001
        bias = 10 * torch.randn(n, device=HERE).to(dtype) if which[0] else None
        residual = 10 * torch.randn(m, n, device=HERE).to(dtype) if which[1] else None
        product = (steps.double() @ weight.double().T) * unit[:, None].double() * scale.double()
        parts = [product, *(part.double() for part in (bias, residual) if part is not None)]
        exact, size = sum(parts), sum(part.abs() for part in parts)
        # each of the roundings in float32 is of what was added up so far
        allowed = exact.abs() * torch.finfo(dtype).eps / 2 + size * 6 * 2.0**-24
        outs = []
        for _ in range(3):
            memory = torch.full([GUARD + m * n + GUARD], float("nan"), dtype=dtype, device=HERE)
            outs.append(memory[GUARD:-GUARD].view(m, n))
            launch(steps, unit, weight, scale, bias, residual, outs[-1], form)
            assert memory[:GUARD].isnan().all()
            assert memory[-GUARD:].isnan().all()
        wrong = ~((outs[0].double() - exact).abs() <= allowed)
        assert not wrong.any(), f"{m} x {n} x {k}: {int(wrong.sum())} wrong, first at {wrong.nonzero()[0].tolist()}"
        assert torch.equal(outs[0], outs[1])
        assert torch.equal(outs[0], outs[2])


@on_hopper
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_sums_are_those_of_torch_to_the_last_digit(form: Tiles) -> None:
    torch.manual_seed(1)
    for m, n, k in ((300, 520, 1040), (2048, 4096, 512)):
        steps, weight = (torch.randint(-128, 128, (count, k), dtype=torch.int8, device=HERE) for count in (m, n))
        ones = [torch.ones(count, device=HERE) for count in (m, n)]
        wanted = torch_dynamic.multiply_rounded(steps, ones[0], weight, ones[1], dtype=torch.float32)
        found = triton_dynamic.multiply_rounded(steps, ones[0], weight, ones[1], dtype=torch.float32, form=form)
        assert torch.equal(found, wanted)


@on_hopper
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_row_that_holds_no_number_gives_none_and_others_do_not_see_it(form: Tiles) -> None:
    x, weight = torch.randn(70, 256, device=HERE).half(), rows(48, 256)
    scale = torch.rand(48, device=HERE)
    whole = triton_dynamic.multiply(x, weight, scale, form=form)
    x[7, 11] = float("nan")
    out = triton_dynamic.multiply(x, weight, scale, form=form)
    assert out[7].isnan().all()
    others = torch.arange(70, device=HERE) != 7
    assert torch.equal(out[others], whole[others])


def test_it_is_for_hopper_alone_and_for_what_the_copy_engine_can_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    assert hopper(torch.device("cuda"))
    for capability in ((8, 0), (8, 9), (10, 0), (12, 0)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device, found=capability: found)
        assert not hopper(torch.device("cuda"))
    assert not hopper(torch.device("cpu"))
    monkeypatch.setattr("attnkit.products.product_tiles.hopper", lambda device: True)
    whole = torch.zeros(4, 64, dtype=torch.int8)
    few, many = (tiles(80, "dynamic", m, 4) for m in (4, 65))
    assert {few.loads, many.loads} == {"pointer"}
    assert few != many
    more = torch.zeros(65, 64, dtype=torch.int8)
    for form in FORMS:
        assert fitting(form, whole, whole) == form
        assert fitting(form, whole, more[:, 1:]) == few
        assert fitting(form, more[:, 1:], whole) == many
    monkeypatch.setattr("attnkit.products.product_tiles.hopper", lambda device: False)
    for form in FORMS:
        assert fitting(form, whole, more) == few
        assert fitting(form, more, whole) == many


@pytest.mark.skipif(HERE.type == "cuda", reason="of the interpreter")
def test_elsewhere_threads_load() -> None:
    way: Product = triton_dynamic.PRODUCT
    x, weight, scale = torch.randn(9, 48).half(), torch.randint(-128, 128, (40, 48), dtype=torch.int8), torch.rand(40)
    out = triton_dynamic.multiply(x, weight, scale, form=Tiles(64, 32, 128, 4, 8, "async"))
    assert torch.equal(out, way.multiply(x, weight, scale))
