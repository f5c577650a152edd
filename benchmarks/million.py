"""The whole job at 10^5 to 10^6 particles: time, processor, memory and growth of each stage.

The model is the bundled one at box 24, whose decoding is cheap: what is seen is what grows with the
particles. Particles beyond the bundled ones are drawn from them, each moved by a tenth of the
latents' spread. Each stage is a command of its own, from a cold start; then the whole job is done
at once, with two workers that may use 1 GiB each. ``in sketch`` is the number of volumes.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import harness
import numpy as np
from harness import EPOCH, Panel, Row, Table, disk_bytes, measure, scapedist_run
from random_model import copy_with_particles, read_latents, write_latents

TITLE = "A million particles"
COST = "seconds: time, s | cpu seconds: processor, s | peak MiB | largest process MiB"
TABLES = (
    Table("stages", f"particles | in sketch | stage | {COST}", "Each stage by its own command:"),
    Table(
        "exponents",
        "stage | variable | from | to | exponent",
        "How the processor's time of a stage grows with the particles, where it takes 5 s or more:",
    ),
    Table(
        "whole",
        f"particles | in sketch | {COST} | run MiB | report MiB | opens in s",
        "The whole job by one command, with `--memory-limit 1GiB`:",
    ),
    Table("failures", "particles | in sketch | error", "FAILED:"),
)
PLOTS = (
    Panel(
        "stages", "particles", "{stage}", "cpu seconds", "processor, s", "particles",
        fixed=("in sketch",),
    ),
)  # fmt: skip
BOX, WORKERS, LIMIT = 24, 2, "1GiB"
LEAST_SECONDS = 5.0
"""A stage whose growth is told takes the processor at least so long in the longest run."""
SIZES = {
    "tiny": ((400, 20, 0.05),),
    "small": ((20_000, 200, 1e-3), (100_000, 200, 1e-3)),
    "full": (
        *((n, 500, 1e-3) for n in (100_000, 344_069, 1_000_000)),
        (1_000_000, 5_000, 1e-3),
        (1_000_000, 20_000, 1e-3),
    ),
}
"""Particles, volumes of the sketch and tolerance of the reduced embedding of each job."""
STAGES = {
    "sketch": (),
    "generate": ("--box-size", str(BOX)),
    "mask": (),
    "pca": (),
    "states": (),
    "embed": (),
    "crosscheck": ("--sample", "100"),
    "population": (),
    "report": (),
}
"""Command and options of each stage."""
WITH_WORKERS = ("generate", "pca", "embed", "crosscheck", "population")


def run(size: str) -> Row:
    """A row for each stage and whole job, and exponents."""
    stages: list[Row] = []
    whole: list[Row] = []
    failures: list[Row] = []
    with harness.bundled() as (bundled, place):
        for n, sketch, tolerance in SIZES[size]:
            workdir = larger(bundled, n, place / f"model_{n}")
            of: Row = {"particles": n, "in sketch": sketch}
            options = ("--tolerance", str(tolerance))
            try:
                for row in in_stages(workdir, sketch, place / "stages", options):
                    stages.append(of | row)
                whole.append(of | at_once(workdir, sketch, place / "whole", options))
            except RuntimeError as error:  # the other jobs are worth having all the same
                failures.append(of | {"error": str(error).strip().splitlines()[-1]})
            for path in (workdir, place / "stages", place / "whole"):
                shutil.rmtree(path, ignore_errors=True)
    rows = {"stages": stages, "whole": whole, "failures": failures}
    return rows | {"exponents": exponents(stages)}


def larger(bundled: Path, n: int, place: Path) -> Path:
    """Write the bundled model's work directory with n particles, and return its path."""
    means, variances = read_latents(bundled / f"z.{EPOCH}.pkl")
    rng = np.random.default_rng(0)
    rows = rng.integers(len(means), size=n)
    rows[: len(means)] = np.arange(len(means))[:n]
    moved = 0.1 * means.std(0) * rng.standard_normal((n, means.shape[1]), np.float32)
    moved[: len(means)] = 0
    copy_with_particles(bundled, EPOCH, slice(0, 1), place)
    write_latents(place / f"z.{EPOCH}.pkl", means[rows] + moved, variances[rows])
    return place


def in_stages(workdir: Path, sketch: int, output: Path, embed: Sequence[str]) -> Iterator[Row]:
    """Yield a row for each stage's command; embedding takes some options."""
    for stage, options in STAGES.items():
        program = [sys.executable, "-m", "scapedist.cli", stage]
        if stage == "sketch":
            program += [str(workdir), str(EPOCH), "-o", str(output), "--sketch-size", str(sketch)]
        else:
            program += [str(output), *options, *(embed if stage == "embed" else ())]
        if stage in WITH_WORKERS:
            program += ["--workers", str(WORKERS)]
        row = {"stage": stage} | measure(program)
        print(f"{stage}: {row['seconds']:.1f} s", flush=True)
        yield row


def at_once(workdir: Path, sketch: int, output: Path, embed: Sequence[str]) -> Row:
    """The row of the whole job, and of its report in a browser."""
    options = ("--memory-limit", LIMIT, "--embed", "reduced", *embed)
    took = measure(scapedist_run(workdir, output, sketch, BOX, WORKERS, *options))
    report = output / "report.html"
    took["run MiB"] = disk_bytes(output) / harness.MIB
    took["report MiB"] = report.stat().st_size / harness.MIB
    took["opens in s"] = seconds_to_open(report)
    return took


def seconds_to_open(page: Path) -> float | None:
    """Seconds in which Chromium, where it is installed, shows a page; None without it."""
    browser = shutil.which("chromium")
    if browser is None:
        return None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    start = time.perf_counter()
    measure([browser, *options, page.as_uri()])
    return time.perf_counter() - start


def exponents(stages: list[Row]) -> list[Row]:
    """The power of the particles that fits the processor's time of each stage."""
    most = [row for row in stages if row["in sketch"] == stages[0]["in sketch"]]
    return [
        line
        for line, rows in harness.exponents(
            most, ("stage",), ("particles",), {"exponent": "cpu seconds"}
        )
        if max(row["cpu seconds"] for row in rows) >= LEAST_SECONDS
    ]


if __name__ == "__main__":
    harness.main("million")
