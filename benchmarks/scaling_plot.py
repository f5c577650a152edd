"""How the scaling benchmark is drawn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from scaling_model import JOBS, PROJECTED, Costs, Work, predict, resources, saturation

INK, GREY = "#333333", "#999999"
COLOURS = {"exact": "#332288", "generate": "#CC6677", "reduced": "#117733"}
NAMES = {"exact": "exact embedding", "generate": "volumes to Zarr", "reduced": "reduced embedding"}
TICKS = {"1 s": 1, "10 s": 10, "1 min": 60, "10 min": 600, "1 h": 3600, "10 h": 36_000}
TICKS |= {f"{days} days": 86_400 * days for days in (4, 40, 400)}


def draw(results: dict[str, Any], path: Path) -> None:
    """Measured strong and weak scaling, and the model to 64 workers, as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 5), dpi=120, layout="constrained")
    strong, weak, projected = figure.subplots(1, 3, width_ratios=(1, 1, 1.4))
    counts = np.array(results["worker_counts"])
    strong.plot(counts, counts, "--", color=GREY, label="ideal")
    weak.plot(counts, np.ones(len(counts)), "--", color=GREY, label="ideal")
    _draw_measured(strong, results, "ratio", "ratios")
    _draw_measured(weak, results, "weak", "weak_ratios")
    strong.set(title="Measured: the same work for all", ylim=(0, 1.5 * counts.max()))
    strong.set_ylabel("times as fast as one worker (median, range of rounds)")
    weak.set(title="Measured: as much work for each", ylabel="efficiency", ylim=(0, 1.2))
    _draw_paper(projected, results["paper"])
    strong.legend(loc="upper left", frameon=False, fontsize=9)
    projected.legend(loc="upper right", frameon=False, fontsize=9)
    for axes in (strong, weak, projected):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))


def _draw_measured(axes: Any, results: dict[str, Any], key: str, every: str) -> None:
    """Medians over workers with the range of their rounds, jobs beside each other."""
    rows, counts = results["scaling"], results["worker_counts"]
    groups = list(dict.fromkeys((row["case"], row["job"]) for row in rows))
    for number, (case, job) in enumerate(groups):
        mine = [row for row in rows if (row["case"], row["job"]) == (case, job)]
        at = np.array([row["workers"] for row in mine])
        at = at * 1.04 ** (number - (len(groups) - 1) / 2)
        middle = np.array([row[key] for row in mine])
        reach = [
            middle - [min(row[every]) for row in mine],
            [max(row[every]) for row in mine] - middle,
        ]
        face = COLOURS[job] if case == groups[0][0] else "white"
        axes.errorbar(
            at, middle, reach, fmt="o", color=COLOURS[job], mfc=face, capsize=3,
            label=f"{NAMES[job]}, {case}",
        )  # fmt: skip
        aside = [(x, row["machine"]) for x, row in zip(at, mine, strict=True) if "machine" in row]
        if key == "ratio" and aside:
            axes.plot(*zip(*aside, strict=True), "_", ms=13, mew=2, color=COLOURS[job])
            if number == len(groups) - 1:
                axes.plot([], [], "_", ms=13, mew=2, color=INK, label="as many processes alone")
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.8, 1.25 * max(counts))
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.minorticks_off()
    axes.set_xlabel("workers")


def _draw_paper(axes: Any, found: dict[str, Any]) -> None:
    """The model's time of the paper's jobs on 1 to 64 workers, and where it saturates."""
    counts, all_seconds = np.arange(1, 65), []
    for job in JOBS:
        values = found["costs"][job].items()
        costs = Costs(**{key: math.inf if value is None else value for key, value in values})
        work = Work(**found["work"][job])
        (name, at), *_ = saturation(costs, work).items()
        where = f"at {at:,.0f}" if at > 1.5 else "from the first"
        where = f"a batch each {where}" if name == "batches" else f"{name} full {where}"
        seconds = [predict(costs, work, int(n)) for n in counts]
        axes.plot(counts, seconds, color=COLOURS[job], label=f"{NAMES[job]}: {where}")
        ideal = resources(costs, work, 1)["decoding"] / counts
        axes.plot(counts, ideal, "--", lw=0.8, color=COLOURS[job])
        all_seconds += seconds
        if at <= counts[-1]:
            at = max(1.0, at)
            axes.plot(at, predict(costs, work, round(at)), "D", color=COLOURS[job])
    axes.plot([], [], "--", lw=0.8, color=INK, label="ideal: decoding alone")
    axes.set(xscale="log", yscale="log", xlabel=found["workers"], ylabel="time")
    axes.set_title(f"Model, not measured: the paper's network\n({found['basis']})")
    axes.set_xticks(PROJECTED, [str(n) for n in PROJECTED])
    axes.set_ylim(min(all_seconds) / 3, 100 * max(all_seconds))
    shown = {k: t for k, t in TICKS.items() if min(all_seconds) / 3 < t < 10 * max(all_seconds)}
    axes.set_yticks(list(shown.values()), list(shown))
    axes.minorticks_off()
