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

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from attnkit.ahead.triton_flash import ABSENT
from attnkit.variants.triton_flash_backward import dkdv_kernel, dq_kernel
from attnkit.variants.triton_flash_forward import forward_kernel
from attnkit.variants.triton_flash_tiles import TABLE, Config, precision, row

KERNELS = {"forward": forward_kernel, "dkdv": dkdv_kernel, "dq": dq_kernel}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# bytes a block may ask for; sm_86, sm_89 and sm_120 use the rows of sm_80, so those must fit the smallest
SHARED = {80: 101376, 90: 232448, 100: 232448}
INSTRUCTIONS = r"\b(HGMMA|HMMA|UTCHMMA|UTMALDG|LDGSTS|MUFU\.EX2|WARPGROUP\.DEPBAR)\b"


@dataclass(frozen=True, slots=True)
class Form:
    """One kernel as one architecture gets it."""

    arch: int
    kernel: str
    dtype: str
    d: int
    mask: str
    config: Config
    want: str = ""  # of a split dkdv: dk or dv


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
    for arch, kernel, dtype, d, mask, loads in itertools.product(
        archs, KERNELS, dtypes, ds, ("full", "causal"), ("pointer", "tma")
    ):
        width = DTYPES[dtype]
        config = row(arch, kernel, width, d, mask, loads)
        if config is None and loads == "pointer":
            config = row(80, kernel, width, d, mask, loads)
        if config is not None:
            for want in ("dk", "dv") if config.split else ("",):
                yield Form(arch, kernel, dtype, d, mask, config, want)


def compile_form(form: Form) -> Compiled:
    """Compile for sizes that no tile divides; strides are multiples of 16, as they are for almost every tensor."""
    kernel, config = KERNELS[form.kernel], form.config
    constants = {
        "D": form.d, "DP": form.d, "DV": form.d, "DVP": form.d, "BM": config.block_m, "BN": config.block_n,
        "MASK": form.mask, "SCALED": False, **dict.fromkeys(ABSENT),
        "EVEN_Q": False, "EVEN_KV": False, "LOADS": config.loads, "PRECISION": precision(DTYPES[form.dtype]),
        "WANT_DK": form.want != "dv", "WANT_DV": form.want != "dk",
    }  # fmt: skip
    tiles = {"q": config.block_m, "dout": config.block_m, "k": config.block_n, "v": config.block_n}
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in tiles and config.loads == "tma":
            signature[name] = f"tensordesc<{form.dtype}[1,1,{tiles[name]},{form.d}]>"
        elif name in tiles or name.startswith("p_"):
            signature[name] = "*fp32" if name in ("p_lse", "p_lse2", "p_delta") else f"*{form.dtype}"
        else:
            signature[name] = "fp32" if name.startswith("scale") else "i32"
    names = kernel.arg_names
    aligned = [n for n in names if signature[n].startswith("*") or n.startswith("s_") or n == "rows"]
    source = ASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items() if name in names},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": config.warps, "num_stages": config.stages}
    return read(triton.compile(source, target=GPUTarget("cuda", form.arch, 32), options=options))


def read(compiled: triton.compiler.CompiledKernel) -> Compiled:
    """Disassemble."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        tool = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
        text = subprocess.run(
            [tool, "-sass", "-res-usage", cubin.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = (int(number) for number in re.search(r"REG:(\d+) STACK:(\d+)", text).groups())
    counts = Counter(re.findall(INSTRUCTIONS, text))
    return Compiled(registers, stack, compiled.metadata.shared, compiled.metadata.num_warps, dict(counts))


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
    if form.dtype != "fp32" and not compiled.instructions.get(wanted):
        found.append(f"has no {wanted}")
    # a product of two tiles is several HGMMA and one wait; ptxas serialises them where it cannot prove them independent
    if compiled.instructions.get("HGMMA", 0) < 3 * compiled.instructions.get("WARPGROUP.DEPBAR", 0):
        found.append("waits between the instructions of one product")
    if form.config.loads != "pointer" and not compiled.instructions.get("UTMALDG"):
        found.append("has no UTMALDG: the copy engine is not used")
    return found


def main() -> int:
    """Compile what was asked for; a line of JSON each, or a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", default=",".join(map(str, TABLE)))
    parser.add_argument("--dtype", default="bf16,fp32")
    parser.add_argument("--d", default="16,32,64,128,256")
    parser.add_argument(
        "--causal-only", action="store_true", help="leave out the full mask, which needs less of everything"
    )
    parser.add_argument("--out", help="write everything there, as JSON")
    arguments = parser.parse_args()
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
