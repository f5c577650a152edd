"""Agglomerative clustering of many volumes: time, memory and merges of each program.

From distances, which are there already: scapedist's ``link``, its own nearest-neighbour chain,
SciPy and fastcluster. From coordinates: Ward's tree, and linkage by way of micro-states, whose
states are compared with those of the exact tree. Each runs in a process of its own that has joined
a few points before; memory is the peak above what the process held then, what it was given
included. Merges are compared with SciPy's as the sets of points that they make.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from alone import alone, first_line, limit_memory, peak_bytes, reset_peak

from scapedist.analysis.linkage import LINKAGES, cut, link, nearest_neighbor_chain
from scapedist.plan import ISOMETRIC_COLUMNS, MICRO_STATES, PANEL_BYTES, batches

N_STATES, N_GROUPS = 10, 12
FEW = 60
"""Points that a process joins first."""
LARGE = 5000
"""Above so many points there is one round."""


@dataclass(frozen=True)
class Size:
    """Points that are joined; more of them by Ward's linkage from coordinates alone."""

    n_points: tuple[int, ...]
    n_many: tuple[int, ...] = ()
    linkages: tuple[str, ...] = LINKAGES
    rounds: int = 3


SIZES = {
    "tiny": Size((100,), linkages=("ward",), rounds=1),
    "small": Size((500, 2000)),
    "full": Size((2000, 5000, 10_000, 20_000), (50_000,)),
}


# -- what programs are given


def make_points(n: int, k: int = ISOMETRIC_COLUMNS) -> np.ndarray:
    """Coordinates (n, k) of a few unequal groups; standard deviations fall as k^(-3/4)."""
    rng = np.random.default_rng(0)
    spread = np.arange(1, k + 1) ** -0.75
    centers = 2 * rng.standard_normal((N_GROUPS, k)) * spread
    shares = rng.dirichlet(np.full(N_GROUPS, 2.0))
    return centers[rng.choice(N_GROUPS, n, p=shares)] + rng.standard_normal((n, k)) * spread


def write_points(place: Path, n: int, with_distances: bool = True) -> None:
    """Write points, and their squared distances of each pair once, as plain numbers."""
    place.mkdir()
    points = make_points(n)
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
    size = (place / "squared").stat().st_size // 8
    n = (1 + int(np.sqrt(1 + 8 * size))) // 2
    found = np.zeros((n, n))
    with (place / "squared").open("rb") as stream:
        for row in range(n - 1):
            found[row, row + 1 :] = np.fromfile(stream, count=n - 1 - row)
            found[row + 1 :, row] = found[row, row + 1 :]
    return found


# -- programs: functions of what they are given and a linkage


def by_scipy(given: np.ndarray, method: str) -> np.ndarray:
    """The tree of SciPy."""
    from scipy.cluster import hierarchy

    tree: np.ndarray = hierarchy.linkage(given, method)
    return tree


def by_fastcluster(given: np.ndarray, method: str) -> np.ndarray:
    """The tree of fastcluster, which keeps what it is given."""
    import fastcluster

    tree: np.ndarray = fastcluster.linkage(given, method)
    return tree


def by_fastcluster_vectors(given: np.ndarray, method: str) -> np.ndarray:
    """The tree of fastcluster, without distances."""
    import fastcluster

    tree: np.ndarray = fastcluster.linkage_vector(given, method)
    return tree


def by_rounds(given: np.ndarray, method: str) -> np.ndarray:
    """The tree of scapedist, without distances, in the memory that its stage allows."""
    from scapedist.analysis.linkage import ward_of_points
    from scapedist.stages.states import PRODUCT_PANELS

    return ward_of_points(given, PRODUCT_PANELS * PANEL_BYTES)


def by_two_levels(given: np.ndarray, method: str) -> np.ndarray:
    """Labels (n,) of scapedist's states by way of micro-states."""
    from scapedist.analysis.linkage import two_level
    from scapedist.stages.states import nearest_in_panels

    n_micro = min(len(given) // 4, MICRO_STATES)
    return two_level(given, method, n_micro, nearest_in_panels, 0).cut(N_STATES)


@dataclass(frozen=True)
class Program:
    """What is measured: with what, what it is given, and of which linkages."""

    work: Callable[[Any, str], np.ndarray]
    given: Callable[[Path], np.ndarray]
    linkages: tuple[str, ...] = LINKAGES


REFERENCE, TWO_LEVELS = "SciPy", "scapedist, two levels"
PROGRAMS = {
    REFERENCE: Program(by_scipy, distances),
    "fastcluster": Program(by_fastcluster, distances),
    "scapedist": Program(link, squared),
    "scapedist, chain": Program(nearest_neighbor_chain, square),
    "SciPy, vectors": Program(by_scipy, points, ("ward",)),
    "fastcluster, vectors": Program(by_fastcluster_vectors, points, ("ward",)),
    "scapedist, vectors": Program(by_rounds, points, ("ward",)),
    TWO_LEVELS: Program(by_two_levels, points),
}
OF_MANY = "scapedist, vectors"


def child(name: str, linkage: str, place: str, few: str, result: str) -> dict[str, Any]:
    """Seconds and peak of a program in a fresh process; its tree is left in a file."""
    limit_memory()
    program = PROGRAMS[name]
    try:
        program.work(program.given(Path(few)), linkage)
        before = reset_peak()
        given = program.given(Path(place))
        start = time.perf_counter()
        found = program.work(given, linkage)
        seconds = time.perf_counter() - start
    except Exception as error:  # of another package: a row like others
        return {"error": first_line(error)}
    peak = peak_bytes() - before
    np.save(result, found)
    return {"seconds": seconds, "bytes": peak}


# -- the tables


def main() -> None:
    """Measure all programs and print the tables."""
    from machine import print_table, write_json

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--output", help="JSON file")
    arguments = parser.parse_args()
    results = run(arguments.size)
    print_table(results["rows"])
    print("\ntime and memory grow as n to the power of")
    print_table(results["exponents"])
    if arguments.output:
        write_json(arguments.output, results)


def run(name: str) -> dict[str, Any]:
    """Rows of all numbers of points, linkages and programs, and how their times grow."""
    from machine import describe  # imports torch, which no program's process needs

    size, rows = SIZES[name], []
    with tempfile.TemporaryDirectory() as directory:
        few = Path(directory) / "few"
        write_points(few, FEW)
        for n in (*size.n_points, *size.n_many):
            place = Path(directory) / str(n)
            many = n in size.n_many
            write_points(place, n, not many)
            n_rounds = size.rounds if n <= LARGE else 1
            for linkage in ("ward",) if many else size.linkages:
                programs = [p for p, made in PROGRAMS.items() if linkage in made.linkages]
                chosen = [OF_MANY] if many else programs
                rows += measured(n, linkage, chosen, place, few, n_rounds)
            for path in place.iterdir():
                path.unlink()
    return {
        "benchmark": "linkage",
        "machine": describe(),
        "dimensions": ISOMETRIC_COLUMNS,
        "states": N_STATES,
        "rows": rows,
        "exponents": exponents(rows),
    }


def measured(
    n: int, linkage: str, programs: Iterable[str], place: Path, few: Path, n_rounds: int
) -> list[dict[str, Any]]:
    """A row of each program, which take turns; the first one's tree is the reference."""
    results = {name: place / f"{number}.npy" for number, name in enumerate(programs)}
    took: dict[str, list[dict[str, Any]]] = {name: [] for name in results}
    for _ in range(n_rounds):
        for name, path in results.items():
            if not any("error" in found for found in took[name]):
                found = alone("linkage", name, linkage, str(place), str(few), str(path))
                took[name].append(found)
    reference = None
    if REFERENCE in took and "error" not in took[REFERENCE][-1]:
        reference = np.load(results[REFERENCE])
    rows = []
    for name, each in took.items():
        columns = ("seconds", "above idle MiB", "merges unlike", "height error", "Rand index")
        row: dict[str, Any] = {
            "n": n,
            "linkage": linkage,
            "program": name,
            **dict.fromkeys(columns, ""),
            "error": each[-1].get("error", ""),
        }
        if not row["error"]:
            row["seconds"] = statistics.median(found["seconds"] for found in each)
            row["above idle MiB"] = statistics.median(found["bytes"] for found in each) / 2**20
            if reference is not None:
                row |= compared(name, np.load(results[name]), reference)
        rows.append(row)
    return rows


def compared(name: str, found: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """How a tree, or the states of one in two levels, differ from the reference tree."""
    if name == TWO_LEVELS:
        from sklearn.metrics import adjusted_rand_score

        index = adjusted_rand_score(cut(reference, N_STATES), found)
        return {"Rand index": float(index)}
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


def exponents(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Slopes of time and memory in n, on logarithmic scales, of all with several n."""
    found = []
    for key in dict.fromkeys((row["linkage"], row["program"]) for row in rows):
        mine = [row for row in rows if (row["linkage"], row["program"]) == key and not row["error"]]
        if len(mine) < 2:
            continue
        logs = np.log([[row[of] for of in ("n", "seconds", "above idle MiB")] for row in mine])
        of_time, of_memory = np.polyfit(logs[:, 0], logs[:, 1:], 1)[0]
        found.append(
            {
                "linkage": key[0],
                "program": key[1],
                "from": mine[0]["n"],
                "to": mine[-1]["n"],
                "time": float(of_time),
                "memory": float(of_memory),
            }
        )
    return found


if __name__ == "__main__":
    main()
