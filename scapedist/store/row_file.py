"""A file that only grows, of rows of numbers by key, for what a stopped command had computed."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from scapedist.files.aside import disk_errors

BLOCK_BYTES = 2**22
"""Number of bytes of rows that are checked at a time."""


class RowFile:
    """A file that only grows, of rows of numbers by key, for what a stopped command had computed.

    Each row carries its CRC-32; whatever a crash left after the last whole row is cut off. A file
    of another fingerprint is begun anew. In memory are 4 bytes per key, up to the largest.

    Parameters
    ----------
    path
        Path of the file.
    fingerprint
        Fingerprint of all that the rows depend on.
    columns
        Number of float32 values per row.
    """

    def __init__(self, path: Path, fingerprint: str, columns: int) -> None:
        self.path = path
        self._dtype = np.dtype([("key", "<i8"), ("values", "<f4", (columns,)), ("crc", "<u4")])
        self._header = f"{fingerprint} {columns}\n".encode()
        self._number = np.empty(0, np.int32)  # of each key's row, -1 for none
        self._n_rows = 0
        with disk_errors(path.parent):
            if not (path.exists() and self._find_rows()):
                path.write_bytes(self._header)
                return
            with path.open("r+b") as stream:
                stream.truncate(len(self._header) + self._n_rows * self._dtype.itemsize)

    def _find_rows(self) -> bool:
        """Note the keys of all rows before the first that is damaged; False for another's file."""
        size = self._dtype.itemsize
        most = max(1, BLOCK_BYTES // size)
        with self.path.open("rb") as stream:
            if stream.read(len(self._header)) != self._header:
                return False
            while data := stream.read(most * size):
                rows = np.frombuffer(data, self._dtype, len(data) // size)
                damaged = np.flatnonzero(self._checksums(data, len(rows)) != rows["crc"])
                n = int(damaged[0]) if len(damaged) else len(rows)
                self._note(rows["key"][:n])
                if n < most:
                    break
        return True

    def _checksums(self, data: bytes, n: int) -> np.ndarray:
        """CRC-32 (n,) uint32 of the first n rows of some bytes."""
        size, view = self._dtype.itemsize, memoryview(data)
        ends = range(size - 4, n * size, size)
        return np.array([zlib.crc32(view[end - size + 4 : end]) for end in ends], np.uint32)

    def _note(self, keys: np.ndarray) -> None:
        """Note the keys (n,) of rows that follow those noted before."""
        beyond = int(keys.max(initial=-1)) + 1 - len(self._number)
        if beyond > 0:
            more = np.full(max(beyond, len(self._number) // 2), -1, np.int32)
            self._number = np.concatenate([self._number, more])
        self._number[keys] = np.arange(self._n_rows, self._n_rows + len(keys))
        self._n_rows += len(keys)

    def _find(self, keys: np.ndarray) -> np.ndarray:
        """Numbers (n,) int32 of the rows of keys (n,), -1 for those that are not there."""
        number = np.full(len(keys), -1, np.int32)
        known = keys < len(self._number)
        number[known] = self._number[keys[known]]
        return number

    def missing(self, keys: np.ndarray) -> np.ndarray:
        """The keys among some (n,) that the file does not have."""
        return keys[self._find(keys) < 0].astype(np.int64)

    def append(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Add rows (n, columns) under keys (n,), whole numbers that are not negative."""
        rows = np.zeros(len(keys), self._dtype)
        rows["key"], rows["values"] = keys, values
        rows["crc"] = self._checksums(rows.tobytes(), len(rows))
        with disk_errors(self.path.parent), self.path.open("ab") as stream:
            stream.write(rows.tobytes())
        self._note(keys)

    def read(self, keys: np.ndarray) -> np.ndarray:
        """Rows (n, columns) float32 of keys that are there."""
        if not len(keys):
            return np.empty((0, *self._dtype["values"].shape), np.float32)
        number = self._find(keys)
        if number.min() < 0:
            raise KeyError(int(keys[number.argmin()]))
        held = np.memmap(self.path, self._dtype, "r", len(self._header), (self._n_rows,))
        return held["values"][number]
