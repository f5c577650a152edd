"""The report's plots as PNG images, one small function each, by matplotlib without pyplot.

A state keeps one colour and marker in every plot: ten colours that people with any colour vision
can tell apart (Paul Tol's "muted" scheme and near-black) and, from the eleventh state on, the
same colours with another marker. Volumes and particles without a state are grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray
from PIL import Image

from scapedist.report.mosaics import png

COLOURS = (
    "#CC6677 #332288 #DDCC77 #117733 #88CCEE #882255 #44AA99 #999933 #AA4499 #1A1A1A"
).split()
GREY = "#BBBBBB"
INK = "#333333"
DEPTH = 8
"""Range of -ln(density) that is shown, from the densest place on."""
FEW_POINTS = 5  # states of at most this many are drawn large
_MARKERS = ("o", "s", "D", "^")


def colour_of(state: int) -> str:
    """Give a state's colour, grey for -1."""
    return COLOURS[state % len(COLOURS)] if state >= 0 else GREY


def marker_number(state: int) -> int:
    """Give the marker of a state: 0 circle, 1 square, 2 diamond, 3 triangle."""
    return max(state, 0) // len(COLOURS) % len(_MARKERS)


def to_png(figure: Figure) -> bytes:
    """Draw a figure as a PNG file's bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return png(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))


def component_name(component: int, variance_ratio: NDArray) -> str:
    """Name a component (0-based here, 1-based for people) with its share of the variance."""
    return f"component {component + 1} ({percent(variance_ratio[component])})"


def percent(ratio: float) -> str:
    """Write 0.4731 as 47.3 %, and shares below 0.1 % as such."""
    return f"{100 * ratio:.1f} %" if ratio >= 0.001 or ratio == 0 else "< 0.1 %"


def _axes(figure: Figure, rect: tuple, x_label: str, y_label: str) -> Axes:
    """Add axes with few ticks: a tick costs a millisecond."""
    ax = figure.add_axes(rect)
    ax.set_xlabel(x_label, fontsize=9, color=INK)
    ax.set_ylabel(y_label, fontsize=9, color=INK)
    ax.tick_params(labelsize=8, colors=INK)
    ax.locator_params(nbins=4)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def scree(variance_ratio: NDArray) -> Figure:
    """Plot the share of the variance that each of up to 20 components explains, and their sum.

    Parameters
    ----------
    variance_ratio
        (r,) shares, 0 to 1.
    """
    shares = 100 * np.asarray(variance_ratio[:20], float)
    numbers = np.arange(1, len(shares) + 1)
    figure = Figure(figsize=(7, 3.6))
    ax = _axes(figure, (0.09, 0.15, 0.88, 0.8), "component", "variance explained (%)")
    ax.bar(numbers, shares, color="#4477AA", label="each")
    ax.plot(numbers, np.cumsum(shares), "o-", color=INK, ms=4, lw=1.2, label="together")
    ax.set(xticks=[1, *numbers[4::5]], ylim=(0, 104), xlim=(0.3, len(shares) + 0.7))
    ax.legend(frameon=False, fontsize=8, loc="center right")
    return figure


def _points(ax: Axes, x: NDArray, y: NDArray, labels: NDArray, n_states: int, size: float) -> None:
    """Draw points by state: large states first, the few points of small states large, on top."""
    counts = np.bincount(labels + 1, minlength=n_states + 1)
    for index in np.argsort(-counts[1:], kind="stable") if n_states else []:
        state = int(index)
        at, few = labels == state, counts[state + 1] <= FEW_POINTS
        ax.plot(
            x[at],
            y[at],
            _MARKERS[marker_number(state)],
            color=colour_of(state),
            ms=size + 3 if few else size,
            mec=INK if few else "none",
            mew=0.7,
            alpha=1.0 if few else 0.75,
            zorder=3 if few else 2,
        )
    ax.plot(x[labels < 0], y[labels < 0], "o", color=GREY, ms=size, mec="none", zorder=1)


def _state_legend(figure: Figure, labels: NDArray, n_states: int) -> None:
    """Name the states' colours on the right-hand side of a figure, in 0.9 inches of width."""
    shown = [*range(n_states), *([-1] if (labels < 0).any() else [])]
    width, height = figure.get_size_inches()
    n_rows = min(len(shown), int(height / 0.2) - 1)
    ax = figure.add_axes((1 - 0.9 / width, 0, 0.9 / width, 1))
    ax.axis("off")
    n_columns = -(-len(shown) // n_rows)
    for column in range(n_columns):
        states = shown[column * n_rows : (column + 1) * n_rows]
        x = 0.1 + 0.8 * column / n_columns
        for row, state in enumerate(states):
            y = height / 2 + 0.2 * (n_rows / 2 - row - 0.5)
            ax.plot(x, y, _MARKERS[marker_number(state)], color=colour_of(state), ms=6)
            name = f"{state}" if state >= 0 else "none"
            ax.text(x + 0.1, y, name, fontsize=8, color=INK, va="center_baseline")
    ax.set(xlim=(0, 0.9), ylim=(0, height))
    ax.text(0.05, height / 2 + 0.1 * n_rows + 0.12, "state", fontsize=8, color=INK)


def coordinates(values: NDArray, labels: NDArray, n_states: int, variance_ratio: NDArray) -> Figure:
    """Plot the sketch on components 1-2, 2-3, ... (up to the fifth), coloured by state.

    Parameters
    ----------
    values
        (n, r) coordinates of the sketch's volumes.
    labels
        (n,) states, -1 for none.
    n_states
        Number of states.
    variance_ratio
        (r,) shares of the variance, for the axes' names.
    """
    n_pairs = max(min(values.shape[1], 5) - 1, 1)
    n_columns = min(n_pairs, 2)
    n_rows = -(-n_pairs // n_columns)
    figure = Figure(figsize=(4.6 * n_columns + 0.8, 3.9 * n_rows))
    width = (1 - 0.8 / figure.get_figwidth()) / n_columns
    for pair in range(n_pairs):
        row, column = divmod(pair, n_columns)
        i, j = pair, min(pair + 1, values.shape[1] - 1)
        rect = (width * (column + 0.17), 1 - (row + 0.86) / n_rows, width * 0.8, 0.82 / n_rows)
        names = [component_name(k, variance_ratio) for k in (i, j)]
        ax = _axes(figure, rect, *names)
        _points(ax, values[:, i], values[:, j], labels, n_states, 4)
    _state_legend(figure, labels, n_states)
    return figure


def latent_space(points: NDArray, labels: NDArray, n_states: int, names: Sequence[str]) -> Figure:
    """Plot particles in two latent dimensions, coloured by the state of their sketch volume.

    Parameters
    ----------
    points
        (n, 2) positions.
    labels
        (n,) states, -1 for none.
    n_states
        Number of states.
    names
        Names of the two dimensions.
    """
    figure = Figure(figsize=(7.6, 5.4))
    ax = _axes(figure, (0.09, 0.1, 0.77, 0.87), names[0], names[1])
    _points(ax, points[:, 0], points[:, 1], labels, n_states, 2.5)
    _state_legend(figure, labels, n_states)
    return figure


def state_sizes(n_volumes: NDArray, n_particles: NDArray) -> Figure:
    """Plot each state's share of the volumes (pale) and of the particles, with both numbers.

    Parameters
    ----------
    n_volumes, n_particles
        (M,) counts.
    """
    n_states = len(n_volumes)
    height = 0.9 + 0.3 * n_states
    figure = Figure(figsize=(8, height))
    rect = (0.3, 0.45 / height, 0.67, 1 - 0.75 / height)
    ax = _axes(figure, rect, "share of all with a state (%)", "")
    at = np.arange(n_states)
    colours = [colour_of(state) for state in range(n_states)]
    for counts, shift, alpha in [(n_volumes, -0.2, 0.45), (n_particles, 0.2, 1.0)]:
        share = 100 * counts / max(counts.sum(), 1)
        ax.barh(at + shift, share, 0.36, color=colours, alpha=alpha)
    names = [
        f"{state}:  {n_volumes[state]:,} vol.  {n_particles[state]:,} part."
        for state in range(n_states)
    ]
    ax.set(ylim=(n_states - 0.4, -0.6), title="pale: volumes; full colour: particles")
    ax.title.set(fontsize=9, color=INK)
    ax.set_yticks(at, names)
    return figure


def sketch_quality(group: NDArray, within: NDArray, between: NDArray) -> Figure:
    """Plot how far particles' volumes are from their sketch volume, against any two sketch volumes.

    Parameters
    ----------
    group
        (q,) the sketch volume of each particle that was decoded for the check.
    within
        (q,) rms distance in the mask between that particle's volume and the sketch volume.
    between
        (n_pairs,) the same distance between random pairs of sketch volumes.
    """
    figure = Figure(figsize=(9.4, 3.6))
    ax = _axes(figure, (0.07, 0.15, 0.4, 0.79), "rms distance in the mask", "share (%)")
    edges = np.linspace(0, max(within.max(initial=0), between.max(initial=0), 1e-30), 31).tolist()
    for values, colour, name in [
        (between, GREY, "between sketch volumes"),
        (within, "#4477AA", "particle to its sketch volume"),
    ]:
        weights = np.full(len(values), 100 / max(len(values), 1))
        ax.hist(values, edges, weights=weights, color=colour, alpha=0.8, label=name)
    ax.set_xlim(0, edges[-1])
    ax.legend(frameon=False, fontsize=8)

    ax = _axes(
        figure, (0.56, 0.15, 0.42, 0.79), "groups, by their median", "rms distance in the mask"
    )
    groups = np.unique(group)
    medians = np.array([np.median(within[group == g]) for g in groups])
    rank = np.empty(len(groups), int)
    rank[np.argsort(medians, kind="stable")] = np.arange(len(groups))
    ax.plot(rank[np.searchsorted(groups, group)], within, "o", ms=3.5, color="#4477AA", alpha=0.6)
    ax.plot(rank, medians, "_", ms=9, color=INK, label="median of the group")
    top = max(within.max(initial=0), float(np.median(between)), 1e-30)
    ax.axhline(np.median(between), color=GREY, ls="--", label="median between sketch volumes")
    ax.set(ylim=(0, 1.3 * top), xticks=[])
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def landscape_maps(drawn: Mapping[str, Any], names: Sequence[str], n_states: int) -> Figure:
    """Plot all particles on two components: how many, and each layer's value in every bin.

    Parameters
    ----------
    drawn
        ``x``, ``y`` (first bin's centre, width) and ``layers``, as
        :func:`scapedist.report.all_particles.landscape_maps` gives them.
    names
        Names of the two components.
    n_states
        Number of states.
    """
    layers = drawn["layers"]
    n_bins = len(layers["particles"])
    n_rows = -(-len(layers) // 2)
    figure = Figure(figsize=(9.6, 4.1 * n_rows))
    (x, dx), (y, dy) = drawn["x"], drawn["y"]
    extent = (x - dx / 2, x + (n_bins - 0.5) * dx, y - dy / 2, y + (n_bins - 0.5) * dy)
    for number, (name, grid) in enumerate(layers.items()):
        row, column = divmod(number, 2)
        rect = (0.07 + 0.5 * column, 1 - (row + 0.87) / n_rows, 0.34, 0.77 / n_rows)
        ax = _axes(figure, rect, *names)
        colours: Any = "viridis"
        limits: dict[str, Any] = {}
        if name == "particles":
            limits["norm"] = LogNorm(1, max(float(np.nanmax(grid)), 2))
        elif name == "state":
            colours = ListedColormap([colour_of(state) for state in range(n_states)])
            limits |= {"vmin": -0.5, "vmax": n_states - 0.5}
        else:  # a few outliers would leave the rest dark
            limits |= {"vmin": 0, "vmax": max(float(np.nanquantile(grid, 0.99)), 1e-30)}
        shown = ax.imshow(
            grid, cmap=colours, origin="lower", extent=extent, aspect="auto",
            interpolation="nearest", **limits,
        )  # fmt: skip
        ax.set_title(name, fontsize=9, color=INK)
        bar = figure.colorbar(shown, cax=figure.add_axes((rect[0] + 0.35, rect[1], 0.012, rect[3])))
        bar.ax.tick_params(labelsize=8, colors=INK)
        if name == "state":
            bar.set_ticks(np.linspace(0, n_states - 1, min(n_states, 10)).round().tolist())
    return figure


def densities(
    edges: NDArray, pairs: NDArray, density: NDArray, shares: NDArray, centers: NDArray
) -> Figure:
    """Plot how thinly all particles lie on pairs of axes: -ln(density), 0 at the densest place.

    Parameters
    ----------
    edges : (k, g + 1)
        Edges of the grid's cells along each axis.
    pairs : (m, 2)
        Axes of each density.
    density : (m, g, g)
        Density along the first axis, then the second.
    shares : (k,)
        Share of the variance along each axis.
    centers : (groups, k)
        Centers of the groups, which are marked and numbered.
    """
    figure = Figure(figsize=(3.5 * len(pairs) + 0.9, 3.5))
    width = 1 / (len(pairs) + 0.25)
    levels = np.arange(0, DEPTH + 0.5)
    for number, ((i, j), grid) in enumerate(zip(pairs.tolist(), density, strict=True)):
        rect = ((number + 0.17) * width, 0.15, 0.78 * width, 0.8)
        names = [f"axis {k + 1} ({percent(shares[k])})" for k in (i, j)]
        ax = _axes(figure, rect, *names)
        x, y = ((edges[k, 1:] + edges[k, :-1]) / 2 for k in (i, j))
        peak = max(float(grid.max()), 1e-300)
        energy = -np.log(np.maximum(grid.T / peak, np.exp(-DEPTH - 1)))
        shown = ax.contourf(x, y, energy, levels, cmap="viridis_r")
        ax.contour(x, y, energy, levels, colors="white", linewidths=0.3)
        ax.plot(centers[:, i], centers[:, j], "o", ms=4, mfc="white", mec=INK)
        for group, place in enumerate(centers):
            ax.annotate(
                str(group), place[[i, j]], (4, 3), textcoords="offset points", fontsize=8,
                color=INK,
            )  # fmt: skip
        ax.set(xlim=(edges[i, 0], edges[i, -1]), ylim=(edges[j, 0], edges[j, -1]))
    bar = figure.colorbar(shown, cax=figure.add_axes((1 - 0.16 * width, 0.15, 0.03 * width, 0.8)))
    bar.set_label("-ln(density / largest)", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK)
    return figure


def crosscheck(r2: Mapping[str, NDArray], errors: Mapping[str, NDArray], where: NDArray) -> Figure:
    """Plot what each method leaves unexplained, how errors are spread, and where they lie.

    Parameters
    ----------
    r2
        R^2 of each component (r,), by method.
    errors
        Errors (m,) relative to the total standard deviation, by method.
    where
        (m, k) exact coordinates on the first components, one or two.
    """
    width = 9.4 + 3.3 * (len(errors) - 1)
    figure = Figure(figsize=(width, 3.4))
    palette = {name: colour_of(number) for number, name in enumerate(errors)}
    unit = 3.3 / width
    ax = _axes(figure, (0.7 / width, 0.16, 2.2 / width, 0.76), "component", "1 - R²")
    for name, values in r2.items():
        shown = np.maximum(1 - values[:20], 1e-9)
        ax.semilogy(
            np.arange(1, len(shown) + 1), shown, "o-", ms=3, color=palette[name], label=name
        )
    ax.legend(frameon=False, fontsize=8)
    start = (0.7 + 2.9) / width
    ax = _axes(figure, (start, 0.16, 2.2 / width, 0.76), "relative error", "share below (%)")
    for name, values in errors.items():
        ordered = np.sort(np.maximum(values, 1e-9))
        share = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
        ax.semilogx(ordered, share, color=palette[name], label=name)
    ax.set_ylim(0, 101)
    low, high = np.log10(np.maximum(ax.get_xlim(), 1e-12))
    ax.set_xlim(10 ** np.floor(low), 10 ** np.ceil(high))  # else labels crowd within a decade
    ax.xaxis.set_minor_formatter(NullFormatter())
    if where.shape[1] == 1:
        where = np.repeat(where, 2, axis=1)
    for number, (name, values) in enumerate(errors.items()):
        rect = (start + 2.9 / width + unit * number, 0.16, 2.1 / width, 0.76)
        ax = _axes(figure, rect, "component 1", "component 2")
        order = np.argsort(values)
        shown_values = np.log10(np.maximum(values[order], 1e-9))
        points = ax.scatter(
            where[order, 0], where[order, 1], c=shown_values, s=6, cmap="viridis", lw=0
        )
        ax.set_title(f"{name}: log10 of the error", fontsize=9, color=INK)
        bar = figure.colorbar(points, cax=figure.add_axes((rect[0] + rect[2] + 0.05 / width,
                                                           0.16, 0.1 / width, 0.76)))  # fmt: skip
        bar.ax.tick_params(labelsize=8, colors=INK)
    return figure
