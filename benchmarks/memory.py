"""Peak memory against the size of the sketch.

``scapedist run`` on the bundled model with a masked store and the same chunking, from a cold
start: the peak of all processes together, and of the largest of them. Volumes pass in batches and
should add nothing; what must grow is the Gram matrix of the n volumes, 8 n^2 bytes, beside them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from machine import describe, print_table, write_json
from processes import measure

SIZES = {
    "tiny": ((12, 48), 16),
    "small": ((125, 500), 48),
    "full": ((500, 2000, 8000), 24),
}
"""Sketches, each four times the one before; box size."""


def main() -> None:
    """Measure all sketches and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--output", help="JSON file")
    arguments = parser.parse_args()
    results = compare(arguments.size)
    print_table(results["rows"])
    ratios = f"{results['peak_ratio']:.3f}, of the largest process {results['largest_ratio']:.3f}"
    print(f"last sketch against the first: peak ratio {ratios}")
    if arguments.output:
        write_json(arguments.output, results)


def compare(size: str) -> dict[str, Any]:
    """Peak memory of all sketches, and its ratio of the largest to the smallest."""
    sketches, box_size = SIZES[size]
    rows = []
    with (
        tempfile.TemporaryDirectory() as directory,
        as_file(files("scapedist") / "data" / "adk") as workdir,
    ):
        for n_volumes in sketches:
            program = [sys.executable, "-m", "scapedist.cli", "run", str(workdir), "14"]
            options = ["--output", str(Path(directory) / str(n_volumes)), "--store", "masked"]
            options += ["--embed", "none"]
            options += ["--sketch-size", str(n_volumes), "--box-size", str(box_size)]
            measured = measure([*program, *options])
            rows.append(
                {
                    "sketch": n_volumes,
                    "seconds": measured.seconds,
                    "others' cpu seconds": measured.others_seconds,
                    "peak MiB": measured.peak_bytes / 2**20,
                    "largest process MiB": measured.largest_bytes / 2**20,
                    "Gram matrix MiB": 8 * n_volumes**2 / 2**20,
                }
            )
    first, last = rows[0], rows[-1]
    return {
        "benchmark": "memory",
        "machine": describe(),
        "box_size": box_size,
        "rows": rows,
        "peak_ratio": last["peak MiB"] / first["peak MiB"],
        "largest_ratio": last["largest process MiB"] / first["largest process MiB"],
    }


if __name__ == "__main__":
    main()
