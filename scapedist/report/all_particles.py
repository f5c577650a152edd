"""The report's section on all particles: where they lie, and in which state with what margin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scapedist.report import images, mosaics, plots
from scapedist.report.digest import Digest
from scapedist.report.gallery import Plots, show
from scapedist.report.in_words import comparison
from scapedist.report.page import Html, array, details, image, plot, section, table, tag
from scapedist.report.plots import component_name, percent
from scapedist.store import embeddings

MAX_AXES = 6
BINS = 72
KEPT = (0.0005, 0.9995)
"""Quantiles of each component between which the maps lie; outliers would empty them."""
MAX_GROUPS = 8
_WORDS = {
    "exact": "decoding each",
    "reduced": "evaluating each one's field at a few points",
    "mlp": "guessing each from its latent by the paper's MLP",
}


def population(digest: Digest, drawn: Plots) -> Html:
    """Show all particles on the components, their states, what was missed, and the cross-check."""
    beside = digest.beside
    method = next(iter(embeddings(beside)), None)
    if method is None or "particles" not in beside:
        missing = "This run has no embedding of all particles (`scapedist embed` makes one)."
        return section("all-particles", "All particles", tag("p", missing, class_="note"))
    coordinates = digest.array(f"embedding/{method}/coordinates")
    n_axes = min(coordinates.shape[1], MAX_AXES)
    points: NDArray = np.asarray(coordinates[:, :n_axes])
    layers = _layers(digest, method)
    maps = landscape_maps(points, layers, digest.n_states)
    parts: list[object] = [tag("p", _introduction(digest, method, len(points)))]
    if n_axes > 1:
        parts.append(_interactive(digest, maps, layers, n_axes))
        names = [component_name(k, digest.variance_ratio) for k in (0, 1)]
        drawn["all_particles.png"] = plots.to_png(
            plots.landscape_maps(maps[0, 1], names, digest.n_states)
        )
    parts += [
        *_states(digest, beside["particles"]["results"]),
        *_missed(digest),
        *_axes(digest),
    ]
    if "population" in beside:
        parts += _together(digest, beside["population"]["results"], drawn)
    if "crosscheck" in beside:
        parts += _crosscheck(digest, beside["crosscheck"]["results"], drawn)
    return section("all-particles", "All particles", *parts)


def _introduction(digest: Digest, method: str, n: int) -> str:
    results = digest.beside[f"embedding/{method}"]["results"]
    how = _WORDS.get(method, "decoding the frequencies of a smaller box for each")
    words = f"All {n:,} particles, embedded by {how}"
    if method == "reduced":
        words += (
            f" ({results['points']:,} points, learnt from {results['training_volumes']:,} volumes;"
            f" {results['decoded_exactly']:,} particles that this was unsure of were decoded)"
        )
    words += f", on {results['components']} components."
    if "relative_error" in results:
        words += (
            " The error of their coordinates, relative to the spread of the landscape, is "
            f"{results['relative_error']:.1e} on particles held out"
        )
        check = digest.beside.get("crosscheck", {}).get("results", {})
        if method in check.get("methods", {}):
            words += (
                f", and {check['methods'][method]['relative_error']:.1e} on {check['sample']:,} "
                "others decoded to check it"
            )
        words += "."
        if results.get("reached") is False:
            words += f" The tolerance {results['tolerance']:.1e} was not reached."
    return words


# -- maps


def _layers(digest: Digest, method: str) -> dict[str, NDArray]:
    """The values (n_particles,), by name, whose mean a bin of the map can show."""
    layers: dict[str, NDArray] = {"state": digest.array("particles/state")[...]}
    layers["margin of the state"] = digest.array("particles/margin")[...]
    residual = digest.array(f"embedding/{method}/residual")[...]
    layers["missed by the components (rms)"] = np.sqrt(
        np.maximum(residual, 0).astype(np.float64) / max(digest.inside.n_voxels, 1)
    )
    error = digest.array(f"embedding/{method}/error")
    if error is not None:
        layers["expected error (norm)"] = error[...]
    return layers


def landscape_maps(
    points: NDArray, layers: Mapping[str, NDArray], n_states: int
) -> dict[tuple[int, int], dict[str, Any]]:
    """Binned maps of all particles over each pair of components.

    Parameters
    ----------
    points : (n, k) float
    layers
        Values (n,) by name; a bin has the most frequent value of ``state``, the mean of others.
    n_states

    Returns
    -------
    dict
        (i, j), i < j -> ``x`` and ``y`` (first bin's centre, width), ``layers``: name ->
        (BINS, BINS) float32, rows along j, NaN where there is no particle; ``particles`` first.
    """
    low, high = np.quantile(points, KEPT, axis=0)
    margin = 0.05 * np.maximum(high - low, 1e-9)
    low, width = low - margin, (high - low + 2 * margin) / BINS
    bins = np.floor((points - low) / width).astype(np.int64)
    inside = (bins >= 0) & (bins < BINS)
    maps = {}
    for j in range(points.shape[1]):
        for i in range(j):
            kept = inside[:, i] & inside[:, j]
            cell = bins[kept, j] * BINS + bins[kept, i]
            counts = np.bincount(cell, minlength=BINS**2)
            grids = {"particles": np.where(counts, counts, np.nan)}
            for name, values in layers.items():
                grids[name] = _binned(cell, values[kept], counts, n_states, name == "state")
            maps[i, j] = {
                "x": (float(low[i] + width[i] / 2), float(width[i])),
                "y": (float(low[j] + width[j] / 2), float(width[j])),
                "layers": {k: g.reshape(BINS, BINS).astype(np.float32) for k, g in grids.items()},
            }
    return maps


def _binned(
    cell: NDArray, values: NDArray, counts: NDArray, n_states: int, is_state: bool
) -> NDArray:
    if is_state:
        votes = np.bincount(cell * n_states + values, minlength=BINS**2 * n_states)
        return np.where(counts, votes.reshape(-1, n_states).argmax(1), np.nan)
    with np.errstate(invalid="ignore"):
        return np.bincount(cell, values, BINS**2) / np.where(counts, counts, np.nan)


def _interactive(
    digest: Digest,
    maps: Mapping[tuple[int, int], Mapping[str, Any]],
    layers: Mapping[str, NDArray],
    n_axes: int,
) -> Html:
    """Show the maps with a choice of two components and of the layer."""
    styles = []
    most = max(float(np.nanmax(m["layers"]["particles"])) for m in maps.values())
    decades = np.arange(int(np.log10(max(most, 1))) + 1)
    for name in ("particles", *layers):
        style: dict[str, Any] = {"colorscale": "Viridis"}
        if name == "particles":
            bar = {"tickvals": decades.tolist(), "ticktext": [f"{10 ** int(k):,}" for k in decades]}
            style |= {"colorbar": bar, "zmin": 0, "zmax": float(np.log10(max(most, 10)))}
        elif name == "state":
            n = digest.n_states
            steps = [
                [edge, plots.colour_of(state)]
                for state in range(n)
                for edge in (state / n, (state + 1) / n)
            ]
            numbers = list(range(n))
            style = {"colorscale": steps, "zmin": -0.5, "zmax": n - 0.5}
            style["colorbar"] = {"tickvals": numbers, "ticktext": [str(k) for k in numbers]}
        else:  # a few outliers would leave the rest dark
            style["zmin"] = 0
            style["zmax"] = max(
                float(np.nanquantile(m["layers"][name], 0.99)) for m in maps.values()
            )
        styles.append({"name": name, "style": style})
    pairs = {}
    for (i, j), drawn in maps.items():
        grids = dict(drawn["layers"])
        grids["particles"] = np.log10(grids["particles"])
        pairs[f"{i},{j}"] = {
            "x": drawn["x"],
            "y": drawn["y"],
            "grids": [array(grid) for grid in grids.values()],
        }
    axes = [component_name(k, digest.variance_ratio) for k in range(n_axes)]
    return plot("landscape-maps", {"axes": axes, "maps": pairs, "layers": styles}, height=540)


# -- tables


def _states(digest: Digest, results: Mapping[str, Any]) -> list[object]:
    total = max(len(digest.assignment), 1)
    own, group = results["n_particles"], results["n_particles_by_group"]
    rows = [
        [state, f"{own[state]:,}", percent(own[state] / total), f"{group[state]:,}"]
        for state in range(len(own))
    ]
    return [
        tag("h3", "States by own volume"),
        tag(
            "p",
            "Each particle has the state of the sketch volume that its own volume is nearest to. "
            "The paper's rule gives it that of its sketch volume in latent space: "
            f"{results['differ']:,} particles ({percent(results['differ'] / total)}) differ. The "
            f"median margin is {results['median_margin']:.2f} (0 on the border of two states, 1 "
            "for a particle that equals a sketch volume). "
            + _posterior(results, total)
            + "Lists of particles are in states/by_volume.",
        ),
        table(["state", "particles", "of all", "by sketch group"], rows, "numbers"),
    ]


def _posterior(results: Mapping[str, Any], total: int) -> str:
    if "within_posterior" not in results:
        return ""
    n = results["within_posterior"]
    return (
        f"{n:,} particles ({percent(n / total)}) are so near to another state that the posterior "
        "of their latent alone may move them there. "
    )


def _missed(digest: Digest) -> list[object]:
    if "missed" not in digest.beside:
        return []
    results = digest.beside["missed"]["results"]
    parts: list[object] = [tag("h3", "What the sketch missed")]
    if not results["missed"]:
        text = "Every particle's volume is about as near to a sketch volume as most are."
        return [*parts, tag("p", text)]
    sizes, medoids = results["groups"], digest.array("missed/medoid")[...]
    parts.append(
        tag(
            "p",
            f"{results['missed']:,} particles are farther from any sketch volume than "
            f"{results['threshold']:.3g} (the median is {results['median_distance']:.3g}): no "
            "sketch volume represents them. They are grouped by their own volumes, shown along z; ",
            tag("code", "scapedist embed RUN --grow-sketch"),
            " adds representatives of them to the sketch.",
        )
    )
    along_z = np.stack(
        [
            digest.view.projections(digest.array("missed/volume")[group])[0]
            for group in range(min(len(sizes), MAX_GROUPS))
        ]
    )
    pictures = images.grey(along_z, images.grey_limits(along_z))
    shown = [
        image(mosaics.thumbnail(picture, 120), f"missed group {group} along z")
        for group, picture in enumerate(pictures)
    ]
    counts = [f"{n:,} particle" + "s" * (n != 1) for n in sizes[:MAX_GROUPS]]
    parts.append(table([], [shown, counts, [f"medoid {m}" for m in medoids[:MAX_GROUPS]]]))
    if len(sizes) > MAX_GROUPS:
        n = len(sizes) - MAX_GROUPS
        words = f"{n} more group{'s are' if n > 1 else ' is'} in maps/missed."
        parts.append(tag("p", words, class_="note"))
    return parts


def _axes(digest: Digest) -> list[object]:
    """Compare the sketch's components with those of all particles and with the latents' noise."""
    variance, angle = digest.array("axes/variance"), digest.array("axes/angle_degrees")
    if variance is None:
        return []
    n = min(10, len(variance[...]))
    headers = ["component", "sd of all particles' axis", "largest angle up to here"]
    columns = [
        [f"{k + 1}" for k in range(n)],
        [f"{value:.3g}" for value in np.sqrt(variance[:n])],
        [f"{value:.1f}°" for value in angle[:n]],
    ]
    words = (
        "Principal axes of all particles, within the sketch's components, and the largest angle "
        "between the space of the first k components and that of the first k axes. Components "
        "weigh every sketch volume alike, axes every particle."
    )
    reduced = digest.beside.get("embedding/reduced", {}).get("results", {})
    posterior = reduced.get("posterior_deviation")
    if posterior is not None:
        noise = np.array(posterior)
        spread = digest.array("embedding/reduced/coordinates")[:, : len(noise)].std(0)
        headers += ["sd of all on the component", "of it, posterior"]
        columns += [
            [f"{value:.3g}" for value in spread[:n]],
            [percent(a / max(b, 1e-30)) for a, b in zip(noise, spread, strict=False)],
        ]
        words += (
            " The posterior's share is the rms width that the uncertainty of each particle's "
            "latent alone gives it: where it nears the whole, a spread is noise."
        )
    rows = [list(row) for row in zip(*columns, strict=False)]
    return [
        tag("h3", "Components of all particles"),
        tag("p", words),
        details("the first ten", table(headers, rows, "numbers")),
    ]


def _together(digest: Digest, results: Mapping[str, Any], drawn: Plots) -> list[object]:
    """Show the densities of all particles on their principal axes, and their k-means groups."""
    variance = digest.array("population/axes/variance")[...]
    vectors, mean = (digest.array(f"population/axes/{name}")[...] for name in ("vectors", "mean"))
    pairs, edges = (digest.array(f"population/density_{name}")[...] for name in ("axes", "edges"))
    centers = (digest.array("population/center")[...] - mean) @ vectors[: len(edges)].T
    n_particles, medoids = results["n_particles"], digest.array("population/medoid")[...]
    parts: list[object] = [
        tag("h3", "Density of all particles"),
        tag(
            "p",
            "How densely particles lie on the principal axes of their own coordinates: -ln of the "
            "density, 0 where it is largest; in units of kT a free energy, if particles are drawn "
            "from equilibrium and none is misplaced. Numbers are the centers of k-means groups of "
            "all particles; maps of the particle nearest to each are in maps/population.",
        ),
    ]
    if len(pairs):
        density, shares = digest.array("population/density")[...], variance / variance.sum()
        figure = plots.densities(edges, pairs, density, shares, centers)
        png = plots.to_png(figure)
        parts.append(show(drawn, "density.png", png, "density of all particles"))
    total = max(sum(n_particles), 1)
    rows = [
        [f"{group}", f"{n:,}", percent(n / total), f"{medoids[group]}"]
        for group, n in enumerate(n_particles)
    ]
    header = ["group", "particles", "of all", "nearest to its center"]
    return [*parts, details("the groups", table(header, rows, "numbers"))]


def _crosscheck(digest: Digest, results: Mapping[str, Any], drawn: Plots) -> list[object]:
    methods, (header, *rows) = results["methods"], comparison(results)
    worst = {
        name: ", ".join(f"{w['particle']} ({w['error']:.1e})" for w in m["worst"][:5])
        for name, m in methods.items()
    }
    errors = {name: digest.array(f"crosscheck/error/{name}")[...] for name in methods}
    where = digest.array("crosscheck/exact")[:, :2]
    figure = plots.crosscheck(
        {name: np.array(m["r2"]) for name, m in methods.items()}, errors, where
    )
    return [
        tag("h3", "Cross-check"),
        tag(
            "p",
            f"The methods against exact decoding, on {results['sample']:,} particles that none was "
            "trained with. Errors are relative to the landscape's total standard deviation.",
        ),
        table(header, rows, "numbers"),
        show(drawn, "crosscheck.png", plots.to_png(figure), "errors of the methods"),
        details("the worst particles", table([], list(worst.items()), "record")),
    ]
