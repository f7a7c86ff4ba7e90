"""Triton's kernels compile for GPUs that are not here: they fit, do not spill, use tensor cores and copy ahead.

A part of the tables, with the compiler that is installed, which need not be that of baselines/static; `nox -s kernels`
compiles all with that one, and test_ahead.py holds what is committed to the same laws.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
PARTS = {
    "flash sm_90": ("triton_compile", "--arch 90 --dtype bf16 --d 64,128 --causal-only"),
    "flash sm_80": ("triton_compile", "--arch 80 --dtype bf16 --d 128 --causal-only"),
    "flash sm_100": ("triton_compile", "--arch 100 --dtype bf16 --d 128 --causal-only"),
    "flash fp8": ("triton_compile", "--arch 90,100 --dtype fp8 --d 128 --causal-only"),
    "flash fp32": ("triton_compile", f"--arch 80 --dtype fp32 --d 256 --causal-only --out {os.devnull}"),
    "flash descriptors": ("descriptors_compile", ""),
    "flash descriptors as wide as a head": ("descriptors_compile", "16"),
    "splitkv": ("splitkv_compile", "80 90"),
    "product": ("triton_product_compile", "90 80"),
}
COMPILE = """
import contextlib, importlib, io, json, sys
for name, (module, words) in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = importlib.import_module(f"tests.attnkit.{module}").main(words.split())
    print(json.dumps([name, code, said.getvalue()]), flush=True)
"""


@pytest.mark.timeout(900)
def test_the_kernels_compile() -> None:
    # one process, whose imports take as long as several builds; not this one: the interpreter and the compiler cannot
    # share one
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", COMPILE, json.dumps(PARTS)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = {name: (code, said) for name, code, said in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == PARTS.keys()
    assert {name: said for name, (code, said) in found.items() if code} == {}
    said = {name: [line.split() for line in said.splitlines()] for name, (_, said) in found.items()}
    for arch, d in (("90", "64"), ("90", "128"), ("80", "128"), ("100", "128")):
        wanted = [f"sm_{arch}", "dq", "bf16", f"d{d}"]
        assert any(words[:4] == wanted for words in said[f"flash sm_{arch}"])
    # loaded by the copy engine, for many queries and for few, and by threads
    wanted = [["sm_90", "forward", "fp8"]] * 3 + [["sm_100", "forward", "fp8"]]
    assert [words[:3] for words in said["flash fp8"]] == wanted
    # float32 with wide heads spills: a check that calls it clean would call everything clean
    assert said["flash fp32"]
    assert all(" 0 stack" not in " ".join(words) for words in said["flash fp32"])
    for arch in ("sm_80", "sm_90"):
        assert [arch, "triton_splitkv/decode/bf16-d128-rows8-page16:"] in [words[:2] for words in said["splitkv"]]
    for arch in ("sm_90", "sm_80"):
        wanted = [[arch, "bf16", "m1:"], [arch, "i8", "m64:"], [arch, "dynamic", "m2048:"]]
        assert [words[:3] for words in said["product"] if words[:3] in wanted] == [wanted[1], wanted[0], wanted[2]]
    # ptxas 12.8 loses a place in shared memory that is read in two ways: so it was when dv or out was wrong on an H200
    assert [words[2] for words in said["flash descriptors"]] == ["1"] * 7
    # but not in the last two, whose tiles share no place
    assert [words[2] for words in said["flash descriptors as wide as a head"]] == ["2"] * 5 + ["1"] * 2
