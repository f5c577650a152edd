"""What the embeddings of a run came to, in words and as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from scapedist.store import RunStore


def summary(store: RunStore) -> list[str]:
    """What the embeddings came to, in a few lines; none without one."""
    beside, lines = store.beside, []
    for name, record in beside.items():
        results = record["results"]
        if not name.startswith("embedding/") or name == "embedding/map":
            continue
        line = f"{name}: {results['particles']} particles on {results['components']} components"
        if "relative_error" in results:
            line += f", relative error {results['relative_error']:.1e}"
        if results.get("decoded_exactly"):
            line += f", {results['decoded_exactly']} decoded exactly"
        lines.append(line)
        if results.get("reached") is False:
            lines.append(
                f"  the tolerance {results['tolerance']:.1e} was not reached; a larger sketch "
                "or --method exact would be nearer"
            )
    for method, record in (
        beside.get("crosscheck", {}).get("results", {}).get("methods", {}).items()
    ):
        lines.append(
            f"checked on {beside['crosscheck']['results']['sample']} particles: {method} has "
            f"relative error {record['relative_error']:.1e}, R2 {min(record['r2'][:10]):.5f} "
            "or more on each of the first ten components"
        )
    if "missed" in beside:
        missed = beside["missed"]["results"]
        groups = f" in {len(missed['groups'])} groups" if missed["missed"] else ""
        lines.append(f"{missed['missed']} particles that no sketch volume represents{groups}")
    if "particles" in beside:
        placed = beside["particles"]["results"]
        lines.append(
            f"{placed['differ']} particles have another state by their own volume than by "
            "their sketch group"
        )
    return lines


def comparison(results: Mapping[str, Any]) -> list[list[str]]:
    """A cross-check as rows of text: a figure's name, then its value for each method and exact."""
    figures: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "R2, worst of the first ten": lambda m: f"{min(m['r2'][:10]):.6f}",
        "relative error": lambda m: f"{m['relative_error']:.1e}",
        "relative error, 99 % below": lambda m: f"{m['error_quantiles'][2]:.1e}",
        "relative error, largest": lambda m: f"{m['error_quantiles'][3]:.1e}",
        "relative error, stated": lambda m: _shown(m.get("stated_relative_error"), ".1e"),
        "another state than exactly": lambda m: _shown(m.get("states_changed"), ".2%"),
        "nearest neighbours kept": lambda m: _shown(m["neighbour_overlap"], ".1%"),
        "residual, correlation of logs": lambda m: _shown(m["residual_log_correlation"], ".3f"),
        "ms a particle and worker": lambda m: f"{1e3 * m['seconds_a_particle']:.3g}",
        "seconds beforehand": lambda m: f"{m.get('setup_seconds', 0):.1f}",
    }
    methods = results["methods"]
    rows = [["", *methods, "exact"]]
    exact = {"ms a particle and worker": f"{1e3 * results['exact_seconds_a_particle']:.3g}"}
    for name, text in figures.items():
        rows.append([name, *(text(record) for record in methods.values()), exact.get(name, "")])
    return rows


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def cost_table(stages: Mapping[str, Any]) -> list[list[str]]:
    """What each stage takes as rows of text, and all together."""
    rows = [["stage", "time", "memory here", "of a worker", "disk"]]
    for name, cost in stages.items():
        memory = [_gib(cost.here_bytes), _gib(cost.worker_bytes) if cost.worker_bytes else ""]
        rows.append([name, _time(cost.seconds), *memory, _gib(cost.disk_bytes)])
    every = list(stages.values())
    rows.append(
        [
            "all",
            _time(sum(cost.seconds for cost in every)),
            _gib(max(cost.here_bytes for cost in every)),
            _gib(max(cost.worker_bytes for cost in every)),
            _gib(sum(cost.disk_bytes for cost in every)),
        ]
    )
    return rows


def cost_lines(cost: Any) -> list[str]:
    """What a run is planned to do, in a few lines."""
    ways = {
        "distances": "from the distances of all pairs",
        "vectors": "from coordinates",
        "two-level": "in two levels",
    }
    solver = {"gram": "by the Gram matrix", "iteration": "by passes over the volumes"}
    return [
        f"{cost.volumes} volumes of {cost.box_size}^3 from {cost.frequencies} frequencies each, in "
        f"batches of {cost.batch_size}, {cost.seconds_a_volume * 1e3:.0f} ms a volume and worker; "
        f"{cost.workers} worker(s)",
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
