"""Compile triton_product's kernel for GPUs that are not there: ``-m tests.attnkit.triton_product_compile 90 80``.

Every form that `tiles` gives, for sizes that tiles do not divide. The exit code is 1 where one spills, asks for more
shared memory than a block can have, does not use the tensor cores, or has no loads in flight. TRITON_INTERPRET must not
be set.
"""

from __future__ import annotations

import itertools
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from attnkit.products.triton_product import tiles
from attnkit.products.triton_product_kernel import product_kernel
from tests.attnkit.triton_compile import SHARED, read

TENSOR_CORES = {80: "HMMA", 90: "HGMMA"}


def main(archs: list[int]) -> int:
    """Compile; a line each."""
    failed = False
    for arch, rows, weight in itertools.product(archs, (1, 64, 2048), (torch.int8, torch.bfloat16)):
        form = tiles(rows, weight)
        constants = {"BM": form.block_m, "BN": form.block_n, "BK": form.block_k, "EVEN": False}
        types = {"p_weight": "*i8" if weight == torch.int8 else "*bf16", "p_scale": "*fp32"}
        signature = {
            name: "constexpr" if name in constants else types.get(name, "*bf16" if name.startswith("p_") else "i32")
            for name in product_kernel.arg_names
        }
        aligned = [name for name in signature if signature[name].startswith("*") or name in ("k", "s_x", "s_weight")]
        names = product_kernel.arg_names
        source = ASTSource(
            product_kernel,
            signature,
            {(names.index(name),): value for name, value in constants.items()},
            {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
        )
        options = {"num_warps": form.warps, "num_stages": form.stages}
        found = read(triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options))
        wrong = []
        if found.stack:
            wrong.append(f"spills {found.stack} bytes")
        if found.shared > SHARED[arch]:
            wrong.append(f"asks for {found.shared} bytes of shared memory, a block has {SHARED[arch]}")
        # a tile of 16 rows is too small for the instructions of a Hopper, which have 64
        wanted = TENSOR_CORES[arch] if form.block_m >= 64 else "HMMA"
        if not found.instructions.get(wanted):
            wrong.append(f"has no {wanted}")
        if not found.instructions.get("LDGSTS"):
            wrong.append("has no LDGSTS: a tile is loaded only when it is wanted")
        failed |= bool(wrong)
        print(f"sm_{arch} {rows} rows {weight}: {found} {'; '.join(wrong)}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main([int(arch) for arch in sys.argv[1:]]))
