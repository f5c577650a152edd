"""Whole runs next to what ``scapedist plan`` says of them: each stage's time, memory, disk.

The bundled model, from a cold start, for several sketches, boxes and numbers of workers; the plan
is made in a process of its own just before. Memory is that of the largest process. Exponents are
those that fit the times, measured and planned, of stages that take long enough to fit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from alone import alone
from growth import longest_series, power
from machine import describe, print_table, write_json
from processes import disk_bytes, measure
from whole_run import scapedist_run

from scapedist.landscape import Run

EPOCH = 14
LONG_SECONDS = 0.5
"""A stage that is fitted takes at least so long in the longest run."""
VARIABLES = ("sketch", "box", "workers")


@dataclass(frozen=True)
class Case:
    """A run."""

    sketch: int
    box: int
    workers: int
    embedding: str = "none"


SIZES = {
    "tiny": (Case(30, 16, 1),),
    "small": (Case(100, 48, 2), Case(200, 48, 2), Case(200, 48, 1), Case(200, 24, 2)),
    "full": (
        Case(250, 48, 2),
        Case(500, 48, 2),
        Case(1000, 48, 2),
        Case(2000, 48, 2),
        Case(500, 48, 1),
        Case(500, 24, 2),
        Case(500, 32, 2),
        Case(500, 40, 2),
        Case(500, 48, 2, "reduced"),
    ),
}


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--output", help="JSON file")
    arguments = parser.parse_args()
    results = run(arguments.size)
    print_table(results["rows"])
    print_table(results["stages"])
    print_table(results["exponents"])
    if arguments.output:
        write_json(arguments.output, results)


def run(size: str) -> dict[str, Any]:
    """A row for each run, a row for each of its stages, and exponents."""
    rows, stages = [], []
    with (
        tempfile.TemporaryDirectory() as scratch,
        as_file(files("scapedist") / "data" / "adk") as workdir,
    ):
        for number, case in enumerate(SIZES[size]):
            row, its_stages = compare(case, workdir, Path(scratch) / str(number))
            rows.append(row)
            stages += its_stages
    return {
        "benchmark": "planned",
        "machine": describe(),
        "rows": rows,
        "stages": stages,
        "exponents": exponents(stages),
    }


def child(workdir: str, options: str) -> dict[str, Any]:
    """What ``scapedist plan`` says of a run."""
    from scapedist.landscape.cost import cost_of_run

    case = Case(**json.loads(options))
    chosen = {"sketch": {"size": case.sketch}, "generate": {"box_size": case.box}}
    cost = cost_of_run(workdir, EPOCH, None, case.workers, None, chosen, case.embedding)
    return {
        "stages": {name: stage.seconds for name, stage in cost.stages.items()},
        "bytes": max(cost.here_bytes, cost.worker_bytes),
        "disk": cost.disk_bytes,
    }


def compare(case: Case, workdir: Path, output: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run's row and its stages' rows."""
    planned = alone("planned", str(workdir), json.dumps(asdict(case)))
    if "error" in planned:
        raise RuntimeError(planned["error"])
    command = scapedist_run(
        workdir, output, case.sketch, case.box, case.workers, "--embed", case.embedding
    )
    measured = measure(command)
    store = Run(output).store
    seconds = {name: record["seconds"] for name, record in store.stages.items()}
    if case.embedding != "none":
        seconds["embed"] = sum(record.get("seconds", 0.0) for record in store.beside.values())
    seconds["start"] = measured.seconds - sum(seconds.values())
    of = asdict(case)
    stages = [
        of | {"stage": name, "seconds": seconds[name], "planned s": planned["stages"][name]}
        for name in planned["stages"]
    ]
    whole, disk = sum(planned["stages"].values()), disk_bytes(output)
    row = of | {
        "seconds": measured.seconds,
        "planned s": whole,
        "planned / measured s": whole / measured.seconds,
        "others' cpu seconds": measured.others_seconds,
        "largest process MiB": measured.largest_bytes / 2**20,
        "planned MiB": planned["bytes"] / 2**20,
        "planned / measured MiB": planned["bytes"] / measured.largest_bytes,
        "disk MiB": disk / 2**20,
        "planned disk MiB": planned["disk"] / 2**20,
        "planned / measured disk": planned["disk"] / disk,
    }
    return row, stages


def exponents(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The power of each variable that fits the times of each stage, measured and planned."""
    found = []
    for name in dict.fromkeys(row["stage"] for row in stages):
        mine = [row for row in stages if row["stage"] == name and row["embedding"] == "none"]
        for variable in VARIABLES:
            longest = longest_series(mine, variable, VARIABLES)
            if len(longest) < 2 or max(row["seconds"] for row in longest) < LONG_SECONDS:
                continue
            line: dict[str, Any] = {"stage": name, "variable": variable}
            line |= {"from": longest[0][variable], "to": longest[-1][variable]}
            line["exponent"] = power(longest, variable, "seconds")
            line["planned exponent"] = power(longest, variable, "planned s")
            found.append(line)
    return found


if __name__ == "__main__":
    main()
