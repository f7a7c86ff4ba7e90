"""The kernels of a case: what one call launches on the device, and what became of it from one revision to another.

    4 × [132, 1, 1] [128, 1, 1] shared=98304 registers=168 local=0 code=1f0c22aa09b1 triton_flash_forward

Names, shapes of launch and code are a kernel's identity; what it is given is not. A copy and a fill by the device are
kernels of their kind. Knows nothing of devices: `perfgate.launches` reads them off a CUDA graph.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from perfgate.binaries import DIGITS, LIBRARY, UNKNOWN, register

__all__ = ["Kernel", "Kernels", "register", "short", "varying", "why"]

Shape = tuple[int, ...]

KEPT = 24
"""Kernels of a case that are kept one by one, the first by name; all of them are in the digest."""
LONGEST = 80
"""Characters of a name that are kept."""
TOLD = 6
"""Kernels of a case of which it is said what changed."""
TEXT = re.compile(
    r"(?P<count>\d+) × \[(?P<grid>[\d, ]*)\] \[(?P<block>[\d, ]*)\](?: cluster=\[(?P<cluster>[\d, ]*)\])?"
    r" shared=(?P<shared>\d+) registers=(?P<registers>\d+) local=(?P<local>\d+)(?: bytes=(?P<bytes>\d+))?"
    r" code=(?P<code>[0-9a-f?]*) (?P<name>.*?)(?: #(?P<instance>[0-9a-f]+))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One kernel as a call launches it.

    Attributes:
        name: Short, for people (see `short`).
        instance: A digest of the full name where that says more; else empty.
        count: How many times a call launches it like this.
        grid: Blocks, in x, y and z; empty for a copy or a fill.
        block: Threads of a block, likewise.
        cluster: Blocks of a cluster, where the launch asks for one.
        shared: Bytes of shared memory of a block, static and dynamic.
        registers: Of a thread.
        local: Bytes of local memory of a thread: a stack, or what was spilled.
        bytes: What a copy or a fill writes.
        code: A digest of its binary, or of what it was compiled from; empty for a kernel of a library, ``"?"`` where
            it is not known.
    """

    name: str
    instance: str = ""
    count: int = 1
    grid: Shape = ()
    block: Shape = ()
    cluster: Shape = ()
    shared: int = 0
    registers: int = 0
    local: int = 0
    bytes: int = 0
    code: str = LIBRARY

    def __str__(self) -> str:
        cluster = f" cluster={list(self.cluster)}" if self.cluster else ""
        moved = f" bytes={self.bytes}" if self.bytes else ""
        instance = f" #{self.instance}" if self.instance else ""
        return (
            f"{self.count} × {list(self.grid)} {list(self.block)}{cluster} shared={self.shared} "
            f"registers={self.registers} local={self.local}{moved} code={self.code} {self.name}{instance}"
        )

    @classmethod
    def parse(cls, text: str) -> Kernel:
        """Read what `str` wrote.

        Raises:
            ValueError: If it is something else.
        """
        found = TEXT.fullmatch(text)
        if found is None:
            raise ValueError(f"expected a kernel such as '1 × [132, 1, 1] [128, 1, 1] shared=0 ...', got {text!r}")
        parts = found.groupdict()
        read: dict[str, Any] = {k: parts[k] or "" for k in ("name", "instance", "code")}
        read |= {k: tuple(map(int, re.findall(r"\d+", parts[k] or ""))) for k in ("grid", "block", "cluster")}
        read |= {k: int(parts[k] or 0) for k in ("count", "shared", "registers", "local", "bytes")}
        return cls(**read)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """All kernels of a call, in the order in which each is launched first.

    Attributes:
        launches: Those that are kept.
        more: How many others there are.
        digest: Of all of them; two calls with equal digests launch the same.
        libraries: Digest of the files that code can come from that no kernel has a digest of; empty if there is none.
        known: Whether the code of every kernel is known, by its own digest or by the libraries'.
    """

    launches: tuple[Kernel, ...]
    more: int = 0
    digest: str
    libraries: str = ""
    known: bool = True

    @classmethod
    def of(cls, launches: Sequence[Kernel], libraries: str = "") -> Kernels:
        """The kernels of one call: launches that are alike are counted, and names shortened.

        Args:
            launches: In order, with their full names.
            libraries: Digest of the libraries; empty if it is not known.
        """
        counts: Counter[Kernel] = Counter()
        for kernel in launches:
            counts[replace(kernel, count=1)] += kernel.count
        full = [replace(kernel, count=count) for kernel, count in counts.items()]
        # in no order: which one a graph's nodes have is not documented
        whole = hashlib.sha256("\n".join(sorted(map(str, full))).encode())
        kept = set(sorted(full, key=lambda kernel: (kernel.name, str(kernel)))[:KEPT])
        codes = {kernel.code for kernel in full if kernel.grid or kernel.code}
        return cls(
            launches=tuple(_shortened(kernel) for kernel in full if kernel in kept),
            more=len(full) - len(kept),
            digest=whole.hexdigest()[:DIGITS],
            libraries=libraries,
            known=UNKNOWN not in codes and (bool(libraries) or LIBRARY not in codes),
        )

    @property
    def fills(self) -> bool:
        """Whether a call copies or fills memory apart from its kernels, by what is kept of it."""
        return any(not kernel.grid and kernel.code != UNKNOWN for kernel in self.launches)

    def same(self, other: Kernels) -> bool:
        """Whether both surely are the same kernels with the same code."""
        alike = self.digest == other.digest and self.libraries == other.libraries
        return alike and self.known and other.known

    def to_json(self) -> dict[str, Any]:
        """A JSON object, `from_json`'s inverse."""
        return {**asdict(self), "launches": [str(kernel) for kernel in self.launches]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Kernels:
        """Read what `to_json` wrote.

        Raises:
            ValueError: If a kernel cannot be read.
            TypeError: If there is more or less than there should be.
        """
        return cls(**{**data, "launches": tuple(Kernel.parse(text) for text in data["launches"])})


def short(name: str) -> str:
    """A kernel's name without template arguments and parameters, qualified as in C++; no longer than `LONGEST`."""
    found = re.match(r"_ZN?K?(?=\d)", name)
    parts, at = [], found.end() if found else len(name)
    while found and (length := re.match(r"\d+", name[at:])):
        at += length.end() + int(length[0])
        parts.append(name[at - int(length[0]) : at])
        if name[at : at + 1] == "I":  # template arguments; what follows them belongs to an instance
            break
        if not name.startswith("_ZN"):
            break
    plain = "::".join(part for part in parts if not part.startswith("_GLOBAL__N_")) or name
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 1]}…"


def _shortened(kernel: Kernel) -> Kernel:
    plain = " ".join(short(kernel.name).split()) or "?"
    instance = "" if plain == kernel.name else hashlib.sha256(kernel.name.encode()).hexdigest()[:8]
    return replace(kernel, name=plain, instance=instance)


def why(then: Sequence[Kernels | None], now: Sequence[Kernels | None]) -> tuple[str, ...]:
    """What became of a case's kernels, a sentence each; nothing where they are not known.

    Args:
        then: Those of the base or the baseline, process by process.
        now: Those of the head or of this run, likewise.
    """
    old, new = ([k for k in side if k is not None] for side in (then, now))
    if not (old and new) or len(old) < len(then) or len(new) < len(now):
        return ()
    varied = varying(then, now)
    a, b = (Counter(side).most_common(1)[0][0] for side in (old, new))
    if a.same(b):
        return (*varied, "same kernels on both sides")
    said = _changes(a, b)
    if not said and a.libraries != b.libraries:
        said = ["same names and shapes of launch; the libraries that the kernels come from changed"]
    if not said and a.digest != b.digest:
        said = [f"of more than {KEPT} kernels some came, went or changed that are not kept"]
    if not said:
        unknown = next((k.name for k in (*a.launches, *b.launches) if k.code == UNKNOWN), "a kernel")
        said = [f"same names and shapes of launch; the code of {unknown} is not known (see perfgate.kernels.register)"]
    left_out = [f"and {len(said) - TOLD} more kernels changed"] if len(said) > TOLD else []
    return (*varied, *said[:TOLD], *left_out)


def varying(then: Sequence[Kernels | None], now: Sequence[Kernels | None]) -> tuple[str, ...]:
    """Whether a case's kernels differ from process to process, as where something tunes anew in each; in a sentence."""
    apart = any(len({kernels.digest for kernels in side if kernels is not None}) > 1 for side in (then, now))
    return ("the kernels differ between the processes of one side",) if apart else ()


def _changes(then: Kernels, now: Kernels) -> list[str]:
    """A sentence a kernel that changed, came or went; kernels of one name are paired in their order."""
    said = []
    for name in dict.fromkeys(kernel.name for kernel in (*then.launches, *now.launches)):
        old, new = ([k for k in side.launches if k.name == name] for side in (then, now))
        gone, come = [k for k in old if k not in new], [k for k in new if k not in old]
        pairs = min(len(gone), len(come))
        said += [f"{name}: {', '.join(_differences(a, b))}" for a, b in zip(gone, come, strict=False)]
        # what one side has not kept, it may launch all the same
        said += [f"{name}: no longer launched ({_launch(k)})" for k in gone[pairs:] if not now.more]
        said += [f"{name}: new ({_launch(k)})" for k in come[pairs:] if not then.more]
    return said


def _differences(then: Kernel, now: Kernel) -> list[str]:
    said = []
    if then.code != now.code:
        said.append("code changed")
    elif then.instance != now.instance:
        said.append("another instance of its template")
    for what, unit in (("registers", ""), ("local memory", " B"), ("shared memory", " B"), ("bytes", "")):
        old, new = (getattr(kernel, what.split()[0]) for kernel in (then, now))
        if old != new:
            said.append(f"{what} {old} -> {new}{unit}")
    for what in ("grid", "block", "cluster"):
        old, new = (getattr(kernel, what) for kernel in (then, now))
        if old != new:
            said.append(f"{what} {_shape(old)} -> {_shape(new)}")
    if then.count != now.count:
        said.append(f"launched {then.count} -> {now.count} times")
    return said


def _launch(kernel: Kernel) -> str:
    what = f"{kernel.bytes} B" if not kernel.grid else f"grid {_shape(kernel.grid)}, block {_shape(kernel.block)}"
    return what if kernel.count == 1 else f"{kernel.count} times, {what}"


def _shape(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "none"
