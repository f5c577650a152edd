"""The report's pictures of volumes: the states' maps, the traversals and the mask."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from scapedist.report import images, mosaics, plots
from scapedist.report.digest import Digest, Traversal, read_traversals
from scapedist.report.mosaics import Strip
from scapedist.report.page import Html, image, section, table, tag
from scapedist.report.plots import component_name, percent

MAX_TRAVERSALS = 5
MAX_TRAVERSAL_POINTS = 10
STATES_A_ROW = 10
FEW_VOLUMES = 5  # states of at most this many set no scale

Plots = dict[str, bytes]  # file name to PNG


def show(drawn: Plots, name: str, png: bytes, alt: str) -> Html:
    """Keep a plot as a file and put it on the page."""
    drawn[name] = png
    return image(png, alt)


def thumbnails(digest: Digest) -> list[Html]:
    """Give a small projection along z of each state's mean."""
    along_z = digest.projections[:, 0]
    pictures = images.grey(along_z, images.grey_limits(along_z[_scale_states(digest)]))
    return [
        image(mosaics.thumbnail(picture, 120), f"mean of state {state} along z")
        for state, picture in enumerate(pictures)
    ]


def _scale_states(digest: Digest) -> NDArray:
    """Choose the states (M,) bool that set pictures' scale, as lone volumes are often extreme."""
    many = digest.n_volumes > FEW_VOLUMES
    return many if many.any() else np.ones_like(many)


def state_maps(digest: Digest, drawn: Plots) -> Html:
    """Show the states' means: projections, slices, differences from the mean of all."""
    bar = images.scale_bar(digest.view, digest.pixel_size_angstroms)
    many = _scale_states(digest)
    parts: list[object] = [
        tag(
            "p",
            "The mean volume of each state, weighted by how many particles each sketch volume "
            "stands for, with its share of all particles. Projections sum the density along an "
            "axis; slices go through the mask's centre. The pictures of a figure share one scale, "
            f"set by the states of more than {FEW_VOLUMES} volumes where there are any.",
        )
    ]
    for kind, values, words in [
        ("projections", digest.projections, "along"),
        ("slices", digest.slices, "across"),
    ]:
        colours = images.grey(values, images.grey_limits(values[many]))
        png = mosaics.strips(_state_strips(digest, colours, words), bar)
        parts += [
            tag("h3", f"{kind.capitalize()}"),
            show(drawn, f"states_{kind}.png", png, f"{kind} of the states' means"),
        ]
    if digest.n_states > 1:
        mean = np.average(digest.projections, axis=0, weights=digest.n_particles)
        differences = digest.projections - mean
        colours = images.signed(differences, images.signed_limit(differences[many]))
        png = mosaics.strips(_state_strips(digest, colours, "along"), bar, "black")
        parts += [
            tag("h3", "Differences"),
            tag(
                "p",
                "Projections of each state's mean minus the mean of all particles: red where the "
                "state has more density, blue where it has less.",
            ),
            show(drawn, "states_differences.png", png, "differences of the states' means"),
        ]
    return section("state-maps", "State maps", *parts)


def _state_strips(digest: Digest, pictures: NDArray, words: str) -> list[Strip]:
    """Lay the (M, 3, s, s, 3) pictures out: one column per state, one row per direction."""
    strips = []
    for start in range(0, digest.n_states, STATES_A_ROW):
        states = range(start, min(start + STATES_A_ROW, digest.n_states))
        total = max(len(digest.assignment), 1)
        notes = [f"state {s}\n{percent(digest.n_particles[s] / total)}" for s in states]
        for axis, direction in enumerate(images.DIRECTIONS):
            strips.append(
                Strip(
                    pictures[states.start : states.stop, axis],
                    f"{words} {direction}",
                    notes if axis == 0 else (),
                    [plots.colour_of(s) for s in states],
                )
            )
    return strips


def traversals(digest: Digest, drawn: Plots) -> Html:
    """Show what changes along each component, and the decoded volumes nearest to it."""
    along = read_traversals(digest, MAX_TRAVERSALS, MAX_TRAVERSAL_POINTS)
    if not along:
        missing = tag("p", "This run holds no traversals.", class_="note")
        return section("traversals", "Traversals", missing)
    bar = images.scale_bar(digest.view, digest.pixel_size_angstroms)
    parts: list[object] = [
        tag(
            "p",
            "What changes along each component: the mean plus a multiple of the component (the "
            "number above is the coordinate), and below it the decoded sketch volume that is "
            "nearest to it, so that what the linear model invents can be told from what the "
            "network decodes. Everything outside the mask is left out, and the pictures of a "
            "component share one scale. The first picture is the component itself, red and blue "
            "for opposite signs, seen from the axis along which it changes most.",
        )
    ]
    for kind, words in (("projections", "along"), ("slices", "across")):
        rows = _traversal_strips(digest, along, kind, words)
        png = mosaics.strips(rows, bar, bar_column=1)
        parts += [
            tag("h3", kind.capitalize()),
            show(drawn, f"traversal_{kind}.png", png, f"{kind} of the traversals"),
        ]
    return section("traversals", "Traversals", *parts)


def _traversal_strips(
    digest: Digest, traversals: list[Traversal], kind: str, words: str
) -> list[Strip]:
    strips = []
    for k, traversal in enumerate(traversals):
        limits = images.grey_limits(traversal.synthetic[kind])
        direction = images.DIRECTIONS[traversal.direction[kind]]
        itself = traversal.component[kind][None]
        component = images.signed(itself, images.signed_limit(itself))
        blank = np.full_like(component, 255)
        name = component_name(k, digest.variance_ratio).replace(" (", "\n(")
        strips += [
            Strip(
                np.concatenate([component, images.grey(traversal.synthetic[kind], limits)]),
                f"{name}\n{words} {direction}\n\nmean + component",
                ["component", *_numbers(traversal.position)],
            ),
            Strip(
                np.concatenate([blank, images.grey(traversal.real[kind], limits)]),
                "nearest decoded\nvolume",
                ["", *(f"volume {index}" for index in traversal.volume)],
            ),
        ]
    return strips


def _numbers(values: NDArray) -> list[str]:
    """Write evenly spaced numbers with as many decimals as their steps need."""
    step = float(np.ptp(values)) / max(len(values) - 1, 1)
    decimals = max(0, 1 - math.floor(math.log10(step))) if step > 0 else 2
    return [f"{value:.{decimals}f}".replace("-", "−") for value in values]


def mask(digest: Digest, drawn: Plots) -> Html:
    """Show the mask on the mean density, the share of volumes that claim it, and soft weights."""
    box = digest.whole_box
    bar = images.scale_bar(box, digest.pixel_size_angstroms)
    outlines = box.slices((digest.mask > 0).astype(np.float32))
    notes = [f"across {direction}" for direction in images.DIRECTIONS]
    rows = [
        Strip(
            images.grey(digest.mean_slices, images.grey_limits(digest.mean_slices)),
            "mean density",
            notes,
        )
    ]
    claims = digest.array("mask_claims")
    if claims is not None:
        rows.append(
            Strip(
                images.fraction(box.slices(claims[...])),
                "fraction of\nvolumes that\nclaim the voxel\n(blue 0, yellow 1)",
            )
        )
        sentence = (
            "The claims are the fraction of sketch volumes that have density there, before the "
            "mask is dilated: where few do, a handful of volumes made the mask larger."
        )
    else:
        sentence = "The mask was given, so that there are no volumes' claims to show."
    if digest.mask.min() < digest.mask.max() and np.any((digest.mask > 0) & (digest.mask < 1)):
        rows.append(Strip(images.grey(box.slices(digest.mask), (0, 1)), "weight"))
    n_voxels = digest.inside.n_voxels
    share = n_voxels / digest.mask.size
    png = mosaics.strips(rows, bar, outlines=outlines, cell=230)
    return section(
        "mask",
        "Mask",
        tag(
            "p",
            f"The {n_voxels:,} voxels ({percent(share)} of the box) on which volumes are "
            f"compared, outlined on slices of the whole box. {sentence}",
        ),
        show(drawn, "mask.png", png, "slices of the mask"),
        *_escaped(digest),
    )


def _escaped(digest: Digest) -> list[object]:
    """Show how much density volumes have outside the mask, where nothing of them is stored."""
    fractions = digest.array("volumes/escaped")
    if fractions is None:
        return []
    fractions, results = fractions[...], digest.stages["generate"]["results"]
    n, worst = results["volumes_that_escape"], results["worst_volumes"]
    words = (
        "Voxels outside the mask were not stored. Of the density above the mask's threshold, "
        f"{percent(results['escaped_fraction_median'])} lies there in the median volume, at most "
        f"{percent(results['escaped_fraction_max'])}. "
    )
    if not n:
        return [tag("h3", "What escaped"), tag("p", words + "No volume has much of it there.")]
    words += (
        f"{n:,} of {len(fractions):,} volumes have more than a fiftieth of it there: what they "
        "are apart in may be missed. A larger pilot ("
    )
    told = tag(
        "p",
        words,
        tag("code", "--pilot-volumes"),
        ") or mask (",
        tag("code", "--dilate"),
        "), or ",
        tag("code", "--store volumes"),
        " would keep it. Maps of the worst are in maps/escaped.",
    )
    rows = [
        [f"volume {row}", percent(float(fractions[row])), f"{digest.occupancy[row]:,}"]
        for row in worst
    ]
    header = ["worst", "of its density outside", "particles"]
    return [tag("h3", "What escaped"), told, table(header, rows, "numbers")]
