"""A run's Zarr group: arrays by name, volumes chunk by chunk, and what is complete.

Every array carries checksums and dimension names. Volumes are written one chunk at a time by
whoever decodes them; a journal beside them, written only after the data, says which batches are
complete, so that nothing half-written is ever trusted. A stage's record is removed before its
arrays change and written after them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from scapedist.errors import RunError
from scapedist.files.aside import disk_errors, write_text
from scapedist.plan import check_disk
from scapedist.settings import BESIDE, STAGES
from scapedist.store.arrays import Reader, read_rows

Begin = Callable[[], None]
"""Function called before a stage's first write; until then a bad option costs nothing."""
Progress = Callable[[str, int, int], None]
"""Function called with what is being made, how many are done, and how many there are."""
GROUP = "landscape.zarr"
FORMAT = 1


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
        """A new Zarr group, made aside and renamed, so that one of this name can be opened."""
        with disk_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            zarr.create_group(aside, attributes={"scapedist": {"format": FORMAT}})
            aside.rename(path)
        return zarr.open_group(path, mode="r+")

    def check_room(self, n_bytes: int) -> None:
        """Refuse a number of bytes that does not fit on the run's disk."""
        check_disk(n_bytes, shutil.disk_usage(self.directory).free, str(self.directory))

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
        before = list(STAGES)[: list(STAGES).index(name)]
        kept = {done: record for done, record in self.stages.items() if done in before}
        beside = {
            done: record
            for done, record in self.beside.items()
            if BESIDE[done.split("/")[0]].after in kept
        }
        self._record(stages=kept, beside=beside, settings=self._tried(name, settings))

    def remember(self, name: str, settings: dict[str, Any]) -> None:
        """Keep settings for a stage that is not begun yet."""
        self._record(settings=self._tried(name, settings))

    def _tried(self, name: str, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings last tried of all stages, with those of one stage replaced."""
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
        """The valid records beside the stages by name, such as ``embedding/exact``."""
        return dict(self._attributes().get("beside", {}))

    def withdraw(self, name: str) -> None:
        """Remove a record beside the stages, if it is there."""
        beside = self.beside
        if beside.pop(name, None) is not None:
            self._record(beside=beside)

    def finish_beside(self, name: str, record: dict[str, Any]) -> None:
        """Record a result beside the stages as complete."""
        self._record(beside=self.beside | {name: record})

    # -- arrays

    def write(self, name: str, data: np.ndarray, dimensions: tuple[str, ...]) -> None:
        """Write a whole array, replacing one of that name; maps get one chunk each."""
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
        """A new array; floats that are not written read as NaN, never as zero."""
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
                # one file per volume in one folder: "/" would make a folder per dimension of each
                chunk_key_encoding={"name": "default", "separator": "."},
                overwrite=True,
                config={"write_empty_chunks": True},
            )

    def __contains__(self, name: str) -> bool:
        return name in self.group

    @property
    def reader(self) -> Reader:
        """A handle to the arrays, which other processes can be sent."""
        return Reader(str(self.directory.resolve() / GROUP))

    def array(self, name: str) -> zarr.Array:
        """An array of the run, to be read in parts.

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

    def array_names(self) -> list[str]:
        """The names of all arrays."""
        nodes = self.group.members(max_depth=None)
        return [name for name, node in nodes if isinstance(node, zarr.Array)]

    def read(self, name: str) -> np.ndarray:
        """A whole array in memory."""
        return read_rows(self.array(name))

    def delete(self, name: str) -> None:
        """Remove an array or group if it is there."""
        if name in self.group:
            del self.group[name]

    # -- the journal of the volumes

    @property
    def journal(self) -> Path:
        """Path of the file with one line per complete batch of volumes."""
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
        """Fingerprint of the settings that the journal's volumes were made with."""
        lines = self.journal_lines()
        return lines[0].get("fingerprint") if lines else None

    def journal_write(self, fingerprint: str, entries: list[dict[str, Any]]) -> None:
        """Write the journal anew."""
        lines = [{"fingerprint": fingerprint}, *entries]
        write_text(self.journal, "".join(json.dumps(line) + "\n" for line in lines))

    def journal_append(self, entry: dict[str, Any]) -> None:
        """Record a batch whose chunks are written, on a line of its own even after a cut one."""
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
