"""Compile the kernels of triton_product and triton_dynamic for GPUs that are not there.

    python -m tests.attnkit.triton_product_compile 90 80

Every form that their table gives, for sizes that tiles do not divide. The exit code is 1 where one spills, asks for
more shared memory than a block can have, does not use the tensor cores it should, has no loads in flight, or where what
is int8 goes to shared memory again once it has 16 bits; or where one that may begin before the one ahead of it has
ended reads before it has waited for that. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

from attnkit.ahead import Binary, triton_dynamic, triton_product
from attnkit.products.product_tiles import FEW, Tiles
from tests.attnkit.triton_compile import SHARED, read

TENSOR_CORES = {80: ("HMMA", "IMMA"), 90: ("HGMMA", "IGMMA")}


def compiled(arch: int) -> Iterator[tuple[str, Tiles, bool, Binary]]:
    """Name, form, whether integers are multiplied, and what came out."""
    for weight, kind in triton_product.WEIGHTS.items():
        for name, form in triton_product.forms(arch, kind).items():
            yield f"{weight} {name}", form, False, triton_product.binary(arch, form, weight)
    for name, form in triton_product.forms(arch, "dynamic").items():
        yield f"dynamic {name}", form, True, triton_dynamic.binary(arch, form)
        yield f"dynamic {name} residual", form, True, triton_dynamic.binary(arch, form, residual=True)


def reads_early(ptx: str) -> bool:
    """Whether a kernel that is launched before the one ahead of it has ended reads before it has waited for that."""
    _, entry, body = ptx.partition(".entry")
    first = re.search(r"griddepcontrol\.wait|\bld\.global|cp\.async", body)
    return not entry or first is None or first[0] != "griddepcontrol.wait"


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
            loads = "UTMALDG" if form.loads == "tma" else "LDGSTS"
            if not found.instructions.get(loads):
                wrong.append(f"has no {loads}: a tile is loaded only when it is wanted")
            # what goes through shared memory has one wait, for all of a tile: none may be in flight when it is written
            if form.left and found.instructions.get("WARPGROUP.DEPBAR", 0) < 2:
                wrong.append("waits for the whole product: its weights do not come from registers")
            if integers and arch >= 90 and reads_early(binary.ptx):
                wrong.append("reads before it has waited for the kernel that writes what it reads")
            failed |= bool(wrong)
            print(f"sm_{arch} {name}: {found} {'; '.join(wrong)}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
