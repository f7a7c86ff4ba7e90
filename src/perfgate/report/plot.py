"""A picture: time or rate of a call over one field of the problem, a line an alternative.

Times are drawn log-log, rates from zero up to the ceiling that was measured in the same run. A panel a kind of
problem; names at the ends of the lines instead of a legend; colours that colour-blind readers tell apart (Okabe and
Ito, 2008, and three of Tol's, 2021), each with a marker of its own. Where the memory ended a dotted line ends in a
cross. The background is white, so that the picture is legible on a dark page too. The same results give the same bytes.

matplotlib is optional (the extra `report`) and imported only when a picture is drawn.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perfgate.report import sentences, units
from perfgate.report.grid import Axis, Panel, panels
from perfgate.report.metric import Metric
from perfgate.report.metric import metric as metric_of
from perfgate.report.rows import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "FAINT", "INK", "MARKERS", "NAME_POINTS", "figure", "figure_class", "render", "svg"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#332288", "#777777")
MARKERS = "sD^vP*Xhp"
INK, FAINT = "#222222", "#dddddd"
NAME_POINTS = 8.5
CHARACTER = 0.072
"""Inches of an average character of that size."""
PLOT = (4.4, 3.1)
LEFT, TOP, BOTTOM = 0.8, 0.35, 0.6
"""Inches around a panel; the names stand to its right."""
MOST_PANELS = 12
"""A picture of more panels is read by nobody."""
MOST_TICKS = 9

Style = Mapping[str, Any]


def render(results: Results, axis: Axis | None = None, *, metric: str = "time") -> str:
    """The picture as SVG text.

    Args:
        results: What to draw.
        axis: What runs along x; needed.
        metric: What runs along y: ``"time"``, ``"flops"`` or ``"bytes"``.

    Raises:
        ValueError: Without an axis, for an unknown metric, if nothing lies on the axis, or for more panels than a
            reader can take in.
        ModuleNotFoundError: If matplotlib is not installed; the message names the remedy.
    """
    return svg(figure(results, axis, metric=metric))


def svg(drawn: Figure) -> str:
    """A figure as SVG text: the same figure gives the same bytes everywhere."""
    import matplotlib

    # text as paths, a fixed salt and no date: the same picture everywhere, byte for byte
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "perfgate"}):
        page = io.StringIO()
        drawn.savefig(page, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return page.getvalue()


def figure(results: Results, axis: Axis | None, *, metric: str = "time") -> Figure:
    """The picture as matplotlib's figure; raises as `render` does."""
    y = metric_of(metric)
    if axis is None:
        raise ValueError(r"a picture needs to know which field of the problem is x: name it, such as 's(\d+)'")
    drawn = [p for p in panels(results, axis)[0] if any(y.value(row) is not None for row in p.rows.values())]
    if not drawn:
        raise ValueError(
            f"nothing to draw: no cases differ in a field that matches {axis.pattern!r} alone and have {metric}"
        )
    if len(drawn) > MOST_PANELS:
        raise ValueError(f"expected at most {MOST_PANELS} panels, got {len(drawn)}: select fewer cases")
    figure_of = figure_class()
    from matplotlib import style

    styles = _styles(drawn)
    across = min(len(drawn), 2)
    down = math.ceil(len(drawn) / across)
    width = LEFT + PLOT[0] + CHARACTER * max(len(style["label"]) for style in styles.values()) + 0.5
    height = TOP + PLOT[1] + BOTTOM
    better = "lower" if y.lower_is_better else "higher"
    shown = f"{y.title} over {axis.label or axis.pattern} ({better} is better)"
    title = textwrap.wrap(shown, int(across * width / 0.1))
    where = [sentences.machine(results), *sentences.methods(results)]
    if any(panel.out_of_memory for panel in drawn):
        where.append("×: out of memory")
    small = [line for said in where for line in textwrap.wrap(said, int(across * width / CHARACTER))]
    head = 0.3 + 0.22 * len(title) + 0.17 * len(small)
    size = (width * across, height * down + head)
    with style.context("default"):
        picture = figure_of(figsize=size)

        def write(lines: Sequence[str], down: float, points: float, weight: str) -> None:
            place = (0.15 / size[0], 1 - down / size[1])
            picture.text(*place, "\n".join(lines), va="top", size=points, weight=weight, color=INK, linespacing=1.35)

        write(title, 0.12, 12, "bold")
        write(small, 0.2 + 0.22 * len(title), NAME_POINTS, "normal")
        for i, panel in enumerate(drawn):
            left = LEFT + width * (i % across)
            bottom = size[1] - head - height * (i // across) - TOP - PLOT[1]
            axes = picture.add_axes((left / size[0], bottom / size[1], PLOT[0] / size[0], PLOT[1] / size[1]))
            _draw(axes, panel, axis, y, styles)
    return picture


def figure_class() -> type[Figure]:
    """matplotlib's.

    Raises:
        ModuleNotFoundError: If it is not installed; the message names the remedy.
    """
    try:
        from matplotlib import style  # noqa: F401 - whoever has one wants both
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a picture needs matplotlib: pip install matplotlib, or this package with its extra 'report'"
        ) from error
    return Figure


def _styles(drawn: Sequence[Panel]) -> Mapping[str, Style]:
    """How each alternative is named and drawn, the same in every panel; a reference in black and dashed."""
    references = {name for panel in drawn for (name, _), row in panel.rows.items() if row.case.reference}
    styles: dict[str, Style] = {}
    for name in references:
        look = {"color": "#000000", "linestyle": (0, (4, 2)), "marker": "o", "markerfacecolor": "white"}
        styles[name] = {"label": f"{name} (ref)", **look}
    others = {name for panel in drawn for name in panel.series} - references
    for i, name in enumerate(sorted(others, key=units.natural)):
        line = "-" if i < len(COLOURS) else (0, (1, 1))
        look = {"color": COLOURS[i % len(COLOURS)], "linestyle": line, "marker": MARKERS[i % len(MARKERS)]}
        styles[name] = {"label": name, **look}
    return styles


def _ceiling(panel: Panel, metric: Metric) -> float | None:
    """The rate at which the share is one, if that is the same for all rows of the panel."""
    pairs = [(metric.value(row), metric.share(row)) for row in panel.rows.values()]
    found = [value / share for value, share in pairs if value and share]
    return found[0] if found and max(found) - min(found) <= 1e-9 * max(found) else None


def _draw(axes: Axes, panel: Panel, axis: Axis, metric: Metric, styles: Mapping[str, Style]) -> None:
    """One panel."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    lines = {name: _points(panel, name, metric) for name in panel.series}
    values = [y for points in lines.values() for _, y in points]
    if metric.lower_is_better:
        low, high = min(values) / 1.5, max(values) * 1.5
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 100 else (1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        low, high = 0.0, max(values) * 1.1
        ceiling = _ceiling(panel, metric)
        if ceiling is not None and ceiling < 2.5 * max(values):
            high = max(high, ceiling * 1.1)
            axes.axhline(ceiling, color="#999999", linewidth=1, zorder=1)
            axes.text(0.01, ceiling, "ceiling", transform=axes.get_yaxis_transform(), va="bottom", size=7.5, color=INK)
    ends = {name: points[-1] for name, points in lines.items() if points}
    gone = _gone(panel, ends, low, high, log=metric.lower_is_better)
    axes.set_ylim(low, high * (high / low) ** 0.03 if metric.lower_is_better else high)
    if min(panel.xs) > 0:
        axes.set_xscale("log", base=2)
    for name, points in lines.items():
        axes.plot([x for x, _ in points], [y for _, y in points], linewidth=1.5, markersize=4, zorder=3, **styles[name])
        if name in gone:
            way = [ends[name], gone[name]] if name in ends else [gone[name]]
            colour = styles[name]["color"]
            axes.plot([x for x, _ in way], [y for _, y in way], color=colour, linestyle=":", linewidth=1.2, zorder=2)
            axes.plot(*gone[name], color=colour, marker="x", markersize=6, markeredgewidth=1.6, zorder=4, clip_on=False)
    axes.xaxis.set_major_locator(FixedLocator(_thinned(panel.xs)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: units.plain(round(x, 9))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: metric.tick(y)))
    axes.grid(color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK, length=3)
    axes.set_title(panel.title, loc="left", size=9.5, color=INK)
    axes.set_xlabel(axis.label or axis.pattern, size=NAME_POINTS, color=INK)
    _name(axes, ends | gone, styles)


def _points(panel: Panel, name: str, metric: Metric) -> list[tuple[float, float]]:
    """Where the line of this alternative goes."""
    found = [(x, metric.value(panel.rows[name, x])) for x in panel.xs if (name, x) in panel.rows]
    return [(x, y) for x, y in found if y is not None]


def _gone(
    panel: Panel, ends: Mapping[str, tuple[float, float]], low: float, high: float, *, log: bool
) -> dict[str, tuple[float, float]]:
    """Where the crosses stand: at the first x without memory, at the top for times and at zero for rates.

    Crosses at one x stand one below the other, in the order of the lines that end there.
    """
    first = {
        name: x
        for x in reversed(panel.xs)
        for name in panel.series
        if (name, x) in panel.out_of_memory and (name not in ends or x > ends[name][0])
    }
    if not log:
        return {name: (x, low) for name, x in first.items()}
    step = (high / low) ** 0.03
    there: dict[float, int] = {}
    crosses = {}
    for name in sorted(first, key=lambda n: (-ends[n][1] if n in ends else -math.inf, n)):
        x = first[name]
        there[x] = there.get(x, -1) + 1
        crosses[name] = (x, high / step ** there[x])
    return crosses


def _thinned(xs: Sequence[float]) -> list[float]:
    """As many of them as can be labelled, evenly, the last among them."""
    step = math.ceil(len(xs) / MOST_TICKS)
    return list(xs[::-1][::step][::-1])


def _name(axes: Axes, ends: Mapping[str, tuple[float, float]], styles: Mapping[str, Style]) -> None:
    """Write every name right of the panel, as near to the end of its line as the other names allow."""
    height = PLOT[1] * 72
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = {name: float(to_axes.transform(end)[1]) * height for name, end in ends.items()}
    for name, place in spread(wanted, spacing=NAME_POINTS * 1.3, top=height).items():
        axes.annotate(
            styles[name]["label"],
            xy=ends[name],
            xytext=(1.06, place / height),
            textcoords="axes fraction",
            va="center",
            size=NAME_POINTS,
            color=INK,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": styles[name]["color"],
                "linewidth": 0.9,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 4,
            },
        )


def spread(wanted: Mapping[str, float], *, spacing: float, top: float) -> dict[str, float]:
    """Places at least `spacing` apart, in the order of the wanted ones, from 0 to `top`, each near to the wanted one.

    Names that push each other form a block whose middle is the mean of what its members want. Those for which there is
    no room go below 0.
    """
    blocks: list[tuple[list[str], float]] = []  # names from below, and the place of the lowest
    for name in sorted(wanted, key=lambda n: (wanted[n], n)):
        blocks.append(([name], min(max(wanted[name], 0.0), top)))
        while len(blocks) > 1 and blocks[-1][1] < blocks[-2][1] + spacing * len(blocks[-2][0]):
            names = blocks[-2][0] + blocks[-1][0]
            lowest = math.fsum(wanted[n] - spacing * i for i, n in enumerate(names)) / len(names)
            blocks[-2:] = [(names, min(max(lowest, 0.0), top - spacing * (len(names) - 1)))]
    return {name: lowest + spacing * i for names, lowest in blocks for i, name in enumerate(names)}
