"""Controls: the cases that must not differ between base and head, so that what they do show is the machine's.

A control launches the same kernels with the same code and in the same shapes on both sides, in all blocks in which both
timed it. That is not all that decides how fast it is: its inputs, their layout and what else the process does can have
changed. So a control is judged like any other case, against the others, and one that looks suspicious is none when
suspicions are confirmed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from perfgate.contrast import Block, Visit

__all__ = ["same_kernels"]


def same_kernels(blocks: Iterable[Block]) -> set[str]:
    """The cases that launched the same known kernels on both sides in every block that timed them on both.

    From block to block they may differ: a tuner may choose anew in each process, and where it chose alike for both
    sides, both sides ran the same.
    """
    found: dict[str, bool] = {}
    for block in blocks:
        for name, visits in block.visits.items():
            if len({visit.side for visit in visits}) == 2:
                found[name] = found.get(name, True) and _same(visits)
    return {name for name, same in found.items() if same}


def _same(visits: Sequence[Visit]) -> bool:
    first = visits[0].samples.kernels
    return first is not None and all(v.samples.kernels is not None and first.same(v.samples.kernels) for v in visits)
