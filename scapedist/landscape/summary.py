"""What the embeddings of a run came to, in words."""

from __future__ import annotations

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
