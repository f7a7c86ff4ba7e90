"""The digest of the libraries: of the files that a kernel can come from, whatever was loaded first and wherever."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from perfgate import libraries

from .test_binaries import elf

COPY = "_ZN2at6native4copyEv"
GEMM = "nvjet_tst_128x256_64x4"
OTHER = "_Z6decodePf"
DEVICE = elf(__nv_fatbin=b"code")
HOST = elf(__text=b"code")


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    forget()
    yield
    forget()


def forget() -> None:
    kept = ("_digest", "_beside", "_holds_device_code", "_has_text", "_contents")
    for name in kept:
        getattr(libraries, name).cache_clear()


def put(path: Path, data: bytes = DEVICE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def digest(root: Path, *paths: Path, names: Sequence[str] = (OTHER,)) -> str:
    maps = root / "maps"
    lines = [f"7f{i:010x}-7f{i + 1:010x} r-xp 00000000 08:01 42    {path}" for i, path in enumerate(paths)]
    maps.write_text("\n".join(["00400000-00401000 rw-p 00000000 00:00 0 [heap]", *lines]) + "\n")
    found = libraries.digest(names, maps)
    forget()
    return found


def test_where_nothing_is_found_there_is_no_digest(tmp_path: Path) -> None:
    assert digest(tmp_path) == ""
    assert digest(tmp_path, put(tmp_path / "libhost.so", HOST), tmp_path / "gone.so") == ""
    assert libraries.digest([OTHER], tmp_path / "no" / "maps") == ""


def test_a_toolkit_counts_whole_however_much_of_it_is_loaded(tmp_path: Path) -> None:
    site = tmp_path / "site-packages" / "nvidia" / "cudnn" / "lib"
    front, engines = put(site / "libcudnn.so.9"), put(site / "libcudnn_engines_precompiled.so.9")
    before = digest(tmp_path, front)
    assert before
    assert digest(tmp_path, front, engines) == before
    put(engines, DEVICE + b"more")
    assert digest(tmp_path, front) != before


def test_installed_libraries_are_the_same_in_two_environments(tmp_path: Path) -> None:
    one = put(tmp_path / "a" / "site-packages" / "torch" / "lib" / "libtorch_cuda.so")
    two = put(tmp_path / "b" / "site-packages" / "torch" / "lib" / "libtorch_cuda.so")
    assert digest(tmp_path, one) == digest(tmp_path, two)


def test_an_extension_is_known_by_its_contents_not_by_its_tree(tmp_path: Path) -> None:
    base, head = (put(tmp_path / tree / "src" / "kernels.so") for tree in ("base", "head"))
    same = digest(tmp_path, base)
    assert same == digest(tmp_path, head)
    put(head, elf(__nv_fatbin=b"edoc"))
    assert digest(tmp_path, head) != same


def test_an_installed_extension_is_known_by_its_contents_too(tmp_path: Path) -> None:
    path = put(tmp_path / "site-packages" / "flash" / "flash.so")
    before = digest(tmp_path, path)
    put(path, elf(__nv_fatbin=b"edoc"))
    assert digest(tmp_path, path) != before


def test_libraries_without_device_code_and_the_drivers_do_not_count(tmp_path: Path) -> None:
    extension = put(tmp_path / "kernels.so")
    others = [put(tmp_path / "libhost.so", HOST), put(tmp_path / "libcuda.so.1")]
    assert digest(tmp_path, extension, *others) == digest(tmp_path, extension)


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    return put(tmp_path / "site-packages" / "nvidia" / "cublas" / "lib" / "libcublasLt.so.13")


def rebuilt(root: Path, toolkit: Path, names: Sequence[str], *, text: str = "") -> bool:
    """Whether an extension in the tree that holds this text counts for kernels of these names."""
    extension = put(root / "src" / "kernels.so", elf(__nv_fatbin=b"1", __rodata=text.encode() + b"\0"))
    before = digest(root, toolkit, extension, names=names)
    put(extension, elf(__nv_fatbin=b"2", __rodata=text.encode() + b"\0"))
    return digest(root, toolkit, extension, names=names) != before


@pytest.mark.parametrize("names", [[COPY], [GEMM], [COPY, GEMM], []])
def test_an_extension_built_anew_is_nothing_to_the_toolkits_kernels(
    tmp_path: Path, toolkit: Path, names: list[str]
) -> None:
    assert not rebuilt(tmp_path, toolkit, names, text=f"{OTHER} and cublas")


@pytest.mark.parametrize(
    ("names", "text"),
    [([OTHER], ""), ([COPY, OTHER], ""), ([COPY], COPY), ([GEMM, COPY], COPY), ([GEMM], "nvjet_another")],
)
def test_an_extension_that_may_give_one_of_the_kernels_counts(
    tmp_path: Path, toolkit: Path, names: list[str], text: str
) -> None:
    """Nobody knows whose `OTHER` is, torch's templates have instances elsewhere, and cuBLAS can be linked into it."""
    assert rebuilt(tmp_path, toolkit, names, text=text)


def test_a_large_extension_counts_unread(tmp_path: Path, toolkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not rebuilt(tmp_path, toolkit, [COPY])
    monkeypatch.setattr(libraries, "SMALL", 10)
    assert rebuilt(tmp_path, toolkit, [COPY])


@pytest.mark.parametrize("name", ["libcublas.so.13", "libcublas-1f0c.so.13", "libcudnn_graph.so.9", "libc10_cuda.so"])
def test_the_toolkit_counts_wherever_it_lies(tmp_path: Path, toolkit: Path, name: str) -> None:
    elsewhere = put(tmp_path / "opt" / "lib" / name)
    assert digest(tmp_path, toolkit, elsewhere, names=[GEMM]) != digest(tmp_path, toolkit, names=[GEMM])


@pytest.mark.parametrize("name", ["libcustom_ops.so", "libtorch_mine.so"])
def test_an_extension_with_a_toolkits_name_is_known_by_its_contents(tmp_path: Path, name: str) -> None:
    extension = put(tmp_path / "site-packages" / "mine" / name)
    before = digest(tmp_path, extension)
    put(extension, elf(__nv_fatbin=b"edoc"))
    assert digest(tmp_path, extension) != before


def test_where_all_code_is_known_no_library_counts(tmp_path: Path, toolkit: Path) -> None:
    assert digest(tmp_path, toolkit, names=[]) == ""
