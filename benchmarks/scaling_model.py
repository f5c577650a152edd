"""A model of how work scales: fitted to measurements, held against others, and projected.

T(N) = startup + max(volumes of the busiest worker * seconds a volume, the same * copy,
bytes / disk rate, tasks * scheduler). What it says of the paper's network is projected, and every
row says from what; nothing of that is measured.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from harness import Row

from scapedist.model.lattice import make_lattice
from scapedist.particles.reduced import REDUCED_ROWS
from scapedist.plan import BATCH_VOLUMES

JOBS = ("exact", "generate", "reduced")
PROJECTED = (1, 8, 64)
"""Workers that are projected to."""
PAPER = {"exact": 344_069, "generate": 50_000, "reduced": 344_069}
"""Particles of the paper's data set, and the volumes of a large sketch."""
PAPER_BOX, PAPER_LAYERS, PAPER_WIDTH = 128, 3, 1024


@dataclass(frozen=True)
class Costs:
    """What a job costs: a worker's seconds for a volume, and what all workers share.

    Attributes
    ----------
    volume_seconds, copy_seconds
        Of a worker; copies from a GPU are made beside decoding.
    disk_bytes_a_second
        All workers together; infinite where nothing is written.
    task_seconds, startup_seconds
        The scheduler's, one task after the other; until all workers compute.
    """

    volume_seconds: float
    copy_seconds: float = 0.0
    disk_bytes_a_second: float = math.inf
    task_seconds: float = 0.0
    startup_seconds: float = 0.0


@dataclass(frozen=True)
class Work:
    """A job's size: volumes (or particles), those of a task, and bytes written of each."""

    n_volumes: int
    batch_size: int
    volume_bytes: int = 0

    @property
    def n_tasks(self) -> int:
        """Number of tasks."""
        return -(-self.n_volumes // self.batch_size)


def resources(costs: Costs, work: Work, n_workers: int) -> dict[str, float]:
    """Seconds that each resource is busy; the busiest worker's batches are whole."""
    most = min(-(-work.n_tasks // n_workers) * work.batch_size, work.n_volumes)
    return {
        "decoding": most * costs.volume_seconds,
        "copying": most * costs.copy_seconds,
        "disk": work.n_volumes * work.volume_bytes / costs.disk_bytes_a_second,
        "scheduler": work.n_tasks * costs.task_seconds,
    }


def predict(costs: Costs, work: Work, n_workers: int) -> float:
    """Seconds of a job on some workers: resources are busy at the same time, the slowest counts."""
    return costs.startup_seconds + max(resources(costs, work, n_workers).values())


def saturation(costs: Costs, work: Work) -> dict[str, float]:
    """Workers at which each shared resource is as busy as they are, the first one first.

    ``batches``: no more workers than tasks have anything to do.
    """
    alone = resources(costs, work, 1)
    of_workers = max(alone["decoding"], alone["copying"])
    found = {name: of_workers / alone[name] for name in ("disk", "scheduler") if alone[name]}
    return dict(sorted((found | {"batches": float(work.n_tasks)}).items(), key=lambda x: x[1]))


def fit_line(counts: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Start and seconds a count of times at some counts, neither below 0.

    Least squares of relative errors, so that short times count as much as long ones.
    """
    n, t = np.asarray(counts, float), np.asarray(seconds, float)
    columns = np.stack([1 / t, n / t], 1)
    start, slope = np.linalg.lstsq(columns, np.ones_like(t), rcond=None)[0]
    if start < 0:
        start, slope = 0.0, columns[:, 1].sum() / np.square(columns[:, 1]).sum()
    elif slope < 0:
        start, slope = columns[:, 0].sum() / np.square(columns[:, 0]).sum(), 0.0
    return float(start), float(slope)


def batch_of(job: str, device: str) -> int:
    """Particles of a task, by default."""
    return REDUCED_ROWS[device] if job == "reduced" else BATCH_VOLUMES[device]


def fit(found: Row, page_cache: float) -> dict[str, Costs]:
    """A case's costs by job, from one worker's times and from empty tasks; completes these."""
    costs = {}
    for row in (row for row in found["scaling"] if row["workers"] == 1):
        (empty,) = (line for line in found["overhead"] if line["job"] == row["job"])
        # this process begins at once, a GPU's not
        start = empty["start_seconds"] if found["device"] == "cuda" else 0.0
        weak = row["particles"] // max(found["connect_seconds"])
        times = {row["particles"]: row["seconds"], weak: row["weak_seconds"]}
        slope = statistics.mean((seconds - start) / n for n, seconds in times.items())
        for name in ("task", "client_cpu"):
            seconds = empty[f"{name}_seconds"]
            empty[f"{name}_fraction"] = seconds / (seconds + slope * empty["particles"])
        disk = page_cache if row["job"] == "generate" else math.inf
        shared = (empty["client_cpu_seconds"], empty["start_seconds"])
        costs[row["job"]] = Costs(slope, 0.0, disk, *shared)
    return costs


def check(found: Row, costs: dict[str, Costs]) -> list[Row]:
    """The model's times of more workers than it was fitted to, beside the measured ones.

    ``on_machine``: with volumes as much slower as processes side by side are on these cores.
    """
    lines = []
    for row in (row for row in found["scaling"] if row["workers"] > 1):
        n, here = row["workers"], costs[row["job"]]
        stored = 4 * found["case"].box_size ** 3 + 4 if row["job"] == "generate" else 0
        work = Work(row["particles"], row["particles"] // row["tasks"], stored)
        line = {"case": row["case"], "job": row["job"], "workers": n, "measured": row["seconds"]}
        line["model"] = predict(here, work, n)
        line["error"] = line["model"] / row["seconds"] - 1
        if "machine" in row:
            slower = here.volume_seconds * n / row["machine"]
            line["on_machine"] = predict(dataclasses.replace(here, volume_seconds=slower), work, n)
            line["its_error"] = line["on_machine"] / row["seconds"] - 1
        lines.append(line)
    return lines


def paper(first: Row, disk: float, rates: dict[str, float]) -> Row:
    """The paper's jobs on more workers: costs, times, what saturates first, and from what.

    From what was measured of a case that has all jobs (``first``), the bytes a second down to the
    disk of this machine, and the operations a second by job that one worker reached; on GPUs from
    the seconds for a volume that one took. Operations are those behind the first layer.
    """
    at_point = 2 * (PAPER_LAYERS * PAPER_WIDTH**2 + 2 * PAPER_WIDTH)
    volume = make_lattice("fourier_sphere", PAPER_BOX, PAPER_BOX, 0.5, 0.0, None).n_points
    points = {"exact": volume, "generate": volume, "reduced": first["points"]["reduced"]}
    seconds = {job: n * at_point / rates[job] for job, n in points.items()}
    on_gpu, stored, copying = first.get("decode_seconds"), 4 * PAPER_BOX**3 + 4, 0.0
    if on_gpu is not None:
        seconds = {job: on_gpu * n / volume for job, n in points.items()}
        copying = stored / first["copy_bytes_a_second"]
    device, basis = first["device"], f"projected from this {'CPU' if on_gpu is None else 'GPU'}"
    startup = first["connect_seconds"][max(first["connect_seconds"])] + first["warm_seconds"]
    result: Row = {"workers": "GPUs" if device == "cuda" else "CPU workers", "basis": basis}
    result |= {"costs": {}, "rows": []}
    for job in JOBS:
        (empty,) = (line for line in first["overhead"] if line["job"] == job)
        of_writing = (copying, disk) if job == "generate" else (0.0, math.inf)
        costs = Costs(seconds[job], *of_writing, empty["client_cpu_seconds"], startup)
        size = stored if job == "generate" else 0
        work = Work(PAPER[job], batch_of(job, device), size)
        full, at = next(iter(saturation(costs, work).items()))
        result["costs"][job] = plain(costs)
        for n in PROJECTED:
            busy = resources(costs, work, n) | {"startup": startup}
            seconds_all = predict(costs, work, n)
            row: Row = {"job": job, "particles": work.n_volumes, "workers": n}
            row |= {"hours": seconds_all / 3600, "limit": max(busy, key=busy.__getitem__)}
            row |= {"scheduler_busy": busy["scheduler"] / seconds_all}
            result["rows"].append(row | {"first_full": full, "at_workers": at, "basis": basis})
    return result


def plain(costs: Costs) -> dict[str, float | None]:
    """Costs for JSON, which has no infinity."""
    return {k: None if v == math.inf else v for k, v in dataclasses.asdict(costs).items()}
