"""``scapedist run`` with its default embedding against cryoDRGN's two commands for all particles.

These are ``analyze_landscape`` and then ``analyze_landscape_full``, from a cold start. The latter
decodes training volumes of random particles and trains an MLP that guesses all others.
Its time with the default of 10,000 volumes is extrapolated: a run with fewer, and for each further
volume what one took there from the first volume to the end of training, by cryoDRGN's log; the
rest (start, prediction, UMAP, plots) does not grow. Memory and disk are then those of that run:
they hardly grow, with 20 numbers of each volume.

Accuracy is each program's coordinates against exact ones on its own components, for random
particles that neither was trained with: scapedist decodes its own, and cryoDRGN's function that
makes training volumes makes the other's (its mask and PCA, densities not clipped). It is measured
with the training volumes of each run, never extrapolated.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import re
import tempfile
from argparse import Namespace
from collections import namedtuple
from datetime import datetime
from pathlib import Path
from typing import Any

import harness
import numpy as np
import whole_run
from harness import EPOCH, Panel, Row, Table, disk_bytes, measure, scapedist_run
from random_model import copy_with_particles
from whole_run import FIGURES, RATIOS, analyze_landscape, cryodrgn, figures, ratios_of, write_umap

from scapedist.analysis.agreement import agreement
from scapedist.landscape import Run, open_workers
from scapedist.particles.place import placed_by
from scapedist.plan import spread_evenly

TITLE = "Every particle's coordinates"
TABLES = (
    Table("rows", f"training volumes | extrapolated | {FIGURES}"),
    Table(
        "ratios",
        f"training volumes | extrapolated | {RATIOS}",
        "Both of cryoDRGN's commands over scapedist: above 1, scapedist takes less.",
    ),
    Table(
        "pace",
        "training volumes | growing, s | a volume, s | the rest, s",
        "What grows with the training volumes of `analyze_landscape_full`, and the rest.",
    ),
    Table(
        "accuracy",
        "program | training volumes | relative error | worst R2 of ten | 1 - worst R2 "
        "| largest error",
        "Coordinates of particles that neither program was trained with.",
    ),
)
PLOTS = (Panel("rows", "training volumes", "{program}", "seconds", "time, s", "training volumes"),)
DEFAULT = 10_000
"""Training volumes of ``analyze_landscape_full``."""
FULL = "analyze_landscape_full"
OPTIONS: dict[str, Row] = {
    "--training-volumes": {"type": int, "help": "run cryoDRGN with so many, too (default: 10000)"},
    "--workers": {"type": int, "help": "scapedist's (default: one a core)"},
}


Size = namedtuple("Size", "n_particles sketch box n_training n_sample")
"""Particles and sketch of both programs, cryoDRGN's runs, particles that are compared."""
SIZES = {
    "tiny": Size(600, 30, 16, (100,), 60),
    "small": Size(20_000, 100, 48, (300,), 200),
    "full": Size(20_000, 500, 48, (200, 1000), 1000),
}


def run(size: str, workers: int | None = None, training_volumes: int | None = None) -> Row:
    """Time, memory, disk and accuracy of both programs; ``training_volumes`` is one run more."""
    of = SIZES[size]
    runs = sorted({*of.n_training, training_volumes or of.n_training[0]})
    with harness.bundled() as (shipped, place):
        kept = spread_evenly(len(np.load(shipped / "truth.npz")["state"]), of.n_particles)
        write_umap(copy_with_particles(shipped, EPOCH, kept, place / "adk"))
        ours, theirs, pace = _measured(place, of, runs, workers)
        sample, accuracy = _accuracy(place, of, runs, workers)
    about = ("training volumes", "extrapolated")
    return {
        "sketch": of.sketch,
        "box_size": of.box,
        "particles": of.n_particles,
        "rows": [ours, *theirs],
        "pace": pace,
        "ratios": [
            {key: row[key] for key in about} | ratios_of(row, ours)
            for row in theirs
            if row["program"] == "both"
        ],
        "sample": len(sample),
        "accuracy": accuracy,
    }


def _measured(
    place: Path, size: Size, n_training: list[int], workers: int | None
) -> tuple[Row, list[Row], list[Row]]:
    """Scapedist's row, cryoDRGN's rows, and where the time of each run of the latter went."""
    idle, workdir, landscape = whole_run.idle_mib(workers), place / "adk", place / "landscape"
    sketch, box = size.sketch, size.box

    def row(program: str, n: int | str, command: list[str], output: Path) -> Row:
        took = measure(command, log=place / f"{output.name}.log")
        of = idle["scapedist" if program == "scapedist" else "cryodrgn"]
        what = {"program": program, "training volumes": n, "extrapolated": False}
        return what | figures([took], of, disk_bytes(output))

    output = place / "scapedist"
    ours = row("scapedist", "", scapedist_run(workdir, output, sketch, box, workers), output)
    command = analyze_landscape(workdir, landscape, sketch, box)
    first, full, pace = row("analyze_landscape", "", command, landscape), [], []
    for n in n_training:
        output = place / f"full{n}"
        options = ["--landscape-dir", str(landscape), "-o", str(output), "-N", str(n)]
        command = cryodrgn(FULL, str(workdir), str(EPOCH), *options, "-d", str(box))
        found = row(FULL, n, command, output)
        growing = growing_seconds((place / f"{output.name}.log").read_text())
        line: Row = {"training volumes": n, "growing, s": growing, "a volume, s": growing / n}
        pace.append(line | {"the rest, s": found["seconds"] - growing})
        full.append(found)
    of_most = max(number for number, n in enumerate(n_training) if n < DEFAULT)
    full.append(extrapolated(full[of_most], pace[of_most]))
    return ours, [first, *full, *(_both(first, found) for found in full)], pace


def growing_seconds(log: str) -> float:
    """Time from the first training volume to the end of training, by cryoDRGN's log."""
    lines = re.findall(r"\((\d+-\w+-\d+ [\d:]+)\)(.*)", log)
    texts = [text.strip() for _, text in lines]
    begin = next(i for i, text in enumerate(texts) if text.endswith("volume embeddings"))
    end = texts.index("Running UMAP...") - 1  # the last epoch; then it predicts
    start, stop = (datetime.strptime(lines[i][0], "%d-%b-%Y %H:%M:%S") for i in (begin, end))
    return (stop - start).total_seconds()


def extrapolated(row: Row, pace: Row) -> Row:
    """The row of a run with cryoDRGN's default of training volumes, from one with fewer."""
    seconds = row["seconds"] + (DEFAULT - row["training volumes"]) * pace["a volume, s"]
    guessed = {"training volumes": DEFAULT, "extrapolated": True, "seconds": seconds}
    return row | guessed | {"cpu seconds": "", "others' cpu seconds": ""}


def _both(first: Row, second: Row) -> Row:
    """The row of two commands, one after the other."""
    both = second | {"program": "both"}
    for name in ("seconds", "cpu seconds", "others' cpu seconds", "disk MiB"):
        both[name] = "" if second[name] == "" else first[name] + second[name]
    for name in ("peak MiB", "idle MiB", "above idle MiB"):
        both[name] = max(first[name], second[name])
    return both


def _accuracy(
    place: Path, size: Size, n_training: list[int], n_workers: int | None
) -> tuple[np.ndarray, list[Row]]:
    """Random particles unseen by both programs, and a row for each set of coordinates of them."""
    run = Run(place / "scapedist")
    store, method = run.store, placed_by(run.store)
    names = [f"embedding/map/{kind}_particle" for kind in ("training", "held_out")]
    seen = [store.read(name) for name in ("sketch/particle", *names) if name in store]
    (kmeans,) = (place / "landscape").glob("kmeans*")
    seen += [np.loadtxt(kmeans / "centers_ind.txt").astype(int)]
    seen += [_load(place / f"full{n}" / "ind.sampled.pkl") for n in n_training]
    sample = unseen(size.n_particles, seen, size.n_sample)
    with open_workers(n_workers) as workers:
        exact, _ = run.embedder(workers).exact_rows(sample, "")
    record = store.beside.get("embedding/map", {"results": {}})["results"]
    found = store.read(f"embedding/{method}/coordinates")[sample]
    training = record.get("training_volumes", "")
    about: Row = {"program": f"scapedist, {method}", "training volumes": training}
    rows = [about | error_figures(found, exact)]
    exact = cryodrgn_exact(place / "adk", place / "landscape", sample, size.box)
    for n in n_training:
        found = _load(place / f"full{n}" / "vol_pca_all.pkl")[sample]
        rows.append({"program": FULL, "training volumes": n} | error_figures(found, exact))
    return sample, rows


def unseen(n_particles: int, seen: list[np.ndarray], n_sample: int) -> np.ndarray:
    """Random particles that are not among those seen, in order."""
    others = np.setdiff1d(np.arange(n_particles), np.concatenate(seen))
    rng = np.random.default_rng(99)
    return np.sort(rng.choice(others, min(n_sample, len(others)), replace=False))


def error_figures(found: np.ndarray, exact: np.ndarray) -> Row:
    """How coordinates differ from exact ones; the R2 of a component at worst."""
    of = agreement(found, exact)
    return {
        "relative error": of["relative_error"],
        "worst R2 of ten": min(of["r2"][:10]),
        "1 - worst R2": 1 - min(of["r2"][:10]),
        "1 - R2 of all": 1 - min(of["r2"]),
        "largest error": of["error_quantiles"][-1],
    }


def cryodrgn_exact(workdir: Path, landscape: Path, particles: np.ndarray, box: int) -> np.ndarray:
    """Coordinates (n, r) of particles by volumes that cryoDRGN decodes and projects.

    The function is its own: asked for as many volumes as there are latents, it takes them all, in
    order.
    """
    import cryodrgn.config
    from cryodrgn.commands.analyze_landscape_full import generate_and_map_volumes

    latents = _load(workdir / f"z.{EPOCH}.pkl")[particles]
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        latents_file = Path(scratch) / "z.pkl"
        latents_file.write_bytes(pickle.dumps(latents))
        _, coordinates = generate_and_map_volumes(
            str(latents_file),
            cryodrgn.config.load(str(workdir / "config.yaml")),
            str(workdir / f"weights.{EPOCH}.pkl"),
            str(landscape / "mask.mrc"),
            str(landscape / "vol_pca_obj.pkl"),
            scratch,
            Namespace(flip=False, training_volumes=len(latents), seed=0, downsample=box),
        )
    return np.asarray(coordinates)


def _load(path: Path) -> Any:
    return pickle.loads(path.read_bytes())


if __name__ == "__main__":
    harness.main("landscape_full")
