"""Peak memory against the size of the sketch: it should not grow.

``scapedist run`` on the bundled model with a masked store and the same chunking, from a cold
start, the peak of all processes together.
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

SIZES = {"tiny": (12, 48), "small": (125, 500), "full": (500, 2000)}
"""Two sketches, the second four times the first."""
BOXES = {"tiny": 16, "small": 48, "full": 48}


def main() -> None:
    """Measure both sketches and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--output", help="JSON file")
    arguments = parser.parse_args()
    results = compare(arguments.size)
    print_table(results["rows"])
    print(f"peak ratio {results['peak_ratio']:.3f}")
    if arguments.output:
        write_json(arguments.output, results)


def compare(size: str) -> dict[str, Any]:
    """Peak memory of both sketches."""
    rows = []
    with (
        tempfile.TemporaryDirectory() as directory,
        as_file(files("scapedist") / "data" / "adk") as workdir,
    ):
        for n_volumes in SIZES[size]:
            program = [sys.executable, "-m", "scapedist.cli", "run", str(workdir), "14"]
            options = ["--output", str(Path(directory) / str(n_volumes)), "--store", "masked"]
            options += ["--embed", "none"]
            options += ["--sketch-size", str(n_volumes), "--box-size", str(BOXES[size])]
            measured = measure([*program, *options])
            rows.append(
                {
                    "sketch": n_volumes,
                    "seconds": measured.seconds,
                    "peak MiB": measured.peak_bytes / 2**20,
                }
            )
    ratio = rows[1]["peak MiB"] / rows[0]["peak MiB"]
    return {"machine": describe(), "rows": rows, "peak_ratio": ratio}


if __name__ == "__main__":
    main()
