"""A run's Zarr group: arrays by name, volumes chunk by chunk, and what is complete.

Every array carries checksums and dimension names. Volumes are written one chunk at a time by
whoever decodes them; a journal beside them, written only after the data, says which batches are
complete, so that nothing half-written is ever trusted. A stage's record is removed before its
arrays change and written after them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from scapedist.errors import ResourceError, RunError

STAGES = ("sketch", "generate", "mask", "pca", "states", "report")
BUILT_ON = {
    "embedding": "pca",
    "missed": "pca",
    "population": "pca",
    "crosscheck": "states",
    "particles": "states",
}
"""Records beside the stages, by the beginning of their name, and the stage each builds on."""
GROUP = "landscape.zarr"
FORMAT = 1
READ_BYTES = 2**20
"""Of a plain chunk, read and checked at a time."""
_NO_PLACE = (
    errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY,
)  # fmt: skip


class RunStore:
    """The Zarr group of a run directory.

    Parameters
    ----------
    directory
        The run directory.
    mode
        ``r`` to read, ``r+`` to change, ``w-`` to create.
    """

    def __init__(self, directory: Path, mode: str = "r") -> None:
        self.directory = Path(directory)
        path = self.directory / GROUP
        if mode == "w-":
            self.group = self._make(path)
            return
        try:
            self.group = zarr.open_group(path, mode=cast(Any, mode))
        except (FileNotFoundError, zarr.errors.GroupNotFoundError):
            raise RunError(
                f"{self.directory} is no run: it holds no {GROUP}. Make one with "
                "`scapedist sketch` or `scapedist run`."
            ) from None
        except ValueError as error:
            raise RunError(
                f"{path} cannot be read ({error}). Restore it, or start again in another --output."
            ) from None
        if self._attributes().get("format") != FORMAT:
            raise RunError(
                f"A run has the format {FORMAT}. {path} has {self._attributes().get('format')}. "
                "Use the scapedist that wrote it, or start again in another --output."
            )

    def _make(self, path: Path) -> zarr.Group:
        """A new group, made aside and renamed: what has its name can be opened."""
        with disk_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            zarr.create_group(aside, attributes={"scapedist": {"format": FORMAT}})
            aside.rename(path)
        return zarr.open_group(path, mode="r+")

    # -- records

    def _record(self, **records: Any) -> None:
        """Replace some of the run's records."""
        with disk_errors(self.directory):
            self.group.attrs["scapedist"] = self._attributes() | records

    def _attributes(self) -> dict[str, Any]:
        return dict(cast(dict[str, Any], self.group.attrs.get("scapedist", {})))

    @property
    def source(self) -> dict[str, Any]:
        """What the run was made from: work directory, epoch, sizes, hashes.

        Raises
        ------
        RunError
            Where the run was stopped while it was made.
        """
        if not self.has_source:
            raise RunError(
                f"{self.directory} is the beginning of a run that was stopped while it was made. "
                f"Give `scapedist sketch WORKDIR EPOCH --output {self.directory}` again."
            )
        return dict(self._attributes()["source"])

    @property
    def has_source(self) -> bool:
        """Whether the run was made to its end."""
        return "source" in self._attributes()

    def write_source(self, source: dict[str, Any]) -> None:
        """Record what the run is made from."""
        self._record(source=source)

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """The records of the stages that are complete, in order."""
        done = self._attributes().get("stages", {})
        return {name: done[name] for name in STAGES if name in done}

    def begin_stage(self, name: str, settings: dict[str, Any]) -> None:
        """Withdraw the records of a stage and of all after it; keep the settings now tried."""
        kept = {s: r for s, r in self.stages.items() if STAGES.index(s) < STAGES.index(name)}
        beside = {b: r for b, r in self.beside.items() if _stage_under(b) in kept}
        self._record(stages=kept, beside=beside, settings=self._tried(name, settings))

    def remember(self, name: str, settings: dict[str, Any]) -> None:
        """Keep settings for a stage that is not begun yet."""
        self._record(settings=self._tried(name, settings))

    def _tried(self, name: str, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings last tried of all stages, with these of one."""
        return self._attributes().get("settings", {}) | {name: {"settings": settings}}

    def last_settings(self, name: str) -> dict[str, Any] | None:
        """The settings with which a stage was last begun, as ``{"settings": {...}}``."""
        settings: dict[str, Any] | None = self._attributes().get("settings", {}).get(name)
        return settings

    def finish_stage(self, name: str, record: dict[str, Any]) -> None:
        """Record a stage as complete."""
        self._record(stages=self.stages | {name: record})

    # -- records beside the stages: embeddings, their comparison, the particles' states

    @property
    def beside(self) -> dict[str, dict[str, Any]]:
        """The records beside the stages by name, ``embedding/exact``; those that hold."""
        return dict(self._attributes().get("beside", {}))

    def withdraw(self, name: str) -> None:
        """Remove a record beside the stages, if it is there."""
        beside = self.beside
        if beside.pop(name, None) is not None:
            self._record(beside=beside)

    def finish_beside(self, name: str, record: dict[str, Any]) -> None:
        """Record something beside the stages as complete."""
        self._record(beside=self.beside | {name: record})

    # -- arrays

    def write(self, name: str, data: np.ndarray, dimensions: tuple[str, ...]) -> None:
        """Write a whole array, in place of one that was there; maps get one chunk each."""
        data = np.ascontiguousarray(data)
        chunks = data.shape
        if data.ndim == 4:
            chunks = (1, *data.shape[1:])
        with disk_errors(self.directory):
            array = self.create(name, data.shape, data.dtype, dimensions, chunks, compress=True)
            if data.size:
                array[...] = data

    def create(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype | str,
        dimensions: tuple[str, ...],
        chunks: tuple[int, ...],
        compress: bool = False,
    ) -> zarr.Array:
        """An empty array; what is missing reads as NaN, never as zero."""
        dtype = np.dtype(dtype).newbyteorder("<")
        codecs = (ZstdCodec(level=1), Crc32cCodec()) if compress else (Crc32cCodec(),)
        with disk_errors(self.directory):
            return self.group.create_array(
                name,
                shape=shape,
                dtype=dtype,
                chunks=tuple(max(1, size) for size in chunks),
                fill_value=np.nan if dtype.kind == "f" else 0,
                compressors=codecs,
                dimension_names=dimensions,
                # one file a volume in one folder: "/" makes a folder for every dimension of each
                chunk_key_encoding={"name": "default", "separator": "."},
                overwrite=True,
                config={"write_empty_chunks": True},
            )

    def __contains__(self, name: str) -> bool:
        return name in self.group

    def array(self, name: str) -> zarr.Array:
        """An array, to be read in parts.

        Raises
        ------
        RunError
            Where the run has none of that name.
        """
        try:
            return cast(zarr.Array, self.group[name])
        except KeyError:
            raise RunError(
                f"{self.directory} has no {name}. `scapedist info {self.directory}` says what is "
                "missing and which command makes it."
            ) from None
        except ValueError as error:
            raise RunError(
                f"The metadata of {name} in {self.directory} is damaged ({error}). Restore it, or "
                "start again in another --output."
            ) from None

    def read(self, name: str) -> np.ndarray:
        """A whole array."""
        return read_rows(self.array(name))

    def delete(self, name: str) -> None:
        """Remove an array or group if it is there."""
        if name in self.group:
            del self.group[name]

    # -- the journal of the volumes

    @property
    def journal(self) -> Path:
        """The file with one line for each complete batch of volumes."""
        return self.directory / "volumes.journal"

    def journal_read(self, fingerprint: str) -> list[dict[str, Any]] | None:
        """The entries of complete batches; None where the journal is missing or of other settings.

        A line that a crash cut short is dropped, and its batch with it.
        """
        lines = self.journal_lines()
        if not lines or lines[0] != {"fingerprint": fingerprint}:
            return None
        return lines[1:]

    def journal_lines(self) -> list[dict[str, Any]]:
        """All whole lines of the journal, the fingerprint's first; none without a journal."""
        lines: list[dict[str, Any]] = []
        if self.journal.exists():
            for line in self.journal.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    lines.append(json.loads(line))
        return lines

    @property
    def journal_fingerprint(self) -> str | None:
        """Of the settings that the journal's volumes were made with."""
        lines = self.journal_lines()
        return lines[0].get("fingerprint") if lines else None

    def journal_write(self, fingerprint: str, entries: list[dict[str, Any]]) -> None:
        """Write the journal anew."""
        lines = [{"fingerprint": fingerprint}, *entries]
        write_text(self.journal, "".join(json.dumps(line) + "\n" for line in lines))

    def journal_append(self, entry: dict[str, Any]) -> None:
        """Record a batch, after its chunks were written; never on the rest of a cut line."""
        with disk_errors(self.directory), self.journal.open("ab+") as stream:
            stream.seek(max(stream.tell() - 1, 0))
            after_cut = stream.read() not in (b"", b"\n")
            stream.write(b"\n" * after_cut + json.dumps(entry).encode() + b"\n")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run against another command that would change it."""
        with disk_errors(self.directory):
            stream = (self.directory / ".lock").open("w")
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    f"One command at a time changes a run. Another one is working on "
                    f"{self.directory}. Wait for it, or stop it."
                ) from None
            for depth in ("", "*/", "*/*/"):  # records that a killed command was writing
                for path in (self.directory / GROUP).glob(f"{depth}zarr.*.partial"):
                    path.unlink()
            # what another command recorded meanwhile must not be lost
            self.group = zarr.open_group(self.directory / GROUP, mode="r+")
            yield


def embeddings(beside: Mapping[str, Any]) -> list[str]:
    """The embeddings among the records beside the stages, the most exact first."""
    names = [name.split("/")[1] for name in beside if name.startswith("embedding/")]
    order = {"exact": 0, "reduced": 1, "mlp": 3}
    return sorted((n for n in names if n != "map"), key=lambda name: (order.get(name, 2), name))


def _stage_under(name: str) -> str:
    return BUILT_ON[name.split("/")[0]]


class RowFile:
    """Rows of numbers by key in one file that only grows: what a stopped command had computed.

    Each row carries its CRC-32; whatever a crash left behind the last whole row is cut off. A file
    of another fingerprint is begun anew.

    Parameters
    ----------
    path
        The file.
    fingerprint
        Of all that the rows depend on.
    columns
        Numbers (float32) of a row.
    """

    def __init__(self, path: Path, fingerprint: str, columns: int) -> None:
        self.path = path
        self._dtype = np.dtype([("key", "<i8"), ("values", "<f4", (columns,)), ("crc", "<u4")])
        self._header = f"{fingerprint} {columns}\n".encode()
        self._number: dict[int, int] = {}
        with disk_errors(path.parent):
            held = self._sound_rows() if path.exists() else None
            if held is None:
                path.write_bytes(self._header)
                return
            with path.open("r+b") as stream:
                stream.truncate(len(self._header) + held.nbytes)
        self._number = {int(key): number for number, key in enumerate(held["key"])}

    def _sound_rows(self) -> np.ndarray | None:
        data = self.path.read_bytes()
        if not data.startswith(self._header):
            return None
        body = memoryview(data)[len(self._header) :]
        size = self._dtype.itemsize
        rows = np.frombuffer(body[: len(body) // size * size], self._dtype)
        for number, row in enumerate(rows):
            if zlib.crc32(row.tobytes()[:-4]) != row["crc"]:
                return rows[:number]
        return rows

    def missing(self, keys: np.ndarray) -> np.ndarray:
        """Those of some keys (n,) that the file does not have."""
        return np.array([key for key in keys.tolist() if key not in self._number], np.int64)

    def append(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Add rows (n, columns) under keys (n,)."""
        rows = np.zeros(len(keys), self._dtype)
        rows["key"], rows["values"] = keys, values
        size, data = self._dtype.itemsize, memoryview(rows.tobytes())
        starts = range(0, len(data), size)
        rows["crc"] = [zlib.crc32(data[start : start + size - 4]) for start in starts]
        with disk_errors(self.path.parent), self.path.open("ab") as stream:
            stream.write(rows.tobytes())
        first = len(self._number)
        self._number |= {int(key): first + number for number, key in enumerate(keys)}

    def read(self, keys: np.ndarray) -> np.ndarray:
        """Rows (n, columns) float32 of keys that are there."""
        if not len(keys):
            return np.empty((0, *self._dtype["values"].shape), np.float32)
        held = np.memmap(self.path, self._dtype, "r", len(self._header), (len(self._number),))
        return held["values"][[self._number[key] for key in keys.tolist()]]


def read_rows(array: zarr.Array, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
    """Rows of an array as numpy, checksums checked.

    A volume is one chunk, and Zarr takes most of a millisecond for each, whatever its size; plain
    chunks of a local store are therefore read straight into the result.

    Parameters
    ----------
    array
        Of the run.
    rows
        A slice of step 1, or row numbers (m,).

    Raises
    ------
    RunError
        Where a checksum does not fit or a chunk is cut short.
    """
    try:
        if _is_plain(array):
            numbers = np.arange(array.shape[0])[rows]
            result = np.empty((len(numbers), *array.shape[1:]), array.dtype)
            for number, row in zip(numbers.tolist(), result, strict=True):
                _read_plain_chunk(array, number, row)
            return result
        return np.asarray(array[rows] if isinstance(rows, slice) else array.oindex[rows])
    except (ValueError, RuntimeError, OSError) as error:
        raise RunError(
            f"{array.store_path} is damaged ({error}). `scapedist verify RUN` says which volumes "
            "are; `scapedist generate RUN` then makes them again."
        ) from None


def write_row(array: zarr.Array, number: int, values: np.ndarray) -> None:
    """Write one row of an array, converted to its dtype; plain chunks straight, as they are read.

    Parameters
    ----------
    array
        Of the run.
    number
        The row.
    values
        Of the shape of a row.
    """
    if not _is_plain(array):
        array[number] = values.astype(array.dtype)
        return
    data = np.ascontiguousarray(values, array.dtype).reshape(-1).view(np.uint8)
    path, checksum = _chunk_path(array, number), google_crc32c.value(data)
    try:
        _write_file(path, data.data, checksum.to_bytes(4, "little"))
    except FileNotFoundError:  # the first row of a run whose chunks have folders
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _write_file(path, data.data, checksum.to_bytes(4, "little"))


def _write_file(path: str, *parts: memoryview | bytes) -> None:
    """Write parts one after the other by one call: a small second one would cost a third more."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        left = sum(map(len, parts)) - os.writev(descriptor, parts)
        if left:  # more than one call takes, or a disk that is full, which the next one says
            rest = memoryview(b"".join(parts))[-left:]
            while rest:
                rest = rest[os.write(descriptor, rest) :]
    finally:
        os.close(descriptor)


def _chunk_path(array: zarr.Array, number: int) -> str:
    """The file of a plain row."""
    key = array.metadata.encode_chunk_key((number,) + (0,) * (array.ndim - 1))
    return os.path.join(cast(LocalStore, array.store).root, array.path, key)


def _is_plain(array: zarr.Array) -> bool:
    """Whether each row is one chunk, uncompressed, in a local store: float volumes."""
    return (
        isinstance(array.store, LocalStore)
        and array.ndim > 1
        and array.chunks == (1, *array.shape[1:])
        and array.dtype.kind == "f"
        and [type(codec) for codec in array.compressors] == [Crc32cCodec]
        and sys.byteorder == "little"
    )


def _read_plain_chunk(array: zarr.Array, number: int, row: np.ndarray) -> None:
    """Read a chunk, its values and then their CRC-32C, into a row; NaN where it is missing."""
    try:
        with open(_chunk_path(array, number), "rb", buffering=0) as stream:
            target, n_bytes, checksum = row.reshape(-1).view(np.uint8), 0, 0
            while read := stream.readinto(target[n_bytes : n_bytes + READ_BYTES].data):
                block = target[n_bytes : n_bytes + read]  # still in the processor's cache
                checksum = google_crc32c.extend(checksum, block)
                n_bytes += read
            stored = stream.read(5)
    except FileNotFoundError:
        row[...] = np.nan
        return
    if n_bytes != row.nbytes or len(stored) != 4:
        raise ValueError(f"chunk {number} has {n_bytes + len(stored)} bytes")
    if checksum != int.from_bytes(stored, "little"):
        raise ValueError(f"the checksum of chunk {number} does not fit")


def write_text(path: Path, text: str) -> None:
    """Write a file aside and rename it: it is there whole or not at all."""
    with disk_errors(path.parent):
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_text(text)
        aside.replace(path)


@contextlib.contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Turn a full disk or a lost permission into a sentence with a way out."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"The disk of {directory} is full. What was complete is kept. Make room, then "
                "give the same command again: it resumes."
            ) from None
        if error.errno in _NO_PLACE:
            raise ResourceError(
                f"{directory} cannot be written to ({error.strerror}). Choose another --output."
            ) from None
        raise
