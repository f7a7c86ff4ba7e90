"""Compile triton_flash's kernels for GPUs that are not there, and read what came out.

    python tests/attnkit/triton_compile.py --arch 80,90,100 --out static.json

Every row of the tile table, for both masks and for sizes that tiles do not divide (the form with the most masks). The
exit code is 1 when a kernel does not compile, asks for more shared memory than a block can have, spills where it must
not, or lacks the instructions it was built around. No GPU and no driver are needed, but a process in which
TRITON_INTERPRET is not set: the interpreter and the compiler cannot share one.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import triton

from attnkit.ahead import Binary, triton_flash
from attnkit.ahead.triton_flash import Want
from attnkit.variants.triton_flash_tiles import TABLE, Config, Kernel, Loads

KERNELS: tuple[Kernel, ...] = get_args(Kernel)
MASKS: tuple[Literal["full", "causal"], ...] = ("full", "causal")
# bytes a block may ask for; sm_86, sm_89 and sm_120 use the rows of sm_80, so those must fit the smallest
SHARED = {80: 101376, 90: 232448, 100: 232448}
INSTRUCTIONS = r"\b(HGMMA|QGMMA|IGMMA|HMMA|IMMA|UTCHMMA|UTCQMMA|UTMALDG|LDGSTS|MUFU\.EX2|WARPGROUP\.DEPBAR)\b"


@dataclass(frozen=True, slots=True)
class Form:
    """One kernel as one architecture gets it."""

    arch: int
    kernel: Kernel
    dtype: str
    d: int
    mask: Literal["full", "causal"]
    config: Config
    want: Want = ""


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the compiler says of a form.

    Attributes:
        registers: Of a thread.
        stack: Bytes of a thread in local memory; more than none is spilling.
        shared: Bytes of a block.
        warps: Of a block.
        instructions: How often each instruction of interest occurs.
    """

    registers: int
    stack: int
    shared: int
    warps: int
    instructions: dict[str, int]


def forms(archs: list[int], dtypes: list[str], ds: list[int]) -> Iterator[Form]:
    """Every configuration the table can give to a call."""
    for arch, kernel, dtype, d, mask, loads in itertools.product(archs, KERNELS, dtypes, ds, MASKS, get_args(Loads)):
        if not triton_flash.has(arch, kernel, dtype):
            continue
        for config in triton_flash.configs(arch, kernel, dtype, d, mask, loads).values():
            for want in triton_flash.wants(config):
                yield Form(arch, kernel, dtype, d, mask, config, want)


def compile_form(form: Form) -> Compiled:
    """Compile for sizes that no tile divides; strides are multiples of 16, as they are for almost every tensor."""
    return read(
        triton_flash.binary(
            form.arch, form.kernel, form.dtype, form.d, form.mask, even=False, config=form.config, want=form.want
        )
    )


def read(binary: Binary) -> Compiled:
    """Disassemble."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(binary.cubin)
        cubin.flush()
        tool = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
        text = subprocess.run(
            [tool, "-sass", "-res-usage", cubin.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = (int(number) for number in re.search(r"REG:(\d+) STACK:(\d+)", text).groups())
    counts = Counter(re.findall(INSTRUCTIONS, text))
    return Compiled(registers, stack, binary.shared, binary.warps, dict(counts))


def faults(form: Form, compiled: Compiled) -> list[str]:
    """What is wrong with a compiled form."""
    found = []
    if compiled.shared > SHARED[form.arch]:
        found.append(f"asks for {compiled.shared} bytes of shared memory, a block has {SHARED[form.arch]}")
    # float32 spills from d = 128 on; half precision must not before 256, but for a few words: on an H200 the pointer
    # form of dkdv at d = 128 spills 48 bytes and is a third faster than the widest tile that spills nothing
    if form.dtype != "fp32" and form.d <= 128 and compiled.stack > 48:
        found.append(f"spills {compiled.stack} bytes")
    wanted = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}[form.arch]
    wanted = {"HGMMA": "QGMMA", "UTCHMMA": "UTCQMMA"}[wanted] if form.dtype == "fp8" else wanted
    if form.dtype != "fp32" and not compiled.instructions.get(wanted):
        found.append(f"has no {wanted}")
    # a product of two tiles is several HGMMA, or half as many QGMMA, and one wait; ptxas serialises them where it
    # cannot prove them independent
    products = compiled.instructions.get("HGMMA", 0) + 2 * compiled.instructions.get("QGMMA", 0)
    if products < 3 * compiled.instructions.get("WARPGROUP.DEPBAR", 0):
        found.append("waits between the instructions of one product")
    if form.config.loads != "pointer" and not compiled.instructions.get("UTMALDG"):
        found.append("has no UTMALDG: the copy engine is not used")
    return found


def main(words: list[str] | None = None) -> int:
    """Compile what was asked for, by these words or the command line's; a line of JSON each, or a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", default=",".join(map(str, TABLE)))
    parser.add_argument("--dtype", default="bf16,fp32")
    parser.add_argument("--d", default="16,32,64,128,256")
    parser.add_argument(
        "--causal-only", action="store_true", help="leave out the full mask, which needs less of everything"
    )
    parser.add_argument("--out", help="write everything there, as JSON")
    arguments = parser.parse_args(words)
    record, failed = [], False
    wanted = forms([int(a) for a in arguments.arch.split(",")], arguments.dtype.split(","),
                   [int(d) for d in arguments.d.split(",")])  # fmt: skip
    for form in wanted:
        if arguments.causal_only and form.mask != "causal":
            continue
        c = form.config
        tile = f"{c.loads} {c.block_m}x{c.block_n} {c.warps} warps {c.stages} stages"
        sizes = (f"sm_{form.arch}", form.kernel, form.want, form.dtype, f"d{form.d}", form.mask, tile)
        name = " ".join(filter(None, sizes))
        print(f"{name:80}", end="", flush=True)
        compiled = compile_form(form)
        wrong = faults(form, compiled)
        counts = " ".join(f"{key} {value}" for key, value in sorted(compiled.instructions.items()))
        print(f"{compiled.registers:4} registers {compiled.stack:5} stack {compiled.shared:7} shared "
              f"{compiled.warps:3} warps  {counts}  {'; '.join(wrong)}", flush=True)  # fmt: skip
        failed |= bool(wrong)
        record.append({**dataclasses.asdict(form), **dataclasses.asdict(compiled), "faults": wrong})
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump({"triton": triton.__version__, "kernels": record}, file, indent=1)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
