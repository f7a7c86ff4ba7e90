"""Compile the kernels of triton_product and triton_dynamic for GPUs that are not there.

    python -m tests.attnkit.triton_product_compile 90 80

Every form that their table gives, for sizes that tiles do not divide. The exit code is 1 where one spills, asks for
more shared memory than a block can have, does not use the tensor cores it should, has no loads in flight, or where what
is int8 goes to shared memory again once it has 16 bits; or where one that may begin before the one ahead of it has
ended reads before it has waited for that, or the one ahead, which rounds rows, does not let it begin at once. Hopper's
own products of integers, which are those that perf.tune_product times, must leave one under way when they wait, and as
many must fit a processor as are meant to. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import groupby

from attnkit.ahead import Binary, triton_dynamic, triton_product
from attnkit.products.product_tiles import FEW, Tiles
from perf.tune_product import CANDIDATES
from tests.attnkit.triton_compile import SHARED, Compiled, read

PROCESSOR = 228 * 1024
"""Bytes of shared memory of a Hopper's processor, of which it keeps RESERVED for itself for each program."""
RESERVED = 1024
TENSOR_CORES = {80: ("HMMA", "IMMA"), 90: ("HGMMA", "IGMMA")}


def compiled(arch: int) -> Iterator[tuple[str, Tiles, bool, Binary]]:
    """Name, form, whether integers are multiplied, and what came out."""
    for weight, kind in triton_product.WEIGHTS.items():
        for name, form in triton_product.forms(arch, kind).items():
            yield f"{weight} {name}", form, False, triton_product.binary(arch, form, weight)
    dynamic = triton_product.forms(arch, "dynamic")
    for name, form in dynamic.items():
        yield f"dynamic {name}", form, True, triton_dynamic.binary(arch, form)
        yield f"dynamic {name} residual", form, True, triton_dynamic.binary(arch, form, residual=True)
    asynchronous = [form for form in CANDIDATES["dynamic"] if form.loads == "async" and arch == 90]
    for form in (form for form in asynchronous if form not in dynamic.values()):
        name = f"dynamic async {form.block_m}x{form.block_n} {form.warps} warps {form.stages} stages"
        yield name, form, True, triton_dynamic.binary(arch, form)
        yield f"{name} residual", form, True, triton_dynamic.binary(arch, form, residual=True)


def unlike_hopper(form: Tiles, found: Compiled, binary: Binary) -> Iterator[str]:
    """What is wrong with a product that should always have one more under way than it waits for."""
    from attnkit.products.triton_dynamic_hopper import registers, together

    ptx = re.sub(r"^\s*(//.*|\.loc .*)?\n", "", binary.ptx, flags=re.MULTILINE)
    wide = min(form.block_n, 128)
    # a tile of k once before the loop and once in it
    of_k = form.block_m // (16 * form.warps) * (form.block_n // wide) * (form.block_k // 32)
    if ptx.count(f"wgmma.mma_async.sync.aligned.m64n{wide}k32.s32.s8.s8") != 2 * of_k:
        yield "is not made of the largest instructions"
    if re.findall(r"wgmma\.wait_group\.sync\.aligned (\d)", ptx) != ["0", "1", "1"]:
        yield "does not leave a product under way"
    if found.instructions["WARPGROUP.DEPBAR"] != 3 or found.instructions["IGMMA"] != 2 * of_k:
        yield "waits more often than it was written: ptxas serialises it"
    # a stage is free when all warps have read it: one arrives for them
    arrivals = re.findall(r"(.*)\n.*mbarrier\.arrive\.shared::cta", ptx)
    if len(arrivals) != 2 or not all(f"bar.sync \t0, {32 * form.warps};" in line for line in arrivals):
        yield "frees a stage that others may still read"
    # of the part that multiplies, and of the one that loads
    reads = re.findall(r"griddepcontrol\.wait|\bld\.global|\bcp\.async", ptx.partition(".entry")[2])
    if [word for word, _ in groupby(reads)] != ["griddepcontrol.wait", "ld.global", "griddepcontrol.wait", "cp.async"]:
        yield "loads or adds before it has waited for the kernel that writes what it reads"
    if (found.shared + RESERVED) * together(form) > PROCESSOR:
        yield f"asks for {found.shared} bytes of shared memory: fewer than {together(form)} fit a processor"
    if found.registers != registers(form) or found.registers * 32 * found.warps * together(form) > 65536:
        yield f"has {found.registers} registers: fewer than {together(form)} fit a processor"


def reads_early(ptx: str) -> bool:
    """Whether a kernel that is launched before the one ahead of it has ended reads before it has waited for that."""
    _, entry, body = ptx.partition(".entry")
    first = re.search(r"griddepcontrol\.wait|\bld\.global|cp\.async", body)
    return not entry or first is None or first[0] != "griddepcontrol.wait"


def lets_begin_late(ptx: str) -> bool:
    """Whether a kernel reads before it lets the one behind it be launched, or never lets it."""
    first = re.search(r"griddepcontrol\.launch_dependents|\bld\.global", ptx.partition(".entry")[2])
    return first is None or not first[0].startswith("griddepcontrol")


def main(words: list[str]) -> int:
    """Compile for the architectures that the words are; a line each."""
    failed = False
    for arch in map(int, words):
        for name, form, integers, binary in compiled(arch):
            found = read(binary)
            wrong = []
            if found.stack:
                wrong.append(f"spills {found.stack} bytes")
            if found.shared > SHARED[arch]:
                wrong.append(f"asks for {found.shared} bytes of shared memory, a block has {SHARED[arch]}")
            # a tile of 16 rows is too small for the instructions of a Hopper, which have 64
            wanted = TENSOR_CORES[arch][integers] if form.block_m > FEW else "HMMA"
            if not found.instructions.get(wanted):
                wrong.append(f"has no {wanted}")
            loads = "LDGSTS" if form.loads == "pointer" else "UTMALDG"
            if not found.instructions.get(loads):
                wrong.append(f"has no {loads}: a tile is loaded only when it is wanted")
            # what goes through shared memory has one wait, for all of a tile: none may be in flight when it is written
            if form.left and found.instructions.get("WARPGROUP.DEPBAR", 0) < 2:
                wrong.append("waits for the whole product: its weights do not come from registers")
            if integers and arch >= 90 and reads_early(binary.ptx):
                wrong.append("reads before it has waited for the kernel that writes what it reads")
            if form.loads == "async":
                wrong += unlike_hopper(form, found, binary)
            failed |= bool(wrong)
            print(f"sm_{arch} {name}: {found} {'; '.join(wrong)}")
        for norm in (False, True) if arch >= 90 else ():
            late = lets_begin_late(triton_dynamic.rounding(arch, 4096, norm=norm).ptx)
            failed |= late
            print(f"sm_{arch} rows{' norm' * norm}: {'lets the product begin only when it has read' if late else ''}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
