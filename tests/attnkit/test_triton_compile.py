"""The kernels of triton_flash compile for GPUs that are not here: they fit, do not spill, and use tensor cores.

A part of the table, so that it takes under a minute; `python tests/attnkit/triton_compile.py` compiles all of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

ATTNKIT = Path(__file__).parents[2] / "src"


def run(*arguments: str, script: str = "triton_compile.py") -> subprocess.CompletedProcess[str]:
    """The compile check in a process of its own: the interpreter and the compiler cannot share one."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ATTNKIT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


@pytest.mark.parametrize(
    ("arch", "ds"), [("90", "64"), ("90", "128"), ("80", "128"), ("100", "128")], ids=lambda part: part
)
def test_the_table_compiles(arch: str, ds: str) -> None:
    done = run("--arch", arch, "--dtype", "bf16", "--d", ds, "--causal-only")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert f"sm_{arch} dq" in done.stdout


def test_fp8_compiles_to_products_of_fp8() -> None:
    done = run("--arch", "90,100", "--dtype", "fp8", "--d", "128", "--causal-only")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert [line.split()[:3] for line in done.stdout.splitlines()] == 2 * [["sm_90", "forward", "fp8"]] + [
        ["sm_100", "forward", "fp8"]
    ]


def test_a_form_that_spills_is_told_apart() -> None:
    # float32 with wide heads spills: a check that calls it clean would call everything clean
    done = run("--arch", "80", "--dtype", "fp32", "--d", "256", "--causal-only", "--out", os.devnull)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(" 0 stack" not in line for line in done.stdout.splitlines())


@pytest.mark.parametrize(("least", "most"), [((), "1"), (("16",), "2")], ids=["as in the table", "as wide as the head"])
def test_a_place_in_shared_memory_is_read_in_one_way(least: tuple[str, ...], most: str) -> None:
    # in more, ptxas 12.8 loses the place: the second case is what it was when dv was wrong on an H200
    done = run(*least, script="descriptors_compile.py")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert [line.split()[2] for line in done.stdout.splitlines()] == [most] * 3
