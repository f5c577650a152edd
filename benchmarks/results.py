"""One page of what was measured: the JSON files of the benchmarks, as Markdown with plots.

A benchmark without a file is left out, and so is a file that is broken or of no benchmark known
here, with a word about it. Nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results_plot import PLOTS, draw

HERE = Path(__file__).resolve().parent
MOST_COLUMNS = 8
PATH_OPTIONS = ("--output", "--plot", "--place")
INTRODUCTION = """
Written by `benchmarks/results.py` from what the scripts in `benchmarks/` wrote to
`benchmarks/results/`; `make bench` measures all of it again. Times are on the clock, medians where
there were several rounds; memory is that of all processes together.
"""


@dataclass(frozen=True)
class Table:
    """A list of rows in a benchmark's results, and what of it is shown.

    Attributes
    ----------
    rows
        Where they are, ``rows`` or ``paper.rows``.
    columns
        Keys, ``a | b``; those that no row has are left out. Without any, the table's first.
    caption
        Above the table.
    where
        Key and value of the rows that are shown; None for all.
    """

    rows: str
    columns: str = ""
    caption: str = ""
    where: tuple[str, str] | None = None


@dataclass(frozen=True)
class Section:
    """A benchmark's heading, what it measures, and its tables; without any, all that it has."""

    title: str
    text: str
    tables: tuple[Table, ...] = ()


HEADINGS = {
    "cryodrgn_seconds": "cryoDRGN, s",
    "scapedist_seconds": "scapedist, s",
    "at_best": "by shortest times",
    "relative_error": "relative difference",
    "fraction": "of the matrix rate",
    "seconds": "time, s",
    "cpu seconds": "CPU time, s",
    "cpu": "CPU time",
    "memory": "memory above idle",
    "peak MiB": "peak, MiB",
    "above idle MiB": "above idle, MiB",
    "error": "failed with",
    "largest process MiB": "largest process, MiB",
    "Gram matrix MiB": "Gram matrix, MiB",
    "disk MiB": "disk, MiB",
    "stated": "it said",
    "all, s": "all particles, s",
    "exact, s": "decoding them, s",
    "ratio": "times as fast",
    "machine": "processes alone",
    "of_machine": "of these",
    "weak": "efficiency, as much work each",
    "batches_of": "batches of",
    "task_seconds": "a task, s",
    "task_fraction": "of the time",
    "rate to files": "rate to plain files",
}
"""What is written above columns, where it is not their key."""
FIGURES = "program | seconds | cpu seconds | peak MiB | above idle MiB | disk MiB"
STORED = "box | stored | way | ms a volume | MiB/s | rate to files"
SECTIONS = {
    "decode": Section(
        "Decoding",
        "Volumes decoded by scapedist's field and by cryoDRGN's `eval_volume`, in one process with "
        "the same threads, in turns, float32. The fraction is that of the rate of plain float32 "
        "matrix products in the same rounds.",
        (
            Table(
                "rows",
                "model | threads | cryodrgn_seconds | scapedist_seconds | times_as_fast | at_best "
                "| relative_error | fraction",
            ),
        ),
    ),
    "whole_run": Section(
        "The whole run",
        "`scapedist run` without an embedding against `cryodrgn analyze_landscape`, on the bundled "
        "model, from a cold start. Idle processes have imported the same modules; disk is what the "
        "output directory holds.",
        (
            Table("rows", f"sketch | {FIGURES}"),
            Table(
                "ratios",
                "sketch | time | cpu | memory | disk",
                "cryoDRGN's figures over scapedist's: above 1, scapedist takes less.",
            ),
        ),
    ),
    "landscape_full": Section(
        "Every particle's coordinates",
        "`scapedist run` with its default embedding against `cryodrgn analyze_landscape` and then "
        "`analyze_landscape_full`, from a cold start. The latter's time for its default of 10,000 "
        "training volumes is extrapolated from fewer.",
        (
            Table("rows", f"training volumes | extrapolated | {FIGURES}"),
            Table(
                "ratios",
                "training volumes | extrapolated | time | cpu | memory | disk",
                "Both of cryoDRGN's commands over scapedist: above 1, scapedist takes less.",
            ),
            Table(
                "accuracy",
                "program | training volumes | relative error | worst R2 of ten | 1 - worst R2 "
                "| largest error",
                "Coordinates of particles that neither program was trained with, against exact "
                "ones on the program's own components.",
            ),
        ),
    ),
    "memory": Section(
        "Memory against the sketch",
        "Peak memory of `scapedist run` with a masked store on the bundled model, from a cold "
        "start. Volumes pass in batches and should add nothing; the Gram matrix grows.",
        (Table("rows", "sketch | seconds | peak MiB | largest process MiB | Gram matrix MiB"),),
    ),
    "truth": Section(
        "States against the truth",
        "What the states of the bundled model hold, against its simulation: purity (of a state's "
        "particles, those of the kind) and recall (of the kind's particles, those in the state).",
        (
            Table(
                "rows",
                "states | kind | purity of best | recall of best | states mostly of it "
                "| their purity | their recall",
            ),
        ),
    ),
    "embedding": Section(
        "Embedding all particles",
        "How right and how fast each method is on the bundled model, and what it shows. Errors are "
        "relative to the landscape's spread, on particles that no method was trained with.",
        (
            Table(
                "methods",
                "method | 1 - R2, worst of ten | relative error | stated | all, s | exact, s "
                "| times as fast",
                "Accuracy, and the time of all particles with what comes before.",
            ),
            Table("pace", caption="On one thread."),
            Table("box", caption="The reduced embedding, ms a particle by points; random models."),
            Table("missed", caption="A kind kept out of the sketch: how many of it stand out."),
        ),
    ),
    "scaling": Section(
        "Scaling",
        "The same jobs on more workers, in rounds in turn, and as much work for each of them. "
        "Processes alone work through their share without a scheduler. The paper's network is "
        "projected by a model, not measured.",
        (
            Table(
                "scaling", "case | job | workers | seconds | ratio | machine | of_machine | weak"
            ),
            Table(
                "overhead",
                "case | job | batches_of | particles | workers | task_seconds | task_fraction",
                "What the scheduler takes.",
            ),
            Table(
                "paper.rows",
                "job | particles | workers | hours | limit | first_full | at_workers | basis",
                "Projected: the paper's network.",
            ),
        ),
    ),
    "store": Section(
        "Volumes on disk",
        "The run's Zarr store against plain Zarr with the same checksums, MRC files and plain "
        "files; float32, one chunk or file a volume. Masked volumes are flat rows of a quarter of "
        "the voxels. The ways take turns; ratios are of the same round, and time to MRC is to the "
        "fastest way to read an MRC file into an array of one's own; one that is not copied is "
        "read-only.",
        (
            Table("targets"),
            Table("rows", STORED, "Written, into the page cache.", ("what", "write")),
            Table("rows", STORED, "Written, to the disk.", ("what", "to the disk")),
            Table(
                "rows",
                f"{STORED} | time to MRC | to one not copied",
                "One volume read at random, from the page cache.",
                ("what", "read one"),
            ),
            Table(
                "rows",
                f"{STORED} | time to MRC | to one not copied",
                "All volumes read in order, from the page cache.",
                ("what", "read all"),
            ),
        ),
    ),
    "pca": Section(
        "Components",
        "Leading principal components of masked volumes in a Zarr store. Memory is the peak above "
        "what the process held before; the angle is the largest one to exact components.",
        (
            Table("targets"),
            Table(
                "rows",
                "case | rows | method | processes | seconds | above idle MiB | angle | error",
            ),
        ),
    ),
    "linkage": Section("Linkage", "Agglomerative clustering of n volumes: time of each method."),
    "growth": Section(
        "How costs grow",
        "Components and states of volumes with random values, n of them with p voxels in the "
        "mask, and decoding for several boxes D, on one thread: the power of each that fits the "
        "times, and what the plan says.",
        (
            Table(
                "rows",
                "stage | variable | from | to | exponent | planned exponent "
                "| planned / measured s | planned / measured MiB",
            ),
            Table(
                "many",
                "n | p | linkage | joined from | components s | states s | peak GiB | planned GiB",
                "Many volumes under a limit of 4 GiB a process, a worker a core.",
            ),
            Table(
                "measured",
                "particles | n | seconds | planned s | above idle MiB",
                "Sketches of n of the particles by k-means on latents of eight dimensions.",
                ("stage", "sketch"),
            ),
        ),
    ),
    "planned": Section(
        "Runs next to their plan",
        "`scapedist run` on the bundled model, from a cold start, next to what `scapedist plan` "
        "said just before. Memory is that of the largest process.",
        (
            Table(
                "rows",
                "sketch | box | workers | embedding | seconds | planned / measured s "
                "| planned / measured MiB | planned / measured disk",
            ),
            Table(
                "exponents",
                "stage | variable | from | to | exponent | planned exponent",
                "How the time of each stage grows: measured, and planned.",
            ),
        ),
    ),
}


def run(folder: Path, output: Path) -> list[str]:
    """Write the page and its plots.

    Parameters
    ----------
    folder
        Of the JSON files.
    output
        Markdown file to write; plots go to ``plots`` beside it.

    Returns
    -------
    list of str
        The benchmarks that the page has.
    """
    found = read(folder)
    parts = ["# Measurements", paragraph(INTRODUCTION)]
    for name in (name for name in SECTIONS if name in found):
        parts += section(name, found[name], output.parent / "plots")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n\n".join(parts) + "\n")
    return [name for name in SECTIONS if name in found]


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Results by benchmark: the file's name says which, else what is written in it."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stem not in SECTIONS):
        try:
            results = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            print(f"left out: {path.name} ({error})")
            continue
        name = path.stem
        if name not in SECTIONS and isinstance(results, dict):
            name = str(results.get("benchmark"))
        if name not in SECTIONS or not isinstance(results, dict):
            print(f"left out: {path.name} (not of a benchmark known here)")
        elif name in found:
            print(f"left out: {path.name} (there is another of {name})")
        else:
            found[name] = results
    return found


def section(name: str, results: dict[str, Any], plots: Path) -> list[str]:
    """A benchmark's part of the page, in paragraphs; its plot is drawn."""
    known = SECTIONS[name]
    parts = [f"## {known.title}", paragraph(known.text)]
    for table in known.tables or own_tables(results):
        lines = markdown(chosen(results, table), table.columns)
        if lines:
            parts += [paragraph(table.caption)] * bool(table.caption) + [lines]
    if name in PLOTS:
        path = plots / f"{name}.png"
        try:
            drawn = draw(name, results, path)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            print(f"not drawn: {name} ({type(error).__name__}: {error})")
            drawn = False
        if drawn:
            parts.append(f"![{known.title}](plots/{path.name})")
    parts.append(machine_line(name, results.get("machine", {})))
    return [part for part in parts if part]


def own_tables(results: dict[str, Any]) -> tuple[Table, ...]:
    """All lists of rows that results have."""
    keys = [key for key, value in results.items() if _is_rows(value)]
    return tuple(Table(key, caption="" if key == "rows" else f"{key}:") for key in keys)


def chosen(results: dict[str, Any], table: Table) -> list[dict[str, Any]]:
    """The rows of a table; none where the results have no such rows."""
    value: Any = results
    for key in table.rows.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if not _is_rows(value):
        return []
    return [
        row for row in value if table.where is None or row.get(table.where[0]) == table.where[1]
    ]


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def markdown(rows: Sequence[dict[str, Any]], columns: str) -> str:
    """A Markdown table of rows, numbers to the right; empty where there is nothing to show."""
    held = dict.fromkeys(
        key for row in rows for key, value in row.items() if isinstance(value, str | int | float)
    )
    asked = columns.split(" | ") if columns else list(held)[:MOST_COLUMNS]
    keys = [key for key in asked if key in held]
    if not keys:
        return ""
    lines = [
        [HEADINGS.get(key, key.replace("_", " ")) for key in keys],
        ["---:" if _is_number(rows, key) else "---" for key in keys],
        *([text(row.get(key)) for key in keys] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _is_number(rows: Sequence[dict[str, Any]], key: str) -> bool:
    """Whether a column has numbers, and beside them nothing but empty cells."""
    values = [row[key] for row in rows if row.get(key) not in (None, "")]
    return bool(values) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )


def text(value: Any) -> str:
    """A cell: three digits of a number, all of a whole one, yes or no, nothing for None."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not value or abs(value) >= 100:
            return f"{value:,.0f}"
        return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:#.3g}"
    return str(value).replace("|", "\\|") if isinstance(value, str) else ""


def machine_line(name: str, machine: dict[str, Any]) -> str:
    """Where, when and by which command results were measured."""
    if not isinstance(machine, dict) or not machine:
        return ""
    facts = [text(machine.get("processor")), f"{machine.get('cores')} cores"]
    facts += [text(machine["gpu"])] if machine.get("gpu") else []
    if isinstance(load := machine.get("load_average"), int | float):
        facts.append(f"load average {load:.1f} at the end")
    versions = {"Python": machine.get("python"), **machine.get("versions", {})}
    facts.append(", ".join(f"{package} {version}" for package, version in versions.items()))
    facts.append(str(machine.get("date", ""))[:10])
    words = paragraph("; ".join(fact for fact in facts if fact) + ".")
    return f"{words}\n`{command(str(machine.get('command') or f'{name}.py'))}`"


def command(given: str) -> str:
    """A benchmark's command as one would give it here: without the paths of what it wrote."""
    words, kept = shlex.split(given), []
    while words:
        word = words.pop(0)
        if word in PATH_OPTIONS:
            words[:1] = []
        elif not word.startswith(tuple(f"{option}=" for option in PATH_OPTIONS)):
            kept.append(Path(word).name if word.startswith("/") else word)
    script, *options = kept
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *options])


def paragraph(words: str) -> str:
    """Text in lines of a page's width."""
    return textwrap.fill(" ".join(words.split()), 100, break_on_hyphens=False)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, nargs="?", default=HERE / "results")
    parser.add_argument("--output", type=Path, default=HERE / "RESULTS.md", metavar="FILE.md")
    options = parser.parse_args()
    names = run(options.folder, options.output)
    print(f"{options.output.name}: {', '.join(names) or 'no results'}")


if __name__ == "__main__":
    main()
