"""How near a case came to what its work and its machine allow (Williams, Waterman and Patterson, Roofline, 2009).

    attainable FLOP/s = min(matrix rate, intensity · bandwidth)      intensity = operations / bytes

The ceilings are those that were measured in the same run, so a case carries what it has to be judged by with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from perfgate import stats
from perfgate.case import Work
from perfgate.record import Record

__all__ = ["Roofline", "bandwidth", "saved"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """A case's place under the roof.

    Attributes:
        flops_per_byte: Operational intensity; None for work without operations.
        flops_per_second: Attained; None likewise.
        bytes_per_second: Attained.
        bandwidth_ceiling: Best bandwidth measured, in bytes a second.
        matrix_ceiling: Matrix rate measured for the case's dtype, in operations a second; None if it has none.
        share: Of the time that the lower of both ceilings allows: 1 on the roof.
    """

    flops_per_byte: float | None
    flops_per_second: float | None
    bytes_per_second: float
    bandwidth_ceiling: float
    matrix_ceiling: float | None
    share: float

    @classmethod
    def of(cls, work: Work | None, seconds: float, ceilings: Mapping[str, float]) -> Roofline | None:
        """The place of a call that takes so long, or None where its bytes or the bandwidth are not known."""
        top = bandwidth(ceilings)
        if work is None or not work.bytes or top is None:
            return None
        matrix = ceilings.get(f"flops_per_second.{work.dtype}") if work.dtype else None
        least = max(work.bytes / top, work.flops / matrix if matrix else 0.0)
        return cls(
            flops_per_byte=work.flops / work.bytes if work.flops else None,
            flops_per_second=work.flops / seconds if work.flops else None,
            bytes_per_second=work.bytes / seconds,
            bandwidth_ceiling=top,
            matrix_ceiling=matrix,
            share=least / seconds,
        )


def bandwidth(ceilings: Mapping[str, float]) -> float | None:
    """The best bandwidth among these ceilings, in bytes a second."""
    return max((value for name, value in ceilings.items() if name.endswith("bytes_per_second")), default=None)


def saved(record: Record, ceilings: Mapping[str, float] | None) -> dict[str, Any]:
    """What a saved benchmark holds of a case: its record, and its place under this run's roof.

    The second can be worked out from the first and the run's ceilings. It is there for who reads the file without
    perfgate.
    """
    pooled = [seconds for samples in record.processes for seconds in samples.seconds]
    place = Roofline.of(record.case.work, stats.quantile(pooled, 0.5), ceilings or {})
    return {"perfgate": record.to_json(), **({"roofline": asdict(place)} if place else {})}
