"""Inspecting a run: what is there, what is missing, and whether its arrays are sound."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scapedist.analysis.mask import Mask
from scapedist.errors import RunError
from scapedist.landscape.record import Recorded
from scapedist.model.reference import reference_decoder
from scapedist.plan import spread_evenly
from scapedist.settings import STAGES, GenerateSettings, from_record, writer_of
from scapedist.sources.decoded import Decoded
from scapedist.sources.open import open_source
from scapedist.stages.stored_rows import FULL, MASKED, QUALITY
from scapedist.stages.volumes import stored_entries
from scapedist.store import RunStore, read_rows
from scapedist.workers import one_thread

TOLERANCES = {"float32": 1e-5, "float16": 1e-3}
"""Largest relative L2 error of sound volumes, by the type they are stored in."""
ERROR_MARGIN = 3.0
"""How many times the error that was measured on a few volumes any of them may have."""


@dataclass(frozen=True)
class Verdict:
    """Findings of a verification.

    Attributes
    ----------
    n_volumes
        Number of volumes checked for completeness and checksums.
    damaged
        Rows of the sketch's volumes that are missing, damaged or not finite.
    damaged_arrays
        Other arrays that cannot be read.
    error_again, error_cryodrgn
        Largest relative L2 error of a sample of stored volumes against decoding them again, and
        against cryoDRGN's ``eval_volume`` (None where it cannot evaluate them).
    tolerance
        Largest error allowed; cryoDRGN's counts where volumes were decoded in float32.
    way_out
        Advice on what to do.
    """

    n_volumes: int
    damaged: list[int]
    damaged_arrays: list[str]
    error_again: float | None
    error_cryodrgn: float | None
    tolerance: float
    way_out: str

    @property
    def agrees(self) -> bool:
        """Whether decoding the sample again gives the stored volumes."""
        errors = (self.error_again, self.error_cryodrgn)
        return all(error is None or error <= self.tolerance for error in errors)

    @property
    def sound(self) -> bool:
        """Whether the run has no fault."""
        return not self.damaged and not self.damaged_arrays and self.agrees


def describe(directory: Path) -> dict[str, Any]:
    """A description of what a run holds and what is missing.

    Returns
    -------
    dict
        ``source``, ``stages`` (name -> record, None where it is not complete), ``beside``
        (embeddings and what follows from them, name -> record),
        ``volumes_done``, ``volumes``, ``next`` (the command that goes on), ``bytes``.
    """
    store = RunStore(Path(directory))
    stages = {name: store.stages.get(name) for name in STAGES}
    missing = next((name for name, record in stages.items() if record is None), None)
    n = store.array("sketch/particle").shape[0] if stages["sketch"] else 0
    done = n if stages["generate"] else 0
    if not stages["generate"]:
        entries = store.journal_lines()[1:]
        done = sum(e["stop"] - e["start"] for e in entries if e["array"] in (FULL, MASKED))
    after = None
    if missing == "sketch":
        source = store.source
        after = f"scapedist sketch {source['workdir']} {source['epoch']} --output {directory}"
    elif missing is not None:
        after = f"scapedist {missing} {directory}"
    files = (path for path in Path(directory).rglob("*") if path.is_file())
    return {
        "source": store.source,
        "stages": stages,
        "beside": store.beside,
        "volumes_done": done,
        "volumes": n,
        "next": after,
        "bytes": sum(path.stat().st_size for path in files),
    }


def verify(run: Recorded, n_sample: int = 3) -> Verdict:
    """Check checksums and completeness of all arrays, and decode a sample of volumes again.

    Damaged volumes are taken out of the run's record, so that ``generate`` makes them again.

    Parameters
    ----------
    run
        A run whose volumes are complete.
    n_sample
        Number of volumes decoded again, by scapedist and by cryoDRGN.
    """
    store = run.store
    record = store.stages.get("generate")
    if record is None:
        raise RunError(
            f"A run is verified once its volumes are complete. Those of {run.directory} are not. "
            f"Give `scapedist generate {run.directory}` first."
        )
    name = FULL if FULL in store else MASKED
    array = store.array(name)  # opened once: its metadata take longer than a volume
    n = array.shape[0]
    damaged = []
    for row in range(n):
        if not _is_sound(array, row):
            damaged.append(row)
        run.progress("checking volumes", row + 1, n)
    others = [key for key in store.array_names() if key not in (name, QUALITY)]
    broken = [key for key in others if not _is_whole(store, key)]
    bad_quality = []
    if QUALITY in store:
        array = store.array(QUALITY)
        bad_quality = [row for row in range(array.shape[0]) if not _is_sound(array, row)]
        broken += [QUALITY] if bad_quality else []
    sound = np.setdiff1d(np.arange(n), damaged)
    again = reference = None
    if not {"latents", "sketch/particle", "mask"} & set(broken):
        sample = (
            sound[spread_evenly(len(sound), n_sample)] if len(sound) and n_sample else sound[:0]
        )
        again, reference = _decode_again(run, record, name, sample)
    way_out = "The run is sound."
    if damaged or broken:
        _withdraw(run, record, name, damaged, bad_quality, broken)
        way_out = (
            "What is damaged is taken out of the run's record: give the same `scapedist run` "
            "command again, or the stages that `scapedist info` names."
        )
    settings = from_record(GenerateSettings, record)
    verdict = Verdict(n, damaged, broken, again, reference, _tolerance(settings, record), way_out)
    if not verdict.agrees:
        way_out = (
            "The volumes are not those of this model and these settings, and no stage can tell "
            "which are. Start again in another --output, or with --overwrite."
        )
        verdict = dataclasses.replace(verdict, way_out=way_out)
    return verdict


def _is_sound(array: Any, row: int) -> bool:
    try:
        return bool(np.isfinite(read_rows(array, slice(row, row + 1))).all())
    except RunError:
        return False


def _is_whole(store: RunStore, name: str) -> bool:
    """Whether all chunks of an array are there, with checksums that fit."""
    array = store.array(name)
    try:
        store.read(name)
    except RunError:
        return False
    return array.nchunks_initialized == array.nchunks


def _decode_again(
    run: Recorded, record: dict[str, Any], name: str, rows: np.ndarray
) -> tuple[float | None, float | None]:
    """Largest relative L2 errors of stored volumes against both ways of decoding them."""
    settings = from_record(GenerateSettings, record)
    latents = run.store.read("latents")[run.store.read("sketch/particle")]
    source = open_source(run.store, run.model, settings, latents)
    if settings.dtype not in ("float32", "float64"):  # it need not be here, or round as a GPU does
        source = source.exact()
    if not isinstance(source, Decoded) or not len(rows):
        return None, None
    evaluate = None
    full = run.model.architecture["command"] != "abinit" or source.box_size == run.model.box_size
    if full and settings.dtype in ("float32", "float64"):
        evaluate = reference_decoder(run.model)
    mask = Mask.of(run.store.read("mask")) if name == MASKED else None
    again, reference = [], []
    with one_thread():
        for row in rows:
            stored = run.store.array(name)[int(row)]
            volumes = [next(source.volumes(np.array([row])))]
            if evaluate is not None:
                volumes.append(source.oriented(evaluate(latents[row], source.box_size)))
            errors = [
                _relative_error(stored, volume if mask is None else mask.rows_of(volume))
                for volume in volumes
            ]
            again.append(errors[0])
            reference += errors[1:]
    return max(again), max(reference, default=None)


def _tolerance(settings: GenerateSettings, record: dict[str, Any]) -> float:
    """Largest relative L2 error of sound volumes: by their type, or what their precision has."""
    error: float = record["results"].get("relative_error_against_float32", 0.0)
    return max(TOLERANCES[settings.store_dtype], ERROR_MARGIN * error)


def _relative_error(value: Any, reference: np.ndarray) -> float:
    value = np.asarray(value, np.float64).ravel()
    exact = np.asarray(reference, np.float64).ravel()
    return float(np.linalg.norm(value - exact) / np.linalg.norm(exact))


def _withdraw(
    run: Recorded,
    record: dict[str, Any],
    name: str,
    damaged: list[int],
    bad_quality: list[int],
    broken: list[str],
) -> None:
    """Keep only sound volumes in the journal, and withdraw the records of the stages."""
    store = run.store
    counted = not {"volumes/percentile", "volumes/outside", "volumes/escaped"} & set(broken)
    entries = stored_entries(store, name, damaged, bad_quality, counted)
    writers = {key: stage for key in broken if (stage := writer_of(key)) is not None}
    stages = {stage.name for stage in writers.values() if not stage.beside}
    if damaged:
        stages.add("generate")
    first = min(stages, key=list(STAGES).index, default=None)
    with store.lock():
        for key, stage in writers.items():
            if stage.beside:
                several = stage.name == "embedding"  # a record for each method
                store.withdraw("/".join(key.split("/")[:2]) if several else stage.name)
        if first is not None and STAGES[first].dear:
            store.journal_write(record["fingerprint"], entries)
        if first is not None:
            settings = store.last_settings(first) or {"settings": {}}
            store.begin_stage(first, settings["settings"])
