"""Agglomerative clustering of n volumes: time, memory and merges of each program.

From distances, which are there already: scapedist's ``link``, its own nearest-neighbour chain,
SciPy and fastcluster. From coordinates: Ward's tree, and linkage by way of micro-states, whose
states are compared with those of the exact tree. Each runs in a process of its own that has joined
a few points before; memory is the peak above what the process held then, what it was given
included. Merges are compared with SciPy's as the sets of points that they make.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import Panel, Row, Table

from scapedist.analysis import linkage as ours
from scapedist.plan import ISOMETRIC_COLUMNS, MICRO_STATES, PANEL_BYTES, batches

TITLE = "Linkage"
WARD = {"linkage": "ward"}
TABLES = (
    Table(
        "rows",
        "n | linkage | program | seconds: time, s | above idle MiB: above idle, MiB "
        "| merges unlike | height error | Rand index | error: failed with",
    ),
    Table(
        "exponents",
        "linkage | program | from | to | time | memory: memory above idle",
        "Time and memory grow as n to the power of",
    ),
)
PLOTS = (
    Panel("rows", "n", "{program}", "seconds", "Ward's linkage, time, s", "volumes", WARD),
    Panel("rows", "n", "{program}", "above idle MiB", "memory above idle, MiB", "volumes", WARD),
)
N_STATES, N_GROUPS = 10, 12
FEW = 60
"""Points that a process joins first."""
LARGE, ROUNDS = 5000, 3
"""Above so many points there is one round."""
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[str, ...]]] = {
    "tiny": ((100,), (), ("ward",)),
    "small": ((500, 2000), (), ours.LINKAGES),
    "full": ((2000, 5000, 10_000, 20_000), (50_000,), ours.LINKAGES),
}
"""Points that are joined; more of them by Ward's linkage from coordinates alone; linkages."""


# -- what programs are given


def write_points(place: Path, n: int, with_distances: bool = True) -> None:
    """Write points (n, k), and their squared distances of each pair once, as plain numbers.

    They are a few unequal groups; standard deviations fall as k^(-3/4).
    """
    place.mkdir()
    rng, k = np.random.default_rng(0), ISOMETRIC_COLUMNS
    spread = np.arange(1, k + 1) ** -0.75
    centers = 2 * rng.standard_normal((N_GROUPS, k)) * spread
    shares = rng.dirichlet(np.full(N_GROUPS, 2.0))
    points = centers[rng.choice(N_GROUPS, n, p=shares)] + rng.standard_normal((n, k)) * spread
    points.tofile(place / "points")
    norms = np.square(points).sum(1)
    with (place / "squared").open("wb") as stream:
        for start, stop in batches(n if with_distances else 0, 256):
            block = norms[start:stop, None] + norms - 2 * points[start:stop] @ points.T
            np.maximum(block, 0, out=block)
            for row, values in enumerate(block, start):
                values[row + 1 :].tofile(stream)


def points(place: Path) -> np.ndarray:
    """Coordinates (n, k) float64."""
    return np.fromfile(place / "points").reshape(-1, ISOMETRIC_COLUMNS)


def squared(place: Path) -> np.ndarray:
    """Squared distances of each pair once, (n (n - 1) / 2,) float64."""
    return np.fromfile(place / "squared")


def distances(place: Path) -> np.ndarray:
    """Distances of each pair once."""
    found = squared(place)
    return np.sqrt(found, out=found)


def square(place: Path) -> np.ndarray:
    """Squared distances of all pairs, (n, n) float64."""
    n = len(points(place))
    found = np.zeros((n, n))
    with (place / "squared").open("rb") as stream:
        for row in range(n - 1):
            found[row, row + 1 :] = np.fromfile(stream, count=n - 1 - row)
            found[row + 1 :, row] = found[row, row + 1 :]
    return found


# -- programs: functions of a linkage and what they are given


def by_scipy(method: str, given: np.ndarray) -> np.ndarray:
    """The tree of SciPy."""
    from scipy.cluster import hierarchy

    return hierarchy.linkage(given, method)


def by_fastcluster(function: str, method: str, given: np.ndarray) -> np.ndarray:
    """The tree of fastcluster, which keeps what it is given."""
    return getattr(import_module("fastcluster"), function)(given, method)


def by_rounds(method: str, given: np.ndarray) -> np.ndarray:
    """The tree of scapedist, without distances, in the memory that its stage allows."""
    from scapedist.stages.states import PRODUCT_PANELS

    return ours.ward_of_points(given, PRODUCT_PANELS * PANEL_BYTES)


def by_two_levels(method: str, given: np.ndarray) -> np.ndarray:
    """Labels (n,) of scapedist's states by way of micro-states."""
    from scapedist.backend import nearest_by_products

    n_micro = min(len(given) // 4, MICRO_STATES)
    return ours.two_level(given, method, n_micro, nearest_by_products, 0).cut(N_STATES)


REFERENCE, TWO_LEVELS, OF_MANY = "SciPy", "scapedist, two levels", "scapedist, vectors"
Work = Callable[[str, Any], np.ndarray]
PROGRAMS: dict[str, tuple[Work, Callable[[Path], np.ndarray], tuple[str, ...]]] = {
    REFERENCE: (by_scipy, distances, ours.LINKAGES),
    "fastcluster": (partial(by_fastcluster, "linkage"), distances, ours.LINKAGES),
    "scapedist": (lambda method, given: ours.link(given, method), squared, ours.LINKAGES),
    "scapedist, chain": (
        lambda method, given: ours.nearest_neighbor_chain(given, method),
        square,
        ours.LINKAGES,
    ),
    "SciPy, vectors": (by_scipy, points, ("ward",)),
    "fastcluster, vectors": (partial(by_fastcluster, "linkage_vector"), points, ("ward",)),
    OF_MANY: (by_rounds, points, ("ward",)),
    TWO_LEVELS: (by_two_levels, points, ours.LINKAGES),
}
"""With what, what it is given, and of which linkages."""


def child(program: str, linkage: str, place: str, few: str, result: str) -> Row:
    """Seconds and peak of a program in a fresh process; its tree is left in a file."""
    harness.limit_memory()
    work, given, _ = PROGRAMS[program]
    return harness.timed(lambda what: {"found": work(linkage, what)}, given, few, place, result)


# -- the tables


def run(size: str) -> Row:
    """Rows of all numbers of points, linkages and programs, and how their times grow."""
    (few_points, many_points, linkages), rows = SIZES[size], []
    with tempfile.TemporaryDirectory() as directory:
        few = Path(directory) / "few"
        write_points(few, FEW)
        for n in (*few_points, *many_points):
            place, many = Path(directory) / str(n), n in many_points
            write_points(place, n, not many)
            n_rounds = ROUNDS if n <= LARGE and size != "tiny" else 1
            for linkage in ("ward",) if many else linkages:
                programs = [name for name, (*_, of) in PROGRAMS.items() if linkage in of]
                chosen = [OF_MANY] if many else programs
                rows += measured(n, linkage, chosen, place, few, n_rounds)
            shutil.rmtree(place)
    dimensions = {"dimensions": ISOMETRIC_COLUMNS, "states": N_STATES}
    return dimensions | {"rows": rows, "exponents": exponents(rows)}


def measured(
    n: int, linkage: str, programs: list[str], place: Path, few: Path, n_rounds: int
) -> list[Row]:
    """A row of each program, which take turns; SciPy's tree, the first, is the reference."""
    ways = {name: (name, linkage, place, few) for name in programs}
    trees: dict[str, np.ndarray] = {}

    def answer(name: str, path: Path) -> Row:
        trees[name] = np.load(path)["found"]
        reference = trees.get(REFERENCE)
        return {} if reference is None else compared(name, trees[name], reference)

    took = harness.in_turns("linkage", ways, n_rounds, place, answer)
    return [{"n": n, "linkage": linkage, "program": name, **took[name]} for name in programs]


def compared(name: str, found: np.ndarray, reference: np.ndarray) -> Row:
    """How a tree, or the states of one in two levels, differ from the reference tree."""
    if name == TWO_LEVELS:
        from sklearn.metrics import adjusted_rand_score

        return {"Rand index": float(adjusted_rand_score(ours.cut(reference, N_STATES), found))}
    unlike = len(reference) - len(np.intersect1d(groups_of(found), groups_of(reference)))
    heights = np.abs(found[:, 2] - reference[:, 2]) / reference[:, 2]
    return {"merges unlike": unlike, "height error": float(heights.max())}


def groups_of(tree: np.ndarray) -> np.ndarray:
    """A number (n - 1,) for the set of points that each merge makes, whatever its order."""
    n = len(tree) + 1
    found = np.empty(2 * n - 1, np.uint64)
    found[:n] = np.random.default_rng(0).integers(2**63, size=n, dtype=np.uint64)
    for step, (left, right) in enumerate(tree[:, :2].astype(np.int64)):
        found[n + step] = found[left] ^ found[right]
    return found[n:]


def exponents(rows: list[Row]) -> list[Row]:
    """Slopes of time and memory in n, on logarithmic scales, of all with several n."""
    sound = [row for row in rows if not row["error"]]
    of = {"time": "seconds", "memory": "above idle MiB"}
    return [line for line, _ in harness.exponents(sound, ("linkage", "program"), ("n",), of)]


if __name__ == "__main__":
    harness.main("linkage")
