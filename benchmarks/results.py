"""One page of what was measured: the benchmarks' JSON files as Markdown, with plots.

What a section says and shows is stated by its script. A benchmark without a file is left out, and
so is a file that is broken or of no benchmark known here, with a word about it. Nothing is
measured.
"""

from __future__ import annotations

import json
import textwrap
from importlib import import_module
from pathlib import Path

from harness import Row, command, tables
from plots import draw

HERE = Path(__file__).resolve().parent
ORDER = """
decode whole_run landscape_full memory truth embedding scaling store pca linkage growth planned
million gpu_check
""".split()
INTRODUCTION = """
Written by `benchmarks/results.py` from what the scripts in `benchmarks/` wrote to
`benchmarks/results/`; `make bench` measures all of it again. Times are on the clock, medians where
there were several rounds; memory is that of all processes together.
"""


def run(folder: Path, output: Path) -> list[str]:
    """Write the page and, in ``plots`` beside it, its plots; the benchmarks that it has."""
    found, parts = read(folder), ["# Measurements", paragraph(INTRODUCTION)]
    names = [name for name in ORDER if name in found]
    for name in names:
        parts += section(name, found[name], output.parent / "plots" / f"{name}.png")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n\n".join(parts) + "\n")
    return names


def read(folder: Path) -> dict[str, Row]:
    """Results by benchmark, which they name; else the file's name says it."""
    found: dict[str, Row] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            results = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            print(f"left out: {path.name} ({error})")
            continue
        name = results.get("benchmark", path.stem) if isinstance(results, dict) else ""
        if name not in ORDER:
            print(f"left out: {path.name} (not of a benchmark known here)")
        elif name in found:
            print(f"left out: {path.name} (there is another of {name})")
        else:
            found[name] = results
    return found


def section(name: str, results: Row, plot: Path) -> list[str]:
    """A benchmark's part of the page, in paragraphs; its plot is drawn."""
    script = import_module(name)
    words = (script.__doc__ or "").replace("``", "`").split("\n\n")
    parts = [f"## {script.TITLE}", *map(paragraph, words), *map(paragraph, tables(script, results))]
    if draw(getattr(script, "PLOTS", ()), results, plot):
        parts.append(f"![{script.TITLE}](plots/{plot.name})")
    return [*parts, *machine_line(name, results.get("machine", {}))]


def machine_line(name: str, machine: Row) -> list[str]:
    """Where, when and by which command results were measured."""
    if not machine:
        return []
    facts = [machine["processor"], f"{machine['cores']} cores"]
    facts += [machine["gpu"]] if machine.get("gpu") else []
    facts.append(f"load average {machine['load_average']:.1f} at the end")
    versions = {"Python": machine["python"], **machine["versions"]}
    facts.append(", ".join(f"{package} {version}" for package, version in versions.items()))
    words = paragraph("; ".join([*facts, machine["date"][:10]]) + ".")
    return [f"{words}\n`python benchmarks/{command(machine['command'])}`"]


def paragraph(words: str) -> str:
    """Text in lines of a page's width; a table and what is indented as they are."""
    if words.startswith(("|", "    ")):
        return words
    return textwrap.fill(" ".join(words.split()), 100, break_on_hyphens=False)


if __name__ == "__main__":
    names = run(HERE / "results", HERE / "RESULTS.md")
    print(f"RESULTS.md: {', '.join(names) or 'no results'}")
