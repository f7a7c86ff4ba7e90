"""What a small table's cells and a picture's y axis show of a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from perfgate.report import units
from perfgate.report.rows import Row

__all__ = ["METRICS", "Metric", "metric"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number of a row.

    Attributes:
        title: What it is, and its unit if its texts have none.
        lower_is_better: As for durations, which span decades and are drawn on a logarithmic scale.
        value: The number in SI units, or None.
        share: The number over the ceiling measured in the same run, or None.
        text: How it is written in a cell.
        tick: How it is written on an axis.
    """

    title: str
    lower_is_better: bool
    value: Callable[[Row], float | None]
    share: Callable[[Row], float | None]
    text: Callable[[float], str]
    tick: Callable[[float], str]


METRICS: Mapping[str, Metric] = {
    "time": Metric(
        title="Median time of a call",
        lower_is_better=True,
        value=lambda row: row.median,
        share=lambda row: None,
        text=units.seconds,
        tick=lambda value: units.quantity(value, "s", 1),
    ),
    "flops": Metric(
        title="TFLOP/s",
        lower_is_better=False,
        value=lambda row: row.flops_per_second,
        share=lambda row: row.matrix_share,
        text=lambda value: units.rates(value, 1e12),
        tick=lambda value: f"{value / 1e12:g}",
    ),
    "bytes": Metric(
        title="GB/s",
        lower_is_better=False,
        value=lambda row: row.bytes_per_second,
        share=lambda row: row.bandwidth_share,
        text=lambda value: units.rates(value, 1e9),
        tick=lambda value: f"{value / 1e9:g}",
    ),
}


def metric(name: str) -> Metric:
    """The metric of this name.

    Raises:
        ValueError: If there is none.
    """
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}: expected one of {', '.join(METRICS)}")
    return METRICS[name]
