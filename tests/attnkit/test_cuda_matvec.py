"""The CUDA matrix-vector kernels on a GPU: right for every form, also where kernels overlap and in a graph."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from attnkit import nvrtc
from attnkit.products.cuda_matvec import matvec, rejects
from attnkit.products.matvec_tiles import MAX_ROWS, OVERLAPPING, TABLE, Config, Weights
from perf.tune_matvec import SHAPES, Trial, hasty, operands, wrong

if reason := nvrtc.absent():
    pytest.skip(reason, allow_module_level=True)
if torch.cuda.get_device_capability()[0] < 9:
    pytest.skip("needs compute capability 9.0 or later", allow_module_level=True)

FORMS = [
    *((weights, config) for weights in ("half", "int8") for config in (*TABLE[weights], *OVERLAPPING[weights])),
    *((weights, Config("bulk", 8, 16, 5, overlap=overlap)) for weights in ("half", "int8") for overlap in (0, 1)),
    *((weights, Config("registers", 8, 2, 2, overlap=overlap)) for weights in ("half", "int8") for overlap in (0, 1)),
]


@pytest.mark.parametrize(("weights", "config"), dict.fromkeys(FORMS), ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_it_is_the_product(weights: Weights, config: Config, dtype: torch.dtype) -> None:
    sizes = [*SHAPES.values(), (1003, 1040), (70, 512), (9, 16), (1, 4096), (130000, 64)]
    for m in range(1, MAX_ROWS + 1):
        for n, k in sizes if m in (1, MAX_ROWS) else sizes[5:]:
            assert wrong(Trial(weights, config), m, n, k, dtype) is None


@pytest.mark.parametrize(("weights", "config"), [form for form in dict.fromkeys(FORMS) if form[1].overlap], ids=str)
def test_overlapping_kernels_wait_for_each_other(weights: Weights, config: Config) -> None:
    assert hasty(Trial(weights, config)) is None


def test_scale_and_bias() -> None:
    x, weight, scale = operands("int8", 3, 500, 256)
    bias = torch.randn(500, device="cuda").bfloat16()
    out = matvec(x, weight, scale, bias)
    truth = x.double() @ weight.double().T * scale.double() + bias.double()
    assert (out.double() - truth).abs().max() <= 2**-8 * truth.abs().max()


def test_a_slice_of_a_fused_weight() -> None:
    x, weight, _ = operands("half", 1, 768, 1024)
    assert torch.equal(matvec(x[:, 256:512], weight[256:512, 256:512]), matvec(
        x[:, 256:512].contiguous(), weight[256:512, 256:512].contiguous()
    ))  # fmt: skip


def test_what_it_cannot_do_is_said() -> None:
    x, weight, _ = operands("half", 1, 64, 64)
    assert rejects(x, weight) is None
    assert "1 to 8 rows" in str(rejects(x.expand(9, 64), weight))
    assert "multiple of 8" in str(rejects(x[:, :12], weight[:, :12]))
    assert "multiples of 16 bytes" in str(rejects(x[:, :56], weight[:, 4:60]))
    assert "float16 or bfloat16" in str(rejects(x.float(), weight))
    assert "CUDA device" in str(rejects(x.cpu(), weight))
    with pytest.raises(ValueError, match="1 to 8 rows"):
        matvec(x.expand(9, 64), weight)


def test_a_suite_knows_the_kernels_by_their_code() -> None:
    seen: dict[int, bytes] = {}
    watcher = seen.__setitem__
    nvrtc.WATCHERS.append(watcher)
    try:
        config = Config("registers", 5, 1, 1)  # nobody else has compiled it
        x, weight, _ = operands("half", 1, 64, 64)
        matvec(x, weight, config=config)
    finally:
        nvrtc.WATCHERS.remove(watcher)
    source = (nvrtc.SOURCES / config.source).read_text()
    expected = nvrtc.cubin(source, nvrtc.architecture(x.device), config.options(x.dtype, "half")).code
    assert list(seen.values()) == [expected]
