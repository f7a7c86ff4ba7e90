"""Compile triton_splitkv's kernel for a GPU that is not there: a line a form; exit code 1 if one spills much.

Needs a process in which TRITON_INTERPRET is not set: the interpreter and the compiler cannot share one.
"""

from __future__ import annotations

import itertools
import sys

from attnkit.ahead import triton_splitkv
from tests.attnkit.triton_compile import SHARED, read


def main() -> int:
    """Compile every form."""
    failed = False
    for build in itertools.chain.from_iterable(map(triton_splitkv.builds, (80, 90))):
        compiled = read(build.compile())
        loads = compiled.instructions.get("LDGSTS", 0)
        wrong = compiled.stack > 8 or compiled.shared > SHARED[build.arch] or loads == 0
        failed |= wrong
        print(
            f"sm_{build.arch} {build.name}: {compiled.registers} registers, {compiled.stack} stack, "
            f"{compiled.shared} shared, {loads} LDGSTS {'WRONG' if wrong else ''}"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
