"""What a binary's code is: the same for one kernel in two checkouts, another for another kernel."""

from __future__ import annotations

import base64
import gc
import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from perfgate import binaries, kernels
from perfgate.binaries import LIBRARY, UNKNOWN, Binaries, fingerprint, loaded, sections

KERNEL = Path(__file__).with_name("gpu_kernel.py")
COMPILE = """
import base64, json, sys
sys.path.insert(0, sys.argv[1])
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from gpu_kernel import fill

def compiled(step):
    signature = {"p_out": "*i32", "n": "i32", "BLOCK": "constexpr", "STEP": "constexpr"}
    source = ASTSource(fill, signature, {(2,): 64, (3,): step}, {})
    return base64.b64encode(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]).decode()

print(json.dumps([compiled(1), compiled(2)]))
"""


def elf(**contents: bytes) -> bytes:
    """A 64-bit ELF file with these sections; double underscores in their names stand for dots."""
    names, body, headers = b"\0", b"", [(0,) * 6]
    for name, data in {**contents, "__shstrtab": b""}.items():
        at = len(names)
        names += name.replace("__", ".").encode() + b"\0"
        data = data or (names if name == "__shstrtab" else b"")
        headers.append((at, 1, 0, 0, 64 + len(body), len(data)))
        body += data
    table = b"".join(struct.pack("<IIQQQQIIQQ", *header, 0, 0, 0, 0) for header in headers)
    start = bytearray(64)
    start[:5] = b"\x7fELF\x02"
    struct.pack_into("<Q", start, 0x28, 64 + len(body))
    struct.pack_into("<HHH", start, 0x3A, 64, len(headers), len(headers) - 1)
    return bytes(start) + body + table


def test_sections_of_an_elf_file_are_found_by_name() -> None:
    image = elf(__text__fill=b"code", __debug_line=b"path")
    found = {name: image[offset : offset + size] for name, size, offset in sections(image)}
    assert found[".text.fill"] == b"code"
    assert found[".debug_line"] == b"path"


@pytest.mark.parametrize("image", [b"", b"ELF", b"\x7fELF\x02", b"\x7fELF\x02" + b"\xff" * 80])
def test_what_is_no_elf_file_has_no_sections(image: bytes) -> None:
    with pytest.raises(ValueError, match="ELF"):
        list(sections(image))


def test_debug_lines_are_not_code() -> None:
    one = elf(__text__fill=b"code", __debug_line=b"/a/kernel.py")
    assert fingerprint(one) == fingerprint(elf(__text__fill=b"code", __debug_line=b"/b/kernel.py"))
    assert fingerprint(one) != fingerprint(elf(__text__fill=b"edoc", __debug_line=b"/a/kernel.py"))
    assert fingerprint(one) != fingerprint(elf(__text__fill=b"code", __nv__constant0=b"1"))


def test_of_anything_else_all_bytes_count() -> None:
    assert fingerprint(b"// PTX 1") != fingerprint(b"// PTX 2")
    assert fingerprint(elf(__data=b"1")) != fingerprint(elf(__data=b"2"))


def test_a_triton_kernel_has_one_code_in_two_checkouts(tmp_path: Path) -> None:
    """Elsewhere and two lines further down it is another binary of the same code; with a changed constant it is not."""
    pytest.importorskip("triton")

    images: dict[str, list[bytes]] = {}
    for name, above in {"base": "", "head": "# a line\n\n"}.items():
        tree = tmp_path / name
        tree.mkdir()
        (tree / KERNEL.name).write_text(above + KERNEL.read_text())
        environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PYTEST_PLUGINS")}
        environment["TRITON_CACHE_DIR"] = str(tmp_path / f"cache-{name}")
        command = [sys.executable, "-c", COMPILE, str(tree)]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr
        images[name] = [base64.b64decode(text) for text in json.loads(answer.stdout)]
    assert images["base"][0] != images["head"][0]
    assert fingerprint(images["base"][0]) == fingerprint(images["head"][0])
    assert fingerprint(images["base"][0]) != fingerprint(images["base"][1])


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_registered", "_owned", "_answers"):
        monkeypatch.setattr(binaries, name, {})
    for name in binaries.STRANGERS:
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_registered_function_has_the_code_of_its_binary() -> None:
    kernels.register(0x10, elf(__text=b"1"))
    assert loaded().code(0x10, "decode") == fingerprint(elf(__text=b"1"))
    kernels.register(0x10, elf(__text=b"2"))
    assert loaded().code(0x10, "decode") == fingerprint(elf(__text=b"2"))


@pytest.mark.parametrize(
    ("handle", "image", "error"),
    [("0x10", b"1", TypeError), (1, "cubin", TypeError), (0, b"1", ValueError), (1, b"", ValueError)],
)
def test_what_cannot_be_registered_is_refused(handle: Any, image: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="expected a"):
        kernels.register(handle, image)


class Compiled:
    def __init__(self, function: int | None, **about: object) -> None:
        self.function, self.name = function, "forward_kernel"
        vars(self).update(about)


def test_functions_of_triton_and_torch_are_found_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    triton, torch = ModuleType("triton.compiler.compiler"), ModuleType("static_triton_launcher")
    triton.CompiledKernel = Compiled  # type: ignore[attr-defined]
    torch.StaticallyLaunchedCudaKernel = type("Static", (Compiled,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton.compiler.compiler", triton)
    monkeypatch.setitem(sys.modules, "torch._inductor.runtime.static_triton_launcher", torch)
    owners = [
        Compiled(1, kernel=elf(__text=b"1")),
        Compiled(None, kernel=elf(__text=b"2")),
        torch.StaticallyLaunchedCudaKernel(3, hash="of its source"),
        torch.StaticallyLaunchedCudaKernel(4),
    ]
    found = loaded()
    assert len(owners) == 4
    assert found.codes == {
        1: fingerprint(elf(__text=b"1")),
        3: hashlib.sha256(b"of its source").hexdigest()[:12],
        4: UNKNOWN,
    }
    assert found.names == {"forward_kernel"}


@pytest.mark.parametrize("name", ["forward_kernel", "ampere_gemm"])
def test_a_function_of_a_compiled_ones_name_is_no_librarys(name: str) -> None:
    found = Binaries({1: "c0de"}, names=frozenset({name}))
    assert found.code(1, name) == "c0de"
    assert found.code(2, name) == UNKNOWN


@pytest.mark.parametrize("name", ["fused_decode", "gemm", ""])
def test_a_plain_name_that_no_library_is_known_to_give_is_not_known(name: str) -> None:
    assert Binaries({}).code(7, name) == UNKNOWN


@pytest.mark.parametrize(
    "name", ["nvjet_tst_128x256_64x4", "ampere_sgemm_128x64_tn", "_ZN2at6native4copyEv", "_Z4gemmPf"]
)
def test_names_that_libraries_give_are_a_librarys(name: str) -> None:
    assert Binaries({}).code(7, name) == LIBRARY


def test_beside_a_stranger_only_known_names_are_a_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
    found = loaded()
    assert found.code(2, "_Z9my_kernelPf") == UNKNOWN
    assert found.code(2, "_ZN2at6native4copyEv") == LIBRARY


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that all objects were looked through, with owners of the kind `Compiled` to be found."""
    triton = ModuleType("triton.compiler.compiler")
    triton.CompiledKernel = Compiled  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton.compiler.compiler", triton)
    monkeypatch.delitem(sys.modules, binaries.CUDA_CORE, raising=False)
    found: list[int] = []
    objects = gc.get_objects
    monkeypatch.setattr(gc, "get_objects", lambda: (found.append(1), objects())[1])
    return found


def test_objects_are_looked_through_for_new_functions_alone(looks: list[int]) -> None:
    owner = Compiled(1, kernel=elf(__text=b"1"))
    kernels.register(2, elf(__text=b"2"))
    known = [(1, "forward_kernel", fingerprint(owner.kernel)), (2, "decode", fingerprint(elf(__text=b"2")))]  # type: ignore[attr-defined]
    known.append((3, "_ZN2at6native4copyEv", LIBRARY))
    for _ in range(3):
        code = binaries.codes()
        assert [code(function, name) for function, name, _ in known] == [said for *_, said in known]
    assert len(looks) == 1
    other = Compiled(4, kernel=elf(__text=b"4"))
    assert binaries.codes()(4, "forward_kernel") == fingerprint(other.kernel)  # type: ignore[attr-defined]
    assert len(looks) == 2


@pytest.mark.parametrize("name", ["cutlass_scaled_mm", "cublas_like", "ampere_gemm", "_Zigzag_kernel"])
def test_a_compiled_kernel_may_be_named_as_a_librarys_are(looks: list[int], name: str) -> None:
    owner = Compiled(11, name=name, kernel=elf(__text=b"1"))
    assert binaries.codes()(11, name) == fingerprint(elf(__text=b"1"))
    other = Compiled(12, name=name, kernel=elf(__text=b"2"))
    del owner
    assert binaries.codes()(11, name) == UNKNOWN
    assert binaries.codes()(12, name) == fingerprint(other.kernel)  # type: ignore[attr-defined]


def test_a_mangled_name_is_a_librarys_without_a_look(looks: list[int]) -> None:
    assert binaries.codes()(13, "_ZN2at6native4copyEv") == LIBRARY
    assert binaries.codes()(14, "_Z4gemmPf") == LIBRARY
    assert not looks


def test_what_is_unknown_is_looked_for_each_time(looks: list[int]) -> None:
    assert [binaries.codes()(5, "decode") for _ in range(2)] == [UNKNOWN, UNKNOWN]
    owner = Compiled(5, kernel=elf(__text=b"5"))
    assert binaries.codes()(5, "decode") == fingerprint(owner.kernel)  # type: ignore[attr-defined]
    assert len(looks) == 3


def test_a_handle_is_another_functions_once_its_owner_is_gone(looks: list[int]) -> None:
    owner = Compiled(1, kernel=elf(__text=b"1"))
    assert binaries.codes()(1, "forward_kernel") == fingerprint(elf(__text=b"1"))
    del owner
    assert binaries.codes()(1, "forward_kernel") == UNKNOWN
    owner = Compiled(1, kernel=elf(__text=b"2"))
    assert binaries.codes()(1, "forward_kernel") == fingerprint(elf(__text=b"2"))
    owner.function = 9
    assert binaries.codes()(1, "forward_kernel") == UNKNOWN


def test_a_handle_that_two_owners_had_in_turn_is_the_living_ones(looks: list[int]) -> None:
    owner = Compiled(1, kernel=elf(__text=b"1"))
    assert loaded().code(1, "forward_kernel") == fingerprint(elf(__text=b"1"))
    owner = Compiled(1, kernel=elf(__text=b"2"))
    assert loaded().code(1, "forward_kernel") == fingerprint(owner.kernel)  # type: ignore[attr-defined]


def test_a_function_that_is_registered_anew_has_its_new_code(looks: list[int]) -> None:
    for image in (elf(__text=b"1"), elf(__text=b"2")):
        kernels.register(2, image)
        assert binaries.codes()(2, "decode") == fingerprint(image)


def test_what_was_a_librarys_may_be_a_strangers_who_came(looks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert binaries.codes()(7, "_Z4gemmPf") == LIBRARY
    monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
    assert binaries.codes()(7, "_Z4gemmPf") == UNKNOWN


class ObjectCode:
    def __init__(self, code: object) -> None:
        self.code = code


class KernelOfCudaCore:
    pass


@pytest.fixture
def cuda_core(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("cuda.core._module")
    module.ObjectCode, module.Kernel = ObjectCode, KernelOfCudaCore  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.core._module", module)


def test_functions_of_cuda_core_are_found_by_their_names(cuda_core: None) -> None:
    image, other = elf(__text__decode=b"1"), elf(__text__prefill=b"2")
    alive = [ObjectCode(image), ObjectCode(other), KernelOfCudaCore()]
    found = loaded()
    assert len(alive) == 3
    assert found.code(7, "decode") == fingerprint(image)
    assert found.code(7, "prefill") == fingerprint(other)
    assert found.code(7, "_Z4gemmPf") == LIBRARY


def test_one_name_in_two_binaries_of_cuda_core_is_not_known(cuda_core: None) -> None:
    alive = [ObjectCode(elf(__text__decode=b"1")), ObjectCode(elf(__text__decode=b"2"))]
    assert loaded().code(7, "decode") == UNKNOWN
    alive.append(ObjectCode(elf(__text__decode=b"1")))
    assert loaded().code(7, "decode") == UNKNOWN


@pytest.mark.parametrize("make", [KernelOfCudaCore, lambda: ObjectCode(b"// PTX"), lambda: ObjectCode("/a/path.cubin")])
def test_a_kernel_of_cuda_core_without_its_binary_may_be_any(cuda_core: None, make: Callable[[], object]) -> None:
    owner = make()
    assert loaded().code(7, "_Z6decodePf") == UNKNOWN
    del owner
    assert loaded().code(7, "_Z6decodePf") == LIBRARY


def test_where_cuda_core_is_nothing_is_known_from_before(looks: list[int], cuda_core: None) -> None:
    alive = ObjectCode(elf(__text__decode=b"1"))
    assert binaries.codes()(7, "decode") == fingerprint(elf(__text__decode=b"1"))
    alive.code = elf(__text__decode=b"2")
    assert binaries.codes()(7, "decode") == fingerprint(elf(__text__decode=b"2"))
    assert len(looks) == 4
