"""Decoding speed: scapedist's field against cryoDRGN's own ``eval_volume``.

Same process, same threads, float32, same volumes (their difference is in the table), repetitions
in turns. The fraction is that of the machine's own float32 matrix rate, measured in the same
rounds: the operations of the layers behind the first, over the whole time of decoding.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, matrix_rate, n_threads, print_table, seconds_of, write_json
from random_model import write_random_model

from scapedist import open_model
from scapedist.model.field import Field
from scapedist.model.reference import reference_decoder


@dataclass(frozen=True)
class Case:
    """A model to decode from, and how often.

    Attributes
    ----------
    name
        In the table; ``bundled`` is the model that scapedist ships.
    box_size, width
        Of the random model; layers are 3.
    n_volumes
        Decoded by scapedist in a repetition; cryoDRGN decodes the first of them.
    n_rounds
        Repetitions of both, in turns.
    made
        Further options of the random model.
    """

    name: str
    box_size: int
    width: int
    n_volumes: int
    n_rounds: int
    made: dict[str, Any] = field(default_factory=dict)


BUNDLED_EPOCH = 14
SIZES = {
    "tiny": (
        Case("bundled", 48, 128, 2, 1),
        Case("D=16 3x32", 16, 32, 4, 2),
        Case("D=16 3x32 hypervolume", 16, 32, 4, 2, {"command": "abinit"}),
    ),
    "small": (
        Case("bundled", 48, 128, 16, 7),
        Case("D=64 3x256", 64, 256, 8, 5),
        Case("D=64 3x1024", 64, 1024, 3, 2),
    ),
    "full": (
        Case("bundled", 48, 128, 16, 15),
        Case("D=64 3x256", 64, 256, 8, 9),
        Case("D=64 3x1024", 64, 1024, 4, 5),
        Case("D=64 3x256 geom_ft", 64, 256, 8, 5, {"encoding": "geom_ft"}),
        Case("D=64 3x256 no encoding", 64, 256, 8, 5, {"encoding": "none"}),
        Case("D=64 3x256 hartley", 64, 256, 8, 5, {"domain": "hartley", "encoding": "geom_full"}),
        Case("D=64 3x256 hypervolume", 64, 256, 8, 5, {"command": "abinit"}),
        Case("D=128 3x256", 128, 256, 4, 3),
        Case("D=128 3x512", 128, 512, 2, 2),
        Case("D=128 3x1024", 128, 1024, 3, 2),
    ),
}


def measure(case: Case, workdir: Path, epoch: int, threads: int) -> dict[str, Any]:
    """One row of the table: both programs' times for a volume, their ratio and difference.

    Times are medians and so is their ratio; ``at_best`` is the ratio of the shortest times, which
    other work on the machine disturbs least.
    """
    model = open_model(workdir, epoch)
    ours_field = Field(model.decoder)
    reference = reference_decoder(model)
    latents = model.latents[: case.n_volumes]
    volumes: dict[str, np.ndarray] = {}

    def ours() -> None:
        volumes["ours"] = ours_field.decode(latents).numpy()

    def theirs() -> None:
        volumes["theirs"] = reference(latents[0], model.box_size)

    seconds, seconds_cryodrgn, rates = [], [], []
    with n_threads(threads):
        ours_field.lattice()
        for _ in range(case.n_rounds):
            seconds.append(seconds_of(ours) / len(latents))
            rates.append(matrix_rate(threads, (1024,), 5))
            seconds_cryodrgn.append(seconds_of(theirs))
    difference = np.linalg.norm(volumes["ours"][0] - volumes["theirs"])
    operations = ours_field.lattice().n_points * model.decoder.flops_per_point
    achieved = [operations / t / 1e9 for t in seconds]
    return {
        "model": case.name,
        "threads": threads,
        "cryodrgn_seconds": statistics.median(seconds_cryodrgn),
        "scapedist_seconds": statistics.median(seconds),
        "times_as_fast": statistics.median(seconds_cryodrgn) / statistics.median(seconds),
        "at_best": min(seconds_cryodrgn) / min(seconds),
        "relative_error": float(difference / np.linalg.norm(volumes["theirs"])),
        "gflops": statistics.median(achieved),
        "matrix_gflops": statistics.median(rates),
        "fraction": statistics.median(a / b for a, b in zip(achieved, rates, strict=True)),
        "n_volumes": len(latents),
        "n_rounds": case.n_rounds,
    }


def run(
    size: str, output: str | Path | None, threads: list[int] | None = None, only: str | None = None
) -> list[dict[str, Any]]:
    """Measure every case of a size, print the table and write it.

    Parameters
    ----------
    size
        ``tiny``, ``small`` or ``full``.
    output
        JSON file to write, or None.
    threads
        Numbers of threads (default: one, and as many as torch has).
    only
        Name of the one case wanted (default: all).
    """
    rows = []
    for case in SIZES[size]:
        if only not in (None, case.name):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            if case.name == "bundled":
                with as_file(files("scapedist") / "data" / "adk") as workdir:
                    rows += _measure_threads(case, workdir, BUNDLED_EPOCH, threads)
            else:
                workdir = write_random_model(
                    scratch,
                    box_size=case.box_size,
                    width=case.width,
                    n_particles=case.n_volumes,
                    **case.made,
                )
                rows += _measure_threads(case, workdir, 19, threads)
    print_table(rows)
    if output is not None:
        write_json(output, {"benchmark": "decode", "machine": describe(), "rows": rows})
    return rows


def _measure_threads(
    case: Case, workdir: Path, epoch: int, threads: list[int] | None
) -> list[dict[str, Any]]:
    counts = threads or sorted({1, torch.get_num_threads()})
    return [measure(case, workdir, epoch, count) for count in counts]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1, and all there are")
    parser.add_argument("--only", metavar="MODEL", help="one of the table's models")
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.2f} on {describe()['cores']} cores")
    run(options.size, options.output, options.threads, options.only)


if __name__ == "__main__":
    main()
