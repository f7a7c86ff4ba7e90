"""Our kernels compiled ahead of time: what is committed of them holds the laws, and a planted change is found.

A few builds are compiled here; `nox -s kernels` compiles all, with the compiler of the committed profiles.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from attnkit import ahead
from perfgate.static import files
from perfgate.static.profile import Profile

ROOT = Path(__file__).parents[2]
STORAGE = ROOT / "baselines" / "static"
BUILD = "triton_flash/forward/bf16-d64-causal-even-pointer"
MATRIX = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
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
    half = {n: p for n, p in flash.items() if "/bf16-" in n}
    assert half
    assert [n for n, p in half.items() if not p.counts.get(MATRIX[arch])] == []
    assert [n for n, p in flash.items() if p.shared > FITS[arch]] == []
    assert [n for n, p in flash.items() if n.endswith("-tma") and not p.counts.get("UTMALDG")] == []
    # on an H200 the pointer form of dkdv at d = 128 spills 48 bytes and is faster than the widest tile that spills none
    assert [n for n, p in half.items() if "-d256-" not in n and p.stack > 48] == []


@pytest.mark.parametrize(("arch", "matrix"), [(90, "QGMMA"), (100, "UTCQMMA")])
def test_flash_in_fp8_uses_the_tensor_cores_for_fp8_alone_and_does_not_spill(arch: int, matrix: str) -> None:
    builds = {name: profile for name, profile in committed(arch).items() if "/fp8-" in name}
    assert builds
    assert [n for n, p in builds.items() if not p.counts.get(matrix) or p.counts.get(MATRIX[arch]) or p.stack] == []


PLANT = """
import dataclasses
from attnkit import ahead
from attnkit.ahead import triton_flash

def builds():
    for build in ahead.builds():
        if (build.arch, build.name) == (90, {name!r}):
            arch, kernel, dtype, d, causal, even, config = build.compile.args[:7]
            config = dataclasses.replace(config, **{config!r})
            yield dataclasses.replace(build, compile=lambda: triton_flash.binary(
                arch, kernel, dtype, d, causal, {even!r}, config, **{options!r}))
"""


def static(folder: Path, base: Path, builds: str, *arguments: str) -> tuple[int, str]:
    """Hold these builds against what is in `base`."""
    (folder / "planted_builds.py").write_text(builds)
    # a process of its own: the interpreter and the compiler cannot share one
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "src")])}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "TRITON_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "-m", "perfgate", "static", "planted_builds", "--storage", str(base), "--jobs", "1"]
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    output = done.stdout + done.stderr
    assert "Traceback" not in output
    return done.returncode, output


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The profile of the build without a planted change."""
    folder = tmp_path_factory.mktemp("base")
    code, output = static(
        folder, folder / "base", PLANT.format(name=BUILD, config={}, options={}, even=True), "--renew"
    )
    assert code == 0, output
    return folder / "base"


def judged(
    folder: Path, base: Path, *, config: dict[str, int], options: dict[str, int], even: bool = True
) -> tuple[int, str]:
    """Hold one build with a planted change against the same build without."""
    return static(folder, base, PLANT.format(name=BUILD, config=config, options=options, even=even))


@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    ("config", "options", "says"),
    [
        ({}, {"maxnreg": 64}, "spills: "),
        ({"warps": 1}, {}, "lost HGMMA"),
        ({"stages": 1}, {}, "lost LDGSTS"),
        ({"stages": 8}, {}, "shared memory"),
    ],
    ids=["forced spills", "a warp alone", "no stages", "too many stages"],
)
def test_a_planted_change_is_found(
    tmp_path: Path, base: Path, config: dict[str, int], options: dict[str, int], says: str
) -> None:
    code, output = judged(tmp_path, base, config=config, options=options)
    assert code == 1, output
    assert says in output


@pytest.mark.timeout(500)
def test_a_dropped_constant_is_listed(tmp_path: Path, base: Path) -> None:
    # EVEN_Q and EVEN_KV decide about masks: more instructions, but none of a kind that a rule is about
    code, output = judged(tmp_path, base, config={}, options={}, even=False)
    assert code in (0, 1), output
    assert "changed" in output or "regressed" in output


def test_compiling_under_the_interpreter_is_refused() -> None:
    import triton

    if not triton.knobs.runtime.interpret:
        pytest.skip("the interpreter is not on: there is a GPU")
    build = next(build for build in ahead.builds() if build.name == "triton_product/bf16-bf16-m64")
    with pytest.raises(RuntimeError, match="needs a process without Triton's interpreter"):
        build.compile()
