"""What the states of the bundled model hold, against the truth of its simulation.

For each number of states: the states in which most LID-less particles lie, and the state with
the most particles of the rare bound state, with purity (of the state's particles, those of the
kind) and recall (of the kind's particles, those in the state).
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, print_table, write_json

from scapedist.analysis.linkage import cut
from scapedist.landscape import Run, analyze

SIZES = {"tiny": (30, 16), "small": (500, 24), "full": (500, 48)}
"""Sketch size, box size."""
KINDS = {1: "LID-less", 2: "rare"}


def main() -> None:
    """Run the analysis and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--output", help="JSON file")
    arguments = parser.parse_args()
    rows = against_truth(arguments.size)
    print_table(rows)
    if arguments.output:
        write_json(arguments.output, {"machine": describe(), "rows": rows})


def against_truth(size: str) -> list[dict[str, Any]]:
    """Purity and recall for several numbers of states of one run."""
    sketch_size, box_size = SIZES[size]
    with (
        tempfile.TemporaryDirectory() as directory,
        as_file(files("scapedist") / "data" / "adk") as workdir,
    ):
        output = Path(directory) / "run"
        analyze(workdir, 14, output, size=sketch_size, box_size=box_size, embedding="none")
        store = Run(output).store
        tree, assignment = store.read("states/linkage"), store.read("sketch/assignment")
        truth = np.load(workdir / "truth.npz")["state"]
    rows = []
    for n_states in (5, 6, 8, 10, 12):
        labels = cut(tree, n_states)[assignment]
        sizes = np.bincount(labels, minlength=n_states)
        for kind, name in KINDS.items():
            hits = np.bincount(labels[truth == kind], minlength=n_states)
            best = hits.argmax()
            mostly = np.flatnonzero(hits > sizes / 2)
            rows.append(
                {
                    "states": n_states,
                    "kind": name,
                    "purity of best": hits[best] / sizes[best],
                    "recall of best": hits[best] / hits.sum(),
                    "states mostly of it": len(mostly),
                    "their purity": hits[mostly].sum() / max(sizes[mostly].sum(), 1),
                    "their recall": hits[mostly].sum() / hits.sum(),
                }
            )
    return rows


if __name__ == "__main__":
    main()
