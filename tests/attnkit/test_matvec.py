"""The CUDA matrix-vector kernels, run from their own source on the host, and compiled for the GPUs they are for."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnkit import nvrtc
from attnkit.agreement import agreement
from attnkit.products import matvec_tiles
from attnkit.products.cuda_matvec import explains, unfit
from attnkit.products.matvec_tiles import (
    FIXED_ROWS,
    MAX_ROWS,
    TABLE,
    Config,
    Limits,
    Weights,
    choose,
    launch_shape,
)
from perf.tune_matvec import CANDIDATES, SHAPES
from tests.attnkit import cuda_on_host, host_build

needs_compiler = pytest.mark.skipif(cuda_on_host.absent() is not None, reason=str(cuda_on_host.absent()))

FORMS = [
    (torch.bfloat16, "half", Config("registers", 2, 2, 2)),
    (torch.float16, "half", Config("registers", 4, 1, 3, blocks=2)),
    (torch.bfloat16, "int8", Config("registers", 4, 1, 3, blocks=2)),
    (torch.float16, "int8", Config("registers", 2, 2, 2)),
    (torch.bfloat16, "half", Config("bulk", 4, 8, 2)),
    (torch.float16, "half", Config("bulk", 2, 2, 3)),
    (torch.bfloat16, "int8", Config("bulk", 2, 2, 3)),
    (torch.float16, "int8", Config("bulk", 4, 8, 2)),
]
FIXED_FORMS = [
    (torch.bfloat16, Config("bulk", 2, 2, 3, fixed=True)),
    (torch.float16, Config("bulk", 4, 3, 2, fixed=True)),
    (torch.bfloat16, Config("registers", 2, 2, 2, fixed=True)),
]
TWO_WAYS = [Config("registers", 2, 2, 2), Config("bulk", 2, 2, 3)]
EITHER_X = [*TWO_WAYS, *(dataclasses.replace(config, fixed=True) for config in TWO_WAYS)]


def weight_of(weights: str, n: int, k: int, dtype: torch.dtype, gap: int = 0) -> torch.Tensor:
    """``[n, k]``, rows ``gap`` elements apart."""
    if weights == "int8":
        return torch.randint(-128, 128, (n, k + gap), dtype=torch.int8)[:, :k]
    return torch.randn(n, k + gap).to(dtype)[:, :k]


@needs_compiler
@pytest.mark.parametrize(("dtype", "weights", "config"), FORMS, ids=str)
@settings(max_examples=10)
@given(data=st.data())
def test_it_is_the_product(dtype: torch.dtype, weights: Weights, config: Config, data: st.DataObject) -> None:
    unit = 16 if weights == "int8" else 8
    m = data.draw(st.integers(1, MAX_ROWS), label="m")
    n = data.draw(st.integers(1, 200), label="n")
    # often so short that a warp has nothing of some tiles
    k = unit * data.draw(st.integers(1, 8) | st.integers(1, 70), label="k / unit")
    gap = unit * data.draw(st.integers(0, 2), label="gap / unit")
    sms = data.draw(st.integers(1, 4), label="sms")
    # so little that sums are added up in several phases, and warps run past their ends
    room = data.draw(st.sampled_from([1, 300, 2048, 32 * 1024]), label="bytes of sums")
    seed = data.draw(st.integers(0, 2**16), label="seed")
    torch.manual_seed(seed)
    x, weight = torch.randn(m, k).to(dtype), weight_of(weights, n, k, dtype, gap)
    scale = torch.rand(n) + 0.5 if weights == "int8" or data.draw(st.booleans(), label="scale") else None
    bias = torch.randn(n).to(dtype) if data.draw(st.booleans(), label="bias") else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matvec_tiles, "SUMS_BYTES", room)
        out = cuda_on_host.matvec(x, weight, scale, bias, config, sms, seed)
    assert agreement(out, x, weight, scale, bias).wrong == 0


@needs_compiler
@pytest.mark.parametrize(("dtype", "config"), FIXED_FORMS, ids=str)
@settings(max_examples=10)
@given(data=st.data())
def test_fixed_point_is_the_product_too(dtype: torch.dtype, config: Config, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "MAX_ROWS", FIXED_ROWS)
        test_it_is_the_product.hypothesis.inner_test(dtype, "int8", config, data)  # type: ignore[attr-defined]


@needs_compiler
@pytest.mark.parametrize("config", EITHER_X, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_int8_is_itself(dtype: torch.dtype, config: Config) -> None:
    k = 32
    weight = torch.arange(-128, 128, dtype=torch.int8).repeat(k).view(k, 256).T.contiguous()
    weight = torch.stack([column.roll(i) for i, column in enumerate(weight.T)], 1)
    rows = FIXED_ROWS if config.fixed else MAX_ROWS
    for first in range(0, k, rows):
        x = torch.eye(k)[first : first + rows].to(dtype)
        out = cuda_on_host.matvec(x, weight, None, None, config)
        assert torch.equal(out.float(), weight.T[first : first + rows].float())


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_fixed_point_x_is_itself_but_for_what_is_tiny_beside_its_rows_largest(dtype: torch.dtype) -> None:
    config = Config("bulk", 2, 2, 3, fixed=True)
    weight = torch.eye(32, dtype=torch.int8)
    # numbers of eight bits: of these the smallest end where a unit begins
    x = torch.tensor([[sign * 1.9921875 * 2.0**e for e in range(-11, 12)] + [0.0] * 9 for sign in (1, -1)]).to(dtype)
    assert torch.equal(cuda_on_host.matvec(x, weight, None, None, config), x)
    below = x.clone()
    below[:, 0] /= 16
    out = cuda_on_host.matvec(below, weight, None, None, config)
    assert torch.equal(out[:, 1:], below[:, 1:])
    assert 0 < (out[0, 0] - below[0, 0]).abs() <= 2.0**-19, "half a unit"
    # the largest may be any warp's
    far = torch.zeros(1, 1024, dtype=dtype)
    far[0, 5], far[0, 1000] = 1.0, 4096.0
    pick = torch.zeros(2, 1024, dtype=torch.int8)
    pick[0, 5], pick[1, 1000] = 1, 1
    assert cuda_on_host.matvec(far, pick, None, None, config).tolist() == [[1.0, 4096.0]]
    # the smallest and largest there are, and nothing
    for size in (torch.finfo(dtype).tiny, torch.finfo(dtype).max, 0.0):
        ends = torch.full((1, 32), size, dtype=dtype)
        assert torch.equal(cuda_on_host.matvec(ends, weight, None, None, config), ends)


@needs_compiler
@pytest.mark.parametrize("config", [config for config in EITHER_X if config.fixed], ids=str)
def test_rows_longer_than_threads_keep_in_registers_are_read_again(config: Config) -> None:
    k = 4 * 8 * config.threads + 208
    torch.manual_seed(0)
    x, weight = torch.randn(2, k).bfloat16(), weight_of("int8", 5, k, torch.bfloat16)
    x[0, -1], x[1, -3] = 300.0, -4000.0
    assert agreement(cuda_on_host.matvec(x, weight, None, None, config), x, weight).wrong == 0


@needs_compiler
def test_what_rounding_x_to_fixed_point_costs_is_explained() -> None:
    torch.manual_seed(0)
    config = Config("bulk", 2, 2, 3, fixed=True)
    x = torch.randn(2, 512).bfloat16()
    x[:, 7] = torch.tensor([3e6, -7e5])
    weight, scale = weight_of("int8", 40, 512, x.dtype), torch.rand(40) + 0.5
    weight[:, 7] = 0  # what is large is not in the sums, and so in no rounding of theirs
    out = cuda_on_host.matvec(x, weight, scale, None, config)
    assert agreement(out, x, weight, scale).wrong > 0
    explained = explains(x, weight, scale, config=config)
    assert agreement(out, x, weight, scale, explained=explained).wrong == 0
    # and no more than that: half a unit for each number
    assert (
        float((out.double() - x.double() @ (weight.double() * scale[:, None]).T).abs().max() / explained.max()) > 0.02
    )
    assert not explains(x, weight, scale, config=dataclasses.replace(config, fixed=False)).any()


@needs_compiler
def test_the_order_of_warps_does_not_matter() -> None:
    x, weight = torch.randn(3, 1040).bfloat16(), torch.randn(90, 1040).bfloat16()
    for config in (Config("registers", 2, 2, 2), Config("bulk", 4, 8, 2)):
        outs = [cuda_on_host.matvec(x, weight, None, None, config, seed=seed) for seed in range(5)]
        assert all(torch.equal(out, outs[0]) for out in outs)


@needs_compiler
@pytest.mark.parametrize("config", [Config("registers", 2, 2, 2), Config("bulk", 2, 2, 3)], ids=str)
def test_no_warp_writes_sums_that_another_still_reads(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    # phases of six tiles, so short that a warp which does not wait is soon a phase ahead
    monkeypatch.setattr(matvec_tiles, "SUMS_BYTES", 6 * 4 * config.warps * 8)
    x, weight = torch.randn(1, 128).bfloat16(), torch.randn(300, 128).bfloat16()
    truth = cuda_on_host.matvec(x, weight, None, None, dataclasses.replace(config, warps=4), sms=20)
    for seed in range(30):
        out = cuda_on_host.matvec(x, weight, None, None, config, sms=1, seed=seed)
        assert (out.float() - truth.float()).abs().max() <= 0.1


@needs_compiler
def test_what_is_not_finite_stays_in_its_row_and_column() -> None:
    x, weight = torch.randn(4, 256).bfloat16(), torch.randn(40, 256).bfloat16()
    x[1, 7], weight[11, 100] = float("inf"), float("nan")
    fixed = cuda_on_host.matvec(
        x[:2], torch.ones(40, 256, dtype=torch.int8), None, None, Config("bulk", 4, 8, 2, fixed=True)
    )
    assert fixed[0].isfinite().all()
    assert not fixed[1].isfinite().any()
    for config in (Config("registers", 2, 2, 2), Config("bulk", 4, 8, 2)):
        finite = cuda_on_host.matvec(x, weight, None, None, config).isfinite()
        assert not finite[1].any()
        assert not finite[:, 11].any()
        finite[1], finite[:, 11] = True, True
        assert finite.all()


@pytest.mark.parametrize("config", CANDIDATES, ids=str)
@pytest.mark.parametrize("weights", ["half", "int8"])
def test_a_candidate_fits_all_shapes_with_one_row(weights: Weights, config: Config) -> None:
    for n, k in SHAPES.values():
        shape = launch_shape(config, weights, 1, n, k, 132)
        assert shape.shared <= matvec_tiles.MAX_SHARED
        assert shape.grid == 132 * config.blocks


H200 = Limits((9, 0), 132, matvec_tiles.MAX_SHARED)


@pytest.mark.parametrize("weights", ["half", "int8"])
def test_there_is_a_form_for_every_shape_and_number_of_rows(weights: Weights) -> None:
    for n, k in SHAPES.values():
        assert choose(weights, 1, n, k, H200) == TABLE[weights][0]
        for m in range(1, MAX_ROWS + 1):
            assert choose(weights, m, n, k, H200).why_not(weights, m, n, k, H200) is None


def test_what_does_not_fit_is_not_chosen_and_said_if_nothing_does() -> None:
    first, *_, last = TABLE["half"]
    ampere = Limits((8, 0), 108, 163 * 1024)
    assert choose("half", 1, 4096, 4096, ampere) == last
    assert first.why_not("half", 1, 4096, 4096, ampere) == "needs compute capability 9.0 or later, got 8.0"
    assert choose("half", 8, 4096, 11008, H200) == last
    assert "8 rows of k=65536 need" in str(choose("half", 8, 64, 65536, H200).why_not("half", 8, 64, 65536, H200))


def compiled(config: Config, weights: Weights, arch: str) -> str:
    """Resources and machine code of a form."""
    code = nvrtc.cubin((nvrtc.SOURCES / config.source).read_text(), arch, config.options(torch.bfloat16, weights)).code
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        pytest.skip("the disassembler comes with triton, which is not installed")
    tool = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [str(tool), "-sass", "-res-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def forms() -> list[tuple[Weights, Config]]:
    """What the table has and what a search tries."""
    found: dict[tuple[Weights, Config], None] = {}
    for weights in ("half", "int8"):
        for config in (*CANDIDATES, *TABLE[weights]):
            found[weights, config] = None
    return list(found)


@pytest.mark.needs_nvrtc
@pytest.mark.parametrize(("weights", "config"), forms(), ids=str)
def test_it_compiles_for_hopper_and_spills_nothing(weights: Weights, config: Config) -> None:
    text = compiled(config, weights, "sm_90a")
    assert re.search(r"STACK:(\d+)", text)[1] == "0"  # type: ignore[index]
    if config.design == "bulk":
        assert "UBLKCP" in text
        return
    # all that a warp has in flight is on its way before it waits for the kernel before this one, and so for x
    start = text[: text.index("ACQBULK")]
    assert len(re.findall(r"LDG\S*\.128\.CONSTANT", start)) == 2 * config.span * config.depth


@pytest.mark.needs_nvrtc
def test_it_compiles_for_ampere() -> None:
    text = compiled(Config("registers", 8, 4, 4), "int8", "sm_80")
    assert re.search(r"STACK:(\d+)", text)[1] == "0"  # type: ignore[index]


@pytest.mark.needs_nvrtc
def test_an_error_in_a_source_is_told() -> None:
    with pytest.raises(nvrtc.CompileError, match='identifier "nothing" is undefined'):
        nvrtc.cubin('extern "C" __global__ void kernel(int* p) { *p = nothing; }', "sm_90a")


@pytest.mark.needs_nvrtc
def test_bindings_without_a_library_are_told_before_anything_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.bindings import nvrtc as bindings

    def fails() -> None:
        raise RuntimeError('Failure finding "libnvrtc.so.13": No such file\nand much more')

    monkeypatch.setattr(bindings, "nvrtcVersion", fails)
    found, remedy = nvrtc.absent.__wrapped__().split(": ")
    assert found == 'cuda-bindings finds no NVRTC (Failure finding "libnvrtc.so.13")'
    assert remedy == "pip install 'cuda-bindings[all]'"
    assert str(nvrtc.absent.__wrapped__("another remedy")).endswith(": another remedy")


@pytest.mark.needs_nvrtc
def test_bindings_that_cannot_be_imported_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import cuda.bindings

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    monkeypatch.delattr(cuda.bindings, "nvrtc", raising=False)
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    assert str(nvrtc.absent.__wrapped__()).startswith("cuda-bindings finds no NVRTC (")


def test_two_kernels_that_overlap_fit_on_a_multiprocessor() -> None:
    """Else the next begins only when the one before has left."""
    for weights in ("half", "int8"):
        for n, k in SHAPES.values():
            form = choose(weights, 1, n, k, H200, overlap=True)
            assert form.overlap
            assert 2 * (launch_shape(form, weights, 1, n, k, H200.sms).shared + 1024) <= 228 * 1024
            assert form.fixed == (weights == "int8" and k < 11008), "digits of a long x leave no room for another"
        assert choose(weights, MAX_ROWS, 4096, 4096, H200, overlap=True).overlap


def test_of_kernels_that_overlap_one_with_long_loads_is_for_weights_that_have_many() -> None:
    spans = {name: choose("half", 1, n, k, H200, overlap=True).span for name, (n, k) in SHAPES.items()}
    assert spans == {"qkv": 32, "o": 16, "gate_up": 32, "down": 32, "head": 32}
    assert launch_shape(choose("half", 1, 4096, 4096, H200), "half", 1, 4096, 4096, 132).loads == 2 * 4


def test_what_the_kernel_would_read_as_something_else_is_refused() -> None:
    x, weight = torch.zeros(1, 64).bfloat16(), torch.zeros(24, 64, dtype=torch.int8)
    scale, bias = torch.zeros(48), torch.zeros(48).bfloat16()
    assert unfit(x, weight, scale[:24], bias[:24]) is None
    assert unfit(x, weight, None, bias[:24].float()) == (
        "bias must be of x's dtype, got torch.float32 and torch.bfloat16"
    )
    assert unfit(x, weight, scale[:24].bfloat16(), None) == "scale must be float32, got torch.bfloat16"
    assert unfit(x, weight, scale[::2], None) == "scale must be contiguous"
    assert unfit(x, weight, None, bias[:1].expand(24)) == "bias must be contiguous"
    # there is no launch for nothing
    assert unfit(x, weight[:0], scale[:0], None) == "weight must have rows, got none"
    assert unfit(x[:, :0], weight[:, :0], scale[:24], None) == "k must be a multiple of 16, got 0"


def test_another_header_is_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = cuda_on_host.HEADER.parent
    for header in here.glob("*_on_host.h"):
        shutil.copy(header, tmp_path)
    monkeypatch.setattr(cuda_on_host, "HEADER", tmp_path / cuda_on_host.HEADER.name)
    monkeypatch.setattr(host_build, "BUILT", tmp_path / "built")
    asked = []

    def compiler(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        Path(command[-1]).touch()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", compiler)

    def built() -> Path:
        return cuda_on_host.program.__wrapped__("matvec_bulk.cu", ("-DBF16=1",))

    first = built()
    assert built() == first
    assert len(asked) == 1
    for header in sorted(tmp_path.glob("*_on_host.h")):
        header.write_text(header.read_text() + "\n// another\n")
        built()
    assert len(asked) == 1 + len(list(here.glob("*_on_host.h"))) == 3
