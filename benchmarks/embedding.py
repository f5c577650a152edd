"""Every particle by its own volume: how right and how fast each method is, and what it shows.

Four tables, on the bundled model: the methods against exact decoding of random particles that
none was trained with; their pace against decoding alone, on one thread, in turn; how the reduced
embedding's pace follows points and box (models of random weights); and, with the LID-less and then
the rare particles kept out of the sketch, how many of them are among as many particles of the
largest residual, and of the largest distance to any sketch volume.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, n_threads, print_table, seconds_of, write_json
from random_model import copy_with_particles, write_random_model
from threadpoolctl import threadpool_limits

from scapedist import open_model
from scapedist.analysis.agreement import agreement
from scapedist.analysis.coordinates import ReducedMap
from scapedist.analysis.reduced import Calibration, FieldModel
from scapedist.landscape import Run, open_workers
from scapedist.particles.exact import exact_batch
from scapedist.particles.reduced import reduced_batch
from scapedist.plan import spread_evenly
from scapedist.settings import GenerateSettings
from scapedist.sources.decoded import Decoded, field_of
from scapedist.sources.open import decoded_by

KINDS = {1: "LID-less", 2: "rare"}
TABLES = ("methods", "pace", "box", "missed")


@dataclass(frozen=True)
class Size:
    """What one size of the benchmark does."""

    n_particles: int
    sketch: int
    box_size: int
    n_sample: int
    tolerance: float
    boxes: tuple[int, ...]
    n_points: tuple[int, ...]


SIZES = {
    "tiny": Size(400, 40, 12, 40, 0.2, (8, 12), (20, 40)),
    "small": Size(20_000, 200, 24, 500, 1e-2, (32, 64), (100, 400)),
    "full": Size(20_000, 500, 48, 2000, 1e-3, (64, 128, 256), (100, 200, 400)),
}


def main() -> None:
    """Run the tables asked for and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--only", choices=TABLES, nargs="+", default=TABLES)
    parser.add_argument("--output", help="JSON file")
    arguments = parser.parse_args()
    results = run(arguments.size, tuple(arguments.only))
    if arguments.output:
        write_json(arguments.output, {"machine": describe(), **results})


def run(name: str, tables: tuple[str, ...] = TABLES) -> dict[str, list[dict[str, Any]]]:
    """The rows of some tables, printed as they are made."""
    size, results = SIZES[name], {}
    with (
        tempfile.TemporaryDirectory() as directory,
        as_file(files("scapedist") / "data" / "adk") as bundled,
    ):
        truth = np.load(bundled / "truth.npz")["state"]
        rows = spread_evenly(len(truth), size.n_particles)
        workdir = copy_with_particles(bundled, 14, rows, Path(directory) / "model")
        truth = truth[rows]
        made: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "methods": lambda: methods(workdir, Path(directory) / "run", size),
            "pace": lambda: pace(workdir, Path(directory) / "run", size),
            "box": lambda: by_box(Path(directory), size),
            "missed": lambda: missed(workdir, Path(directory), size, truth),
        }
        for table in tables:
            results[table] = made[table]()
            print(f"\n{table}", flush=True)
            print_table(results[table])
    return results


def _landscape(workdir: Path, output: Path, size: Size, workers: Any, **options: Any) -> Run:
    """A run up to its states."""
    made = Run.create(workdir, 14, output)
    made.sketch(size=size.sketch, quality_groups=0, **options)
    made.generate(workers, box_size=size.box_size).mask().pca(components=20)
    return made.states()


def methods(workdir: Path, output: Path, size: Size) -> list[dict[str, Any]]:
    """Accuracy on unseen particles; time of all particles, with what comes before them."""
    asked: dict[str, dict[str, Any]] = {
        "reduced": {"method": "reduced", "tolerance": size.tolerance},
        "mlp, paper's": {"method": "mlp"},
        "mlp, cryoDRGN's": {"method": "mlp", "variant": "cryodrgn"},
    }
    seconds, found = {}, {}
    with open_workers() as workers:
        made = _landscape(workdir, output, size, workers)
        store = made.store
        for name, options in asked.items():
            embed = partial(made.embed, workers, strict=False, **options)
            seconds[name] = seconds_of(embed)
            found[name] = store.read(f"embedding/{options['method']}/coordinates")
        seen = [store.read(f"embedding/map/{kind}_particle") for kind in ("training", "held_out")]
        unseen = np.setdiff1d(np.arange(size.n_particles), np.concatenate(seen))
        rng = np.random.default_rng(99)
        sample = np.sort(rng.choice(unseen, min(size.n_sample, len(unseen)), replace=False))
        embedder = made.embedder(workers)
        of_one = embedder.exact_seconds_a_particle() / workers.n_workers
        exact, _ = embedder.exact_rows(sample, "")
    rows = []
    for name, coordinates in found.items():
        figures = agreement(coordinates[sample], exact)
        record = store.beside["embedding/reduced"]["results"] if name == "reduced" else {}
        rows.append(
            {
                "method": name,
                "1 - R2, worst of ten": 1 - min(figures["r2"][:10]),
                "of all": 1 - min(figures["r2"]),
                "relative error": figures["relative_error"],
                "stated": record.get("relative_error", ""),
                "largest": figures["error_quantiles"][-1],
                "all, s": seconds[name],
                "exact, s": of_one * size.n_particles,
                "times as fast": of_one * size.n_particles / seconds[name],
            }
        )
    return rows


def pace(workdir: Path, output: Path, size: Size) -> list[dict[str, Any]]:
    """Milliseconds a particle on one thread: decoding alone, exact, reduced, in changing order."""
    made = Run(output)
    with open_workers(1) as workers:
        embedder = made.embedder(workers)
    projection, latents = embedder.projection, embedder.latents
    field = field_of(projection.source)

    def decode() -> None:
        for _ in projection.source.decode(latents[:8]):
            pass

    work: dict[str, tuple[Callable[[], Any], int]] = {
        "decoding alone": (decode, 8),
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
    exact = times["exact"]
    return [
        {
            "what": name,
            "ms a particle": 1e3 * statistics.median(values),
            "exact is times this": statistics.median(np.divide(exact, values)),
            "points": field.lattice(size.box_size).n_points if name != "reduced" else _points(made),
        }
        for name, values in times.items()
    ]


def _points(made: Run) -> int:
    points: int = made.store.beside["embedding/map"]["results"]["points"]
    return points


def by_box(place: Path, size: Size) -> list[dict[str, Any]]:
    """The reduced embedding's milliseconds a particle by points and box, on one thread."""
    rows = []
    for box_size in size.boxes:
        workdir = write_random_model(
            place / f"box{box_size}", box_size=box_size, layers=3, width=256, n_particles=128
        )
        model = open_model(workdir, 19)
        source = decoded_by(model, GenerateSettings(box_size=box_size), model.latents[:0])
        field, row = field_of(source), dict[str, Any](box=box_size)
        with n_threads(1):
            for m in size.n_points:
                every = field.lattice().coordinates
                points = every[:: max(1, len(every) // m)][:m]
                reduced = _map_of_any_values(points, 256)
                call = partial(reduced.evaluate, field, model.latents)
                call()
                seconds = statistics.median(seconds_of(call) for _ in range(3))
                row[f"{m} points"] = 1e3 * seconds / len(model.latents)
            decode = partial(_decode_one, source, model.latents)
            row["one volume"] = 1e3 * seconds_of(decode)
        rows.append(row)
    return rows


def _decode_one(source: Decoded, latents: np.ndarray) -> None:
    for _ in source.decode(latents[:1]):
        pass


def _map_of_any_values(points: np.ndarray, width: int, r: int = 20) -> ReducedMap:
    """A map of the right shapes: what it costs does not depend on its values."""
    n_values, n_features = 2 * len(points), len(points) * (width + 2)
    model = FieldModel(*(np.ones(shape) for shape in ((r, n_values), n_values, r, n_values)))
    return ReducedMap(
        points=np.ascontiguousarray(points),
        n_hidden=len(points),
        feature_mean=torch.zeros(n_features),
        readout=torch.ones(n_features, r),
        offset=torch.zeros(r),
        of_sketch=model,
        of_training=model,
        calibration=Calibration(1.0, 1.0, 1.0),
    )


def missed(workdir: Path, place: Path, size: Size, truth: np.ndarray) -> list[dict[str, Any]]:
    """Particles of a kind kept out of the sketch: how many of them stand out."""
    rows = []
    for kind, name in KINDS.items():
        of_kind = np.flatnonzero(truth == kind)
        np.save(place / f"{kind}.npy", of_kind)
        with open_workers() as workers:
            made = _landscape(
                workdir, place / f"without{kind}", size, workers,
                exclude_particles=place / f"{kind}.npy",
            )  # fmt: skip
            for method in ("reduced", "exact"):
                made.embed(workers, strict=False, method=method, tolerance=size.tolerance)
                store = made.store
                found = {
                    "residual": store.read(f"embedding/{method}/residual"),
                    "distance": store.read("missed/distance"),
                }
                row: dict[str, Any] = {
                    "kept out": name,
                    "particles": len(of_kind),
                    "method": method,
                }
                for what, values in found.items():
                    highest = np.argsort(-values, kind="stable")[: len(of_kind)]
                    row[f"among the highest {what}s"] = int((truth[highest] == kind).sum())
                listed = store.read("missed/missed_particle")
                row["listed as missed"] = len(listed)
                row["of the kind"] = int((truth[listed] == kind).sum())
                rows.append(row)
    return rows


if __name__ == "__main__":
    main()
