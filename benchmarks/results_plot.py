"""How the benchmarks' results are drawn: one picture for each whose results have an axis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

INK, GREY = "#333333", "#999999"
OURS, THEIRS = "#332288", "#CC6677"
COLOURS = ("#332288", "#CC6677", "#117733", "#DDAA33", "#44AA99", "#882255", "#999999")
MARKERS = "osD^vPX"

Row = dict[str, Any]


def draw(name: str, results: dict[str, Any], path: Path) -> bool:
    """Draw a benchmark's results as a PNG file; False where they have nothing to draw."""
    if name == "scaling":
        from scaling_plot import draw as draw_scaling

        draw_scaling(results, path)
        return True
    figure = PLOTS[name](results)
    if figure is None:
        return False
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))
    return True


def decode(results: dict[str, Any]) -> Figure:
    """Times as fast for each model, a bar for each number of threads."""
    rows = results["rows"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    counts = sorted({row["threads"] for row in rows})
    figure = _figure(1, height=1.2 + 0.4 * len(models) * len(counts))
    (axes,) = figure.axes
    thick = 0.8 / len(counts)
    for number, count in enumerate(counts):
        mine = [row for row in rows if row["threads"] == count]
        at = [models.index(row["model"]) + (number + 0.5) * thick - 0.4 for row in mine]
        label = f"{count} thread{'s' * (count > 1)}"
        bars = axes.barh(
            at, [row["times_as_fast"] for row in mine], 0.9 * thick,
            color=OURS, alpha=1 - 0.6 * number / len(counts), label=label,
        )  # fmt: skip
        axes.bar_label(bars, fmt="{:.1f}", padding=3, fontsize=9, color=INK)
    axes.axvline(1, color=GREY, lw=1, ls="--")
    axes.set_yticks(range(len(models)), models)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("a volume: times as fast as cryoDRGN")
    axes.legend(frameon=False, fontsize=9, loc="best")
    return figure


def whole_run(results: dict[str, Any]) -> Figure | None:
    """Time, memory and disk of both programs against the sketch."""
    panels = {
        "seconds": "time, s", "above idle MiB": "memory above idle, MiB",
        "disk MiB": "disk, MiB",
    }  # fmt: skip
    return lines(results["rows"], "sketch", "program", panels, "volumes of the sketch")


def landscape_full(results: dict[str, Any]) -> Figure | None:
    """Time of cryoDRGN's two commands against training volumes, and scapedist's."""
    both = [row for row in results["rows"] if row["program"] == "both"]
    ours = [row for row in results["rows"] if row["program"] == "scapedist"]
    if len(both) < 2 or not ours:
        return None
    figure = _figure(1)
    (axes,) = figure.axes
    at = [row["training volumes"] for row in both]
    axes.plot(at, [row["seconds"] for row in both], "-", color=THEIRS, lw=1)
    for guessed, face, label in ((False, THEIRS, "measured"), (True, "white", "extrapolated")):
        mine = [row for row in both if row["extrapolated"] == guessed]
        axes.plot(
            [row["training volumes"] for row in mine], [row["seconds"] for row in mine], "s",
            color=THEIRS, mfc=face, label=f"cryoDRGN, {label}",
        )  # fmt: skip
    axes.axhline(ours[0]["seconds"], color=OURS, label="scapedist, which needs none")
    axes.set(xscale="log", yscale="log", xlabel="training volumes", ylabel="time, s")
    _ticks(axes, at)
    axes.legend(frameon=False, fontsize=9)
    return figure


def memory(results: dict[str, Any]) -> Figure | None:
    """Peak memory against the sketch."""
    columns = {
        "peak MiB": "all processes", "largest process MiB": "the largest process",
        "Gram matrix MiB": "the Gram matrix",
    }  # fmt: skip
    rows = [
        {"sketch": row["sketch"], "what": label, "MiB": row[key]}
        for key, label in columns.items()
        for row in results["rows"]
        if key in row
    ]
    figure = lines(rows, "sketch", "what", {"MiB": "peak memory, MiB"}, "volumes of the sketch")
    if figure is not None:
        (axes,) = figure.axes
        axes.set(yscale="linear", ylim=(0, 1.2 * max(row["MiB"] for row in rows)))
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    return figure


def embedding(results: dict[str, Any]) -> Figure | None:
    """Error against time of each method, and the time of decoding all particles."""
    rows = results.get("methods")
    if not rows:
        return None
    figure = _figure(1)
    (axes,) = figure.axes
    for number, row in enumerate(rows):
        at = row["all, s"], row["relative error"]
        axes.plot(*at, MARKERS[number], ms=8, color=COLOURS[number], label=row["method"])
    exact = rows[0]["exact, s"]
    axes.axvline(exact, color=GREY, ls="--", label="decoding every particle, no error")
    times = [exact, *(row["all, s"] for row in rows)]
    errors = [row["relative error"] for row in rows]
    axes.set(xscale="log", yscale="log", xlim=(min(times) / 2, max(times) * 2))
    axes.set(ylim=(min(errors) / 3, max(errors) * 10))
    axes.set(xlabel="time of all particles, s", ylabel="relative error of coordinates")
    _ticks(axes)
    axes.legend(frameon=False, fontsize=9, loc="upper center", ncols=2)
    return figure


def store(results: dict[str, Any]) -> Figure | None:
    """Rates of writing and of reading one volume, whole volumes, for each box."""
    panels = {
        "write": "written, page cache", "to the disk": "written, to the disk",
        "read one": "one read at random, page cache",
    }  # fmt: skip
    rows = [row for row in results["rows"] if row["stored"] == "whole" and row["what"] in panels]
    if not rows:
        return None
    boxes = sorted({row["box"] for row in rows})
    most = max(len({row["way"] for row in rows if row["what"] == what}) for what in panels)
    figure = _figure(len(panels), width=4.6, height=1.3 + 0.16 * most * (1 + len(boxes)))
    thick = 0.8 / len(boxes)
    for axes, (what, title) in zip(figure.axes, panels.items(), strict=True):
        ways = list(dict.fromkeys(row["way"] for row in rows if row["what"] == what))
        for number, box in enumerate(boxes):
            mine = [row for row in rows if row["what"] == what and row["box"] == box]
            at = [ways.index(row["way"]) + (number + 0.5) * thick - 0.4 for row in mine]
            axes.barh(
                at, [row["MiB/s"] for row in mine], 0.9 * thick,
                color=COLOURS[number], label=f"box {box}",
            )  # fmt: skip
        axes.set_yticks(range(len(ways)), ways)
        axes.invert_yaxis()
        axes.set(xlabel="MiB/s", title=title)
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        axes.locator_params(axis="x", nbins=5)
    figure.axes[0].legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def pca(results: dict[str, Any]) -> Figure | None:
    """Time and memory of each method, a mark for each case."""
    panels = {"seconds": "time, s", "above idle MiB": "memory above idle, MiB"}
    rows = [row for row in results["rows"] if _is(row.get("seconds"))]
    if not rows:
        return None
    ways = list(dict.fromkeys(_way(row) for row in rows))
    cases = list(dict.fromkeys((row["case"], row["rows"]) for row in rows))
    figure = _figure(len(panels), width=5.6, height=1.4 + 0.3 * len(ways))
    for axes, (key, label) in zip(figure.axes, panels.items(), strict=True):
        for number, (case, n) in enumerate(cases):
            mine = [r for r in rows if (r["case"], r["rows"]) == (case, n) and _is(r.get(key))]
            axes.plot(
                [row[key] for row in mine], [ways.index(_way(row)) for row in mine],
                MARKERS[number % 7], ms=7, color=COLOURS[number % 7],
                label=f"{case}: {n:,} volumes",
            )  # fmt: skip
        axes.set(xscale="log", xlabel=label)
        _ticks(axes)
        axes.set_yticks(range(len(ways)), ways if axes is figure.axes[0] else [""] * len(ways))
        axes.set_ylim(len(ways) - 0.5, -0.5)
        axes.grid(axis="y", color=GREY, lw=0.4)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center",
                  frameon=False, fontsize=9, ncols=2)  # fmt: skip
    return figure


def _way(row: Row) -> str:
    """A method, and its processes where they are more than one."""
    many = row.get("processes", 1) != 1
    return f"{row['method']}, {row['processes']} processes" if many else str(row["method"])


def linkage(results: dict[str, Any]) -> Figure | None:
    """Time and memory against the volumes, of Ward's linkage, which all programs have."""
    rows = [row for row in results["rows"] if row["linkage"] == "ward"]
    panels = {"seconds": "Ward's linkage, time, s", "above idle MiB": "memory above idle, MiB"}
    return lines(rows, "n", "program", panels, "volumes")


def growth(results: dict[str, Any]) -> Figure | None:
    """Time and memory of stages against the volumes, measured and planned, for the least p."""
    measured = [row for row in results.get("measured", []) if "p" in row]
    least = min((row["p"] for row in measured), default=0)
    rows = [
        {"n": row["n"], "what": f"{row['stage']}{suffix}", "s": row[s], "MiB": row[memory]}
        for row in measured
        if row["p"] == least
        for suffix, s, memory in (
            ("", "seconds", "peak MiB"), (", planned", "planned s", "planned MiB"),
        )
    ]  # fmt: skip
    return lines(rows, "n", "what", {"s": "time, s", "MiB": "peak memory, MiB"}, "volumes")


def planned(results: dict[str, Any]) -> Figure | None:
    """Time of whole runs against their sketch, measured and planned."""
    most = max(row["workers"] for row in results["rows"])
    box = max(row["box"] for row in results["rows"])
    rows = [
        {"sketch": row["sketch"], "what": what, "s": row[key]}
        for row in results["rows"]
        if (row["workers"], row["box"], row["embedding"]) == (most, box, "none")
        for what, key in (("measured", "seconds"), ("planned", "planned s"))
    ]
    return lines(rows, "sketch", "what", {"s": "time, s"}, "volumes of the sketch")


PLOTS: dict[str, Callable[[dict[str, Any]], Figure | None]] = {
    "decode": decode,
    "whole_run": whole_run,
    "landscape_full": landscape_full,
    "memory": memory,
    "embedding": embedding,
    "store": store,
    "pca": pca,
    "linkage": linkage,
    "growth": growth,
    "planned": planned,
    "scaling": lambda results: None,  # scaling_plot.py draws it
}


# -- parts of pictures


def lines(
    rows: Sequence[Row], x: str, by: str | None, panels: dict[str, str], xlabel: str
) -> Figure | None:
    """Columns against a size, log-log, a line for each way; None where there is one size.

    Parameters
    ----------
    rows
        With numbers or nothing in the columns.
    x, by
        Columns of the size and the way.
    panels
        Columns that are drawn, and what is written beside them; those of no row are left out.
    xlabel
        Of the size.
    """
    panels = {key: label for key, label in panels.items() if any(_is(row.get(key)) for row in rows)}
    rows = [row for row in rows if _is(row.get(x))]
    sizes = sorted({row[x] for row in rows})
    if len(sizes) < 2 or not panels:
        return None
    ways = list(dict.fromkeys("" if by is None else str(row.get(by, "")) for row in rows))
    figure = _figure(len(panels))
    for axes, (key, label) in zip(figure.axes, panels.items(), strict=True):
        for number, way in enumerate(ways):
            mine = sorted(
                (row[x], row[key])
                for row in rows
                if _is(row.get(key)) and (by is None or str(row.get(by, "")) == way)
            )
            axes.plot(
                *zip(*mine, strict=True), "--" if way.endswith("planned") else "-",
                marker=MARKERS[number % 7], mfc="white" if number >= 7 else None,
                color=_colour(way, number),
                label={"cryodrgn": "cryoDRGN"}.get(way, way),
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=label)
        _ticks(axes, sizes)
    handles = figure.axes[0].get_legend_handles_labels()
    if len(ways) > 3:
        figure.legend(*handles, loc="outside upper center", frameon=False, fontsize=9, ncols=4)
    elif any(ways):
        figure.axes[0].legend(frameon=False, fontsize=9)
    return figure


def _figure(n_panels: int, width: float = 4.8, height: float = 4.0) -> Figure:
    """A figure of panels beside each other."""
    wide = 7.0 if n_panels == 1 else width * n_panels
    figure = Figure(figsize=(wide, height), dpi=120, layout="constrained")
    figure.subplots(1, n_panels)
    return figure


def _ticks(axes: Any, sizes: Iterable[float] = ()) -> None:
    """Plain numbers on logarithmic axes; ticks at the sizes where they are given."""
    axes.minorticks_off()
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        decades = limits[1] / limits[0]
        subs = (1, 2, 5) if decades < 100 else (1, 3) if decades < 1000 else (1,)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(_plain))
    if sizes := sorted(sizes):
        axes.set_xticks(sizes, [_plain(size) for size in sizes])
        axes.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)


def _plain(value: float, position: int | None = None) -> str:
    return f"{value:,.10g}"


def _is(value: Any) -> bool:
    """Whether a cell can be drawn on a logarithmic axis."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _colour(way: str, number: int) -> str:
    """A program's own colour, else the next one."""
    return {"scapedist": OURS, "cryodrgn": THEIRS}.get(way, COLOURS[number % len(COLOURS)])
