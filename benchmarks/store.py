"""Volumes on disk: the run's Zarr store against plain Zarr, MRC files and plain files.

One chunk or file for each volume, whole ones and masked ones (a quarter of the voxels, a flat row).
The ways take turns, in changing order; ratios are of the same round, and all are medians. What is
written and read fits in memory: rates are those of the page cache. ``to the disk`` counts one sync
behind the last volume as well, and shows what the disk gives.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import psutil
import zarr
from machine import describe, print_table, seconds_of, write_json
from zarr.codecs import Crc32cCodec

from scapedist.files.mrc import write_map
from scapedist.stages.stored_rows import FULL, MASKED
from scapedist.store import GROUP, RunStore, read_rows, write_row

MIB = 2**20
PIXEL_SIZE = 1.5
FILES, OURS = "plain files", "scapedist"
WRITE, SYNC, ONE, ALL = "write", "to the disk", "read one", "read all"
TABLES = {
    WRITE: "writing, into the page cache",
    SYNC: "writing, to the disk",
    ONE: "reading one volume at random, from the page cache",
    ALL: "reading all volumes in order, from the page cache",
}
OPEN = "mrcfile.open"
MRC = ("mrcfile.write", "mrcfile.open, copied", "mrcfile.mmap, copied")
TO_MRC, NOT_COPIED = "time to MRC", "to one not copied"
WANTED = (
    (WRITE, "rate to files", 0.7),
    (ONE, TO_MRC, 1.0),
    (ONE, NOT_COPIED, 1.0),
)
"""Of the store: at least of the rate of plain file writes, at most of the time of MRC files.

The store and a copy are arrays of one's own; what ``mrcfile.open`` has is read-only.
"""

Write = Callable[[int, np.ndarray], Any]
Read = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class Case:
    """Volumes of a box, and how often they are written and read.

    Attributes
    ----------
    box_size, n_volumes
        Of the volumes.
    n_rounds
        In which all are written, and all are read.
    n_reads
        Volumes read at random by each way.
    """

    box_size: int
    n_volumes: int
    n_rounds: int
    n_reads: int


SIZES = {
    "tiny": (Case(16, 8, 3, 16),),
    "small": (Case(48, 128, 9, 300), Case(128, 16, 9, 300)),
    "full": (Case(48, 256, 15, 1000), Case(128, 32, 15, 300), Case(256, 5, 15, 100)),
}


# -- ways to write: a function of place and shape gives one of number and volume


def to_files(place: Path, shape: tuple[int, ...]) -> Write:
    """Plain writes of a volume's bytes, one file each."""

    def write(number: int, volume: np.ndarray) -> None:
        with open(place / f"{number}.raw", "wb") as stream:
            stream.write(volume.data)

    return write


def to_store(place: Path, shape: tuple[int, ...]) -> Write:
    """The run's store, as a batch's volumes are written."""
    name, dimensions = _of_run(shape)
    array = RunStore(place, "w-").create(name, shape, "float32", dimensions, (1, *shape[1:]))
    return partial(write_row, array)


def to_zarr(place: Path, shape: tuple[int, ...]) -> Write:
    """Zarr alone, with the same chunks and checksums."""
    array = zarr.create_array(
        place / "array",
        shape=shape,
        dtype="float32",
        chunks=(1, *shape[1:]),
        fill_value=np.nan,
        compressors=(Crc32cCodec(),),
        config={"write_empty_chunks": True},
    )
    return array.__setitem__


def to_mrc(place: Path, shape: tuple[int, ...]) -> Write:
    """MRC files by ``mrcfile.write``."""

    def write(number: int, volume: np.ndarray) -> None:
        mrcfile.write(place / f"{number}.mrc", volume, voxel_size=PIXEL_SIZE)

    return write


def to_maps(place: Path, shape: tuple[int, ...]) -> Write:
    """MRC files as scapedist exports maps."""
    return lambda number, volume: write_map(place / f"{number}.mrc", volume, PIXEL_SIZE)


WRITERS = {
    FILES: to_files,
    OURS: to_store,
    "zarr": to_zarr,
    "mrcfile.write": to_mrc,
    "scapedist's maps": to_maps,
}
FLAT = (FILES, OURS, "zarr")
"""Ways that a masked volume, which is no map, can be written."""


# -- ways to read: from the folder of a way to write


def readers(folders: dict[str, Path], shape: tuple[int, ...]) -> dict[str, Read]:
    """All ways to read the volumes in some folders, each a function of the number."""
    name, _ = _of_run(shape)
    files, run, plain = folders[FILES], folders[OURS], folders["zarr"] / "array"
    ours, array = RunStore(run).array(name), zarr.open_array(plain, mode="r")
    found: dict[str, Read] = {
        FILES: lambda number: np.fromfile(files / f"{number}.raw", np.float32).reshape(shape[1:]),
        OURS: lambda number: read_rows(ours, slice(number, number + 1))[0],
        f"{OURS}, opened anew": lambda number: read_rows(
            zarr.open_array(run / GROUP / name, mode="r"), slice(number, number + 1)
        )[0],
        "zarr": lambda number: np.asarray(array[number]),
        "zarr, opened anew": lambda number: np.asarray(zarr.open_array(plain, mode="r")[number]),
    }
    if len(shape) == 4:
        maps = folders["mrcfile.write"]
        found |= {
            OPEN: lambda number: _opened(maps / f"{number}.mrc"),
            "mrcfile.open, copied": lambda number: np.array(_opened(maps / f"{number}.mrc")),
            "mrcfile.mmap, copied": lambda number: _mapped(maps / f"{number}.mrc"),
        }
    return found


def _opened(path: Path) -> np.ndarray:
    """The data of an MRC file, read-only."""
    with mrcfile.open(path) as mrc:
        data: np.ndarray = mrc.data
    return data


def _mapped(path: Path) -> np.ndarray:
    """The data of an MRC file, copied out of its memory map."""
    with mrcfile.mmap(path) as mrc:
        return np.array(mrc.data)


def _of_run(shape: tuple[int, ...]) -> tuple[str, tuple[str, ...]]:
    """Name and dimensions of an array of a run."""
    return (FULL, ("t", "z", "y", "x")) if len(shape) == 4 else (MASKED, ("volume", "voxel"))


# -- measuring


def measure(case: Case, n_values: int | None, place: Path) -> list[dict[str, Any]]:
    """All rows of a case, its volumes whole or as flat rows of some values each.

    Raises
    ------
    RuntimeError
        Where what is read is not what was written.
    """
    row_shape = (case.box_size,) * 3 if n_values is None else (n_values,)
    shape = (case.n_volumes, *row_shape)
    volumes = np.random.default_rng(0).standard_normal((4, *row_shape), np.float32)
    writers = {name: WRITERS[name] for name in (WRITERS if n_values is None else FLAT)}
    folders = {name: place / str(number) for number, name in enumerate(writers)}
    times = write_times(writers, folders, shape, volumes, case.n_rounds)
    reads = readers(folders, shape)
    for name, read in reads.items():
        for number in range(len(volumes)):
            if not np.array_equal(read(number), volumes[number]):
                raise RuntimeError(f"{name}: volume {number} is not what was written.")
    times |= read_times(reads, case)
    about = {
        "box": case.box_size,
        "stored": "whole" if n_values is None else "masked",
        "volumes": case.n_volumes,
    }
    return [
        {"what": what} | about | row
        for what, found in times.items()
        for row in summary(found, volumes[0].nbytes)
    ]


Times = dict[str, dict[str, list[float]]]
"""Seconds a volume of each round, by what was done and the way."""


def write_times(
    writers: Mapping[str, Callable[[Path, tuple[int, ...]], Write]],
    folders: dict[str, Path],
    shape: tuple[int, ...],
    volumes: np.ndarray,
    n_rounds: int,
) -> Times:
    """Times of all writers; the last round's files stay, for those who read."""
    times: Times = {what: {name: [] for name in writers} for what in (WRITE, SYNC)}

    def work(write: Write) -> None:
        for number in range(shape[0]):
            write(number, volumes[number % len(volumes)])

    for order in turns(writers, n_rounds):
        for name in order:
            shutil.rmtree(folders[name], ignore_errors=True)
            folders[name].mkdir(parents=True)
            write = writers[name](folders[name], shape)
            os.sync()  # what others left to write is not counted
            seconds = seconds_of(partial(work, write))
            times[WRITE][name].append(seconds / shape[0])
            times[SYNC][name].append((seconds + seconds_of(os.sync)) / shape[0])
    return times


def read_times(reads: dict[str, Read], case: Case) -> Times:
    """Times of reading volumes at random, and all in order."""
    times: Times = {what: {name: [] for name in reads} for what in (ONE, ALL)}

    def work(read: Read) -> None:
        for number in range(case.n_volumes):
            read(number)

    chosen = np.random.default_rng(1).integers(case.n_volumes, size=case.n_reads).tolist()
    for number, order in zip(chosen, turns(reads, case.n_reads), strict=True):
        for name in order:
            times[ONE][name].append(seconds_of(partial(reads[name], number)))
    for order in turns(reads, case.n_rounds):
        for name in order:
            times[ALL][name].append(seconds_of(partial(work, reads[name])) / case.n_volumes)
    return times


def turns(names: Iterable[str], n: int) -> Iterator[list[str]]:
    """The names n times, each time in another order: what comes before has its effect."""
    rng, order = random.Random(0), list(names)
    for _ in range(n):
        rng.shuffle(order)
        yield list(order)


def summary(times: dict[str, list[float]], n_bytes: int) -> list[dict[str, Any]]:
    """A row for each way: medians, also of ratios of the same round.

    Parameters
    ----------
    times
        Seconds a volume of each way and round.
    n_bytes
        Of a volume.
    """
    seconds = {name: np.array(values) for name, values in times.items()}
    middle = {name: float(np.median(values)) for name, values in seconds.items()}
    maps = [name for name in seconds if name in MRC]
    fastest = min(maps, key=lambda name: middle[name], default=None)
    rows = []
    for name, values in seconds.items():
        rates = seconds[FILES] / values
        row: dict[str, Any] = {"way": name, "ms a volume": 1e3 * middle[name]}
        row["MiB/s"] = n_bytes / MIB / middle[name]
        row["rate to files"] = float(np.median(rates))
        row["10 %"], row["90 %"] = np.quantile(rates, (0.1, 0.9)).tolist()
        for key, other in ((TO_MRC, fastest), (NOT_COPIED, OPEN if OPEN in seconds else None)):
            row[key] = float(np.median(values / seconds[other])) if other else None
        rows.append(row)
    return rows


def targets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is wanted of the store, and whether it was found."""
    found = []
    for row in (row for row in rows if row["way"] == OURS):
        for what, key, limit in WANTED:
            value = row[key]
            if row["what"] != what or value is None:
                continue
            met = value >= limit if what == WRITE else value <= limit
            wanted = f"{'>=' if what == WRITE else '<='} {limit}"
            about = {"target": f"{what}: {key}", "box": row["box"], "stored": row["stored"]}
            found.append(about | {"wanted": wanted, "found": value, "met": met})
    return found


def file_system(place: Path) -> str:
    """The type of the file system that a folder lies in; empty where it is not known."""
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    return next((mounts[above] for above in (place, *place.parents) if above in mounts), "")


# -- all of it


def run(size: str, output: str | Path | None, place: Path | None = None) -> dict[str, Any]:
    """Measure every case of a size, print the tables and write them.

    Parameters
    ----------
    size
        ``tiny``, ``small`` or ``full``.
    output
        JSON file to write, or None.
    place
        Folder on the disk to be measured (default: the system's for temporary files).
    """
    rows = []
    for case in SIZES[size]:
        for n_values in (None, case.box_size**3 // 4):
            with tempfile.TemporaryDirectory(dir=place) as scratch:
                rows += measure(case, n_values, Path(scratch))
                found = file_system(Path(scratch).resolve())
    met = targets(rows)
    results = {
        "benchmark": "store",
        "size": size,
        "file_system": found,
        "rows": rows,
        "targets": met,
    }
    for what, title in TABLES.items():
        print(f"\n{title} ({found})")
        print_table(_shown([row for row in rows if row["what"] == what]))
    print("\ntargets")
    print_table(met)
    if output is not None:
        write_json(output, results | {"machine": describe()})
    return results


def _shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the columns that are empty in all of them."""
    keys = dict.fromkeys(k for row in rows for k, value in row.items() if value is not None)
    return [{k: "" if row[k] is None else row[k] for k in keys if k != "what"} for row in rows]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--place", type=Path, metavar="DIR", help="on the disk to be measured")
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.2f} on {describe()['cores']} cores")
    run(options.size, options.output, options.place)


if __name__ == "__main__":
    main()
