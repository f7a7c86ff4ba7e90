"""The digest of the libraries: the same for the same files, whatever was loaded first and wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perfgate import libraries

from .test_binaries import elf

DEVICE = elf(__nv_fatbin=b"code")
HOST = elf(__text=b"code")


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    cached = (libraries._digest, libraries._beside, libraries._holds_device_code, libraries._contents)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def put(path: Path, data: bytes = DEVICE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def digest(root: Path, *paths: Path) -> str:
    maps = root / "maps"
    lines = [f"7f{i:010x}-7f{i + 1:010x} r-xp 00000000 08:01 42    {path}" for i, path in enumerate(paths)]
    maps.write_text("\n".join(["00400000-00401000 rw-p 00000000 00:00 0 [heap]", *lines]) + "\n")
    found = libraries.digest(maps)
    forgotten = (libraries._digest, libraries._beside, libraries._holds_device_code, libraries._contents)
    for function in forgotten:
        function.cache_clear()
    return found


def test_where_nothing_is_found_there_is_no_digest(tmp_path: Path) -> None:
    assert digest(tmp_path) == ""
    assert digest(tmp_path, put(tmp_path / "libhost.so", HOST), tmp_path / "gone.so") == ""
    assert libraries.digest(tmp_path / "no" / "maps") == ""


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
