"""The run's Zarr store against plain Zarr with the same checksums, MRC files and plain files.

Float32, one chunk or file a volume; masked volumes are flat rows of a quarter of the voxels. The
ways take turns, in changing order; ratios are of the same round, and all are medians. Time to MRC
is to the fastest way to read an MRC file into an array of one's own; one that is not copied is
read-only. What is written and read fits in memory: rates are those of the page cache. To the disk,
one sync behind the last volume counts as well, and shows what the disk gives.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import harness
import mrcfile
import numpy as np
import zarr
from harness import MIB, Panel, Row, Table, seconds_of
from zarr.codecs import Crc32cCodec

from scapedist.files.mrc import write_map
from scapedist.stages.stored_rows import FULL, MASKED
from scapedist.store import GROUP, RunStore, read_rows, write_row

FILES, OURS, OPEN = "plain files", "scapedist", "mrcfile.open"
MRC = ("mrcfile.write", "mrcfile.open, copied", "mrcfile.mmap, copied")
WRITE, SYNC, ONE, ALL = "write", "to the disk", "read one", "read all"
RATE, TO_MRC, NOT_COPIED = "rate to files", "time to MRC", "to one not copied"
WANTED = ((WRITE, RATE, 0.7), (ONE, TO_MRC, 1.0), (ONE, NOT_COPIED, 1.0))
"""Of the store: at least of the rate of plain file writes, at most of the time of MRC files. The
store and a copy are arrays of one's own; what ``mrcfile.open`` has is read-only."""
WRITTEN = f"box | stored | way | ms a volume | MiB/s | {RATE}: rate to plain files"
WAS_READ = f"{WRITTEN} | {TO_MRC} | {NOT_COPIED}"
TITLE = "Volumes on disk"
TABLES = (
    Table("targets", "target | box | stored | wanted | found | met"),
    Table("rows", WRITTEN, "Written, into the page cache.", {"what": WRITE}),
    Table("rows", WRITTEN, "Written, to the disk.", {"what": SYNC}),
    Table("rows", WAS_READ, "One volume read at random, from the page cache.", {"what": ONE}),
    Table("rows", WAS_READ, "All volumes read in order, from the page cache.", {"what": ALL}),
)
PLOTS = tuple(
    Panel("rows", "way", "box {box}", "MiB/s", f"{what}, MiB/s", "", {"what": what, "stored": how})
    for what, how in ((WRITE, "whole"), (SYNC, "whole"), (ONE, "whole"))
)
PIXEL_SIZE = 1.5
Write = Callable[[int, np.ndarray], Any]
Writer = Callable[[Path, tuple[int, ...]], Write]
Read = Callable[[int], np.ndarray]


Case = namedtuple("Case", "box n_volumes n_rounds n_reads")
"""Volumes of a box, rounds in which all are written and all read, and reads at random."""
SIZES = {
    "tiny": (Case(16, 8, 3, 16),),
    "small": (Case(48, 128, 9, 300), Case(128, 16, 9, 300)),
    "full": (Case(48, 256, 15, 1000), Case(128, 32, 15, 300), Case(256, 5, 15, 100)),
}
OPTIONS: dict[str, Row] = {
    "--place": {"type": Path, "metavar": "DIR", "help": "on the disk to be measured"}
}


# -- ways to write: a function of place and shape gives one of number and volume


def to_store(place: Path, shape: tuple[int, ...]) -> Write:
    """The run's store, as a batch's volumes are written."""
    whole = len(shape) == 4
    name, axes = (FULL, ("t", "z", "y", "x")) if whole else (MASKED, ("volume", "voxel"))
    array = RunStore(place, "w-").create(name, shape, "float32", axes, (1, *shape[1:]))
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


def each_to(ending: str, write: Callable[[Path, np.ndarray], Any]) -> Writer:
    """A file for each volume."""
    return lambda place, shape: lambda number, volume: write(place / f"{number}{ending}", volume)


def write_bytes(path: Path, volume: np.ndarray) -> None:
    """Plain writes of a volume's bytes."""
    with open(path, "wb") as stream:
        stream.write(volume.data)


FLAT: dict[str, Writer] = {FILES: each_to(".raw", write_bytes), OURS: to_store, "zarr": to_zarr}
"""Ways that a masked volume, which is no map, can be written."""
WRITERS = FLAT | {
    "mrcfile.write": each_to(".mrc", partial(mrcfile.write, voxel_size=PIXEL_SIZE)),
    "scapedist's maps": each_to(".mrc", lambda path, volume: write_map(path, volume, PIXEL_SIZE)),
}


# -- ways to read: from the folder of a way to write


def readers(folders: dict[str, Path], shape: tuple[int, ...]) -> dict[str, Read]:
    """All ways to read the volumes in some folders, each a function of the number."""
    whole = len(shape) == 4
    name = FULL if whole else MASKED
    files, run, plain = folders[FILES], folders[OURS], folders["zarr"] / "array"
    ours, array = RunStore(run).array(name), zarr.open_array(plain, mode="r")

    def anew() -> Any:
        return zarr.open_array(run / GROUP / name, mode="r")

    found: dict[str, Read] = {
        FILES: lambda number: np.fromfile(files / f"{number}.raw", np.float32).reshape(shape[1:]),
        OURS: lambda number: read_rows(ours, slice(number, number + 1))[0],
        f"{OURS}, opened anew": lambda number: read_rows(anew(), slice(number, number + 1))[0],
        "zarr": lambda number: np.asarray(array[number]),
        "zarr, opened anew": lambda number: np.asarray(zarr.open_array(plain, mode="r")[number]),
    }
    if whole:
        maps = folders["mrcfile.write"]
        found[OPEN] = partial(_data, mrcfile.open, np.asarray, maps)
        found["mrcfile.open, copied"] = lambda number: np.array(
            _data(mrcfile.open, np.asarray, maps, number)
        )
        found["mrcfile.mmap, copied"] = partial(_data, mrcfile.mmap, np.array, maps)
    return found


def _data(opened: Any, take: Callable[[Any], Any], maps: Path, number: int) -> np.ndarray:
    """What is taken of the data of an MRC file while it is open."""
    with opened(maps / f"{number}.mrc") as mrc:
        return take(mrc.data)


# -- measuring


def measured(case: Case, n_values: int | None, place: Path) -> list[Row]:
    """All rows of a case, its volumes whole or as flat rows of some values each.

    It is an error where what is read is not what was written.
    """
    row_shape = (case.box,) * 3 if n_values is None else (n_values,)
    n, shape = case.n_volumes, (case.n_volumes, *row_shape)
    volumes = np.random.default_rng(0).standard_normal((4, *row_shape), np.float32)
    writers = WRITERS if n_values is None else FLAT
    folders = {name: place / str(number) for number, name in enumerate(writers)}

    def written(name: str, number: int) -> tuple[float, float]:
        """Seconds a volume, and with what goes to the disk; the files of the last time stay."""
        shutil.rmtree(folders[name], ignore_errors=True)
        folders[name].mkdir(parents=True)
        write = writers[name](folders[name], shape)

        def work() -> None:
            for row in range(n):
                write(row, volumes[row % len(volumes)])

        os.sync()  # what others left to write is not counted
        seconds = seconds_of(work)
        return seconds / n, (seconds + seconds_of(os.sync)) / n

    took = in_rounds(written, writers, case.n_rounds)
    reads = readers(folders, shape)
    for name, read in reads.items():
        for number, volume in enumerate(volumes):
            if not np.array_equal(read(number), volume):
                raise RuntimeError(f"{name}: volume {number} is not what was written.")
    chosen = np.random.default_rng(1).integers(n, size=case.n_reads).tolist()

    def one_read(name: str, number: int) -> float:
        return seconds_of(partial(reads[name], chosen[number]))

    def all_read(name: str, number: int) -> float:
        return seconds_of(lambda: harness.exhaust(map(reads[name], range(n)))) / n

    times = {
        WRITE: {name: [seconds for seconds, _ in took[name]] for name in took},
        SYNC: {name: [seconds for _, seconds in took[name]] for name in took},
        ONE: in_rounds(one_read, reads, case.n_reads),
        ALL: in_rounds(all_read, reads, case.n_rounds),
    }
    about = {"box": case.box, "stored": "whole" if n_values is None else "masked", "volumes": n}
    return [
        {"what": what, **about, **row}
        for what, found in times.items()
        for row in summary(found, volumes[0].nbytes)
    ]


def in_rounds(way: Callable[[str, int], Any], names: Iterable[str], n: int) -> dict[str, list[Any]]:
    """What ways return for numbers below n, in turns, whose order changes: it has its effect."""
    order = list(names)
    found: dict[str, list[Any]] = {name: [] for name in order}
    rng = random.Random(0)
    for number in range(n):
        rng.shuffle(order)
        for name in order:
            found[name].append(way(name, number))
    return found


def summary(times: Mapping[str, list[float]], n_bytes: int) -> list[Row]:
    """A row for each way: medians, also of ratios of the same round.

    ``times`` has the seconds a volume of each round, of so many bytes.
    """
    seconds = {name: np.array(values) for name, values in times.items()}
    middle = {name: float(np.median(values)) for name, values in seconds.items()}
    maps = [name for name in seconds if name in MRC]
    fastest = min(maps, key=lambda name: middle[name], default=None)
    rows = []
    for name, values in seconds.items():
        row: Row = {"way": name, "ms a volume": 1e3 * middle[name]}
        row |= {
            "MiB/s": n_bytes / MIB / middle[name],
            RATE: float(np.median(seconds[FILES] / values)),
        }
        for key, other in ((TO_MRC, fastest), (NOT_COPIED, OPEN if OPEN in seconds else None)):
            row[key] = float(np.median(values / seconds[other])) if other else None
        rows.append(row)
    return rows


def targets(rows: list[Row]) -> list[Row]:
    """What is wanted of the store, and whether it was found."""
    found = []
    for row in (row for row in rows if row["way"] == OURS):
        for what, key, limit in WANTED:
            if row["what"] == what and row[key] is not None:
                met = row[key] >= limit if what == WRITE else row[key] <= limit
                wanted = f"{'>=' if what == WRITE else '<='} {limit}"
                about = {"target": f"{what}: {key}", "box": row["box"], "stored": row["stored"]}
                found.append(about | {"wanted": wanted, "found": row[key], "met": met})
    return found


def run(size: str, place: Path | None = None) -> Row:
    """Rows of every case and what is wanted, in a folder or the system's for temporary files."""
    rows = []
    for case in SIZES[size]:
        for n_values in (None, case.box**3 // 4):
            with tempfile.TemporaryDirectory(dir=place) as scratch:
                rows += measured(case, n_values, Path(scratch))
    return {"rows": rows, "targets": targets(rows)}


if __name__ == "__main__":
    harness.main("store")
