"""The whole job: ``scapedist run`` against ``cryodrgn analyze_landscape``, both from a cold start.

The bundled model, the same sketch size, box and number of states. Memory is the peak of all
processes together above that of idle processes that imported the same modules.
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
from processes import Measured, measure

SIZES = {"tiny": (30, 16, 1), "small": (100, 48, 1), "full": (500, 48, 3)}
"""Sketch size, box size, rounds."""
SCAPEDIST_IDLE = """
import time
from scapedist.workers import open_workers
with open_workers({n_workers}) as workers:
    import scapedist.landscape.run, scapedist.output.report, scipy.linalg
    if {n_workers} != 1:
        workers.connected()
    time.sleep(2)
"""
CRYODRGN_IDLE = """
import time
import cryodrgn.command_line, cryodrgn.commands.analyze_landscape
time.sleep(2)
"""


def main() -> None:
    """Run both, in turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--workers", type=int, help="scapedist's (default: one a core)")
    parser.add_argument("--output", help="JSON file")
    arguments = parser.parse_args()
    results = compare(arguments.size, arguments.workers)
    print_table(results["rows"])
    print(f"time ratio {results['time_ratio']:.2f}, memory ratio {results['memory_ratio']:.3f}")
    if arguments.output:
        write_json(arguments.output, results)


def compare(size: str, n_workers: int | None = None) -> dict[str, Any]:
    """Measure both programs and their idle processes."""
    n_volumes, box_size, n_rounds = SIZES[size]
    with (
        tempfile.TemporaryDirectory() as directory,
        as_file(files("scapedist") / "data" / "adk") as bundled,
    ):
        workdir = Path(directory) / "adk"
        shutil.copytree(bundled, workdir)
        (workdir / "analyze.14").mkdir()
        umap = np.random.default_rng(0).standard_normal((20000, 2)).astype(np.float32)
        (workdir / "analyze.14" / "umap.pkl").write_bytes(pickle.dumps(umap))
        programs = {"cryodrgn": _cryodrgn, "scapedist": _scapedist}
        measured: dict[str, list[Measured]] = {name: [] for name in programs}
        for number in range(n_rounds):
            for name, command in programs.items():
                output = Path(directory) / f"{name}{number}"
                full = command(workdir, output, n_volumes, box_size, n_workers)
                measured[name].append(measure(full))
                shutil.rmtree(output)
    idle = {
        "cryodrgn": measure([sys.executable, "-c", CRYODRGN_IDLE]),
        "scapedist": measure([sys.executable, "-c", SCAPEDIST_IDLE.format(n_workers=n_workers)]),
    }
    rows = [_row(name, runs, idle[name]) for name, runs in measured.items()]
    theirs, ours = rows
    return {
        "machine": describe(),
        "sketch": n_volumes,
        "box_size": box_size,
        "rows": rows,
        "time_ratio": theirs["seconds"] / ours["seconds"],
        "memory_ratio": ours["above idle MiB"] / theirs["above idle MiB"],
    }


def _row(name: str, runs: list[Measured], idle: Measured) -> dict[str, Any]:
    peak = statistics.median(run.peak_bytes for run in runs)
    return {
        "program": name,
        "seconds": statistics.median(run.seconds for run in runs),
        "all seconds": " ".join(f"{run.seconds:.1f}" for run in runs),
        "cpu seconds": statistics.median(run.cpu_seconds for run in runs),
        "peak MiB": peak / 2**20,
        "idle MiB": idle.peak_bytes / 2**20,
        "above idle MiB": (peak - idle.peak_bytes) / 2**20,
    }


def _cryodrgn(
    workdir: Path, output: Path, n_volumes: int, box_size: int, n_workers: int | None
) -> list[str]:
    options = ["-N", str(n_volumes), "-d", str(box_size), "--Apix", str(2.5 * 48 / box_size)]
    start = "from cryodrgn.command_line import main_commands; main_commands()"
    program = [sys.executable, "-c", start, "analyze_landscape"]
    return [*program, str(workdir), "14", "-o", str(output), *options]


def _scapedist(
    workdir: Path, output: Path, n_volumes: int, box_size: int, n_workers: int | None
) -> list[str]:
    options = ["--sketch-size", str(n_volumes), "--box-size", str(box_size), "--embed", "none"]
    if n_workers is not None:
        options += ["--workers", str(n_workers)]
    program = [sys.executable, "-m", "scapedist.cli", "run"]
    return [*program, str(workdir), "14", "--output", str(output), *options]


if __name__ == "__main__":
    main()
