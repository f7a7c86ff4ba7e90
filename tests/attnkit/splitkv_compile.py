"""Compile triton_splitkv's kernels for GPUs that are not there: ``-m tests.attnkit.splitkv_compile 80 90``.

Every form, a line each; the exit code is 1 if one spills, does not fit, or copies nothing ahead.
Needs a process in which TRITON_INTERPRET is not set: the interpreter and the compiler cannot share one.
"""

from __future__ import annotations

import itertools
import sys

from attnkit.ahead import triton_splitkv
from tests.attnkit.triton_compile import SHARED, read


def main(words: list[str]) -> int:
    """Compile for the architectures that the words are."""
    failed = False
    for build in itertools.chain.from_iterable(map(triton_splitkv.builds, map(int, words))):
        compiled = read(build.compile())
        loads = compiled.instructions.get("LDGSTS", 0)
        wrong = compiled.stack > 0 or compiled.shared > SHARED[build.arch]
        # what combines has nothing to copy ahead
        wrong |= loads == 0 and "/combine/" not in build.name
        failed |= wrong
        print(
            f"sm_{build.arch} {build.name}: {compiled.registers} registers, {compiled.stack} stack, "
            f"{compiled.shared} shared, {loads} LDGSTS {'WRONG' if wrong else ''}"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
