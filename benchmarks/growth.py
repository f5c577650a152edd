"""How a run's cost grows, stage by stage, and whether it is what the plan says.

Components (by the Gram matrix, by passes over the volumes) and states of masked volumes that are
in a store, for several numbers of volumes n and of voxels p, and decoding for several boxes D:
time and peak memory of a process of its own next to the plan's figures, and the exponents that fit
the times. Volumes have random values with a decaying spectrum. At full size also many volumes at
once, under a memory limit, and sketches of many latents by k-means.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from alone import alone, peak_bytes, reset_peak
from machine import describe, n_threads, print_table, seconds_of, write_json
from random_model import write_random_model

from scapedist import open_model
from scapedist.analysis.sketch import make_sketch
from scapedist.landscape import Run, open_workers
from scapedist.landscape.cost import (
    components_seconds,
    sketch_seconds,
    states_seconds,
)
from scapedist.landscape.speed import Rates
from scapedist.model.field import Field
from scapedist.plan import (
    GIB,
    IMPORT_BYTES,
    Budget,
    ComponentsPlan,
    LinkagePlan,
    batches,
    plan_components,
    plan_linkage,
)
from scapedist.settings import (
    GenerateSettings,
    MaskSettings,
    SketchSettings,
)
from scapedist.workers import Serial, available_cores
from scapedist.workers.distributed import Distributed

COMPONENTS, STATES = 20, 10
RANK = 60
"""Of the volumes, apart from noise."""
NOISE = 0.02
ZDIM = 8


@dataclass(frozen=True)
class Size:
    """Volumes and voxels of the fits, boxes, and what is done at once under a limit.

    Attributes
    ----------
    volumes, voxels
        Of each of the fits over volumes; of each over voxels, with the middle number of volumes.
    boxes, width
        Of decoding; of its random models' layers.
    many
        (volumes, voxels, solver, linkage, memory limit) of one run each.
    latents, sketches
        Particles and sketch sizes of k-means on latents.
    """

    volumes: tuple[int, ...]
    voxels: tuple[int, ...]
    boxes: tuple[int, ...]
    width: int
    many: tuple[tuple[int, int, str, str, int], ...] = ()
    latents: int = 2000
    sketches: tuple[int, ...] = (100, 200)


SIZES = {
    "tiny": Size((60, 120), (300,), (8, 12), 16, ((150, 300, "auto", "average", 2 * GIB),)),
    "small": Size((1000, 2000, 4000), (1000, 2000, 4000), (32, 48, 64), 128),
    "full": Size(
        (2000, 4000, 8000),
        (2000, 4000, 8000),
        (48, 64, 96, 128),
        256,
        (
            (20_000, 20_000, "gram", "average", 4 * GIB),
            (50_000, 5_000, "auto", "ward", 4 * GIB),
            (50_000, 5_000, "auto", "average", 4 * GIB),
            (100_000, 5_000, "auto", "kmeans", 4 * GIB),
        ),
        300_000,
        (10_000, 30_000, 100_000),
    ),
}


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--many-only", action="store_true", help="only the runs under a limit")
    parser.add_argument("--output", help="JSON file")
    arguments = parser.parse_args()
    results = run(arguments.size, arguments.many_only)
    if arguments.output:
        write_json(arguments.output, {"benchmark": "growth", "machine": describe(), **results})


def run(name: str, many_only: bool = False) -> dict[str, Any]:
    """Rows of each measurement, exponents, and runs under a limit; printed as they are made."""
    size, results = SIZES[name], {}
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        if not many_only:
            rows = stages(size, place) + decoding(size, place) + sketches(size)
            for stage in dict.fromkeys(row["stage"] for row in rows):
                print_table([row for row in rows if row["stage"] == stage])
            results["rows"] = exponents(rows)
            print_table(results["rows"])
            results["measured"] = rows
        results["many"] = [many(place, *case) for case in size.many]
        print_table(results["many"])
    return results


# -- runs with volumes that nothing was decoded for


def write_masked_run(place: Path, n: int, p: int) -> Path:
    """A run whose store has n volumes of p masked voxels, ready for components."""
    box_size = next(d for d in range(8, 1000, 2) if d**3 >= p)
    workdir = write_random_model(
        place / "model", box_size=box_size, layers=1, width=4, zdim=2, n_particles=n
    )
    made = Run.create(workdir, 19, place / "run")
    store, rng = made.store, np.random.default_rng(0)
    every = np.arange(n)
    store.write("sketch/particle", every, ("volume",))
    store.write("sketch/assignment", every.astype(np.int32), ("particle",))
    store.write("sketch/occupancy", np.ones(n, np.int64), ("volume",))
    mask = np.zeros(box_size**3, np.float32)
    mask[:p] = 1
    store.write("mask", mask.reshape((box_size,) * 3), ("z", "y", "x"))
    array = store.create("volumes/masked", (n, p), "float32", ("volume", "voxel"), (1, p))
    basis = rng.standard_normal((RANK, p), np.float32)
    basis *= (10 * 0.85 ** np.arange(RANK, dtype=np.float32))[:, None]
    mean = 20 * rng.random(p, np.float32)
    for start, stop in batches(n, max(1, 2**24 // p)):
        scores = rng.standard_normal((stop - start, RANK), np.float32)
        rows = scores @ basis + mean
        rows += NOISE * rng.standard_normal(rows.shape, np.float32)
        array[start:stop] = rows
    generated = GenerateSettings(store="masked")
    for stage, settings, results in (
        ("sketch", SketchSettings(size=n, quality_groups=0), {"volumes": n}),
        ("generate", generated, {"volumes": n}),
        ("mask", MaskSettings(), {"voxels": p}),
    ):
        fingerprint = made._fingerprint(stage, settings, {})
        record = {"settings": vars(settings), "fingerprint": fingerprint, "results": results}
        store.remember(stage, vars(settings))
        store.finish_stage(stage, record | {"seconds": 0.0})
    source = store.source
    store.write_source(source | {"box_size": box_size})
    return made.directory


def child(directory: str, options: str) -> dict[str, Any]:
    """Components and states of a run in this process, or its workers: seconds and peaks."""
    asked = json.loads(options)
    found: dict[str, Any] = {}
    limit = asked["limit"]
    with open_workers(asked["workers"], memory_limit=limit) as workers:
        if isinstance(workers, Distributed):
            workers.connected()
        made = Run(directory)
        found["pca"] = seconds_of(
            lambda: made.pca(workers, components=COMPONENTS, solver=asked["solver"])
        )
        found["pca peak"] = peak_bytes()
        if isinstance(workers, Distributed):
            found["worker peak"] = max(workers.connected().run(peak_bytes).values())
    found["states"] = seconds_of(
        lambda: made.states(Serial(memory_limit=limit), states=STATES, linkage=asked["linkage"])
    )
    found["peak"] = peak_bytes()
    results = made.store.stages
    return found | {
        "solver": results["pca"]["results"]["solver"],
        "joined": results["states"]["results"]["joined"],
    }


def sketch_child(particles: str, size: str) -> dict[str, Any]:
    """A k-means sketch of random latents: seconds, what the plan says, bytes above idle."""
    latents = np.random.default_rng(0).standard_normal((int(particles), ZDIM))
    latents = (latents * 0.8 ** np.arange(ZDIM)).astype(np.float32)
    planned = sketch_seconds(latents, int(size))
    before = reset_peak()
    seconds = seconds_of(lambda: make_sketch(latents, int(size)))
    return {"seconds": seconds, "planned s": planned, "bytes": peak_bytes() - before}


# -- fits


def stages(size: Size, place: Path) -> list[dict[str, Any]]:
    """Components by both ways, and states, for several volumes and voxels, on one thread."""
    middle = size.volumes[len(size.volumes) // 2]
    cases = [(n, size.voxels[0]) for n in size.volumes]
    cases += [(middle, p) for p in size.voxels[1:]]
    rates, rows = Rates.measured(), []
    for n, p in cases:
        with tempfile.TemporaryDirectory(dir=place) as directory:
            made = write_masked_run(Path(directory), n, p)
            for solver in ("gram", "iteration"):
                asked = {"limit": None, "workers": 1, "solver": solver, "linkage": "average"}
                found = alone("growth", str(made), json.dumps(asked))
                plan = plan_components(n, p, COMPONENTS, Budget(2**50, False), 1, solver=solver)
                reading = 4 * n * p / rates.read_bytes_per_second
                rows.append(
                    {
                        "stage": f"components, {solver}",
                        "n": n,
                        "p": p,
                        "seconds": found["pca"],
                        "planned s": components_seconds(
                            plan, n, p, 1, rates.products_per_second, reading
                        ),
                        "peak MiB": found["pca peak"] / 2**20,
                        "planned MiB": plan.here_bytes / 2**20,
                    }
                )
                if solver == "gram":
                    joined = plan_linkage(n, "average", Budget(2**50, False))
                    rows.append(
                        {
                            "stage": "states, average",
                            "n": n,
                            "p": p,
                            "seconds": found["states"],
                            "planned s": states_seconds(
                                joined, n, "average", rates.products_per_second, reading
                            ),
                            "peak MiB": found["peak"] / 2**20,
                            "planned MiB": max(plan.here_bytes, joined.here_bytes) / 2**20,
                        }
                    )
    return rows


def decoding(size: Size, place: Path) -> list[dict[str, Any]]:
    """Seconds a volume for several boxes, on one thread."""
    rows = []
    for box_size in size.boxes:
        with tempfile.TemporaryDirectory(dir=place) as directory:
            workdir = write_random_model(
                directory, box_size=box_size, width=size.width, n_particles=8
            )
            field = Field(open_model(workdir, 19).decoder)
            latents = open_model(workdir, 19).latents
            with n_threads(1):
                decode = partial(_decode, field, latents)
                decode()
                seconds = seconds_of(decode) / len(latents)
        rows.append({"stage": "decoding", "n": 1, "D": box_size, "seconds": seconds})
    return rows


def sketches(size: Size) -> list[dict[str, Any]]:
    """k-means on latents for several sizes of a sketch, on all cores."""
    rows = []
    for n in size.sketches:
        found = alone("growth", str(size.latents), str(n), child="sketch_child")
        row = {"stage": "sketch", "n": n, "particles": size.latents, "seconds": found["seconds"]}
        above = found["bytes"] / 2**20
        rows.append(row | {"planned s": found["planned s"], "above idle MiB": above})
    return rows


def _decode(field: Field, latents: np.ndarray) -> None:
    for _ in field.volumes(latents):
        pass


def exponents(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The power of each variable that fits the measured, and the planned, seconds."""
    found = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        mine = [row for row in rows if row["stage"] == stage]
        for variable in ("n", "p", "D"):
            longest = longest_series(mine, variable, ("n", "p", "D"))
            if len(longest) < 2:
                continue
            line: dict[str, Any] = {"stage": stage, "variable": variable}
            line["from"], line["to"] = longest[0][variable], longest[-1][variable]
            line["exponent"] = power(longest, variable, "seconds")
            line |= {"planned exponent": 3.0, "planned / measured s": ""}  # of decoding
            line["planned / measured MiB"] = ""
            if "planned s" in longest[0]:
                line["planned exponent"] = power(longest, variable, "planned s")
                ratios = [row["planned s"] / row["seconds"] for row in longest]
                line["planned / measured s"] = float(np.median(ratios))
            if "planned MiB" in longest[0]:
                memory = [row["planned MiB"] / row["peak MiB"] for row in longest]
                line["planned / measured MiB"] = float(np.median(memory))
            found.append(line)
    return found


def longest_series(
    rows: list[dict[str, Any]], variable: str, variables: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Rows with most values of one variable and the same of all others, by that variable."""
    series: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if variable in row:
            others = tuple(row.get(name) for name in variables if name != variable)
            series.setdefault(others, []).append(row)
    longest = max(series.values(), key=len, default=[])
    return sorted(longest, key=lambda row: row[variable])


def power(rows: list[dict[str, Any]], variable: str, what: str) -> float:
    """The power of a variable that fits a column of rows."""
    x = np.log([row[variable] for row in rows])
    return float(np.polyfit(x, np.log([row[what] for row in rows]), 1)[0])


def many(place: Path, n: int, p: int, solver: str, linkage: str, limit: int) -> dict[str, Any]:
    """One run of many volumes under a memory limit, with a worker a core."""
    with tempfile.TemporaryDirectory(dir=place) as directory:
        made = write_masked_run(Path(directory), n, p)
        asked = {"limit": limit, "workers": None, "solver": solver, "linkage": linkage}
        found = alone("growth", str(made), json.dumps(asked))
        if "error" in found:
            raise RuntimeError(found["error"])
        disk = sum(path.stat().st_size for path in (made / "landscape.zarr").rglob("*"))
    n_workers = available_cores()
    components: ComponentsPlan = plan_components(
        n, p, COMPONENTS, Budget(limit), n_workers, solver=solver
    )
    joined: LinkagePlan = plan_linkage(n, linkage, Budget(limit))
    rates = Rates.measured()
    rate, reading = rates.products_per_second, 4 * n * p / rates.read_bytes_per_second
    return {
        "n": n,
        "p": p,
        "linkage": linkage,
        "solver": found["solver"],
        "joined from": found["joined"],
        "components s": found["pca"],
        "planned components s": components_seconds(components, n, p, n_workers, rate, reading),
        "states s": found["states"],
        "planned states s": states_seconds(joined, n, linkage, rate, reading),
        "peak GiB": found["peak"] / GIB,
        "planned GiB": max(components.here_bytes, joined.here_bytes) / GIB,
        "worker GiB": found.get("worker peak", 0) / GIB,
        "planned worker GiB": components.worker_bytes / GIB,
        "limit GiB": limit / GIB,
        "disk GiB": disk / GIB,
        "above imports GiB": (found["peak"] - IMPORT_BYTES) / GIB,
    }


if __name__ == "__main__":
    main()
