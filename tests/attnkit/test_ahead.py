"""Our kernels compiled ahead of time: what is committed of them holds the laws, and a planted change is found.

A few builds are compiled here; `nox -s kernels` compiles all, with the compiler of the committed profiles.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

pytest.importorskip("triton")

from attnkit import ahead, nvrtc
from attnkit.ahead.build import REMEDY
from perfgate.static import files
from perfgate.static.profile import Profile
from tests.attnkit.static_run import ROOT, builds_said, static

STORAGE = ROOT / "baselines" / "static"
BUILD = "triton_flash/forward/bf16-d64-causal-even-pointer"
MATRIX = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
KERNELS = {
    f"{file.stem}.{name}"
    for file in (ROOT / "src/attnkit").rglob("*.py")
    for name in re.findall(r"^@(?:triton|gluon)\.jit.*\n(?:#.*\n)*def (\w+_kernel)\(", file.read_text(), re.MULTILINE)
}
"""What is launched: ``module.function``."""
ATTENTION = {"triton_flash", "triton_unfused", "triton_fa1", "triton_splitkv"}
COMPILERS = {"triton_compiler", "cuda_compiler"}
FITS = {80: 101376, 90: 232448, 100: 232448}
"""Bytes of shared memory; what is built for sm_80 also runs on sm_86 and sm_89, which have less."""


def committed(arch: int) -> dict[str, Profile]:
    return files.read(STORAGE, arch)


@pytest.mark.parametrize("arch", ahead.ARCHS)
def test_every_build_has_a_committed_profile(arch: int) -> None:
    # renew them with: nox -s kernels -- --renew
    assert sorted(build.name for build in ahead.builds() if build.arch == arch) == sorted(committed(arch))


@pytest.mark.parametrize("arch", ahead.ARCHS)
def test_flash_in_half_precision_uses_the_tensor_cores_and_hardly_spills(arch: int) -> None:
    kernels = ("forward", "dkdv", "dq", "dk", "dv")
    flash = {n: p for n, p in committed(arch).items() if n.split("/")[1] in kernels and n.startswith("triton_flash/")}
    half = {n: p for n, p in flash.items() if "/bf16-" in n or "/fp16-" in n}
    assert {n.split("/")[2][:4] for n in half} == {"bf16", "fp16"}
    assert [n for n, p in half.items() if not p.counts.get(MATRIX[arch])] == []
    assert [n for n, p in flash.items() if p.shared > FITS[arch]] == []
    assert [n for n, p in flash.items() if n.endswith("-tma") and not p.counts.get("UTMALDG")] == []
    # on an H200 the pointer form of dkdv at d = 128 spills 48 bytes and is faster than the widest tile that spills none
    aligned = {n: p for n, p in half.items() if "-unaligned-" not in n}  # others load number by number
    assert [n for n, p in aligned.items() if "-d256-" not in n and p.stack > 48] == []


def test_no_kernel_reads_a_register_that_nothing_has_written() -> None:
    assert [(arch, n, p.unset) for arch in ahead.ARCHS for n, p in committed(arch).items() if p.unset] == []


@pytest.mark.parametrize("arch", ahead.ARCHS)
def test_attention_in_float16_has_bfloat16_s_profiles(arch: int) -> None:
    """So a few builds stand for all of it."""
    profiles = committed(arch)
    half = [n for n in profiles if "/fp16-" in n and n.partition("/")[0] in ATTENTION and "/statistics/" not in n]
    assert {n.partition("/")[0] for n in half} == ATTENTION
    assert [n for n in half if profiles[n] != profiles[n.replace("fp16", "bf16")]] == []


def test_every_module_of_builds_is_listed() -> None:
    stems = {file.stem for way in ("triton", "cuda") for file in (ROOT / "src/attnkit/ahead").glob(f"{way}_*.py")}
    assert {module.__name__.rpartition(".")[2] for module in ahead.MODULES} == stems - COMPILERS


def test_every_triton_kernel_is_named_by_a_module_of_builds() -> None:
    assert KERNELS
    listed = [inspect.getsource(module) for module in ahead.MODULES]
    for kernel in sorted(KERNELS):
        named = [rf"\b{word}\b" for word in kernel.split(".")]
        assert [text for text in listed if all(re.search(word, text) for word in named)], kernel


@pytest.mark.parametrize(("arch", "matrix"), [(90, "QGMMA"), (100, "UTCQMMA")])
def test_flash_in_fp8_uses_the_tensor_cores_for_fp8_alone_and_does_not_spill(arch: int, matrix: str) -> None:
    builds = {name: profile for name, profile in committed(arch).items() if "/fp8-" in name}
    assert builds
    assert [n for n, p in builds.items() if not p.counts.get(matrix) or p.counts.get(MATRIX[arch]) or p.stack] == []


PLANTS: dict[str, tuple[dict[str, int], dict[str, int], bool]] = {
    "as-it-is": ({}, {}, True),
    "forced-spills": ({}, {"maxnreg": 64}, True),
    "a-warp-alone": ({"warps": 1}, {}, True),
    "no-stages": ({"stages": 1}, {}, True),
    "too-many-stages": ({"stages": 8}, {}, True),
    # EVEN_Q and EVEN_KV decide about masks: more instructions, but none of a kind that a rule is about
    "a-dropped-constant": ({}, {}, False),
}
"""What is changed of the configuration, the compiler's options, and whether tiles divide the lengths."""

PLANTED = f"""
import dataclasses, sys
from attnkit import ahead
from attnkit.ahead import triton_flash

PLANTS = {PLANTS!r}
CHANGED = CHANGE

def builds():
    build = next(build for build in ahead.builds() if (build.arch, build.name) == (90, {BUILD!r}))
    arch, kernel, dtype, d, causal, even, config = build.compile.args[:7]
    assert even
    for name, (changes, options, even) in PLANTS.items():
        if not CHANGED:
            changes, options, even = PLANTS["as-it-is"]
        changed = dataclasses.replace(config, **changes)
        yield dataclasses.replace(build, name=name, compile=lambda c=changed, e=even, o=options: triton_flash.binary(
            arch, kernel, dtype, d, causal, e, c, **o))
"""
"""One build under as many names, each with its change or, where CHANGE is False, without."""


@pytest.mark.timeout(900)
def test_planted_changes_are_found_and_what_was_not_changed_is_not(tmp_path: Path) -> None:
    """All in two processes: to import torch and Triton takes longer than to compile a build."""
    code, output = static(tmp_path, PLANTED.replace("CHANGED = CHANGE", "CHANGED = False"), "--renew")
    assert code == 0, output
    code, output = static(tmp_path, PLANTED.replace("CHANGED = CHANGE", "CHANGED = True"), "--all")
    assert code == 1, output
    said = builds_said(output)
    for name, state, why in (
        ("as-it-is", "unchanged", ""),
        ("forced-spills", "regressed", "spills: "),
        ("a-warp-alone", "regressed", "lost HGMMA"),
        ("no-stages", "regressed", "lost LDGSTS"),
        ("too-many-stages", "regressed", "shared memory"),
        ("a-dropped-constant", "(changed|regressed)", ""),
    ):
        assert re.search(rf"  {state}$", said[name].partition("\n")[0]), output
        assert why in said[name], output


def test_a_compiler_that_is_not_here_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(nvrtc, "absent", nvrtc.absent.__wrapped__)
    packages = {"triton": "triton", "cuda": "cuda-bindings"}
    said = {(build.name.partition("_")[0], build.absent()) for build in ahead.builds()}
    expected = {(way, f"the package {name} is not installed: {REMEDY}") for way, name in packages.items()}
    assert said == expected


def test_compiling_under_the_interpreter_is_refused() -> None:
    import triton

    if not triton.knobs.runtime.interpret:
        pytest.skip("the interpreter is not on: there is a GPU")
    build = next(build for build in ahead.builds() if build.name == "triton_product/bf16-bf16-m64")
    with pytest.raises(RuntimeError, match="needs a process without Triton's interpreter"):
        build.compile()
