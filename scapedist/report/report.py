"""The report of a run: one HTML page that opens offline, and its plots as PNG."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs

from scapedist.files.aside import written_aside
from scapedist.report import gallery, plots
from scapedist.report.all_particles import population
from scapedist.report.digest import Digest, principal_axes, read_digest, sample_of_states
from scapedist.report.gallery import Plots, show
from scapedist.report.page import Html, array, details, join, page, plot, section, table, tag
from scapedist.report.plots import component_name, percent

Umap = Callable[[NDArray, int], NDArray]

if TYPE_CHECKING:
    import zarr

MAX_POINTS = 5_000  # most in an interactive plot: more make a browser slow
MAX_UMAP_PARTICLES = 20_000
LEAST_POINTS_OF_A_STATE = 30  # a rare state is seen however small the sample
MAX_AXES = 10  # components that an interactive plot offers
_SYMBOLS = ("circle", "square", "diamond", "triangle-up")
_NOT_ALWAYS_PLOTTED = (
    "states_differences.png",
    "traversal_projections.png",
    "traversal_slices.png",
    "latent_umap.png",
    "sketch_quality.png",
    "all_particles.png",
    "density.png",
    "crosscheck.png",
)


def write_report(
    group: zarr.Group, directory: Path, umap: Umap | None = None, seed: int = 0
) -> Path:
    """Write ``report.html`` and ``plots/*.png`` of a run.

    Nothing larger than the latents, or one volume, is in memory at once.

    Parameters
    ----------
    group
        The run's open Zarr group, with everything up to the states.
    directory
        Directory of the report, which is the run's.
    umap
        Function that maps points (n, k) to a plane by a seed, :func:`scapedist.backend.umap` here
        or on a GPU; None where UMAP of the latents (at most 20,000 particles) is not wanted.
    seed
        Seed of which points are shown where there are too many, and of UMAP's start.

    Returns
    -------
    Path
        Path of the page.

    Raises
    ------
    RunError
        Where the run lacks a stage that the report needs.
    InputError
        Where UMAP is wanted and not installed.
    ResourceError
        Where a file cannot be written.
    """
    directory = Path(directory)
    digest = read_digest(group)
    drawn: Plots = {}
    sections = {
        "States": _states(digest, drawn),
        "Landscape": _landscape(digest, drawn, seed),
        "All particles": population(digest, drawn),
        "Components": _components(digest, drawn),
        "State maps": gallery.state_maps(digest, drawn),
        "Traversals": gallery.traversals(digest, drawn),
        "Latent space": _latent_space(digest, drawn, umap, seed),
        "Mask": gallery.mask(digest, drawn),
        "Sketch quality": _sketch_quality(digest, drawn),
        "Record": _record(digest),
    }
    for name, png in drawn.items():
        with written_aside(directory / "plots" / name) as partial:
            partial.write_bytes(png)
    for name in set(_NOT_ALWAYS_PLOTTED) - set(drawn):
        (directory / "plots" / name).unlink(missing_ok=True)  # an earlier report's
    title = f"Conformational landscape of {digest.name}"
    content = page(title, _summary(digest, title), sections, get_plotlyjs())
    with written_aside(directory / "report.html") as partial:
        partial.write_text(content, encoding="utf-8")
    return directory / "report.html"


def _summary(digest: Digest, title: str) -> Html:
    source = digest.source
    box = digest.mask.shape[0]
    pixel = digest.pixel_size_angstroms
    shares = digest.variance_ratio[:3]
    tiles = [
        ("particles", f"{len(digest.assignment):,}"),
        ("sketch volumes", f"{len(digest.particle):,}"),
        ("states", f"{digest.n_states:,}"),
        ("box", f"{box}³ voxels"),
        ("pixel size", f"{pixel:.4g} Å" if pixel else "unknown"),
        ("in the mask", f"{digest.inside.n_voxels:,} voxels"),
        (f"of variance in {len(shares)} components", percent(shares.sum())),
    ]
    n_none = int(np.count_nonzero(digest.label < 0))
    where = f"{source.get('workdir', 'unknown')}, epoch {source.get('epoch', 'unknown')}"
    return join(
        [
            tag("h1", title),
            tag("p", where),
            tag(
                "div", *(tag("div", tag("b", v), tag("span", k)) for k, v in tiles), class_="tiles"
            ),
            tag(
                "p",
                f"{n_none:,} of the sketch volumes were excluded. They belong to no state; "
                "where they are shown, they are grey.",
            )
            if n_none
            else "",
        ]
    )


def _swatch(state: int) -> Html:
    shape = (
        "border-radius:50%",
        "",
        "transform:rotate(45deg) scale(.8)",
        "clip-path:polygon(50% 0,100% 100%,0 100%)",
    )[plots.marker_number(state)]
    style = f"background:{plots.colour_of(state)};{shape}"
    return tag("span", class_="swatch", style=style)


def _states(digest: Digest, drawn: Plots) -> Html:
    drawn["states_sizes.png"] = plots.to_png(
        plots.state_sizes(digest.n_volumes, digest.n_particles)
    )
    total = len(digest.assignment)
    pictures = gallery.thumbnails(digest)
    rows = []
    for state in range(digest.n_states):
        medoid = int(digest.medoid[state])
        rows.append(
            [
                tag("span", _swatch(state), state),
                f"{digest.n_volumes[state]:,}",
                f"{digest.n_particles[state]:,}",
                _share(digest.n_particles[state] / max(total, 1), plots.colour_of(state)),
                f"volume {medoid} (particle {digest.particle[medoid]})",
                pictures[state],
            ]
        )
    n_none = total - int(digest.n_particles.sum())
    if n_none or (digest.label < 0).any():
        n_volumes = int(np.count_nonzero(digest.label < 0))
        share = _share(n_none / max(total, 1), plots.GREY)
        rows.append(
            [tag("span", _swatch(-1), "none"), f"{n_volumes:,}", f"{n_none:,}", share, "", ""]
        )
    headers = ["state", "volumes", "particles", "of all particles", "medoid", "mean, along z"]
    return section(
        "states",
        "States",
        tag(
            "p",
            "A state is a group of sketch volumes that are alike within the mask; a particle "
            "belongs to the state of the sketch volume that stands for it. The medoid is the real "
            "volume that is nearest to all others of its state.",
        ),
        table(headers, rows, "states"),
    )


def _share(ratio: float, colour: str) -> Html:
    filled = tag("i", style=f"width:{100 * ratio:.2f}%;background:{colour}")
    return tag("span", tag("span", filled, class_="share"), percent(ratio))


def _scatter(
    name: str,
    axes: list[str],
    columns: NDArray,
    labels: NDArray,
    hover: NDArray,
    template: str,
    size: float,
    n_states: int,
) -> Html:
    """Make an interactive scatter, one trace per state; ``columns`` (n, axes), ``hover`` (n, k)."""
    counts = np.bincount(labels + 1, minlength=n_states + 1)
    data = []
    for state in [-1, *np.argsort(-counts[1:], kind="stable").tolist()]:
        if not counts[state + 1]:
            continue
        at = labels == state
        few = counts[state + 1] <= plots.FEW_POINTS
        data.append(
            {
                "name": f"state {state}" if state >= 0 else "none",
                "legendrank": state + 1 if state >= 0 else n_states + 1,
                "columns": [array(columns[at, k]) for k in range(len(axes))],
                "customdata": array(hover[at]),
                "hovertemplate": template + "<extra>%{fullData.name}</extra>",
                "marker": {
                    "color": plots.colour_of(state),
                    "symbol": _SYMBOLS[plots.marker_number(state)],
                    "size": size + 5 if few else size,
                    "opacity": 1 if few else 0.75,
                    "line": {"width": 1 if few else 0, "color": plots.INK},
                },
            }
        )
    return plot(name, {"axes": axes, "data": data, "layout": {}}, height=540)


def _landscape(digest: Digest, drawn: Plots, seed: int) -> Html:
    n_axes = min(digest.coordinates.shape[1], MAX_AXES)
    axes = [component_name(k, digest.variance_ratio) for k in range(n_axes)]
    shown = sample_of_states(digest.label, MAX_POINTS, LEAST_POINTS_OF_A_STATE, seed)
    coordinates, labels = digest.coordinates[shown, :n_axes], digest.label[shown]
    drawn["coordinates.png"] = plots.to_png(
        plots.coordinates(coordinates, labels, digest.n_states, digest.variance_ratio)
    )
    if n_axes == 1:
        axes, coordinates = axes * 2, coordinates[:, [0, 0]]
    hover = np.stack([shown, digest.particle[shown], digest.occupancy[shown]], axis=1)
    template = (
        "volume %{customdata[0]}<br>particle %{customdata[1]}"
        "<br>stands for %{customdata[2]} particles"
    )
    return section(
        "landscape",
        "Landscape",
        tag(
            "p",
            f"Each point is a sketch volume{_of(len(shown), len(digest.label))}, at its "
            "coordinates on two principal components of the masked voxels; volumes that differ "
            "little lie close together. Point at one to see which it is; click a state's name to "
            f"hide it. States of up to {plots.FEW_POINTS} volumes are drawn large.",
        ),
        _scatter("sketch", axes, coordinates, labels, hover, template, 7, digest.n_states),
    )


def _of(n_shown: int, n_all: int) -> str:
    return "" if n_shown == n_all else f" ({n_shown:,} of {n_all:,} are shown)"


def _components(digest: Digest, drawn: Plots) -> Html:
    drawn["scree.png"] = plots.to_png(plots.scree(digest.variance_ratio))
    shares = 100 * digest.variance_ratio[:20]
    numbers = np.arange(1, len(shares) + 1)
    hover = "component %{x}: %{y:.2f} %<extra></extra>"
    data = [
        {
            "type": "bar",
            "name": "each",
            "x": array(numbers),
            "y": array(shares),
            "marker": {"color": "#4477AA"},
            "hovertemplate": hover,
        },
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "together",
            "x": array(numbers),
            "y": array(np.cumsum(shares)),
            "line": {"color": plots.INK, "width": 1.5},
            "hovertemplate": hover.replace("component", "up to component"),
        },
    ]
    layout = {
        "xaxis": {
            "title": {"text": "component"},
            "tick0": 1,
            "dtick": 1 if len(shares) <= 10 else 2,
            "range": [0.4, len(shares) + 0.6],
        },
        "yaxis": {"title": {"text": "variance explained (%)"}, "range": [0, 104]},
        "legend": {"x": 0.98, "xanchor": "right", "y": 0.5},
    }
    reached = np.cumsum(digest.variance_ratio)
    enough = int(np.searchsorted(reached, 0.9)) + 1
    return section(
        "components",
        "Components",
        tag(
            "p",
            f"How much of the variance among the sketch volumes each component explains. The "
            f"first explains {percent(digest.variance_ratio[0])}; "
            + (
                f"{enough} of them together reach 90 %."
                if enough <= len(reached)
                else f"all {len(reached)} together {percent(reached[-1])}."
            ),
        ),
        plot("scree", {"data": data, "layout": layout}, height=320),
    )


def _latent_space(digest: Digest, drawn: Plots, umap: Umap | None, seed: int) -> Html:
    latents = digest.array("latents")[...]
    labels = digest.particle_label
    mean, directions, share = principal_axes(latents)
    n_axes = min(latents.shape[1], MAX_AXES)
    axes = [f"latent PC {k + 1} ({percent(share[k])})" for k in range(n_axes)]
    shown = sample_of_states(labels, MAX_POINTS, LEAST_POINTS_OF_A_STATE, seed)
    points = (latents[shown] - mean) @ directions[:, :n_axes]
    if n_axes == 1:
        axes, points = axes * 2, points[:, [0, 0]]
    parts: list[object] = [
        tag(
            "p",
            f"Particles{_of(len(shown), len(labels))} in the latent space of the model, by "
            "principal components of the latents, in the colour of the state that their sketch "
            "volume belongs to. Neighbours here need not have alike volumes: that is what the "
            "landscape above is for.",
        ),
        _particles(digest, "latent-pca", axes, points, shown),
    ]
    drawn["latent_pca.png"] = plots.to_png(
        plots.latent_space(points[:, :2], labels[shown], digest.n_states, axes[:2])
    )
    if umap is not None:
        fitted = sample_of_states(labels, MAX_UMAP_PARTICLES, LEAST_POINTS_OF_A_STATE, seed)
        points = umap(latents[fitted], seed)
        some = sample_of_states(labels[fitted], MAX_POINTS, LEAST_POINTS_OF_A_STATE, seed)
        axes = ["UMAP 1", "UMAP 2"]
        parts += [
            tag(
                "p",
                f"The same by UMAP of the latents, fitted on {len(fitted):,} particles. Distances "
                "between groups mean little here.",
            ),
            _particles(digest, "latent-umap", axes, points[some], fitted[some]),
        ]
        drawn["latent_umap.png"] = plots.to_png(
            plots.latent_space(points[some], labels[fitted[some]], digest.n_states, axes)
        )
    return section("latent-space", "Latent space", *parts)


def _particles(digest: Digest, name: str, axes: list[str], points: NDArray, rows: NDArray) -> Html:
    hover = np.stack([rows, digest.assignment[rows]], axis=1)
    template = "particle %{customdata[0]}<br>sketch volume %{customdata[1]}"
    labels = digest.particle_label[rows]
    return _scatter(name, axes, points, labels, hover, template, 4, digest.n_states)


def _sketch_quality(digest: Digest, drawn: Plots) -> Html:
    names = ("group", "distance", "between")
    arrays = [digest.array(f"sketch/quality/{name}") for name in names]
    if any(values is None or not values.size for values in arrays):
        missing = "This run holds no check of the sketch's quality."
        return section("sketch-quality", "Sketch quality", tag("p", missing, class_="note"))
    group, within, between = (values[...] for values in arrays)
    figure = plots.sketch_quality(group, within, between)
    ratio = np.median(within) / max(np.median(between), 1e-30)
    return section(
        "sketch-quality",
        "Sketch quality",
        tag(
            "p",
            f"{len(within):,} more particles of {len(np.unique(group)):,} groups were decoded "
            "and compared with the sketch volume that stands for them. Their median rms distance "
            f"in the mask is {np.median(within):.3g}, that between any two sketch volumes "
            f"{np.median(between):.3g}: {percent(ratio)} of it. Where the two come near each "
            "other, a larger sketch would show more.",
        ),
        show(drawn, "sketch_quality.png", plots.to_png(figure), "distances within and between"),
    )


def _record(digest: Digest) -> Html:
    records = digest.stages | digest.beside
    timings = [
        [name, _seconds(stage.get("seconds")), str(stage.get("finished", "")).replace("T", " ", 1)]
        for name, stage in records.items()
        if "seconds" in stage
    ]
    total = sum(stage.get("seconds", 0) for stage in records.values())
    timings.append(["all", _seconds(total), ""])
    return section(
        "record",
        "Record",
        tag("p", "What was computed from what, with which settings and versions."),
        table(["stage", "time", "finished"], timings),
        details("source", table([], _flat(digest.source), "record")),
        *(
            details(name, table([], _flat(_ordered(stage)), "record"))
            for name, stage in records.items()
        ),
    )


def _ordered(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Order the keys of a record by how often people look for them."""
    first = [key for key in ("settings", "results", "versions") if key in stage]
    rest = [key for key in stage if key not in (*first, "seconds", "finished")]
    return {key: stage[key] for key in first + rest}


def _seconds(value: Any) -> str:
    return f"{value:.2f} s" if isinstance(value, int | float) else ""


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """List nested values as (dotted name, words)."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _words(value)))
    return rows


def _words(value: Any) -> str:
    if value is None or value in ([], {}, ""):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return " ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_words(item) for item in value)
    return str(value)
