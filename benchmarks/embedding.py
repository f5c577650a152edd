"""How right and how fast each method is that embeds all particles, and what it shows.

On the bundled model. Errors are relative to the landscape's spread, on random particles that no
method was trained with, against exact decoding.
"""

from __future__ import annotations

import statistics
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
from gpu_check import map_of_any_values
from harness import EPOCH, Panel, Row, Table, exhaust, n_threads, seconds_of
from landscape_full import error_figures, unseen
from random_model import copy_with_particles, write_random_model
from threadpoolctl import threadpool_limits
from truth import KINDS

from scapedist import open_model
from scapedist.landscape import Run, open_workers
from scapedist.particles.exact import exact_batch
from scapedist.particles.reduced import reduced_batch
from scapedist.plan import spread_evenly
from scapedist.settings import GenerateSettings
from scapedist.sources.decoded import field_of
from scapedist.sources.open import decoded_by

TITLE = "Embedding all particles"
TABLES = (
    Table(
        "methods",
        "method | 1 - worst R2: 1 - R2, worst of ten | 1 - R2 of all: of all | relative error "
        "| stated: it said | largest error: largest "
        "| all, s: all particles, s | exact, s: decoding them, s | times as fast",
        "Accuracy, and the time of all particles with what comes before.",
    ),
    Table(
        "pace",
        "what | ms a particle | exact is times this | points",
        "On one thread, in changing order, next to decoding alone.",
    ),
    Table(
        "box",
        "box | 20 points | 40 points | 100 points | 200 points | 400 points | one volume",
        "The reduced embedding on one thread, ms a particle by points and box; random models.",
    ),
    Table(
        "missed",
        "kept out | particles | method | among the highest residuals | among the highest distances "
        "| listed as missed | of the kind",
        "A kind kept out of the sketch: how many of it are among as many particles of the largest "
        "residual, and of the largest distance to any sketch volume.",
    ),
)
ERROR, SECONDS = "relative error of coordinates", "time of all particles, s"
PLOTS = (Panel("methods", "all, s", "{method}", "relative error", ERROR, SECONDS),)
Size = namedtuple("Size", "n_particles sketch box n_sample tolerance boxes n_points")
"""Particles and sketch of the runs; boxes and points of the random models."""
SIZES = {
    "tiny": Size(400, 40, 12, 40, 0.2, (8, 12), (20, 40)),
    "small": Size(20_000, 200, 24, 500, 1e-2, (32, 64), (100, 400)),
    "full": Size(20_000, 500, 48, 2000, 1e-3, (64, 128, 256), (100, 200, 400)),
}


def run(size: str) -> Row:
    """The rows of all tables: the later ones need the first."""
    of = SIZES[size]
    with harness.bundled() as (shipped, place):
        truth = np.load(shipped / "truth.npz")["state"]
        kept = spread_evenly(len(truth), of.n_particles)
        workdir = copy_with_particles(shipped, EPOCH, kept, place / "model")
        return {
            "methods": methods(workdir, place, of),
            "pace": pace(place, of),
            "box": by_box(place, of),
            "missed": missed(workdir, place, of, truth[kept]),
        }


def _landscape(workdir: Path, output: Path, size: Size, workers: Any, **options: Any) -> Run:
    """A run up to its states."""
    made = Run.create(workdir, EPOCH, output)
    made.sketch(size=size.sketch, quality_groups=0, **options)
    made.generate(workers, box_size=size.box).mask().pca(components=20)
    return made.states()


def methods(workdir: Path, place: Path, size: Size) -> list[Row]:
    """Accuracy on unseen particles; time of all particles, with what comes before them."""
    asked: dict[str, Row] = {
        "reduced": {"method": "reduced", "tolerance": size.tolerance},
        "mlp, paper's": {"method": "mlp"},
        "mlp, cryoDRGN's": {"method": "mlp", "variant": "cryodrgn"},
    }
    seconds, found, rows = {}, {}, []
    with open_workers() as workers:
        made = _landscape(workdir, place / "run", size, workers)
        store = made.store
        for name, options in asked.items():
            seconds[name] = seconds_of(partial(made.embed, workers, strict=False, **options))
            found[name] = store.read(f"embedding/{options['method']}/coordinates")
        seen = [store.read(f"embedding/map/{kind}_particle") for kind in ("training", "held_out")]
        sample = unseen(size.n_particles, seen, size.n_sample)
        embedder = made.embedder(workers)
        of_one = embedder.exact_seconds_a_particle() / workers.n_workers
        exact, _ = embedder.exact_rows(sample, "")
    for name, coordinates in found.items():
        row: Row = {"method": name, **error_figures(coordinates[sample], exact)}
        if name == "reduced":
            row["stated"] = store.beside["embedding/reduced"]["results"]["relative_error"]
        row |= {"all, s": seconds[name], "exact, s": of_one * size.n_particles}
        rows.append(row | {"times as fast": row["exact, s"] / row["all, s"]})
    return rows


def pace(place: Path, size: Size) -> list[Row]:
    """Milliseconds a particle on one thread: decoding alone, exact, reduced, in changing order."""
    made = Run(place / "run")
    with open_workers(1) as workers:
        embedder = made.embedder(workers)
    projection, latents = embedder.projection, embedder.latents
    work: dict[str, tuple[Callable[[], Any], int]] = {
        "decoding alone": (lambda: exhaust(projection.source.decode(latents[:8])), 8),
        "exact": (lambda: exact_batch(projection, latents[:8]), 8),
        "reduced": (lambda: reduced_batch(projection, latents[:128]), 128),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    order = list(work)
    with n_threads(1), threadpool_limits(1):
        for call, _ in work.values():
            call()
        for _ in range(9):
            order = [*order[1:], order[0]]
            for name in order:
                call, n = work[name]
                times[name].append(seconds_of(call) / n)
    points = dict.fromkeys(work, field_of(projection.source).lattice(size.box).n_points)
    points["reduced"] = made.store.beside["embedding/map"]["results"]["points"]
    return [
        {
            "what": name,
            "ms a particle": 1e3 * statistics.median(values),
            "exact is times this": statistics.median(np.divide(times["exact"], values)),
            "points": points[name],
        }
        for name, values in times.items()
    ]


def by_box(place: Path, size: Size) -> list[Row]:
    """The reduced embedding's milliseconds a particle by points and box, on one thread."""
    rows = []
    for box_size in size.boxes:
        random = place / f"box{box_size}"
        write_random_model(random, box_size=box_size, layers=3, width=256, n_particles=128)
        model = open_model(random, 19)
        source = decoded_by(model, GenerateSettings(box_size=box_size), model.latents[:0])
        field, row = field_of(source), dict[str, Any](box=box_size)
        with n_threads(1):
            for m in size.n_points:
                every = field.lattice().coordinates
                points = np.ascontiguousarray(every[:: max(1, len(every) // m)][:m])
                reduced = map_of_any_values(points, len(points), 256, 20)
                call = partial(reduced.evaluate, field, model.latents)
                call()
                seconds = statistics.median(seconds_of(call) for _ in range(3))
                row[f"{m} points"] = 1e3 * seconds / len(model.latents)
            one = source.decode(model.latents[:1])
            row["one volume"] = 1e3 * seconds_of(partial(exhaust, one))
        rows.append(row)
    return rows


def missed(workdir: Path, place: Path, size: Size, truth: np.ndarray) -> list[Row]:
    """Particles of a kind kept out of the sketch: how many of them stand out."""
    rows = []
    for kind, name in KINDS.items():
        of_kind, listing = np.flatnonzero(truth == kind), place / f"{kind}.npy"
        np.save(listing, of_kind)
        with open_workers() as workers:
            output = place / f"without{kind}"
            made = _landscape(workdir, output, size, workers, exclude_particles=listing)
            for method in ("reduced", "exact"):
                made.embed(workers, strict=False, method=method, tolerance=size.tolerance)
                store = made.store
                row: Row = {"kept out": name, "particles": len(of_kind), "method": method}
                for what, array in (
                    ("residual", f"embedding/{method}/residual"),
                    ("distance", "missed/distance"),
                ):
                    highest = np.argsort(-store.read(array), kind="stable")[: len(of_kind)]
                    row[f"among the highest {what}s"] = int((truth[highest] == kind).sum())
                listed = store.read("missed/missed_particle")
                row["listed as missed"] = len(listed)
                rows.append(row | {"of the kind": int((truth[listed] == kind).sum())})
    return rows


if __name__ == "__main__":
    harness.main("embedding")
