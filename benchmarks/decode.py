"""Volumes decoded by scapedist's field and by cryoDRGN's ``eval_volume``.

In one process with the same threads, float32, the same volumes (the table has their difference),
repetitions in turns. The fraction is that of the rate of plain float32 matrix products in the same
rounds: the operations of the layers behind the first, over the whole time of decoding. Times are
medians and so is their ratio; other work on the machine disturbs the ratio of the shortest least.
"""

from __future__ import annotations

import statistics
import tempfile
from contextlib import ExitStack
from functools import partial
from typing import Any

import harness
import numpy as np
import torch
from harness import EPOCH, Panel, Row, Table, n_threads, seconds_of
from random_model import write_random_model

from scapedist import Model, open_model
from scapedist.model.field import Field
from scapedist.model.reference import reference_decoder

TITLE = "Decoding"
TABLES = (
    Table(
        "rows",
        "model | threads | cryodrgn_seconds: cryoDRGN, s | scapedist_seconds: scapedist, s "
        "| times_as_fast | at_best: by shortest times | relative_error: relative difference "
        "| fraction: of the matrix rate",
    ),
)
PLOTS = (Panel("rows", "model", "{threads} threads", "times_as_fast", "times as fast as cryoDRGN"),)
BUNDLED = "bundled"
SMALL: Row = {"box_size": 16, "width": 32}
MIDDLE: Row = {"box_size": 64, "width": 256}
LARGE: Row = {"box_size": 64, "width": 1024}
SIZES: dict[str, dict[str, tuple[int, int, Row]]] = {
    "tiny": {
        BUNDLED: (2, 1, {}),
        "D=16 3x32": (4, 2, SMALL),
        "D=16 3x32 hypervolume": (4, 2, SMALL | {"command": "abinit"}),
    },
    "small": {BUNDLED: (16, 7, {}), "D=64 3x256": (8, 5, MIDDLE), "D=64 3x1024": (3, 2, LARGE)},
    "full": {
        BUNDLED: (16, 15, {}),
        "D=64 3x256": (8, 9, MIDDLE),
        "D=64 3x1024": (4, 5, LARGE),
        "D=64 3x256 geom_ft": (8, 5, MIDDLE | {"encoding": "geom_ft"}),
        "D=64 3x256 no encoding": (8, 5, MIDDLE | {"encoding": "none"}),
        "D=64 3x256 hartley": (8, 5, MIDDLE | {"domain": "hartley", "encoding": "geom_full"}),
        "D=64 3x256 hypervolume": (8, 5, MIDDLE | {"command": "abinit"}),
        "D=128 3x256": (4, 3, {"box_size": 128, "width": 256}),
        "D=128 3x512": (2, 2, {"box_size": 128, "width": 512}),
        "D=128 3x1024": (3, 2, {"box_size": 128, "width": 1024}),
    },
}
"""Models by name: volumes that scapedist decodes in a repetition, of which cryoDRGN decodes the
first; repetitions; the random model."""
OPTIONS: dict[str, Row] = {
    "--threads": {"type": int, "nargs": "+", "help": "default: 1, and all there are"},
    "--only": {"metavar": "MODEL", "help": "one of the table's models"},
}


def run(size: str, threads: list[int] | None = None, only: str | None = None) -> Row:
    """Rows of every model and number of threads."""
    rows = []
    for name, (n_volumes, n_rounds, made) in SIZES[size].items():
        if only in (None, name):
            with ExitStack() as stack:
                if name == BUNDLED:
                    model = open_model(stack.enter_context(harness.bundled())[0], EPOCH)
                else:
                    place = stack.enter_context(tempfile.TemporaryDirectory())
                    model = open_model(write_random_model(place, n_particles=n_volumes, **made), 19)
                for count in threads or sorted({1, torch.get_num_threads()}):
                    found = measured(model, n_volumes, n_rounds, count)
                    rows.append({"model": name, "threads": count} | found)
    return {"rows": rows}


def measured(model: Model, n_volumes: int, n_rounds: int, threads: int) -> Row:
    """Both programs' times for a volume, their ratio and difference."""
    field, reference, latents = Field(model.decoder), reference_decoder(model), model.latents
    volumes: dict[str, np.ndarray] = {}

    def ours() -> None:
        volumes["ours"] = field.decode(latents[:n_volumes]).numpy()

    def theirs() -> None:
        volumes["theirs"] = reference(latents[0], model.box_size)

    seconds, seconds_cryodrgn, rates = [], [], []
    with n_threads(threads):
        field.lattice()
        for _ in range(n_rounds):
            seconds.append(seconds_of(ours) / len(latents[:n_volumes]))
            rates.append(matrix_rate())
            seconds_cryodrgn.append(seconds_of(theirs))
    difference = np.linalg.norm(volumes["ours"][0] - volumes["theirs"])
    operations = field.lattice().n_points * model.decoder.flops_per_point / 1e9
    fractions = [operations / t / rate for t, rate in zip(seconds, rates, strict=True)]
    return {
        "cryodrgn_seconds": statistics.median(seconds_cryodrgn),
        "scapedist_seconds": statistics.median(seconds),
        "times_as_fast": statistics.median(seconds_cryodrgn) / statistics.median(seconds),
        "at_best": min(seconds_cryodrgn) / min(seconds),
        "relative_error": float(difference / np.linalg.norm(volumes["theirs"])),
        "matrix_gflops": statistics.median(rates),
        "fraction": statistics.median(fractions),
    }


def matrix_rate(size: int = 1024, n_repeats: int = 5) -> float:
    """Median rate of a square product in float32, GFLOP/s, after one that is not timed."""
    left, right, out = (torch.randn(size, size) for _ in range(3))
    product: Any = partial(torch.mm, left, right, out=out)
    with torch.inference_mode():
        seconds = [seconds_of(product) for _ in range(n_repeats + 1)][1:]
    return 2 * size**3 / statistics.median(seconds) / 1e9


if __name__ == "__main__":
    harness.main("decode")
