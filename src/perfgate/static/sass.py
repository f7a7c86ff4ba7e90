r"""Reading a listing of SASS, as ``cuobjdump -sass -res-usage`` prints it. Knows text and nothing else.

    Function forward_kernel:
     REG:255 STACK:0 SHARED:1024 LOCAL:0 ...
            Function : forward_kernel
       /*1960*/   @!P0 HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;

Of a kernel's instructions those of `KINDS` are looked at; the rest is arithmetic that a new version of a compiler
shuffles. What an instruction waits for is not in its name, so asynchronous products are followed through the loop:

    Hopper       HGMMA ... gsb0 closes a group of products    WARPGROUP.DEPBAR gsb0, n   waits for all but n groups
    Blackwell    UTC*MMA ... UTCBAR closes a group            SYNCS.PHASECHK             waits for one, the oldest

SYNCS.PHASECHK waits for copies too. A Blackwell kernel that also has those seems to wait for products more often than
it does, in baseline and run alike.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

__all__ = [
    "COPIES",
    "EXPONENTIAL",
    "KINDS",
    "LOCAL",
    "WAIT",
    "Function",
    "Instruction",
    "count",
    "covered",
    "matrix",
    "order",
    "parse",
]

EXPONENTIAL = "MUFU.EX2"
WAIT = "WARPGROUP.DEPBAR"
PHASE = "SYNCS.PHASECHK"
LOCAL = ("LDL", "STL")
COPIES = ("LDGSTS", "UTMALDG", "UTMASTG", "UBLKCP")
ASYNCHRONOUS = re.compile(r"(?:[HQIB]GMMA|UTC[A-Z]MMA)$")
MATRIX = re.compile(r"(?:[HQIBDO]?G?MMA|UTC[A-Z]MMA)$")
"""Kinds of matrix instruction: HMMA and its like for a warp, HGMMA for a warpgroup, UTCHMMA for the tensor memory."""

KINDS = (EXPONENTIAL, WAIT, PHASE, *LOCAL, *COPIES, "BAR", "USETMAXREG")
"""Kinds that are counted besides matrix instructions; an opcode is of a kind that it begins with."""
ORDERED = (EXPONENTIAL, WAIT, PHASE, *LOCAL, *COPIES, "BAR")

HEADING = re.compile(r"^\s*Function : (\S+)$")
RESOURCES = re.compile(r"^ *Function ([^\s:]+):\n +REG:(\d+) STACK:(\d+) SHARED:(\d+)", re.MULTILINE)
LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*;")
TARGET = re.compile(r"0x([0-9a-f]+)\s*$")
PREDICATE = re.compile(r"!?U?P[\dT]")
UNIFORM = re.compile(r"\bUR(\d+)\b")
"""A register of a warp; URZ is no register."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction.

    Attributes:
        address: In bytes from the function's beginning.
        guard: Its predicate, such as ``@!P0``; empty where it always runs.
        opcode: With its modifiers.
        operands: As printed.
    """

    address: int
    guard: str
    opcode: str
    operands: str

    @property
    def kind(self) -> str | None:
        """Its entry in `KINDS`, or its name where that is `MATRIX`'s; None for all others."""
        name = self.opcode.partition(".")[0]
        if MATRIX.match(name):
            return name
        for kind in KINDS:
            if self.opcode == kind or self.opcode.startswith(kind + "."):
                return kind
        return None

    def uniform_reads(self) -> set[int]:
        """The uniform registers among its sources, but for a product's descriptors.

        The second halves of wide sources are known of addresses and of operations on 64 bits alone.
        """
        pairs = self.opcode.startswith("U") and ".64" in self.opcode
        found: set[int] = set()
        result = self._result()
        for n, part in enumerate(self._parts()):
            if n != result and "gdesc[" not in part:
                wide = 2 if part.startswith("desc[") or (pairs and UNIFORM.fullmatch(part)) else 1
                found |= {int(number) + half for number in UNIFORM.findall(part) for half in range(wide)}
        return found

    def uniform_writes(self) -> set[int]:
        """The uniform registers that it writes."""
        n = self._result()
        if n is None:
            return set()
        wide = 4 if ".128" in self.opcode else 2 if ".64" in self.opcode or ".WIDE" in self.opcode else 1
        return {int(number) + half for number in UNIFORM.findall(self._parts()[n]) for half in range(wide)}

    def _parts(self) -> list[str]:
        return [part.strip() for part in self.operands.split(",")]

    def _result(self) -> int | None:
        """Which operand it writes, if that is a uniform register: the first, or behind a predicate the second.

        What sets predicates has two of those in front of its sources.
        """
        parts = self._parts()
        first = int(bool(PREDICATE.fullmatch(parts[0])) and "SETP" not in self.opcode)
        return first if first < len(parts) and UNIFORM.fullmatch(parts[first]) else None


@dataclass(frozen=True, slots=True)
class Function:
    """A kernel's listing.

    Attributes:
        registers: Of a thread.
        stack: Bytes of a thread in local memory: spilled registers, and arrays that are indexed.
        shared: Bytes of a block that are known when it is compiled, with what the system keeps for itself.
        instructions: In the order of their addresses.
    """

    registers: int
    stack: int
    shared: int
    instructions: tuple[Instruction, ...]

    def counts(self) -> dict[str, int]:
        """How many instructions there are of each kind that occurs."""
        return count(self.instructions)

    def main_loop(self) -> tuple[Instruction, ...]:
        """The innermost loop with the most matrix instructions (exponentials, if there are none of those).

        Empty for a kernel in which no loop has either. Among equals it is the first.
        """
        loops = set(self._loops())
        for wanted in (MATRIX.match, EXPONENTIAL.__eq__):
            weights = {loop: sum(bool(i.kind and wanted(i.kind)) for i in self._body(loop)) for loop in loops}
            heavy = sorted(loop for loop in loops if weights[loop])
            inner = [a for a in heavy if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in heavy)]
            if inner:
                return self._body(max(inner, key=weights.__getitem__))
        return ()

    def unset(self) -> tuple[str, ...]:
        """The uniform registers that are read where none of the lines above has written them, in order.

        None are where the compiler is right: what such a register holds is chance, and so is what is computed from it.
        Lines are those of the listing, whatever branches there are: a write on another path hides a fault. Which half
        of its descriptors a product reads depends on where its first factor is, so these do not count.
        """
        written: set[int] = set()
        found: set[int] = set()
        for i in self.instructions:
            found |= i.uniform_reads() - written
            written |= i.uniform_writes()
        return tuple(f"UR{number}" for number in sorted(found))

    def _body(self, loop: tuple[int, int]) -> tuple[Instruction, ...]:
        return tuple(i for i in self.instructions if loop[0] <= i.address <= loop[1])

    def _loops(self) -> Iterator[tuple[int, int]]:
        """Where loops begin and end: at the target of a branch backwards, and at the branch.

        Where a wait mostly succeeds at once, its slow path lies behind the function's last EXIT and branches back from
        there without a condition: that is no loop.
        """
        end = max((i.address for i in self.instructions if i.opcode == "EXIT"), default=0)
        for i in self.instructions:
            target = TARGET.search(i.operands) if i.opcode.startswith("BRA") else None
            if target and int(target[1], 16) <= i.address and (i.guard or i.address < end):
                yield int(target[1], 16), i.address


def parse(listing: str) -> dict[str, Function]:
    """The functions of a listing by name.

    Raises:
        ValueError: If a function has no resource usage, or none is there at all.
    """
    usage = {name: (int(reg), int(stack), int(shared)) for name, reg, stack, shared in RESOURCES.findall(listing)}
    bodies: dict[str, list[Instruction]] = {}
    body: list[Instruction] = []
    for line in listing.splitlines():
        if heading := HEADING.match(line):
            body = bodies.setdefault(heading[1], [])
        elif found := LINE.match(line):
            address, guard, opcode, operands = found.groups()
            body.append(Instruction(int(address, 16), guard or "", opcode, operands))
    if not bodies or bodies.keys() - usage.keys():
        got = f"functions {sorted(bodies)} and resources of {sorted(usage)}"
        raise ValueError(f"expected what `cuobjdump -sass -res-usage` prints, got {got}")
    return {name: Function(*usage[name], tuple(body)) for name, body in bodies.items()}


def count(instructions: Sequence[Instruction]) -> dict[str, int]:
    """How many instructions there are of each kind that occurs, by kind."""
    return dict(sorted(Counter(i.kind for i in instructions if i.kind).items()))


def order(loop: Sequence[Instruction]) -> str:
    """What follows what in a loop, e.g. ``HGMMA*16 WARPGROUP.DEPBAR*1 MUFU.EX2*68 HGMMA*8``."""
    kinds = (i.kind for i in loop if i.kind and (i.kind in ORDERED or MATRIX.match(i.kind)))
    return " ".join(f"{kind}*{sum(1 for _ in run)}" for kind, run in groupby(kinds))


def covered(loop: Sequence[Instruction]) -> int:
    """How many exponentials of a loop are issued while an asynchronous product is in flight.

    A wait in front of them turns that to 0: the tensor cores then stand still while the exponentials are computed.
    """
    tensor_memory = any(i.opcode.startswith("UTC") for i in loop)
    found, groups, open_ = 0, 0, False
    for turn in (1, 2):  # what is in flight at the loop's end is so at its beginning
        for i in loop:
            kind = i.kind
            if kind and ASYNCHRONOUS.match(kind):
                open_ = True
            if (kind and kind.endswith("GMMA") and "gsb0" in i.operands) or i.opcode.startswith("UTCBAR"):
                groups, open_ = groups + 1, False
            elif kind == WAIT:
                groups = min(groups, _left(i))
            elif kind == PHASE and tensor_memory:
                groups = max(0, groups - 1)
            elif kind == EXPONENTIAL and turn == 2 and (open_ or groups):
                found += 1
    return found


def _left(wait: Instruction) -> int:
    """How many groups may still be in flight behind a wait."""
    number = TARGET.search(wait.operands)
    return int(number[1], 16) if number else 0


def matrix(counts: Mapping[str, int]) -> dict[str, int]:
    """The matrix instructions among counts."""
    return {kind: number for kind, number in counts.items() if number and MATRIX.match(kind)}
