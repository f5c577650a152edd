"""Reading and writing a run's arrays row by row with checksums, in any process from a path."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any, cast

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import LocalStore

from scapedist.errors import RunError

READ_BYTES = 2**20
"""Number of bytes of a plain chunk that are read and checked at a time."""


@dataclass(frozen=True)
class Reader:
    """A handle to the arrays of a run: only a path, so that any process can be sent it.

    Attributes
    ----------
    path
        Path of the run's Zarr group.
    """

    path: str

    def array(self, name: str, mode: str = "r") -> zarr.Array:
        """An array, to be read in parts (``r``) or written to (``r+``)."""
        return zarr.open_array(f"{self.path}/{name}", mode=cast(Any, mode))

    def read(self, name: str, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Rows of an array as a numpy array, as :func:`read_rows` gives them."""
        return read_rows(self.array(name), rows)

    def attributes(self, name: str) -> dict[str, Any]:
        """The attributes of a group or an array."""
        return dict(zarr.open(f"{self.path}/{name}", mode="r").attrs)

    def __contains__(self, name: str) -> bool:
        return name in zarr.open_group(self.path, mode="r")


def read_rows(array: zarr.Array, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
    """Rows of an array as a numpy array, checksums checked.

    A volume is one chunk, and Zarr takes most of a millisecond per chunk, whatever its size; plain
    chunks of a local store are therefore read straight into the result.

    Parameters
    ----------
    array
        Array of the run.
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
    """Write one row of an array, converted to its dtype; plain chunks without Zarr, as in reading.

    Parameters
    ----------
    array
        Array of the run.
    number
        Number of the row.
    values
        Values in the shape of a row.
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
    """Write a file's parts by one call, as a second small write would cost a third more time."""
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
    """Path of the file of a plain row."""
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
