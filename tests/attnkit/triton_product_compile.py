"""Compile triton_product's kernel for GPUs that are not there: ``-m tests.attnkit.triton_product_compile 90 80``.

Every form that `tiles` gives, for sizes that tiles do not divide. The exit code is 1 where one spills, asks for more
shared memory than a block can have, does not use the tensor cores, or has no loads in flight. TRITON_INTERPRET must not
be set.
"""

from __future__ import annotations

import itertools
import sys

from attnkit.ahead import triton_product
from attnkit.products.triton_product import tiles
from tests.attnkit.triton_compile import SHARED, read

TENSOR_CORES = {80: "HMMA", 90: "HGMMA"}


def main(words: list[str]) -> int:
    """Compile for the architectures that the words are; a line each."""
    failed = False
    for arch, rows, weight in itertools.product(map(int, words), triton_product.ROWS, triton_product.WEIGHTS):
        found = read(triton_product.binary(arch, rows, weight))
        wrong = []
        if found.stack:
            wrong.append(f"spills {found.stack} bytes")
        if found.shared > SHARED[arch]:
            wrong.append(f"asks for {found.shared} bytes of shared memory, a block has {SHARED[arch]}")
        # a tile of 16 rows is too small for the instructions of a Hopper, which have 64
        wanted = TENSOR_CORES[arch] if tiles(rows, triton_product.WEIGHTS[weight]).block_m >= 64 else "HMMA"
        if not found.instructions.get(wanted):
            wrong.append(f"has no {wanted}")
        if not found.instructions.get("LDGSTS"):
            wrong.append("has no LDGSTS: a tile is loaded only when it is wanted")
        failed |= bool(wrong)
        print(f"sm_{arch} {rows} rows {weight}: {found} {'; '.join(wrong)}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
