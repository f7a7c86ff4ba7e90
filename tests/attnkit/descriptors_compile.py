r"""Compile kernels by pointer for Hopper whose tiles share a place, for two head dims, and read their descriptors.

    or.b64   %rd136, %rd68, -4611685949707911168      where a tile begins, and above it how its rows are swizzled
    add.s64  %rd104, %rd68, 4611686293305294850       the same place, and another way

ptxas 12.8 makes one register of such a place and loses it: what it computes for one of the ways is anything. So each
place must be read in one way. Prints for each form its sizes, and the ways of the place that is read in the most. Takes
the least width of a block of head dim, if it is not to be the table's.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from attnkit.ahead import triton_flash
from attnkit.ahead.triton_flash import Modifier
from attnkit.variants.triton_flash_tiles import Kernel

DESCRIPTOR = re.compile(r"(?:or\.b64|add\.s64)\s+(%rd\d+), (%rd\d+), (-?\d+);")
FORMS: tuple[tuple[Kernel, int, int, str, tuple[Modifier, ...]], ...] = (
    ("dkdv", 256, 16, "full", ("varlen",)),
    ("dkdv", 256, 32, "causal", ()),
    ("dkdv", 16, 256, "full", ("varlen",)),
    ("forward", 128, 16, "full", ("varlen",)),
    ("forward", 64, 32, "causal", ("softcap", "varlen")),
    ("dkdv", 128, 16, "full", ("varlen",)),
    ("dq", 64, 32, "full", ("varlen",)),
)
"""Those with head dims up to 128 have strides that asynchronous loads do not take."""


def ways(ptx: str) -> dict[str, set[int]]:
    """The upper halves of descriptors by the register that holds their lower one."""
    products = [line.rpartition("}")[2] for line in ptx.splitlines() if "wgmma.mma_async" in line]
    read = {name for line in products for name in re.findall(r"%rd\d+", line)}
    found: dict[str, set[int]] = defaultdict(set)
    for name, place, number in DESCRIPTOR.findall(ptx):
        if name in read:
            found[place].add(int(number) % 2**64 >> 32)
    return found


def main(words: Sequence[str]) -> int:
    """Compile and print. None is a fault here: it is for the test to say which widths are wanted."""
    for kernel, d, dv, mask, modifiers in FORMS:
        config = triton_flash.tiles(90, kernel, "bf16", max(d, dv), "other", "pointer")
        if config is None:
            raise LookupError(f"no tiles for {d} and {dv}")
        if words:
            config = dataclasses.replace(config, least=int(words[0]))
        options: dict[str, Any] = {"dv": dv, "modifiers": modifiers, "aligned": max(d, dv) > 128}
        binary = triton_flash.binary(90, kernel, "bf16", d, mask, False, config, "dv", **options)
        print(d, dv, max(map(len, ways(binary.ptx).values()), default=0))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
