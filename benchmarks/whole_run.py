"""The whole job: ``scapedist run`` against ``cryodrgn analyze_landscape``, both from a cold start.

The bundled model, the same sketch sizes, box and number of states; every particle's coordinates
are compared in ``landscape_full.py``. Memory is the peak of all processes together above that of
idle processes that imported the same modules; disk is what the output directory holds.
"""

from __future__ import annotations

import argparse
import pickle
import shutil
import statistics
import sys
import tempfile
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, print_table, write_json
from processes import Measured, disk_bytes, measure

SIZES = {"tiny": ((30,), 16), "small": ((100,), 48), "full": ((100, 500, 2000, 5000), 48)}
"""Sketch sizes, box size."""
ROUNDS, LARGE = 3, 400
"""Rounds at size full; above so many volumes there is one."""
SCAPEDIST_IDLE = """
import time
from scapedist.landscape import open_workers
with open_workers({n_workers}) as workers:
    import scapedist.landscape.run, scapedist.report.report, scipy.linalg
    if {n_workers} != 1:
        workers.connected()
    time.sleep(2)
"""
CRYODRGN_IDLE = """
import contextlib, sys, time
from cryodrgn.command_line import main_commands
sys.argv = ["cryodrgn", "--help"]
with contextlib.suppress(SystemExit):
    main_commands()  # imports the modules of all commands, as any of them does
time.sleep(2)
"""
RATIOS = {"time": "seconds", "cpu": "cpu seconds", "memory": "above idle MiB", "disk": "disk MiB"}


def main() -> None:
    """Run both, in turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--sketch", type=int, help="this sketch size alone")
    parser.add_argument("--workers", type=int, help="scapedist's (default: one a core)")
    parser.add_argument("--output", help="JSON file")
    arguments = parser.parse_args()
    results = compare(arguments.size, arguments.workers, arguments.sketch)
    print_table(results["rows"])
    print("\ncryodrgn's figures over scapedist's")
    print_table(results["ratios"])
    if arguments.output:
        write_json(arguments.output, results)


def compare(size: str, n_workers: int | None = None, sketch: int | None = None) -> dict[str, Any]:
    """Measure both programs at every sketch size, and their idle processes."""
    sketches, box_size = SIZES[size]
    idle = idle_bytes(n_workers)
    rows, ratios = [], []
    with (
        tempfile.TemporaryDirectory() as directory,
        as_file(files("scapedist") / "data" / "adk") as bundled,
    ):
        workdir = Path(directory) / "adk"
        shutil.copytree(bundled, workdir)
        write_umap(workdir)
        for n_volumes in sketches if sketch is None else (sketch,):
            n_rounds = ROUNDS if size == "full" and n_volumes <= LARGE else 1
            pair = _both(workdir, n_volumes, box_size, n_rounds, n_workers, idle)
            rows += pair
            ratios.append({"sketch": n_volumes, **ratios_of(*pair)})
    return {
        "benchmark": "whole_run",
        "machine": describe(),
        "box_size": box_size,
        "rows": rows,
        "ratios": ratios,
    }


def _both(
    workdir: Path,
    n_volumes: int,
    box_size: int,
    n_rounds: int,
    n_workers: int | None,
    idle: dict[str, int],
) -> list[dict[str, Any]]:
    """A row for each program, of runs in turns."""
    commands = {
        "cryodrgn": lambda output: analyze_landscape(workdir, output, n_volumes, box_size),
        "scapedist": lambda output: scapedist_run(
            workdir, output, n_volumes, box_size, n_workers, "--embed", "none"
        ),
    }
    measured: dict[str, list[Measured]] = {name: [] for name in commands}
    disk = {}
    for _ in range(n_rounds):
        for name, command in commands.items():
            output = workdir.parent / name
            measured[name].append(measure(command(output)))
            disk[name] = disk_bytes(output)
            shutil.rmtree(output)
    return [
        {
            "sketch": n_volumes,
            "program": name,
            **figures(runs, idle[name], disk[name]),
            "all seconds": " ".join(f"{run.seconds:.1f}" for run in runs),
        }
        for name, runs in measured.items()
    ]


def write_umap(workdir: Path) -> None:
    """Write a UMAP of any values, which cryoDRGN's command asks for."""
    with (workdir / "z.14.pkl").open("rb") as stream:
        n_particles = len(pickle.load(stream))
    umap = np.random.default_rng(0).standard_normal((n_particles, 2)).astype(np.float32)
    (workdir / "analyze.14").mkdir()
    (workdir / "analyze.14" / "umap.pkl").write_bytes(pickle.dumps(umap))


def idle_bytes(n_workers: int | None) -> dict[str, int]:
    """Peak of idle processes of both programs."""
    codes = {"cryodrgn": CRYODRGN_IDLE, "scapedist": SCAPEDIST_IDLE.format(n_workers=n_workers)}
    return {name: measure([sys.executable, "-c", code]).peak_bytes for name, code in codes.items()}


def figures(runs: list[Measured], idle: int, disk: int) -> dict[str, Any]:
    """Medians of time and memory of some runs of a program, and their disk."""
    peak = statistics.median(run.peak_bytes for run in runs)
    return {
        "seconds": statistics.median(run.seconds for run in runs),
        "cpu seconds": statistics.median(run.cpu_seconds for run in runs),
        "others' cpu seconds": statistics.median(run.others_seconds for run in runs),
        "peak MiB": peak / 2**20,
        "idle MiB": idle / 2**20,
        "above idle MiB": (peak - idle) / 2**20,
        "disk MiB": disk / 2**20,
    }


def ratios_of(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Their time, memory and disk over ours: above 1, ours takes less; empty where not known."""
    return {
        name: "" if theirs[figure] == "" else theirs[figure] / ours[figure]
        for name, figure in RATIOS.items()
    }


def analyze_landscape(workdir: Path, output: Path, n_volumes: int, box_size: int) -> list[str]:
    """The command of cryoDRGN's analysis of a sketch."""
    pixel = str(2.5 * 48 / box_size)
    options = ["-N", str(n_volumes), "-d", str(box_size), "--Apix", pixel]
    return cryodrgn("analyze_landscape", str(workdir), "14", "-o", str(output), *options)


def cryodrgn(*arguments: str) -> list[str]:
    """A command of cryoDRGN."""
    start = "from cryodrgn.command_line import main_commands; main_commands()"
    return [sys.executable, "-c", start, *arguments]


def scapedist_run(
    workdir: Path,
    output: Path,
    n_volumes: int,
    box_size: int,
    n_workers: int | None,
    *options: str,
) -> list[str]:
    """The command of scapedist's whole job."""
    sizes = ["--sketch-size", str(n_volumes), "--box-size", str(box_size)]
    if n_workers is not None:
        sizes += ["--workers", str(n_workers)]
    program = [sys.executable, "-m", "scapedist.cli", "run", str(workdir), "14"]
    return [*program, "--output", str(output), *sizes, *options]


if __name__ == "__main__":
    main()
