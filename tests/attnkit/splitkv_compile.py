"""Compile triton_splitkv's kernel for a GPU that is not there: a line for each form, exit code 1 if one spills.

Needs a process in which TRITON_INTERPRET is not set: the interpreter and the compiler cannot share one.
"""

from __future__ import annotations

import itertools
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from attnkit.variants.triton_splitkv_kernel import BLOCK_N, padded, splitkv_kernel
from tests.attnkit.triton_compile import SHARED, Compiled, read


def compile_form(arch: int, dtype: str, d: int, rows: int, page: int) -> Compiled:
    """As a decoder calls it: one query, lengths on the device, strides that are multiples of 16."""
    constants = {
        "SQ": 1, "GROUP": rows, "D": d, "DP": padded(d), "DV": d, "DVP": padded(d), "BM": padded(rows), "BN": BLOCK_N,
        "PAGE": page, "MASK": "causal", "HAS_LENGTHS": True, "PRECISION": "ieee",
        **dict.fromkeys(("left", "upper", "scale_cap", "cap_log2", "p_slope", "p_sink")),
    }  # fmt: skip
    names = splitkv_kernel.arg_names
    special = {"scale_log2": "fp32", "p_partial": "*fp32"} | dict.fromkeys(
        ("p_lengths", "p_table", "p_arrived"), "*i32"
    )

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        return special.get(name, f"*{dtype}" if name.startswith("p_") else "i32")

    signature = {name: kind(name) for name in names}
    aligned = [n for n in names if n.startswith("p_") or (n.startswith("s_") and n != "s_tb")]
    source = ASTSource(
        splitkv_kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": 4, "num_stages": 3 if d <= 128 else 2}
    return read(triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options))


def main() -> int:
    """Compile every form."""
    failed = False
    for arch, d, rows, page in itertools.product((80, 90), (64, 128), (1, 8, 32), (0, 16)):
        compiled = compile_form(arch, "bf16", d, rows, page)
        loads = compiled.instructions.get("LDGSTS", 0)
        wrong = compiled.stack > 0 or compiled.shared > SHARED[arch] or loads == 0
        failed |= wrong
        print(
            f"sm_{arch} d{d} rows {rows} page {page}: {compiled.registers} registers, {compiled.stack} stack, "
            f"{compiled.shared} shared, {loads} LDGSTS {'WRONG' if wrong else ''}"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
