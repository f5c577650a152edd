"""Results of a run's embeddings, in words and as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from scapedist.store import RunStore


def summary(store: RunStore) -> list[str]:
    """Results of the embeddings in a few lines; no lines without an embedding."""
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
    """Rows of text of a cross-check: a figure's name, then its value for each method and exact."""
    figures: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "R2, worst of the first ten": lambda m: f"{min(m['r2'][:10]):.6f}",
        "relative error": lambda m: f"{m['relative_error']:.1e}",
        "relative error, 99 % below": lambda m: f"{m['error_quantiles'][2]:.1e}",
        "relative error, largest": lambda m: f"{m['error_quantiles'][3]:.1e}",
        "relative error, stated": lambda m: _shown(m.get("stated_relative_error"), ".1e"),
        "another state than exactly": lambda m: _shown(m.get("states_changed"), ".2%"),
        "nearest neighbours kept": lambda m: _shown(m["neighbour_overlap"], ".1%"),
        "residual, correlation of logs": lambda m: _shown(m["residual_log_correlation"], ".3f"),
        "ms per particle and worker": lambda m: f"{1e3 * m['seconds_a_particle']:.3g}",
        "seconds beforehand": lambda m: f"{m.get('setup_seconds', 0):.1f}",
    }
    methods = results["methods"]
    rows = [["", *methods, "exact"]]
    exact = {"ms per particle and worker": f"{1e3 * results['exact_seconds_a_particle']:.3g}"}
    for name, text in figures.items():
        rows.append([name, *(text(record) for record in methods.values()), exact.get(name, "")])
    return rows


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
