"""Peak memory of ``scapedist run`` with a masked store on the bundled model, from a cold start.

Of all processes together, and of the largest of them, with the same chunking. Volumes pass in
batches and should add nothing; what must grow is the Gram matrix of the n volumes, 8 n^2 bytes.
"""

from __future__ import annotations

import harness
from harness import MIB, Panel, Row, Table, measure, scapedist_run

TITLE = "Memory against the sketch"
TABLES = (
    Table(
        "rows",
        "sketch | seconds: time, s | peak MiB: peak, MiB "
        "| largest process MiB: largest process, MiB | Gram matrix MiB: Gram matrix, MiB",
    ),
)
DRAWN = {"peak MiB": "all processes", "largest process MiB": "the largest process"}
DRAWN |= {"Gram matrix MiB": "the Gram matrix"}
PLOTS = (Panel("rows", "sketch", "", DRAWN, "peak memory, MiB", "volumes of the sketch"),)
SIZES = {"tiny": ((12, 48), 16), "small": ((125, 500), 48), "full": ((500, 2000, 8000), 24)}
"""Sketches, each four times the one before; box size."""


def run(size: str) -> Row:
    """Peak memory of all sketches."""
    (sketches, box), rows = SIZES[size], []
    options = ("--store", "masked", "--embed", "none")
    with harness.bundled() as (workdir, place):
        for n in sketches:
            took = measure(scapedist_run(workdir, place / str(n), n, box, None, *options))
            rows.append({"sketch": n, **took, "Gram matrix MiB": 8 * n**2 / MIB})
    return {"box_size": box, "rows": rows}


if __name__ == "__main__":
    harness.main("memory")
