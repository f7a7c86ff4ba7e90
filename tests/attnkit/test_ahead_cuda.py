"""Our CUDA C++ compiled ahead of time: every kernel has builds, they hold the laws, and a planted change is found."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("triton")

from attnkit import ahead, nvrtc
from attnkit.ahead import cuda_llama, cuda_matvec
from attnkit.ahead.build import Build
from attnkit.llama import LADDER, LLAMA_2_7B
from attnkit.llama.fused import FORMS, MAX_BATCH, SOURCES
from attnkit.llama.sizes import Sizes
from attnkit.products.matvec_tiles import OVERLAPPING, TABLE
from perfgate.static import files
from perfgate.static.profile import Profile
from tests.attnkit.static_run import ROOT, builds_said, static

FILES = sorted(nvrtc.SOURCES.glob("*.cu"))


def entries(text: str) -> set[str]:
    """The kernels of a source: what is declared as one, by itself or by a macro whose first parameter is the name."""
    text = text.replace("\\\n", " ")
    found = set(re.findall(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(", text))
    for macro, parameter in re.findall(r"^#define (\w+)\((\w+)[^)]*\).*__global__", text, re.MULTILINE):
        found.discard(parameter)
        found |= set(re.findall(rf"^{macro}\((\w+)", text, re.MULTILINE))
    return found


def cuda_builds(arch: int) -> list[Build]:
    return [*cuda_matvec.builds(arch), *cuda_llama.builds(arch)]


def committed(arch: int) -> dict[str, Profile]:
    return {n: p for n, p in files.read(ROOT / "baselines/static", arch).items() if n.startswith("cuda_")}


def test_a_kernel_of_any_declaration_is_seen() -> None:
    assert entries('extern "C" __global__ void one(int n) {}') == {"one"}
    assert entries('extern "C" __global__ void __launch_bounds__(256, 2)\ntwo(int n) {}') == {"two"}
    macro = '#define BOTH(name, f) \\\n  extern "C" __global__ void \\\n  name(int n) { f; }\nBOTH(a, 1)\nBOTH(b, 2)\n'
    assert entries(macro) == {"a", "b"}


@pytest.mark.parametrize("source", FILES, ids=lambda file: file.name)
def test_every_kernel_of_every_source_has_builds(source: Path) -> None:
    kernels = entries(source.read_text())
    assert kernels
    for arch in (90, 100):
        listed = [build.compile.args[:2] for build in cuda_builds(arch)]  # type: ignore[attr-defined]
        assert {function for file, function in listed if file == source} == kernels


@pytest.mark.needs_nvrtc
@pytest.mark.parametrize("launch", ["stages", "persistent"])
def test_what_is_read_off_a_source_is_what_is_compiled(launch: str) -> None:
    source, kernels = SOURCES[launch]  # type: ignore[index]
    sizes = Sizes(LLAMA_2_7B, True, 1, 64, 132, FORMS[launch])  # type: ignore[index]
    compiled = nvrtc.cubin(source.read_text(), "sm_90a", sizes.options)
    assert set(re.findall(r"^\.visible \.entry (\w+)", compiled.ptx, re.MULTILINE)) == entries(source.read_text())
    assert entries(source.read_text()) == set(kernels)
    assert re.fullmatch(r"nvrtc \d+\.\d+\.\d+", compiled.compiler)


@pytest.mark.parametrize("arch", [90, 100])
def test_every_rung_of_fused_kernels_has_builds(arch: int) -> None:
    rungs = {(r.launch, r.int8) for r in LADDER if r.launch}
    names = [build.name for build in cuda_llama.builds(arch)]
    for (launch, int8), batch in itertools.product(rungs, (1, MAX_BATCH)):
        ending = f"bf16-{'i8' if int8 else 'bf16'}-b{batch}-{launch}"
        assert {n.split("/")[1] for n in names if n.endswith(ending)} == set(SOURCES[launch][1])  # type: ignore[index]
    attending = {"stages": "attend_kernel", "overlapped": "attend_kernel", "persistent": "decode"}
    grouped = {f"cuda_llama/{kernel}/bf16-bf16-b1-{launch}-llama3" for launch, kernel in attending.items()}
    assert {n for n in names if n.endswith("-llama3")} == grouped


@pytest.mark.parametrize("arch", ahead.ARCHS)
def test_every_form_of_a_matvec_that_runs_there_has_a_build(arch: int) -> None:
    for weights in ("half", "int8"):
        for overlap, table in ((False, TABLE[weights]), (True, OVERLAPPING[weights])):
            built = {form for form, *_ in cuda_matvec.forms(arch, weights, overlap).values()}
            hopper = {form for form in table if form.design == "bulk" or form.overlap}
            assert built == set(table) - (hopper if arch < 90 else set())


@pytest.mark.parametrize("arch", ahead.ARCHS)
def test_every_form_that_converts_int8_has_a_build_in_float16_too(arch: int) -> None:
    converting = {n: form for n, (form, *_) in cuda_matvec.forms(arch, "int8", False).items() if not form.fixed}
    assert converting
    names = {build.name for build in cuda_matvec.builds(arch)}
    assert {f"cuda_matvec/{form.design}/fp16-i8-{n}" for n, form in converting.items()} <= names


@pytest.mark.parametrize("arch", ahead.ARCHS)
def test_no_cuda_kernel_spills_and_those_with_bulk_copies_have_them(arch: int) -> None:
    found = committed(arch)
    assert found.keys() == {build.name for build in cuda_builds(arch)}
    assert {p.compiler.split()[0] for p in found.values()} == {"nvrtc"}
    # the sums of several sequences are an array, of which a lane takes its own once a pair of rows
    assert [n for n, p in found.items() if p.stack > (32 if "-b4-" in n else 0) or p.loop.keys() & {"LDL", "STL"}] == []
    assert [n for n, p in found.items() if p.unset or not p.blocks(arch)] == []
    weightless = ("attend_kernel", "embed_kernel", "choose_kernel")
    copying = [n for n in found if "/registers/" not in n and n.split("/")[1] not in weightless]
    assert [n for n in copying if not found[n].counts.get("UBLKCP")] == []
    # the next kernel's block begins beside the last's, where x is no longer than a row
    many = re.compile("-m8-|-b4-")
    overlapping = [n for n in found if "overlap" in n and "attend" not in n and not many.search(n)]
    assert [n for n in overlapping if found[n].blocks(arch) < 2] == []


PLANTED = """
from pathlib import Path
from attnkit import nvrtc

nvrtc.SOURCES = Path("FOLDER")

from attnkit.ahead import cuda_llama, cuda_matvec

NAMES = NAMED

def builds():
    return [build for build in (*cuda_matvec.builds(90), *cuda_llama.builds(90)) if build.name in NAMES]
"""
"""A few builds, of the sources in a folder."""

PLANTS = {
    "cuda_matvec/registers/bf16-i8-down-m8": (
        "matvec_registers.cu", "__launch_bounds__(THREADS, BLOCKS)", "__launch_bounds__(THREADS, 4 * BLOCKS)",
        "spills: ",
    ),
    "cuda_matvec/bulk/bf16-bf16-gate_up-m1": (
        "matvec_bulk.cu", "__launch_bounds__(THREADS, BLOCKS)", "__launch_bounds__(THREADS, 3 * BLOCKS)", "spills: ",
    ),
    "cuda_llama/attend_kernel/bf16-bf16-b1-stages": (
        "llama_stages.cu", "__launch_bounds__(THREADS, 1)", "__launch_bounds__(THREADS, 4)", "spills: ",
    ),
    "cuda_llama/down_kernel/bf16-i8-b1-stages": ("", "", "", ""),
}  # fmt: skip
"""The build, what is planted in which source, and what is said of it; nothing is changed of the last one's code."""


@pytest.mark.needs_nvrtc
def test_planted_spills_in_sources_are_found_and_what_was_not_changed_is_not(tmp_path: Path) -> None:
    shutil.copytree(nvrtc.SOURCES, tmp_path / "cuda")
    module = PLANTED.replace("FOLDER", str(tmp_path / "cuda")).replace("NAMED", repr(list(PLANTS)))
    code, output = static(tmp_path, module, "--renew")
    assert code == 0, output
    assert f"{len(PLANTS)} builds" in output
    for name, old, new, _ in filter(lambda plant: plant[0], PLANTS.values()):
        file = tmp_path / "cuda" / name
        assert file.read_text().count(old) == 1
        file.write_text(file.read_text().replace(old, new))
    code, output = static(tmp_path, module, "--all")
    assert code == 1, output
    said = builds_said(output)
    for name, (*_, why) in PLANTS.items():
        state = "regressed" if why else "unchanged"
        assert said[name].partition("\n")[0].endswith(f"  {state}"), output
        assert why in said[name], output
