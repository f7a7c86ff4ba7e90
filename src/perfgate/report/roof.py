"""A picture: what every case attains, over what it computes a byte, under the roof that was measured in the same run.

Both axes are logarithmic. The slope is the bandwidth, the flat parts are the matrix rates of the dtypes that cases
have. A colour an alternative, as in `perfgate.report.plot`; a point a case.
"""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from perfgate.report import plot, sentences, units
from perfgate.report.grid import Axis
from perfgate.report.rows import Results, Row
from perfgate.roofline import bandwidth

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure", "render"]

SIZE = (8.6, 5.0)


def render(results: Results, axis: Axis | None = None) -> str:
    """The picture as SVG text; what an axis is for other pictures, intensity is for this one.

    Raises:
        ValueError: As `figure`.
        ModuleNotFoundError: If matplotlib is not installed; the message names the remedy.
    """
    return plot.svg(figure(results))


def figure(results: Results) -> Figure:
    """The picture as matplotlib's figure.

    Raises:
        ValueError: If no case states operations and bytes, or no ceiling was measured.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for row in results.rows:
        if (place := _place(row)) is not None:
            points.setdefault(_alternative(row), []).append(place)
    top = bandwidth(results.ceilings)
    if not points or top is None:
        raise ValueError("a roofline needs cases that state operations and bytes, and ceilings of the same run")
    figure_of = plot.figure_class()
    dtypes = sorted({row.case.work.dtype for row in results.rows if row.case.work and row.case.work.dtype})
    flat = {d: results.ceilings[f"flops_per_second.{d}"] for d in dtypes if f"flops_per_second.{d}" in results.ceilings}

    from matplotlib import style

    with style.context("default"):
        picture = figure_of(figsize=SIZE)
        where = [sentences.machine(results), *sentences.methods(results)]
        lines = [line for said in where for line in textwrap.wrap(said, 110)]
        picture.text(0.02, 0.975, "Attained rate over operational intensity", va="top", size=12, weight="bold")
        picture.text(0.02, 0.925, "\n".join(lines), va="top", size=plot.NAME_POINTS, linespacing=1.35)
        axes = picture.add_axes((0.09, 0.12, 0.62, 0.80 - 0.03 * len(lines)))
        everything = [place for those in points.values() for place in those]
        ridges = [rate / top for rate in flat.values()]
        left = min(x for x, _ in everything) / 2
        right = 2 * max([x for x, _ in everything] + ridges)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        knee = min(max(ridges, default=right), right)
        highest = max([*flat.values(), knee * top, *(y for _, y in everything)])
        axes.plot([left, knee], [left * top, knee * top], color=plot.INK, linewidth=1.2)
        middle = math.sqrt(left * knee)
        axes.annotate(units.quantity(top, "B/s"), (middle, middle * top * 1.4), ha="right", size=8, color=plot.INK)
        for dtype, rate in flat.items():
            axes.plot([rate / top, right], [rate, rate], color=plot.INK, linewidth=1.2)
            axes.annotate(f"{dtype} {units.quantity(rate, 'FLOP/s')}", (right, rate * 1.1), ha="right", size=8)
        for i, name in enumerate(sorted(points, key=units.natural)):
            # a colour and a marker that no other has together
            turn = i // len(plot.COLOURS)
            colour, marker = plot.COLOURS[i % len(plot.COLOURS)], plot.MARKERS[(i + turn) % len(plot.MARKERS)]
            x, y = zip(*points[name], strict=True)
            axes.plot(x, y, linestyle="none", color=colour, marker=marker, markersize=4.5, label=name)
        axes.set_xlim(left, right)
        axes.set_ylim(min(y for _, y in everything) / 3, highest * 2)
        axes.set_xlabel("operations a byte", size=plot.NAME_POINTS)
        axes.set_ylabel("FLOP/s", size=plot.NAME_POINTS)
        axes.grid(color=plot.FAINT, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        picture.legend(loc="upper left", bbox_to_anchor=(0.72, 0.88), frameon=False, fontsize=7.5)
    return picture


def _place(row: Row) -> tuple[float, float] | None:
    """Intensity and rate of a case that has both."""
    work = row.case.work
    if work is None or not work.bytes or row.flops_per_second is None:
        return None
    return work.flops / work.bytes, row.flops_per_second


def _alternative(row: Row) -> str:
    """What a case is called beside the others: ``suite/alternative`` of its name."""
    return "/".join(row.case.name.split("/")[:2])
