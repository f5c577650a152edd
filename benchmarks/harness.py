"""What every benchmark shares: its command line, child processes, peak memory, tables, JSON.

A script states its ``TITLE``, ``SIZES``, ``TABLES``, and, where it has them, ``PLOTS`` and further
``OPTIONS`` of its command line; its docstring is what the page of results says of it. Its function
``run(size, **options)`` measures and returns what is written. torch and scapedist are imported
where they are used: what is measured in a process of its own may need neither.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import platform
import re
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

GPU_PACKAGES = ("cupy-cuda13x", "cupy-cuda12x", "cuml-cu13")
PACKAGES = ("cryodrgn", "torch", "numpy", "zarr", "dask", *GPU_PACKAGES)
MEMORY_SHARE = 0.75
"""Of the machine's memory, that a child process may ask for before it fails."""
MIB = 2**20
EPOCH = 14
"""Of the model that scapedist ships; random models have their own."""
Row = dict[str, Any]


# -- a script and its command line


@dataclass(frozen=True)
class Table:
    """Rows of a benchmark's results, and what of them is shown.

    They are those under ``rows`` that have the values of ``where``. The columns are keys, ``a | b:
    what is written above``; those that no row has are left out.
    """

    rows: str
    columns: str
    caption: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """A picture of some rows: a column against a size, or, without ``xlabel``, beside names.

    ``rows`` and ``where`` are as of a table; of ``fixed`` columns only rows with the most frequent
    values are drawn. ``x`` is the column of the size or the name, ``by`` what a row's line is
    called, as ``{program}``, and ``y`` the column that is drawn, or several, each with what its
    line is called; ``label`` and ``xlabel`` are written beside and below.
    """

    rows: str
    x: str
    by: str
    y: str | Mapping[str, str]
    label: str
    xlabel: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()


def main(name: str) -> Row:
    """Run a benchmark from its command line; what it found."""
    script = import_module(name)  # not __main__: other processes find what they call under its name
    parser = argparse.ArgumentParser(
        description=script.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = "small" if "small" in script.SIZES else "full"
    parser.add_argument("--size", choices=tuple(script.SIZES), default=size)
    output = getattr(script, "OUTPUT", None)
    parser.add_argument("--output", type=Path, metavar="FILE.json", default=output)
    for flag, settings in getattr(script, "OPTIONS", {}).items():
        parser.add_argument(flag, **settings)
    options = vars(parser.parse_args())
    logging.disable(logging.INFO)  # cryoDRGN lets all modules tell what they do
    print(f"load average {os.getloadavg()[0]:.2f} on {n_cores()} cores", flush=True)
    return benchmark(name, **options)


def benchmark(name: str, size: str, output: Path | None = None, **options: Any) -> Row:
    """What a benchmark found at a size, printed as tables, and written with the machine."""
    script = import_module(name)
    found = script.run(size, **options)
    results = {"benchmark": name, "size": size, "machine": describe(), **found}
    print("\n\n".join(tables(script, results)), flush=True)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=2) + "\n")
    return results


def describe() -> Row:
    """Processor, cores, versions, threads, load, date and command of this process."""
    import torch

    import scapedist

    found = {"scapedist": scapedist.__version__}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return {
        "processor": _processor(),
        "cores": n_cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": found,
        "load_average": os.getloadavg()[0],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(shlex.join(sys.argv)),
    }


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def command(given: str) -> str:
    """A benchmark's command without where it was started and the paths of what it wrote."""
    kept = re.sub(r" --(output|plot|place)[= ]('[^']*'|\S+)", "", given)
    script, *options = shlex.split(kept)
    return shlex.join([Path(script).name, *options])


def _processor() -> str:
    """The processor's name, as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# -- tables


def tables(script: Any, results: Row) -> list[str]:
    """A script's tables and their captions in Markdown; those without rows are left out."""
    found = []
    for table in script.TABLES:
        lines = markdown(chosen(results, table), table.columns)
        found += [table.caption] * bool(table.caption and lines) + [lines] * bool(lines)
    return found


def chosen(results: Row, of: Table | Panel) -> list[Row]:
    """The rows of a table or a picture, of which one needs no list; none where there are none."""
    value = results.get(of.rows)
    value = value if isinstance(value, list) else [value]
    rows = [row for row in value if isinstance(row, dict)]
    return [row for row in rows if all(row.get(key) == of.where[key] for key in of.where)]


def markdown(rows: Sequence[Row], columns: str) -> str:
    """A table of rows, numbers to the right; empty where there is nothing to show."""
    headings = dict((each.split(": ", 1) * 2)[:2] for each in columns.split(" | "))
    shown = []
    for key, heading in headings.items():
        values = [row[key] for row in rows if row.get(key) not in (None, "")]
        if values:
            right = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
            cells = [heading.replace("_", " "), *(cell(row.get(key)) for row in rows)]
            width = max(map(len, cells))
            cells = [each.rjust(width) if right else each.ljust(width) for each in cells]
            cells.insert(1, "-" * (width - 1) + ":" if right else "-" * width)
            shown.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*shown, strict=True))


def cell(value: Any) -> str:
    """Three digits of a number, all of a whole one, yes or no, nothing for None."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not value or abs(value) >= 100:
            return f"{value:,.0f}"
        return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:#.3g}"
    return str(value).replace("|", "\\|") if isinstance(value, str) else ""


# -- time


def seconds_of(work: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def exhaust(values: Iterable[Any]) -> None:
    """Take all values, such as decoded volumes, and keep none."""
    for _ in values:
        pass


@contextmanager
def n_threads(count: int) -> Iterator[None]:
    """Torch with a number of threads, and as many as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def exponents(
    rows: Sequence[Row], by: tuple[str, ...], variables: tuple[str, ...], of: Mapping[str, str]
) -> Iterator[tuple[Row, list[Row]]]:
    """For each value of ``by``, the most rows that differ in one variable alone, by that variable.

    With each, a row that says which they are, the variable and its range, and by the names of
    ``of`` the power of the variable that fits a column, where rows have it.
    """
    import numpy as np

    for key in dict.fromkeys(tuple(row[name] for name in by) for row in rows):
        mine = [row for row in rows if tuple(row[name] for name in by) == key]
        for variable in variables:
            alike: dict[tuple[Any, ...], list[Row]] = {}
            for row in (row for row in mine if variable in row):
                others = tuple(row.get(name) for name in variables if name != variable)
                alike.setdefault(others, []).append(row)
            longest = max(alike.values(), key=len, default=[])
            longest = sorted(longest, key=lambda row: row[variable])
            if len(longest) > 1:
                line = dict(zip(by, key, strict=True)) | {"variable": variable}
                line |= {"from": longest[0][variable], "to": longest[-1][variable]}
                x = np.log([row[variable] for row in longest])
                for name, what in of.items():
                    if what in longest[0]:
                        y = np.log([row[what] for row in longest])
                        line[name] = float(np.polyfit(x, y, 1)[0])
                yield line, longest


# -- a method in a process of its own

CHILD = """
import importlib, json, sys
folder, script, function, arguments = sys.argv[1:]
sys.path.insert(0, folder)
print(json.dumps(getattr(importlib.import_module(script), function)(*json.loads(arguments))))
"""


def alone(script: str, *arguments: Any, child: str = "child") -> Row:
    """What a function of a script returns in a fresh process, of arguments as JSON has them."""
    about = (str(Path(__file__).parent), script, child, json.dumps(arguments, default=str))
    done = subprocess.run([sys.executable, "-c", CHILD, *about], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def in_turns(
    script: str,
    ways: Mapping[Any, Sequence[Any]],
    n_rounds: int,
    place: Path,
    compared: Callable[[Any, Path], Row],
) -> dict[Any, Row]:
    """A row of each way: median time and memory, or its error, and how its answer compares.

    Ways take turns, each ``alone`` with its arguments and a file for its answer.
    """
    took: dict[Any, list[Row]] = {way: [] for way in ways}
    rows: dict[Any, Row] = {way: {"seconds": "", "above idle MiB": "", "error": ""} for way in ways}
    files = {way: place / f"{number}.npz" for number, way in enumerate(ways)}
    for _ in range(n_rounds):
        for way in (way for way in ways if not rows[way]["error"]):
            try:
                took[way].append(alone(script, *ways[way], files[way]))
            except RuntimeError as error:
                took[way].append({"error": str(error)})
            rows[way]["error"] = took[way][-1].get("error", "")
    for way, row in rows.items():
        if not row["error"]:
            row["seconds"] = statistics.median(each["seconds"] for each in took[way])
            row["above idle MiB"] = statistics.median(each["bytes"] for each in took[way]) / MIB
            row |= compared(way, files[way])
    return rows


def limit_memory() -> None:
    """Let this process and its children fail before they take all of the machine's memory."""
    most = int(MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def timed(
    work: Callable[[Any], Row],
    load: Callable[[Path], Any],
    few: str,
    place: str,
    result: str,
    everywhere: Callable[[Callable[[], int]], int] = lambda call: call(),
) -> Row:
    """Seconds and peak of work on what lies in a place, or its error; its arrays go to a file.

    It has been done with what lies in ``few`` before. The peak is above what the process held
    then, what is loaded included; ``everywhere`` sums it over other processes, too.
    """
    try:
        work(load(Path(few)))
        before = everywhere(reset_peak)
        given = load(Path(place))
        start = time.perf_counter()
        found = work(given)
        row = {"seconds": time.perf_counter() - start, "bytes": everywhere(peak_bytes) - before}
    except Exception as error:  # of another package: a row like others
        return {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
    import numpy as np

    np.savez(result, **found)
    return row


def reset_peak() -> int:
    """Resident bytes of this process, from which its peak begins anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes(pid: int | str = "self") -> int:
    """The most bytes of a process that were resident, by default of this one (Linux)."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmHWM:")


def _kilobytes(path: Path, name: str) -> int:
    """Bytes that a line of a file of the system says."""
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError("This system does not say how much memory a process had.")


# -- a command and all processes that it starts

GROWN, RARELY_SECONDS = 1.01, 1.0
"""Proportional sizes take the system 10 ms or more of a core that the command has use for: they
are read when resident sizes, which cost nothing, have grown, and rarely otherwise."""


def measure(program: Sequence[str], log: Path | None = None) -> Row:
    """What a command and all its processes took, from a cold start; an error of it is raised.

    What it prints goes to the file ``log``. The peak is the largest sum over the processes, at one
    moment, of proportional set sizes: memory that they share is counted once; it is seen to about
    1 %, every 0.1 s. The largest process's resident size has all that it shares. Where the CPU time
    of others is not small next to the seconds, the command shared the cores, and its times say
    little.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start, busy = time.perf_counter(), _busy_seconds()
    with open(log or os.devnull, "wb") as printed:
        process = subprocess.Popen(program, stdout=printed, stderr=subprocess.PIPE)
    peak, largest, done, used = 0, 0, threading.Event(), dict[int, float]()

    def watch() -> None:
        nonlocal peak, largest
        highest, last = 0, start
        while not done.wait(0.1):
            members, now, resident = _tree(process.pid), time.perf_counter(), 0
            for member in members:
                with contextlib.suppress(OSError, RuntimeError):  # it has just ended
                    resident += int(Path(f"/proc/{member}/statm").read_text().split()[1])
                    used[member] = _cpu_seconds(member)
                    largest = max(largest, peak_bytes(member))
            if resident > GROWN * highest or now - last > RARELY_SECONDS:
                highest, last, shared = max(highest, resident), now, 0
                for member in members:
                    with contextlib.suppress(OSError, RuntimeError):
                        shared += _kilobytes(Path(f"/proc/{member}/smaps_rollup"), "Pss:")
                peak = max(peak, shared)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, stderr = process.communicate()
    seconds, busy = time.perf_counter() - start, _busy_seconds() - busy
    done.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{program[0]} failed: {stderr.decode()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    cpu = max(cpu, sum(used.values()))  # nobody waits for some processes, which do not count then
    return {
        "seconds": seconds,
        "cpu seconds": cpu,
        "others' cpu seconds": max(busy - cpu, 0.0),
        "peak MiB": peak / MIB,
        "largest process MiB": largest / MIB,
    }


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process since it started."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _busy_seconds() -> float:
    """CPU time of all cores since the machine started."""
    fields = Path("/proc/stat").read_text().split()[1:8]  # waiting is the fourth and fifth
    user, nice, system, _, _, *interrupts = map(int, fields)
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def _tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:  # grows while it is walked
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in task.read_text().split()]
    return found


def disk_bytes(directory: Path) -> int:
    """Sum of the sizes of all files under a directory; a link counts for itself."""
    return sum(path.lstat().st_size for path in directory.rglob("*") if not path.is_dir())


@contextmanager
def bundled() -> Iterator[tuple[Path, Path]]:
    """The work directory that scapedist ships, and an empty folder that goes afterwards."""
    with (
        tempfile.TemporaryDirectory() as place,
        as_file(files("scapedist") / "data" / "adk") as workdir,
    ):
        yield workdir, Path(place)


def scapedist_run(
    workdir: Path, output: Path, sketch: int, box: int, workers: int | None, *options: str
) -> list[str]:
    """The command of scapedist's whole job."""
    program = [sys.executable, "-m", "scapedist.cli", "run", str(workdir), str(EPOCH)]
    program += ["--output", str(output), "--sketch-size", str(sketch), "--box-size", str(box)]
    return [*program, *(["--workers", str(workers)] if workers is not None else []), *options]
