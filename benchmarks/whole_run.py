"""``scapedist run`` without an embedding against ``cryodrgn analyze_landscape``.

On the bundled model, from a cold start, in turns, with the same sketch, box and number of states.
Memory is the peak of all processes together above that of idle processes that have imported the
same modules; disk is what the output directory holds.
"""

from __future__ import annotations

import pickle
import shutil
import statistics
import sys
from pathlib import Path

import harness
import numpy as np
from harness import EPOCH, MIB, Panel, Row, Table, disk_bytes, measure, scapedist_run

FIGURES = "program | seconds: time, s | cpu seconds: CPU time, s | peak MiB: peak, MiB "
FIGURES += "| above idle MiB: above idle, MiB | disk MiB: disk, MiB"
OVER = {"time": "seconds", "cpu": "cpu seconds", "memory": "above idle MiB", "disk": "disk MiB"}
RATIOS = "time | cpu: CPU time | memory: memory above idle | disk"
TITLE = "The whole run"
TABLES = (
    Table("rows", f"sketch | {FIGURES}"),
    Table(
        "ratios",
        f"sketch | {RATIOS}",
        "cryoDRGN's figures over scapedist's: above 1, scapedist takes less.",
    ),
)
DRAWN = {"seconds": "time, s", "above idle MiB": "memory above idle, MiB", "disk MiB": "disk, MiB"}
PLOTS = tuple(
    Panel("rows", "sketch", "{program}", key, label, "volumes of the sketch")
    for key, label in DRAWN.items()
)
SIZES = {"tiny": ((30,), 16), "small": ((100,), 48), "full": ((100, 500, 2000, 5000), 48)}
"""Sketch sizes, box size."""
ROUNDS, LARGE = 3, 400
"""Rounds at size full; above so many volumes there is one."""
OPTIONS: dict[str, Row] = {"--workers": {"type": int, "help": "scapedist's (default: one a core)"}}
SCAPEDIST_IDLE = """
import time
from scapedist.landscape import open_workers
with open_workers({workers}) as workers:
    import scapedist.landscape.run, scapedist.report.report, scipy.linalg
    if {workers} != 1:
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


def run(size: str, workers: int | None = None) -> Row:
    """Rows of both programs at every sketch size, and their ratios."""
    sketches, box = SIZES[size]
    idle, rows, ratios = idle_mib(workers), [], []
    with harness.bundled() as (shipped, place):
        workdir = place / "adk"
        shutil.copytree(shipped, workdir)
        write_umap(workdir)
        for n in sketches:
            output = place / "output"
            commands = {
                "cryodrgn": analyze_landscape(workdir, output, n, box),
                "scapedist": scapedist_run(workdir, output, n, box, workers, "--embed", "none"),
            }
            took: dict[str, list[Row]] = {name: [] for name in commands}
            disk = {}
            for _ in range(ROUNDS if size == "full" and n <= LARGE else 1):
                for name, command in commands.items():
                    took[name].append(measure(command))
                    disk[name] = disk_bytes(output)
                    shutil.rmtree(output)
            pair = [
                {"sketch": n, "program": name, **figures(runs, idle[name], disk[name])}
                for name, runs in took.items()
            ]
            rows += pair
            ratios.append({"sketch": n, **ratios_of(*pair)})
    return {"box_size": box, "rows": rows, "ratios": ratios}


def write_umap(workdir: Path) -> None:
    """Write a UMAP of any values, which cryoDRGN's command asks for."""
    n_particles = len(pickle.loads((workdir / f"z.{EPOCH}.pkl").read_bytes()))
    umap = np.random.default_rng(0).standard_normal((n_particles, 2)).astype(np.float32)
    (workdir / f"analyze.{EPOCH}").mkdir()
    (workdir / f"analyze.{EPOCH}" / "umap.pkl").write_bytes(pickle.dumps(umap))


def idle_mib(workers: int | None) -> dict[str, float]:
    """Peak of idle processes of both programs."""
    codes = {"cryodrgn": CRYODRGN_IDLE, "scapedist": SCAPEDIST_IDLE.format(workers=workers)}
    return {name: measure([sys.executable, "-c", code])["peak MiB"] for name, code in codes.items()}


def figures(runs: list[Row], idle: float, disk: int) -> Row:
    """Medians of time and memory of some runs of a program, and their disk."""
    row: Row = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    row |= {"idle MiB": idle, "above idle MiB": row["peak MiB"] - idle}
    return row | {"disk MiB": disk / MIB}


def ratios_of(theirs: Row, ours: Row) -> Row:
    """Their time, memory and disk over ours: above 1, ours takes less; empty where not known."""
    return {
        name: "" if theirs[figure] == "" else theirs[figure] / ours[figure]
        for name, figure in OVER.items()
    }


def analyze_landscape(workdir: Path, output: Path, n_volumes: int, box: int) -> list[str]:
    """The command of cryoDRGN's analysis of a sketch."""
    options = ["-N", str(n_volumes), "-d", str(box), "--Apix", str(2.5 * 48 / box)]
    return cryodrgn("analyze_landscape", str(workdir), str(EPOCH), "-o", str(output), *options)


def cryodrgn(*arguments: str) -> list[str]:
    """A command of cryoDRGN."""
    start = "from cryodrgn.command_line import main_commands; main_commands()"
    return [sys.executable, "-c", start, *arguments]


if __name__ == "__main__":
    harness.main("whole_run")
