"""Pretty units: SI numbers in, a few honest digits out.

Inside perfgate everything is in seconds, bytes and operations; only what a person reads goes through here. What is
undefined is None inside and a dash outside.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

__all__ = [
    "DASH",
    "multiple",
    "natural",
    "percent",
    "plain",
    "quantity",
    "rate_unit",
    "rates",
    "seconds",
    "signed_percent",
]

DASH = "–"
PREFIXES = (
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
    (1.0, ""),
    (1e-3, "m"),
    (1e-6, "µ"),
    (1e-9, "n"),
)


def significant(value: float, digits: int) -> str:
    """`value` in that many significant digits, or as a whole number if that has more: ``0.0500``, ``1125``."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    if abs(rounded) >= 10**digits:
        return f"{value:.0f}"
    return f"{rounded:.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}"


def quantity(value: float | None, unit: str, digits: int = 3) -> str:
    """A number with the SI prefix that leaves one to three digits before the point: ``1.27 GB``."""
    if value is None or not math.isfinite(value):
        return DASH
    rounded = abs(float(f"{value:.{digits - 1}e}"))  # 999.96 µs is 1.000 ms
    if rounded == 0:
        return f"0 {unit}".rstrip()
    scale, prefix = next((p for p in PREFIXES if rounded >= p[0] * (1 - 1e-12)), PREFIXES[-1])
    return f"{significant(value / scale, digits)} {prefix}{unit}".rstrip()


def seconds(value: float | None) -> str:
    """A duration in four digits: what is compared differs in the third. From a kilosecond on, in plain seconds."""
    if value is not None and value >= 1e3:
        return f"{value:.0f} s"
    return quantity(value, "s", 4)


def rate_unit(values: Sequence[float | None]) -> tuple[float, str]:
    """The scale and prefix under which one column holds all these rates: that of the largest, from giga to tera."""
    largest = max((v for v in values if v is not None), default=0.0)
    return (1e12, "T") if largest >= 1e12 else (1e9, "G")


def rates(value: float | None, scale: float) -> str:
    """A rate in units of `scale`, three digits and at most three behind the point, so that a column stays narrow."""
    if value is None:
        return DASH
    scaled = value / scale
    if 0 < scaled < 0.0005:
        return "<0.001"
    return significant(scaled, 3) if scaled >= 0.1 else f"{scaled:.3f}"


def percent(share: float | None) -> str:
    """A share as a percentage, without its sign: ``percent(0.912) == "91.2"``."""
    return DASH if share is None else f"{100 * share:.1f}"


def signed_percent(ratio: float | None) -> str:
    """What a ratio adds or takes: ``signed_percent(1.068) == "+6.8 %"``."""
    if ratio is None:
        return DASH
    points = round(100 * (ratio - 1), 1)
    return f"{points:+.1f} %" if points else "0.0 %"


def multiple(ratio: float | None) -> str:
    """How many times as much: ``multiple(3.4142) == "3.41×"``."""
    return DASH if ratio is None else f"{significant(ratio, 3)}×"


def plain(value: float) -> str:
    """A count or size as it stands in a name: ``plain(16384.0) == "16384"``."""
    return str(int(value)) if value.is_integer() else str(value)


def natural(text: str) -> tuple[tuple[bool, int, str], ...]:
    """A sort key under which s512 comes before s1024."""
    return tuple((not p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in re.split(r"(\d+)", text) if p)
