"""Every particle's coordinates, from a cold start: ``scapedist run`` against cryoDRGN's commands.

``scapedist run`` with its default embedding against ``cryodrgn analyze_landscape`` and then
``analyze_landscape_full``, on the bundled model. The latter decodes training volumes of random
particles and trains an MLP that guesses all others. Its time with the default of 10,000 volumes is
extrapolated and told apart from what was measured: a run with fewer, and for each further volume
what one took there from the first volume to the end of training, by cryoDRGN's log; the rest
(start, prediction, UMAP, plots) does not grow. Memory and disk are then those of that run: they
hardly grow, with 20 numbers of each volume.

Accuracy is each program's coordinates against exact ones on its own components, for random
particles that neither was trained with: scapedist decodes its own, and cryoDRGN's function that
makes training volumes makes the other's (its mask and PCA, densities not clipped). It is measured
with the training volumes of each run, never extrapolated.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import pickle
import re
import tempfile
from argparse import Namespace
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, print_table, write_json
from processes import disk_bytes, measure
from random_model import copy_with_particles
from whole_run import (
    analyze_landscape,
    cryodrgn,
    figures,
    idle_bytes,
    ratios_of,
    scapedist_run,
    write_umap,
)

from scapedist.analysis.agreement import agreement
from scapedist.landscape import Run, open_workers
from scapedist.particles.place import placed_by
from scapedist.plan import spread_evenly

DEFAULT = 10_000
"""Training volumes of ``analyze_landscape_full``."""
FULL = "analyze_landscape_full"


@dataclass(frozen=True)
class Size:
    """What one size of the benchmark does."""

    n_particles: int
    sketch: int
    box_size: int
    n_training: tuple[int, ...]
    n_sample: int


SIZES = {
    "tiny": Size(600, 30, 16, (100,), 60),
    "small": Size(20_000, 100, 48, (300,), 200),
    "full": Size(20_000, 500, 48, (200, 1000), 1000),
}


def main() -> None:
    """Run both programs and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--sketch", type=int, help="sketch size, instead of the size's own")
    parser.add_argument(
        "--training-volumes", type=int, help="run cryoDRGN with so many, too (its default: 10000)"
    )
    parser.add_argument("--workers", type=int, help="scapedist's (default: one a core)")
    parser.add_argument("--output", help="JSON file")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)  # cryoDRGN lets all modules tell what they do
    results = compare(
        arguments.size, arguments.workers, arguments.sketch, arguments.training_volumes
    )
    print_table(results["rows"])
    print(f"\n{FULL}: what grows with its volumes, and the rest")
    print_table(results["pace"])
    print("\nboth of cryodrgn's commands over scapedist")
    print_table(results["ratios"])
    print(f"\ncoordinates of {results['sample']} particles unseen by both, against exact ones")
    print_table(results["accuracy"])
    if arguments.output:
        write_json(arguments.output, results)


def compare(
    name: str,
    n_workers: int | None = None,
    sketch: int | None = None,
    n_training: int | None = None,
) -> dict[str, Any]:
    """Time, memory, disk and accuracy of both programs; ``n_training`` is one run more."""
    size = SIZES[name]
    sketch = sketch or size.sketch
    runs = sorted({*size.n_training, *([n_training] if n_training else [])})
    with (
        tempfile.TemporaryDirectory() as directory,
        as_file(files("scapedist") / "data" / "adk") as bundled,
    ):
        place = Path(directory)
        every = len(np.load(bundled / "truth.npz")["state"])
        kept = spread_evenly(every, size.n_particles)
        write_umap(copy_with_particles(bundled, 14, kept, place / "adk"))
        ours, theirs, pace = _measured(place, sketch, size.box_size, runs, n_workers)
        sample, accuracy = _accuracy(place, size, runs, n_workers)
    return {
        "benchmark": "landscape_full",
        "machine": describe(),
        "sketch": sketch,
        "box_size": size.box_size,
        "particles": size.n_particles,
        "rows": [ours, *theirs],
        "pace": pace,
        "ratios": [
            {
                "training volumes": row["training volumes"],
                "extrapolated": row["extrapolated"],
                **ratios_of(row, ours),
            }
            for row in theirs
            if row["program"] == "both"
        ],
        "sample": len(sample),
        "accuracy": accuracy,
    }


def _measured(
    place: Path, sketch: int, box_size: int, n_training: list[int], n_workers: int | None
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Scapedist's row, cryoDRGN's rows, and where the time of each run of the latter went."""
    idle, workdir, landscape = idle_bytes(n_workers), place / "adk", place / "landscape"

    def row(program: str, n: int | str, command: list[str], output: Path) -> dict[str, Any]:
        run = measure(command, log=place / f"{output.name}.log")
        of = idle["scapedist" if program == "scapedist" else "cryodrgn"]
        what = {"program": program, "training volumes": n, "extrapolated": False}
        return what | figures([run], of, disk_bytes(output))

    output = place / "scapedist"
    ours = row("scapedist", "", scapedist_run(workdir, output, sketch, box_size, n_workers), output)
    command = analyze_landscape(workdir, landscape, sketch, box_size)
    first = row("analyze_landscape", "", command, landscape)
    full, pace = [], []
    for n in n_training:
        output = place / f"full{n}"
        options = ["--landscape-dir", str(landscape), "-o", str(output)]
        options += ["-N", str(n), "-d", str(box_size)]
        full.append(row(FULL, n, cryodrgn(FULL, str(workdir), "14", *options), output))
        growing = growing_seconds((place / f"{output.name}.log").read_text())
        pace.append(
            {
                "training volumes": n,
                "growing, s": growing,
                "a volume, s": growing / n,
                "the rest, s": full[-1]["seconds"] - growing,
            }
        )
    measured = [(r, p) for r, p in zip(full, pace, strict=True) if p["training volumes"] < DEFAULT]
    full.append(extrapolated(*measured[-1]))
    return ours, [first, *full, *(_both(first, r) for r in full)], pace


def growing_seconds(log: str) -> float:
    """Time from the first training volume to the end of training, by cryoDRGN's log."""
    lines = re.findall(r"\((\d+-\w+-\d+ [\d:]+)\)(.*)", log)
    texts = [text.strip() for _, text in lines]
    begin = next(i for i, text in enumerate(texts) if text.endswith("volume embeddings"))
    end = texts.index("Running UMAP...") - 1  # the last epoch; then it predicts
    start, stop = (datetime.strptime(lines[i][0], "%d-%b-%Y %H:%M:%S") for i in (begin, end))
    return (stop - start).total_seconds()


def extrapolated(row: dict[str, Any], pace: dict[str, Any]) -> dict[str, Any]:
    """The row of a run with cryoDRGN's default of training volumes, from one with fewer."""
    further = DEFAULT - row["training volumes"]
    return row | {
        "training volumes": DEFAULT,
        "extrapolated": True,
        "seconds": row["seconds"] + further * pace["a volume, s"],
        "cpu seconds": "",
        "others' cpu seconds": "",
    }


def _both(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The row of two commands, one after the other."""
    both = second | {"program": "both"}
    for name in ("seconds", "cpu seconds", "others' cpu seconds", "disk MiB"):
        both[name] = "" if second[name] == "" else first[name] + second[name]
    for name in ("peak MiB", "idle MiB", "above idle MiB"):
        both[name] = max(first[name], second[name])
    return both


# -- accuracy


def _accuracy(
    place: Path, size: Size, n_training: list[int], n_workers: int | None
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Random particles unseen by both programs, and a row for each set of coordinates of them."""
    run = Run(place / "scapedist")
    store, method = run.store, placed_by(run.store)
    names = [f"embedding/map/{kind}_particle" for kind in ("training", "held_out")]
    seen = [store.read(name) for name in ("sketch/particle", *names) if name in store]
    (kmeans,) = (place / "landscape").glob("kmeans*")
    seen += [np.loadtxt(kmeans / "centers_ind.txt").astype(int)]
    seen += [_load(place / f"full{n}" / "ind.sampled.pkl") for n in n_training]
    unseen = np.setdiff1d(np.arange(size.n_particles), np.concatenate(seen))
    rng = np.random.default_rng(99)
    sample = np.sort(rng.choice(unseen, min(size.n_sample, len(unseen)), replace=False))
    with open_workers(n_workers) as workers:
        exact, _ = run.embedder(workers).exact_rows(sample, "")
    record = store.beside.get("embedding/map", {"results": {}})["results"]
    found = store.read(f"embedding/{method}/coordinates")[sample]
    rows = [_row(f"scapedist, {method}", record.get("training_volumes", ""), found, exact)]
    exact = cryodrgn_exact(place / "adk", place / "landscape", sample, size.box_size)
    for n in n_training:
        found = _load(place / f"full{n}" / "vol_pca_all.pkl")[sample]
        rows.append(_row(FULL, n, found, exact))
    return sample, rows


def cryodrgn_exact(
    workdir: Path, landscape: Path, particles: np.ndarray, box_size: int
) -> np.ndarray:
    """Coordinates (n, r) of particles by volumes that cryoDRGN decodes and projects.

    The function is its own: asked for as many volumes as there are latents, it takes them all, in
    order.
    """
    import cryodrgn.config
    from cryodrgn.commands.analyze_landscape_full import generate_and_map_volumes

    latents = _load(workdir / "z.14.pkl")[particles]
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        latents_file = Path(scratch) / "z.pkl"
        latents_file.write_bytes(pickle.dumps(latents))
        options = {"training_volumes": len(latents), "seed": 0, "downsample": box_size}
        _, coordinates = generate_and_map_volumes(
            str(latents_file),
            cryodrgn.config.load(str(workdir / "config.yaml")),
            str(workdir / "weights.14.pkl"),
            str(landscape / "mask.mrc"),
            str(landscape / "vol_pca_obj.pkl"),
            scratch,
            Namespace(flip=False, **options),
        )
    return np.asarray(coordinates)


def _row(program: str, n: int | str, found: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    of = agreement(found, exact)
    return {
        "program": program,
        "training volumes": n,
        "relative error": of["relative_error"],
        "worst R2 of ten": min(of["r2"][:10]),
        "1 - worst R2": 1 - min(of["r2"][:10]),
        "largest error": of["error_quantiles"][-1],
    }


def _load(path: Path) -> Any:
    return pickle.loads(path.read_bytes())


if __name__ == "__main__":
    main()
