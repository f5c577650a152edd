"""What the states of the bundled model hold, against its simulation.

For each number of states: the state in which most particles of a kind lie, and the states that
are mostly of it, with purity (of a state's particles, those of the kind) and recall (of the kind's
particles, those in the state).
"""

from __future__ import annotations

import harness
import numpy as np
from harness import EPOCH, Row, Table

from scapedist.analysis.linkage import cut
from scapedist.landscape import Run, analyze

TITLE = "States against the truth"
TABLES = (
    Table(
        "rows",
        "states | kind | purity of best | recall of best | states mostly of it | their purity "
        "| their recall",
    ),
)
SIZES = {"tiny": (30, 16), "small": (500, 24), "full": (500, 48)}
"""Sketch size, box size."""
KINDS = {1: "LID-less", 2: "rare"}


def run(size: str) -> Row:
    """Purity and recall for several numbers of states of one run."""
    sketch, box = SIZES[size]
    with harness.bundled() as (workdir, place):
        analyze(workdir, EPOCH, place / "run", size=sketch, box_size=box, embedding="none")
        store = Run(place / "run").store
        tree, assignment = store.read("states/linkage"), store.read("sketch/assignment")
        truth = np.load(workdir / "truth.npz")["state"]
    rows = []
    for n_states in (5, 6, 8, 10, 12):
        labels = cut(tree, n_states)[assignment]
        sizes = np.bincount(labels, minlength=n_states)
        for kind, name in KINDS.items():
            hits = np.bincount(labels[truth == kind], minlength=n_states)
            best, mostly = hits.argmax(), np.flatnonzero(hits > sizes / 2)
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
    return {"rows": rows}


if __name__ == "__main__":
    harness.main("truth")
