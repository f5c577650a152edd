"""The projected cost of a run in words: a table of its stages, and a few lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def cost_table(stages: Mapping[str, Any]) -> list[list[str]]:
    """The cost of each stage and of all together, as rows of text."""
    rows = [["stage", "time", "memory here", "of a worker", "disk", "files"]]
    for name, cost in stages.items():
        memory = [_gib(cost.here_bytes), _gib(cost.worker_bytes) if cost.worker_bytes else ""]
        disk = [_gib(cost.disk_bytes), f"{cost.files:,}"]
        rows.append([name, _time(cost.seconds), *memory, *disk])
    every = list(stages.values())
    rows.append(
        [
            "all",
            _time(sum(cost.seconds for cost in every)),
            _gib(max(cost.here_bytes for cost in every)),
            _gib(max(cost.worker_bytes for cost in every)),
            _gib(sum(cost.disk_bytes for cost in every)),
            f"{sum(cost.files for cost in every):,}",
        ]
    )
    return rows


def cost_lines(cost: Any) -> list[str]:
    """The plan of a run in a few lines of text."""
    ways = {
        "distances": "from the distances of all pairs",
        "vectors": "from coordinates",
        "two-level": "in two levels",
    }
    solver = {"gram": "by the Gram matrix", "iteration": "by passes over the volumes"}
    return [
        f"{cost.volumes} volumes of {cost.box_size}^3 from {cost.frequencies} frequencies each, in "
        f"batches of {cost.batch_size}, {cost.seconds_a_volume * 1e3:.0f} ms per volume and "
        f"worker; {cost.workers} worker(s)",
        f"about {cost.voxels} voxels in the mask; components {solver[cost.solver]}, volumes joined "
        f"{ways[cost.linkage]}",
        f"{cost.particles} particles embedded exactly: {_time(cost.exact_seconds)}; components of "
        f"all particles: {_time(cost.whole_seconds)}",
        f"{_gib(cost.disk_free_bytes)} of disk free",
    ]


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _gib(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.2f} GiB"
