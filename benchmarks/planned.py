"""``scapedist run`` on the bundled model, next to what ``scapedist plan`` said just before.

Runs are from a cold start, for several sketches, boxes, numbers of workers and of particles (those
beyond the bundled ones as in ``million.py``); the plan is made in a process of its own. Memory is
that of the largest process. Exponents are those that fit the times, measured and planned, of stages
that take long enough to fit.
"""

from __future__ import annotations

from pathlib import Path

import harness
from harness import EPOCH, MIB, Panel, Row, Table, disk_bytes, measure, scapedist_run
from million import larger

TITLE = "Runs next to their plan"
TABLES = (
    Table(
        "rows",
        "particles | sketch | box | workers | embedding | seconds: time, s | planned / measured s "
        "| planned / measured MiB | planned / measured disk | planned / measured files",
    ),
    Table(
        "stages",
        "particles | stage | seconds: time, s | planned s",
        "Each stage of the runs with an embedding:",
        where={"embedding": "reduced"},
    ),
    Table(
        "exponents",
        "stage | variable | from | to | exponent | planned exponent",
        "How the time of each stage grows: measured, and planned.",
    ),
)
DRAWN = {"seconds": "measured", "planned s": "planned"}
FIXED = ("workers", "box", "embedding", "particles")
BUNDLED = 20_000
"""Number of particles of the bundled model."""
PLOTS = (Panel("rows", "sketch", "", DRAWN, "time, s", "volumes of the sketch", fixed=FIXED),)
LONG_SECONDS = 0.5
"""A stage that is fitted takes at least so long in the longest run."""
SIZES = {
    "tiny": ((30, 16, 1, "none", BUNDLED),),
    "small": (
        (100, 48, 2, "none", BUNDLED),
        (200, 48, 2, "none", BUNDLED),
        (200, 48, 1, "none", BUNDLED),
        (200, 24, 2, "none", BUNDLED),
    ),
    "full": (
        *((n, 48, 2, "none", BUNDLED) for n in (250, 500, 1000, 2000)),
        (500, 48, 1, "none", BUNDLED),
        *((500, box, 2, "none", BUNDLED) for box in (24, 32, 40)),
        (500, 48, 2, "reduced", BUNDLED),
        *((500, 24, 2, "reduced", n) for n in (100_000, 1_000_000)),
    ),
}
"""Sketch, box, workers, embedding and particles of each run."""


def run(size: str) -> Row:
    """A row for each run, a row for each of its stages, and exponents."""
    rows, stages = [], []
    with harness.bundled() as (workdir, place):
        for number, case in enumerate(SIZES[size]):
            n = case[-1]
            of_n = workdir if n == BUNDLED else larger(workdir, n, place / f"model_{number}")
            row, its_stages = compare(case, of_n, place / str(number))
            rows.append(row)
            stages += its_stages
    return {"rows": rows, "stages": stages, "exponents": exponents(stages)}


def child(workdir: str, sketch: int, box: int, workers: int, embedding: str, _: int) -> Row:
    """What ``scapedist plan`` says of a run."""
    from scapedist.landscape.cost import cost_of_run

    chosen = {"sketch": {"size": sketch}, "generate": {"box_size": box}}
    cost = cost_of_run(workdir, EPOCH, None, workers, None, chosen, embedding)
    return {
        "stages": {name: stage.seconds for name, stage in cost.stages.items()},
        "bytes": max(cost.here_bytes, cost.worker_bytes),
        "disk": cost.disk_bytes,
        "files": cost.files,
    }


def compare(
    case: tuple[int, int, int, str, int], workdir: Path, output: Path
) -> tuple[Row, list[Row]]:
    """A run's row and its stages' rows."""
    from scapedist import Run

    planned = harness.alone("planned", workdir, *case)
    sketch, box, workers, embedding, _ = case
    took = measure(scapedist_run(workdir, output, sketch, box, workers, "--embed", embedding))
    store = Run(output).store
    seconds = {name: record["seconds"] for name, record in store.stages.items()}
    if embedding != "none":
        seconds["embed"] = sum(record.get("seconds", 0.0) for record in store.beside.values())
    seconds["start"] = took["seconds"] - sum(seconds.values())
    names = ("sketch", "box", "workers", "embedding", "particles")
    of: Row = dict(zip(names, case, strict=True))
    stages = [
        of | {"stage": name, "seconds": seconds[name], "planned s": stage_seconds}
        for name, stage_seconds in planned["stages"].items()
    ]
    whole = sum(planned["stages"].values())
    row = {
        "planned s": whole,
        "planned / measured s": whole / took["seconds"],
        "planned / measured MiB": planned["bytes"] / MIB / took["largest process MiB"],
        "planned / measured disk": planned["disk"] / disk_bytes(output),
        "planned / measured files": planned["files"]
        / sum(not p.is_dir() for p in output.rglob("*")),
    }
    return of | took | row, stages


def exponents(stages: list[Row]) -> list[Row]:
    """The power of each variable that fits the times of each stage, measured and planned."""
    alike = [row for row in stages if row["embedding"] == "none"]
    of = {"exponent": "seconds", "planned exponent": "planned s"}
    return [
        line
        for line, rows in harness.exponents(alike, ("stage",), ("sketch", "box", "workers"), of)
        if max(row["seconds"] for row in rows) >= LONG_SECONDS
    ]


if __name__ == "__main__":
    harness.main("planned")
