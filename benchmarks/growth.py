"""How a run's cost grows, stage by stage, and whether it is what the plan says.

Components and states of volumes with random values, n of them with p voxels in the mask, and
decoding for several boxes D, on one thread, each in a process of its own: the power of each that
fits the times, and what the plan says. Volumes have random values with a decaying spectrum.
"""

from __future__ import annotations

import tempfile
from collections import namedtuple
from functools import partial
from itertools import product
from pathlib import Path

import harness
import numpy as np
from harness import MIB, Panel, Row, Table, alone, exhaust, n_threads, peak_bytes, seconds_of
from random_model import write_random_model

from scapedist import Run, open_model
from scapedist.landscape import open_workers
from scapedist.landscape.cost import components_seconds, sketch_seconds, states_seconds
from scapedist.landscape.speed import Rates
from scapedist.model.field import Field
from scapedist.plan import GIB, Budget, batches, plan_components, plan_linkage
from scapedist.settings import GenerateSettings, MaskSettings, SketchSettings
from scapedist.workers import Serial, available_cores

TITLE = "How costs grow"
TABLES = (
    Table(
        "rows",
        "stage | variable | from | to | exponent | planned exponent | planned / measured s "
        "| planned / measured MiB",
    ),
    Table(
        "many",
        "n | p | linkage | joined from | components s | states s | peak GiB | planned GiB",
        "Many volumes under a limit of 4 GiB a process, a worker a core.",
    ),
    Table(
        "measured",
        "particles | n | seconds: time, s | planned s | above idle MiB: above idle, MiB",
        "Sketches of n of the particles by k-means on latents of eight dimensions.",
        {"stage": "sketch"},
    ),
)
PLOTS = tuple(
    Panel("measured", "n", "{stage}", columns, label, "volumes", fixed=("p",))
    for columns, label in (
        ({"seconds": "", "planned s": "planned"}, "time, s"),
        ({"peak MiB": "", "planned MiB": "planned"}, "peak memory, MiB"),
    )
)
COMPONENTS, STATES, ZDIM = 20, 10, 8
RANK, NOISE = 60, 0.02
"""Of the volumes: apart from noise, and of it."""


Size = namedtuple(
    "Size", "volumes voxels boxes width many latents sketches", defaults=((), 2000, (100, 200))
)
"""Volumes and voxels of the fits (those over voxels have the middle number of volumes); boxes, and
the width of their models' layers; (volumes, voxels, solver, linkage, memory limit) of one run each;
particles and sketch sizes of k-means."""
MANY = (
    (20_000, 20_000, "gram", "average", 4 * GIB),
    (50_000, 5_000, "auto", "ward", 4 * GIB),
    (50_000, 5_000, "auto", "average", 4 * GIB),
    (100_000, 5_000, "auto", "kmeans", 4 * GIB),
)
THOUSANDS, MORE = (1000, 2000, 4000), (2000, 4000, 8000)
SIZES = {
    "tiny": Size((60, 120), (300,), (8, 12), 16, ((150, 300, "auto", "average", 2 * GIB),)),
    "small": Size(THOUSANDS, THOUSANDS, (32, 48, 64), 128),
    "full": Size(MORE, MORE, (48, 64, 96, 128), 256, MANY, 300_000, (10_000, 30_000, 100_000)),
}


def run(size: str) -> Row:
    """Rows of each measurement, exponents, and runs under a limit."""
    of = SIZES[size]
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        rows = stages(of, place) + decoding(of, place) + sketches(of)
        of_many = [many(place, *case) for case in of.many]
    return {"rows": exponents(rows), "measured": rows, "many": of_many}


def write_masked_run(place: Path, n: int, p: int) -> Path:
    """A run whose store has n volumes of p masked voxels, which nothing was decoded for."""
    box = next(d for d in range(8, 1000, 2) if d**3 >= p)
    write_random_model(place / "model", box_size=box, layers=1, width=4, zdim=2, n_particles=n)
    made = Run.create(place / "model", 19, place / "run")
    store, rng, every = made.store, np.random.default_rng(0), np.arange(n)
    store.write("sketch/particle", every, ("volume",))
    store.write("sketch/assignment", every.astype(np.int32), ("particle",))
    store.write("sketch/occupancy", np.ones(n, np.int64), ("volume",))
    mask = (np.arange(box**3) < p).astype(np.float32)
    store.write("mask", mask.reshape((box,) * 3), ("z", "y", "x"))
    array = store.create("volumes/masked", (n, p), "float32", ("volume", "voxel"), (1, p))
    basis = rng.standard_normal((RANK, p), np.float32)
    basis *= (10 * 0.85 ** np.arange(RANK, dtype=np.float32))[:, None]
    mean = 20 * rng.random(p, np.float32)
    for start, stop in batches(n, max(1, 2**24 // p)):
        rows = rng.standard_normal((stop - start, RANK), np.float32) @ basis + mean
        array[start:stop] = rows + NOISE * rng.standard_normal(rows.shape, np.float32)
    for stage, settings, results in (
        ("sketch", SketchSettings(size=n, quality_groups=0), {"volumes": n}),
        ("generate", GenerateSettings(store="masked"), {"volumes": n}),
        ("mask", MaskSettings(), {"voxels": p}),
    ):
        fingerprint = made._fingerprint(stage, settings, {})
        record = {"settings": vars(settings), "fingerprint": fingerprint, "results": results}
        store.remember(stage, vars(settings))
        store.finish_stage(stage, record | {"seconds": 0.0})
    store.write_source(store.source | {"box_size": box})
    return made.directory


# -- in a process of its own


def child(
    directory: str, n_workers: int | None, solver: str, linkage: str, limit: int | None
) -> Row:
    """Components and states of a run in this process, or its workers: seconds and peaks."""
    found: Row = {}
    with open_workers(n_workers, memory_limit=limit) as workers:
        if hasattr(workers, "connected"):
            workers.connected()
        made = Run(directory)
        found["pca"] = seconds_of(lambda: made.pca(workers, components=COMPONENTS, solver=solver))
        found["pca peak"] = peak_bytes()
    here = Serial(memory_limit=limit)
    found["states"] = seconds_of(lambda: made.states(here, states=STATES, linkage=linkage))
    found["peak"] = peak_bytes()
    results = {name: record["results"] for name, record in made.store.stages.items()}
    return found | {"solver": results["pca"]["solver"], "joined": results["states"]["joined"]}


def sketch_child(particles: int, size: int) -> Row:
    """A k-means sketch of random latents: seconds, what the plan says, bytes above idle."""
    from scapedist.analysis.sketch import make_sketch

    latents = np.random.default_rng(0).standard_normal((particles, ZDIM))
    latents = (latents * 0.8 ** np.arange(ZDIM)).astype(np.float32)
    planned = sketch_seconds(latents, size)
    before = harness.reset_peak()
    seconds = seconds_of(lambda: make_sketch(latents, size))
    above = (peak_bytes() - before) / MIB
    return {"seconds": seconds, "planned s": planned, "above idle MiB": above}


def measured(
    place: Path,
    n: int,
    p: int,
    workers: int | None,
    solver: str,
    linkage: str,
    limit: int | None,
    rates: Rates | None = None,
) -> Row:
    """What components and states of n volumes with p voxels took, and what their plans say.

    By rates that are measured then, where none are given.
    """
    with tempfile.TemporaryDirectory(dir=place) as directory:
        made = write_masked_run(Path(directory), n, p)
        found = alone("growth", made, workers, solver, linkage, limit)
    budget, n_workers = Budget(limit or 2**50, limit is not None), workers or available_cores()
    plan = plan_components(n, p, COMPONENTS, budget, n_workers, solver=solver)
    joined, rates = plan_linkage(n, linkage, budget), rates or Rates.measured()
    rate, reading = rates.products_per_second, 4 * n * p / rates.read_bytes_per_second
    return found | {
        "planned pca": components_seconds(plan, n, p, n_workers, rate, reading),
        "planned states": states_seconds(joined, n, linkage, rate, reading),
        "planned pca peak": plan.here_bytes,
        "planned peak": max(plan.here_bytes, joined.here_bytes),
    }


# -- the tables


def stages(size: Size, place: Path) -> list[Row]:
    """Components by both ways, and states, for several volumes and voxels, on one thread."""
    middle, rates, rows = size.volumes[len(size.volumes) // 2], Rates.measured(), []
    cases = [(n, size.voxels[0]) for n in size.volumes] + [(middle, p) for p in size.voxels[1:]]
    for (n, p), solver in product(cases, ("gram", "iteration")):
        found = measured(place, n, p, 1, solver, "average", None, rates)
        parts = {f"components, {solver}": ("pca", "pca peak")}
        if solver == "gram":
            parts["states, average"] = ("states", "peak")
        for stage, (seconds, peak) in parts.items():
            row = {"stage": stage, "n": n, "p": p, "seconds": found[seconds]}
            row |= {"planned s": found[f"planned {seconds}"], "peak MiB": found[peak] / MIB}
            rows.append(row | {"planned MiB": found[f"planned {peak}"] / MIB})
    return rows


def decoding(size: Size, place: Path) -> list[Row]:
    """Seconds a volume for several boxes, on one thread."""
    rows = []
    for box in size.boxes:
        shape = {"box_size": box, "width": size.width, "n_particles": 8}
        model = open_model(write_random_model(place / f"box{box}", **shape), 19)
        field = Field(model.decoder)
        with n_threads(1):
            exhaust(field.volumes(model.latents))
            seconds = seconds_of(partial(exhaust, field.volumes(model.latents)))
        rows.append({"stage": "decoding", "n": 1, "D": box, "seconds": seconds / 8})
    return rows


def sketches(size: Size) -> list[Row]:
    """k-means on latents for several sizes of a sketch, on all cores."""
    return [
        {"stage": "sketch", "n": n, "particles": size.latents}
        | alone("growth", size.latents, n, child="sketch_child")
        for n in size.sketches
    ]


def exponents(rows: list[Row]) -> list[Row]:
    """The power of each variable that fits the measured, and the planned, seconds."""
    found, of = [], {"exponent": "seconds", "planned exponent": "planned s"}
    for line, mine in harness.exponents(rows, ("stage",), ("n", "p", "D"), of):
        line.setdefault("planned exponent", 3.0)  # of D
        for unit, key in (("s", "seconds"), ("MiB", "peak MiB")):
            if f"planned {unit}" in mine[0]:
                ratios = [row[f"planned {unit}"] / row[key] for row in mine]
                line[f"planned / measured {unit}"] = float(np.median(ratios))
        found.append(line)
    return found


def many(place: Path, n: int, p: int, solver: str, linkage: str, limit: int) -> Row:
    """One run of many volumes under a memory limit, with a worker a core."""
    found = measured(place, n, p, None, solver, linkage, limit)
    return {
        "n": n,
        "p": p,
        "linkage": linkage,
        "solver": found["solver"],
        "joined from": found["joined"],
        "components s": found["pca"],
        "planned components s": found["planned pca"],
        "states s": found["states"],
        "planned states s": found["planned states"],
        "peak GiB": found["peak"] / GIB,
        "planned GiB": found["planned peak"] / GIB,
    }


if __name__ == "__main__":
    harness.main("growth")
