"""What a benchmark states beside its numbers: the machine, its matrix rate, a table, JSON."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import scapedist

PACKAGES = (
    "cryodrgn",
    "torch",
    "numpy",
    "zarr",
    "dask",
    "cupy-cuda13x",
    "cupy-cuda12x",
    "cuml-cu13",
)


def describe() -> dict[str, Any]:
    """Processor, cores, versions, threads, load, date and command of this process."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {
            "scapedist": scapedist.__version__,
            **{name: found for name in PACKAGES if (found := _version(name)) is not None},
        },
        "load_average": os.getloadavg()[0],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(
            [Path(sys.argv[0]).name]
            + [Path(each).name if os.path.isabs(each) else each for each in sys.argv[1:]]
        ),
    }


@contextmanager
def n_threads(count: int) -> Iterator[None]:
    """Torch with a number of threads, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def matrix_rate(
    threads: int, sizes: Sequence[int] = (512, 1024, 2048), n_repeats: int = 5
) -> float:
    """The machine's float32 matrix rate in GFLOP/s: the best median of square ``torch.mm``.

    Parameters
    ----------
    threads
        Number of threads that torch may use.
    sizes
        Edges of the matrices tried.
    n_repeats
        Timed products of each size, after one that is not timed.
    """
    rates = []
    with n_threads(threads), torch.inference_mode():
        for size in sizes:
            left, right, out = (torch.randn(size, size) for _ in range(3))
            seconds = median_seconds(partial(torch.mm, left, right, out=out), n_repeats)
            rates.append(2 * size**3 / seconds / 1e9)
    return max(rates)


def median_seconds(work: Callable[[], Any], n_repeats: int) -> float:
    """Median wall-clock time of a call, after one that is not timed."""
    work()
    return statistics.median(seconds_of(work) for _ in range(n_repeats))


def seconds_of(work: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def write_json(path: str | Path, results: dict[str, Any]) -> None:
    """Write a benchmark's results, the machine they were measured on included."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(results, indent=2) + "\n")


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows (all with the same keys) under a header, in aligned columns."""
    if not rows:
        return
    header = list(rows[0])
    cells = [header, *([_cell(row[name]) for name in header] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if value and abs(value) < 1e-3 else f"{value:.4g}"
    return str(value)


def _version(package: str) -> str | None:
    """An installed package's version; None where it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
