"""Draws what benchmarks declare: columns against a size, or marks beside names."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import Panel, Row, chosen
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

INK, GREY = "#333333", "#999999"
COLOURS = ("#332288", "#CC6677", "#117733", "#DDAA33", "#44AA99", "#882255", "#999999")
MARKERS = "osD^vPX"
Drawn = dict[str, list[Row]]
"""Points by what their line is called: ``x``, ``y``, and whether they are ``extrapolated``."""


def draw(panels: Sequence[Panel], results: Row, path: Path) -> bool:
    """Draw panels beside each other as a PNG file; False where they have nothing to draw."""
    ready = [(panel, found) for panel in panels if (found := points(panel, results))]
    if not ready:
        return False
    names = max((len(_of(found, "x")) for panel, found in ready if not panel.xlabel), default=0)
    most = max(len(found) for _, found in ready)
    size = 7 if len(ready) == 1 else 4.8 * len(ready), max(4.0, 1.4 + 0.3 * names)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    for number, (panel, found) in enumerate(ready):
        axes = figure.add_subplot(1, len(ready), number + 1)
        (against_size if panel.xlabel else beside_names)(axes, panel, found)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK)
    if most > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        style: dict[str, Any] = {"frameon": False, "fontsize": 9, "ncols": 4}
        figure.legend(handles, labels, loc="outside upper center", **style)
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return True


def points(panel: Panel, results: Row) -> Drawn:
    """The points of each line of a panel; none where there is one size alone.

    A line whose rows have no size is level.
    """
    rows, found = chosen(results, panel), Drawn()
    for column in panel.fixed:
        usual = statistics.mode([row.get(column) for row in rows] or [None])
        rows = [row for row in rows if row.get(column) == usual]
    columns = {panel.y: ""} if isinstance(panel.y, str) else panel.y
    for row in rows:
        for column, called in columns.items():
            if _is(y := row.get(column)):
                name = ", ".join(filter(None, (panel.by.format_map(defaultdict(str, row)), called)))
                point = {"x": row.get(panel.x), "y": y, "extrapolated": row.get("extrapolated")}
                found.setdefault(name, []).append(point)
    if panel.xlabel and len([x for x in _of(found, "x") if _is(x)]) < 2:
        return {}
    return found


def against_size(axes: Any, panel: Panel, found: Drawn) -> None:
    """A line for each name, log-log."""
    for number, (name, given) in enumerate(found.items()):
        style: dict[str, Any] = {"color": COLOURS[number % 7], "label": name}
        sized = sorted((row for row in given if _is(row["x"])), key=lambda row: row["x"])
        if not sized:
            axes.axhline(given[0]["y"], **style)
            continue
        line = "--" if name.endswith("planned") else "-"
        style |= {"marker": MARKERS[number % 7], "mfc": "white" if number >= 7 else None}
        axes.plot(*([row[key] for row in sized] for key in "xy"), line, **style)
        guessed = [row for row in sized if row["extrapolated"]]
        axes.plot(*([row[key] for row in guessed] for key in "xy"), "o", ms=10, mfc="none", mec=INK)
    axes.set(xscale="log", yscale="log", xlabel=panel.xlabel, ylabel=panel.label)
    _ticks(axes.xaxis, axes.get_xlim())
    _ticks(axes.yaxis, axes.get_ylim())
    if len(sizes := sorted(x for x in _of(found, "x") if _is(x))) < 12:
        axes.set_xticks(sizes, [_plain(size) for size in sizes])
    axes.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)


def beside_names(axes: Any, panel: Panel, found: Drawn) -> None:
    """Marks along a logarithmic axis, names at its side."""
    names = list(_of(found, "x"))
    for number, (name, given) in enumerate(found.items()):
        at = [names.index(row["x"]) for row in given]
        style = {"color": COLOURS[number % 7], "ms": 7, "label": name}
        axes.plot([row["y"] for row in given], at, MARKERS[number % 7], **style)
    axes.set(xscale="log", xlabel=panel.label, ylim=(len(names) - 0.5, -0.5))
    axes.set_yticks(range(len(names)), names)
    _ticks(axes.xaxis, axes.get_xlim())
    axes.grid(axis="y", color=GREY, lw=0.4)


def _of(found: Drawn, key: str) -> dict[Any, None]:
    """The values of all points, each once."""
    return dict.fromkeys(row[key] for given in found.values() for row in given)


def _ticks(axis: Any, limits: tuple[float, float]) -> None:
    """Plain numbers on a logarithmic axis."""
    decades = limits[1] / limits[0]
    subs = (1, 2, 5) if decades < 100 else (1, 3) if decades < 1000 else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_plain))


def _plain(value: float, position: int | None = None) -> str:
    return f"{value:,.10g}"


def _is(value: Any) -> bool:
    """Whether a value can be drawn on a logarithmic axis."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
