"""A file that only grows, of rows of numbers by key, for what a stopped command had computed."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from scapedist.files.aside import disk_errors


class RowFile:
    """A file that only grows, of rows of numbers by key, for what a stopped command had computed.

    Each row carries its CRC-32; whatever a crash left after the last whole row is cut off. A file
    of another fingerprint is begun anew.

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
        """The keys among some (n,) that the file does not have."""
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
