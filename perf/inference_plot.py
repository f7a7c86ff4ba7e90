"""The pictures of the inference page: a bar a rung under its ceiling, and every case under the roof."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from attnkit.llama import LADDER
from perf.inference_page import of_suite, roofs, sizes
from perfgate.report import plot, roof

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from perf.inference import Collected
    from perfgate.report import Row

__all__ = ["ladder", "pictures"]

BAR, ROOM = 0.3, 0.75
"""Inches of a bar, and around the bars of a size."""
FRAME = "its kernels alone"
COLOURS = {"16 bits": plot.COLOURS[0], "int8": plot.COLOURS[1], "a peer": "#999999"}


def pictures(collected: Collected) -> dict[str, str]:
    """Pictures as SVG text by their files' names.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed; the message names the remedy.
    """
    made = {}
    if any(True for _ in of_suite(collected, "llama")):
        made["inference-llama.svg"] = plot.svg(ladder(collected))
    made |= {name: roof.render(run.results) for name, run in roofs(collected).items()}
    return made


def ladder(collected: Collected) -> Figure:
    """Tokens a second of every rung and peer, a panel a size; a tick is what the bandwidth allows its bytes.

    Of a rung that launches kernel by kernel a frame is what its kernels alone would do.
    """
    panels: dict[str, dict[str, Row]] = {}
    for _, results in of_suite(collected, "llama"):
        for size, rows in sizes(results).items():
            panels.setdefault(size, {}).update(rows)
    kernels = {
        size: rows for _, results in of_suite(collected, "llama-kernels") for size, rows in sizes(results).items()
    }
    heights = [BAR * len(rows) + ROOM for rows in panels.values()]
    height = sum(heights) + 0.5
    figure_of = plot.figure_class()
    from matplotlib import style

    with style.context("default"):
        picture = figure_of(figsize=(8.0, height))
        picture.text(0.02, 1 - 0.12 / height, "Tokens a second", va="top", size=12, weight="bold", color=plot.INK)
        top = height - 0.5
        for (size, rows), room in zip(panels.items(), heights, strict=True):
            axes = picture.add_axes((0.2, (top - room + 0.45) / height, 0.74, (room - ROOM) / height))
            top -= room
            order = [rung.name for rung in LADDER if rung.name in rows]
            order += sorted((name for name in rows if name not in order), key=lambda name: -rows[name].median)
            labels = {*COLOURS, FRAME}  # each once
            highest = 0.0
            for i, name in enumerate(order):
                row, kind, kernel = rows[name], _kind(name), kernels.get(size, {}).get(name)
                rate, alone = row.tokens_per_second or 0.0, kernel and kernel.tokens_per_second
                bars: list[tuple[str, float, dict[str, Any]]] = [(kind, rate, {"color": COLOURS[kind]})]
                if alone:
                    bars.append((FRAME, alone, {"facecolor": "none", "edgecolor": COLOURS[kind]}))
                for label, length, look in bars:
                    axes.barh(i, length, height=0.7, label=label if label in labels else None, **look)
                    labels.discard(label)
                said = f" {rate:.0f}" + (f" ({alone:.0f} alone)" if alone else "")
                axes.annotate(said, (max(rate, alone or 0.0), i), va="center", size=7.5, color=plot.INK)
                limit = rate / row.bandwidth_share if row.bandwidth_share else math.nan
                axes.plot([limit, limit], [i - 0.4, i + 0.4], color=plot.INK, linewidth=1.6)
                highest = max([highest, rate, *([limit] if math.isfinite(limit) else [])])
            axes.set_yticks(range(len(order)), order, size=plot.NAME_POINTS)
            axes.set_xlim(0, highest * 1.08)
            axes.invert_yaxis()
            axes.set_title(f"{size} (tick: the measured bandwidth's limit)", loc="left", size=9.5, color=plot.INK)
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(loc="upper right", frameon=False, fontsize=7.5)
    return picture


def _kind(name: str) -> str:
    if name not in {rung.name for rung in LADDER} | {"batched"}:
        return "a peer"
    return "int8" if name.endswith("_int8") else "16 bits"
