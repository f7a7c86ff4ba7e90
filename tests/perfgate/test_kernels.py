"""Kernels: names, text and JSON, what is said to have changed; and on a GPU, what is read off a captured call."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfgate.binaries import fingerprint
from perfgate.clock import Budget
from perfgate.kernels import KEPT, LONGEST, TOLD, Kernel, Kernels, register, short, why

torch = pytest.importorskip("torch")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

FLASH = Kernel(
    name="triton_flash_forward", grid=(132, 1, 1), block=(128, 1, 1), shared=98304, registers=128, code="1f0c22aa09b1"
)
FILL = Kernel(name="_ZN2at6native29vectorized_elementwise_kernelILi4ENS0_11FillFunctorIfEEEEvT0_", grid=(8, 1, 1))
COPY = Kernel(name="memcpy", bytes=4096)
LIBRARIES = "aa55"

shapes = st.tuples(*[st.integers(1, 2**31)] * 3)
whole = st.integers(0, 2**40)
made = st.builds(
    Kernel,
    name=st.text("abc_:<>0 ", min_size=1).filter(lambda s: s.strip() == s),
    instance=st.sampled_from(["", "0a1b2c3d"]),
    count=st.integers(1, 10**6),
    grid=st.one_of(st.just(()), shapes),
    block=st.one_of(st.just(()), shapes),
    cluster=st.one_of(st.just(()), shapes),
    shared=whole,
    registers=st.integers(0, 255),
    local=whole,
    bytes=whole,
    code=st.sampled_from(["", "?", "1f0c22aa09b1"]),
)


def of(*launches: Kernel, libraries: str = LIBRARIES) -> Kernels:
    return Kernels.of(launches, libraries)


def test_copies_and_fills_are_told_from_kernels_that_do_so() -> None:
    assert not Kernels.of([FLASH, FILL, Kernel(name="conditional", code="?")]).fills
    assert Kernels.of([FLASH, COPY]).fills
    assert Kernels.of([Kernel(name="memset", bytes=4), FLASH]).fills


@given(made)
def test_a_kernel_is_read_back_from_its_text(kernel: Kernel) -> None:
    assert Kernel.parse(str(kernel)) == kernel


@given(st.lists(made, max_size=40), st.sampled_from(["", LIBRARIES]))
def test_kernels_survive_json(launches: list[Kernel], libraries: str) -> None:
    kernels = Kernels.of(launches, libraries)
    assert Kernels.from_json(json.loads(json.dumps(kernels.to_json()))) == kernels


@pytest.mark.parametrize("text", ["", "flash", "1 × [1] [1] shared=x registers=1 local=0 code= a"])
def test_text_that_is_no_kernel_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a kernel"):
        Kernel.parse(text)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("triton_flash_forward", "triton_flash_forward"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNN", "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNN"),
        (FILL.name, "at::native::vectorized_elementwise_kernel"),
        ("_ZN2at6native23_GLOBAL__N__7_copy_cu_15copy_Ev", "at::native::copy_"),
        ("_Z6kernelILi3EEvPfS0_", "kernel"),
        ("_Z6kernelPf9something", "kernel"),
        ("_Z", "_Z"),
        ("_ZN9999x", "x"),
        ("k" * 300, "k" * (LONGEST - 1) + "…"),
    ],
)
def test_a_short_name_has_no_arguments(name: str, plain: str) -> None:
    assert short(name) == plain


def test_launches_that_are_alike_are_counted() -> None:
    kernels = of(FLASH, FILL, FLASH)
    assert [(k.name, k.count) for k in kernels.launches] == [
        ("triton_flash_forward", 2),
        ("at::native::vectorized_elementwise_kernel", 1),
    ]
    assert kernels.same(of(replace(FLASH, count=2), FILL))
    assert kernels.same(of(FILL, FLASH, FLASH)), "nobody promises an order of a graph's nodes"


def test_two_instances_of_a_template_are_two_kernels() -> None:
    other = replace(FILL, name=FILL.name.replace("Li4E", "Li8E"))
    assert short(other.name) == short(FILL.name)
    assert not of(FILL).same(of(other))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"count": 2},
        {"grid": (131, 1, 1)},
        {"block": (256, 1, 1)},
        {"cluster": (2, 1, 1)},
        {"shared": 1},
        {"registers": 129},
        {"local": 8},
        {"code": "0"},
    ],
)
def test_whatever_differs_makes_other_kernels(change: dict[str, Any]) -> None:
    assert of(FLASH).same(of(FLASH))
    assert not of(FLASH).same(of(replace(FLASH, **change)))


def test_what_a_copy_moves_is_its_identity() -> None:
    assert not of(COPY).same(of(replace(COPY, bytes=1)))


def test_code_that_nobody_knows_is_not_the_same() -> None:
    strange = of(replace(FLASH, code="?"))
    assert not strange.known
    assert not strange.same(strange)


def test_code_of_a_library_is_known_by_the_libraries() -> None:
    assert of(FILL).same(of(FILL))
    assert not of(FILL).same(of(FILL, libraries="other"))
    nowhere = of(FILL, libraries="")
    assert not nowhere.same(nowhere)
    assert of(FLASH, COPY, libraries="").known


def test_of_many_kernels_some_are_kept_and_all_count() -> None:
    many = [replace(FLASH, name=f"k{i:02}") for i in range(KEPT + 5)]
    kernels = of(*many)
    assert (len(kernels.launches), kernels.more) == (KEPT, 5)
    changed = of(*many[:-1], replace(many[-1], code="0"))
    assert not kernels.same(changed)
    assert why([kernels], [changed]) == (f"of more than {KEPT} kernels some came, went or changed that are not kept",)


def test_which_of_many_kernels_are_kept_is_no_matter_of_their_order() -> None:
    many = [replace(FLASH, name=f"k{i:02}") for i in range(KEPT + 5)]
    changed = [replace(many[3], code="0") if k is many[3] else k for k in reversed(many)]
    assert why([of(*many)], [of(*changed)]) == ("k03: code changed",)


def test_of_many_kernels_those_that_others_displaced_are_not_said_to_be_gone() -> None:
    many = [replace(FLASH, name=f"k{i:02}") for i in range(KEPT + 5)]
    (said,) = why([of(*many)], [of(replace(FLASH, name="added"), *many)])
    assert "not kept" in said


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ([FLASH], [FLASH], ["same kernels on both sides"]),
        (
            [FLASH],
            [replace(FLASH, code="0", registers=168, local=96, grid=(264, 1, 1), count=2)],
            [
                "triton_flash_forward: code changed, registers 128 -> 168, local memory 0 -> 96 B, "
                "grid 132×1×1 -> 264×1×1, launched 1 -> 2 times"
            ],
        ),
        (
            [FLASH],
            [replace(FLASH, shared=8, block=(256, 1, 1), cluster=(2, 1, 1))],
            ["triton_flash_forward: shared memory 98304 -> 8 B, block 128×1×1 -> 256×1×1, cluster none -> 2×1×1"],
        ),
        ([COPY], [replace(COPY, bytes=8192)], ["memcpy: bytes 4096 -> 8192"]),
        (
            [FLASH],
            [FLASH, FILL, COPY, COPY],
            [
                "at::native::vectorized_elementwise_kernel: new (grid 8×1×1, block none)",
                "memcpy: new (2 times, 4096 B)",
            ],
        ),
        (
            [FLASH, FILL],
            [FLASH],
            ["at::native::vectorized_elementwise_kernel: no longer launched (grid 8×1×1, block none)"],
        ),
        (
            [FILL],
            [replace(FILL, name=FILL.name.replace("Li4E", "Li8E"))],
            ["at::native::vectorized_elementwise_kernel: another instance of its template"],
        ),
        (
            [FLASH, replace(FLASH, grid=(1, 1, 1))],
            [FLASH, replace(FLASH, grid=(2, 1, 1))],
            ["triton_flash_forward: grid 1×1×1 -> 2×1×1"],
        ),
        (
            [replace(FLASH, code="?")],
            [replace(FLASH, code="?")],
            [
                "same names and shapes of launch; the code of triton_flash_forward is not known "
                "(see perfgate.kernels.register)"
            ],
        ),
    ],
)
def test_what_changed_is_said_kernel_by_kernel(then: list[Kernel], now: list[Kernel], said: list[str]) -> None:
    assert why([of(*then)], [of(*now)]) == tuple(said)


def test_libraries_that_changed_are_said_where_nothing_else_did() -> None:
    (said,) = why([of(FILL)], [of(FILL, libraries="other")])
    assert "libraries that the kernels come from changed" in said
    assert "libraries" not in str(why([of(FILL)], [of(replace(FILL, grid=(9, 1, 1)), libraries="other")]))


def test_not_every_one_of_many_changes_is_said() -> None:
    many = [replace(FLASH, name=f"k{i}") for i in range(TOLD + 3)]
    said = why([of(*many)], [of(*(replace(k, code="0") for k in many))])
    assert len(said) == TOLD + 1
    assert said[-1] == "and 3 more kernels changed"


def test_nothing_is_said_where_a_side_is_not_known() -> None:
    known = of(FLASH)
    assert why([known], [None]) == why([None, known], [known]) == why([], [known]) == ()


def test_processes_of_one_side_that_differ_are_said() -> None:
    a, b = of(FLASH), of(replace(FLASH, code="0"))
    assert why([a, b, b], [b, b, b]) == (
        "the kernels differ between the processes of one side",
        "same kernels on both sides",
    )


def launched(call: Callable[..., object], *args: Any) -> Kernels:
    """What the clock finds that a call launches."""
    from perfgate import cuda

    budget = Budget(min_samples=6, max_samples=6, warmup_seconds=0.01)
    samples = cuda.CudaClock(budget).measure(call, [args])
    assert samples.kernels is not None, samples.notes
    return samples.kernels


def fill(step: int, block: int = 64) -> Callable[[Any], object]:
    """A call of a Triton kernel that has the number compiled in."""
    pytest.importorskip("triton")
    from tests.perfgate.gpu_kernel import fill

    return lambda out: fill[(4,)](out, 64, BLOCK=block, STEP=step)


@needs_cuda
def test_a_triton_kernel_is_read_with_its_shapes_and_code() -> None:
    out = torch.empty(2**16, device="cuda", dtype=torch.int32)
    found = launched(fill(1), out)
    (kernel,) = found.launches
    assert (kernel.name, kernel.count, kernel.grid) == ("fill", 1, (4, 1, 1))
    assert kernel.block[0] % 32 == 0
    assert kernel.registers > 0
    assert len(kernel.code) == 12
    assert found.known
    assert found.same(launched(fill(1), out))


@needs_cuda
def test_a_changed_constant_is_another_code_of_the_same_kernel() -> None:
    out = torch.empty(2**16, device="cuda", dtype=torch.int32)
    one, two = launched(fill(1), out), launched(fill(2), out)
    assert not one.same(two)
    (said,) = why([one], [two])
    assert said.startswith("fill: code changed")


@needs_cuda
def test_kernels_of_torch_and_its_libraries_are_read_and_known() -> None:
    x = torch.randn(1024, 1024, device="cuda", dtype=torch.bfloat16)

    def call(x: Any) -> Any:
        return torch.mm(x + 1, x)

    found = launched(call, x)
    print(*found.launches, sep="\n")
    assert len(found.launches) >= 2
    assert "elementwise" in found.launches[0].name
    assert found.libraries
    assert found.known
    assert found.same(launched(call, x))
    assert not found.same(launched(call, torch.randn(512, 512, device="cuda", dtype=torch.bfloat16)))


@needs_cuda
def test_several_launches_of_one_kernel_are_counted() -> None:
    x = torch.randn(2**20, device="cuda")
    once, thrice = launched(lambda x: x.mul_(1.0), x), launched(lambda x: x.mul_(1.0).mul_(1.0).mul_(1.0), x)
    (one,), (three,) = once.launches, thrice.launches
    assert replace(one, count=3) == three


@needs_cuda
def test_a_copy_of_the_device_is_a_kernel_of_its_kind() -> None:
    x, y = (torch.randn(2**20, device="cuda") for _ in range(2))
    (kernel,) = launched(lambda x, y: y.copy_(x), x, y).launches
    assert (kernel.name, kernel.bytes) == ("memcpy", x.nbytes)


@needs_cuda
def test_kernels_that_torch_compiles_have_a_code() -> None:
    compiled = torch.compile(lambda x: torch.softmax(x * 2, -1))
    x = torch.randn(256, 1024, device="cuda")
    compiled(x)
    found = launched(compiled, x)
    print(*found.launches, sep="\n")
    assert all(len(kernel.code) == 12 for kernel in found.launches if kernel.name.startswith("triton_"))
    assert any(kernel.name.startswith("triton_") for kernel in found.launches)
    assert found.known


@needs_cuda
def test_a_registered_function_is_known_by_its_binary() -> None:
    from cuda.bindings import driver, nvrtc

    major, minor = torch.cuda.get_device_capability()
    torch.zeros(1, device="cuda")  # makes the context
    images, functions = [], []
    for value in (1, 2):
        source = f'extern "C" __global__ void put(int* p) {{ p[threadIdx.x] = {value}; }}'
        _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"put.cu", 0, [], [])
        assert int(nvrtc.nvrtcCompileProgram(program, 1, [f"--gpu-architecture=sm_{major}{minor}".encode()])[0]) == 0
        _, size = nvrtc.nvrtcGetCUBINSize(program)
        image = bytes(size)
        assert int(nvrtc.nvrtcGetCUBIN(program, image)[0]) == 0
        code, module = driver.cuModuleLoadData(image)
        assert int(code) == 0
        code, function = driver.cuModuleGetFunction(module, b"put")
        assert int(code) == 0
        register(int(function), image)
        images.append(image)
        functions.append(function)
    out = torch.empty(32, device="cuda", dtype=torch.int32)

    def call(function: Any) -> Callable[[Any], object]:
        def put(out: Any) -> None:
            stream = torch.cuda.current_stream().cuda_stream
            arguments = ((out.data_ptr(),), (ctypes.c_void_p,))
            assert int(driver.cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, stream, arguments, 0)[0]) == 0

        return put

    one, two = (launched(call(function), out) for function in functions)
    assert [k.code for k in (*one.launches, *two.launches)] == [fingerprint(image) for image in images]
    assert why([one], [two])[0].startswith("put: code changed")


@needs_cuda
def test_a_kernel_of_cuda_core_is_known_by_its_binary() -> None:
    core = pytest.importorskip("cuda.core")
    core.Device(torch.cuda.current_device()).set_current()
    major, minor = torch.cuda.get_device_capability()
    options = core.ProgramOptions(std="c++17", arch=f"sm_{major}{minor}")
    source = 'extern "C" __global__ void put_one(int* p) { p[threadIdx.x] = 1; }'
    binary = core.Program(source, "c++", options).compile("cubin")
    kernel = binary.get_kernel("put_one")
    out = torch.empty(32, device="cuda", dtype=torch.int32)

    def put(out: Any) -> None:
        stream = core.Stream.from_handle(torch.cuda.current_stream().cuda_stream)
        core.launch(stream, core.LaunchConfig(grid=1, block=32), kernel, out.data_ptr())

    found = launched(put, out)
    assert [(k.name, k.code) for k in found.launches] == [("put_one", fingerprint(binary.code))]
    assert found.known


KERNELS_OF = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
from gpu_kernel import fill
from perfgate import cuda
from perfgate.clock import Budget

def call(out):
    fill[(4,)](out, 64, BLOCK=64, STEP=1)
    return torch.mm(out[:4096].view(64, 64).float() + 1, out[:4096].view(64, 64).float())

clock = cuda.CudaClock(Budget(min_samples=6, max_samples=6, warmup_seconds=0.01))
samples = clock.measure(call, [(torch.zeros(2**16, device="cuda", dtype=torch.int32),)])
print(json.dumps(samples.kernels.to_json()))
"""


@needs_cuda
def test_two_checkouts_of_one_code_launch_the_same(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """Each in a process and with a cache of its own, and the kernel two lines further down in one of them."""
    pytest.importorskip("triton")
    kernel = Path(__file__).with_name("gpu_kernel.py")
    found = []
    for name, above in {"base": "", "head": "# a line\n\n"}.items():
        tree = tmp_path / name
        tree.mkdir()
        (tree / kernel.name).write_text(above + kernel.read_text())
        paths = [str(pytestconfig.rootpath / "src"), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        environment["TRITON_CACHE_DIR"] = str(tmp_path / f"cache-{name}")
        environment.pop("PYTEST_PLUGINS", None)
        command = [sys.executable, "-c", KERNELS_OF, str(tree)]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr
        found.append(Kernels.from_json(json.loads(answer.stdout.splitlines()[-1])))
    assert found[0].same(found[1]), why([found[0]], [found[1]])
