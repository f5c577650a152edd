"""The stage that makes the sketch's volumes on many workers, batch by batch; it resumes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from scapedist.analysis.mask import Mask, threshold_of
from scapedist.errors import RunError
from scapedist.plan import DecodePlan, batches
from scapedist.settings import GenerateSettings, MaskSettings
from scapedist.sources.decoded import Decoded, plan_generation
from scapedist.sources.source import Source
from scapedist.stages.chosen_precision import recorded
from scapedist.stages.mask import make_mask
from scapedist.stages.masked_store import audit, pilot_rows
from scapedist.stages.stored_rows import FULL, MASKED, PILOT, QUALITY
from scapedist.stages.write_volumes import Writing, precision_error, write_batch
from scapedist.store import Begin, Progress, RunStore
from scapedist.workers import Workers


def make_volumes(
    store: RunStore,
    settings: GenerateSettings,
    mask: MaskSettings,
    source: Source,
    workers: Workers,
    fingerprint: str,
    begin: Begin,
    progress: Progress,
) -> dict[str, Any]:
    """Make the sketch's volumes batch by batch into ``volumes/``, and resume what is there.

    Parameters
    ----------
    store
        Store of a run with a sketch.
    settings
        Settings of the volumes.
    mask
        Settings of a masked store's mask.
    source
        Source of the sketch's volumes and then of its quality check's.
    workers
        Workers that make the volumes.
    fingerprint
        Fingerprint of all that the volumes depend on.
    begin
        Called before the first write.
    progress
        Called with how many volumes are done.

    Returns
    -------
    dict
        Record of the volumes.
    """
    n = store.array("sketch/particle").shape[0]
    n_quality = source.n_volumes - n
    masked = settings.store == "masked"
    plan = plan_generation(
        source.decoder if isinstance(source, Decoded) else None,
        source.box_size,
        settings,
        min(n, settings.pilot_volumes) if masked else n + n_quality,
        workers.budget,
        source.device,
    )
    entries = store.journal_read(fingerprint)
    if entries is None:
        store.check_room(plan.disk_bytes)
    begin()
    store.write_source(store.source | source.record)
    if entries is None:
        store.delete("volumes")
        _create_arrays(store, settings, source, n, n_quality)
        store.journal_write(fingerprint, [])
        entries = []
    started, n_before = time.perf_counter(), sum(e["stop"] - e["start"] for e in entries)
    rows = {FULL: np.arange(n), QUALITY: np.arange(n, n + n_quality)}
    writing = Writing(source, store.reader, rows)
    if masked:
        store.remember("mask", dataclasses.asdict(mask))
        of_sketch = store.read("latents")[store.read("sketch/particle")]
        pilot = dataclasses.replace(
            writing, rows={PILOT: pilot_rows(of_sketch, settings.pilot_volumes)}
        )
        entries += _make(store, pilot, entries, plan, workers, progress)
        writing = _masked(store, settings, mask, writing, entries, progress)
    entries += _make(store, writing, entries, plan, workers, progress)
    main = next(iter(writing.rows))
    store.write("volumes/percentile", _gather(entries, main, "percentile", n), ("volume",))
    seconds = time.perf_counter() - started
    n_made = sum(e["stop"] - e["start"] for e in entries) - n_before
    results: dict[str, Any] = {
        "volumes": n,
        "workers": workers.n_workers,
        "device": workers.device,
        "batch_size": plan.batch_size,
        "volumes_per_second": round(n_made / seconds, 2),
        "box_size": source.box_size,
    } | recorded(store, settings)
    if masked:
        outside, escaped = (_gather(entries, MASKED, key, n) for key in ("outside", "escaped"))
        results |= audit(store, writing, outside.astype(np.int64), escaped, workers)
        results["mask"] = dataclasses.asdict(mask)
    if settings.dtype != "float32" or settings.store_dtype != "float32":
        exact = dataclasses.replace(writing, source=source.exact())
        results["relative_error_against_float32"] = workers.call(precision_error, exact, main)
    return results


def _masked(
    store: RunStore,
    settings: GenerateSettings,
    mask: MaskSettings,
    writing: Writing,
    entries: list[dict[str, Any]],
    progress: Progress,
) -> Writing:
    """Make the mask of the pilot's volumes and create a masked store's arrays; what fills them."""
    n, n_quality = len(writing.rows[FULL]), len(writing.rows[QUALITY])
    percentiles = _gather(entries, PILOT, "percentile", store.array(PILOT).shape[0])
    weights = make_mask(store, store.array(PILOT), percentiles, mask, lambda: None, progress)
    threshold = mask.threshold if mask.threshold is not None else threshold_of(percentiles)
    inside = Mask.of(weights)
    if MASKED not in store or store.array(MASKED).shape[1] != inside.n_voxels:
        n_bytes = np.dtype(settings.store_dtype).itemsize * inside.n_voxels
        store.check_room((n + n_quality) * n_bytes)
        for name, count, dimension in ((MASKED, n, "volume"), (QUALITY, n_quality, "sample")):
            shape = (count, inside.n_voxels)
            store.create(
                name, shape, settings.store_dtype, (dimension, "voxel"), (1, inside.n_voxels)
            )
    rows = {MASKED: writing.rows[FULL], QUALITY: writing.rows[QUALITY]}
    return dataclasses.replace(writing, rows=rows, mask=inside, threshold=threshold)


def stored_entries(
    store: RunStore,
    name: str,
    damaged: Sequence[int] = (),
    bad_quality: Sequence[int] = (),
    counted: bool = True,
) -> list[dict[str, Any]]:
    """Journal entries of complete volumes, without damaged rows.

    Without ``counted`` the counts of each volume are lost, and with them the sketch's volumes.
    """
    entries: list[dict[str, Any]] = []
    if counted:
        percentiles = store.read("volumes/percentile")
        audited = "volumes/escaped" in store
        outside = store.read("volumes/outside") if audited else None
        escaped = store.read("volumes/escaped") if audited else np.zeros(0)
        for row in np.setdiff1d(np.arange(len(percentiles)), damaged).tolist():
            entry = {"array": name, "start": row, "stop": row + 1, "percentile": [percentiles[row]]}
            entry["outside"] = [] if outside is None else [int(outside[row])]
            entry["escaped"] = [] if outside is None else [float(escaped[row])]
            entries.append(entry)
    n_quality = store.array(QUALITY).shape[0] if QUALITY in store else 0
    for row in np.setdiff1d(np.arange(n_quality), bad_quality).tolist():
        entries.append({"array": QUALITY, "start": row, "stop": row + 1})
    return entries


def _create_arrays(
    store: RunStore, settings: GenerateSettings, source: Source, n: int, n_quality: int
) -> None:
    """Create empty arrays for the volumes, and the image's OME-Zarr metadata."""
    volume = (source.box_size,) * 3
    counts = {FULL: n, QUALITY: n_quality}
    if settings.store == "masked":
        counts = {PILOT: min(n, settings.pilot_volumes)}
    for name, count in counts.items():
        first = {FULL: "t", PILOT: "pilot", QUALITY: "sample"}[name]
        store.create(
            name, (count, *volume), settings.store_dtype, (first, "z", "y", "x"), (1, *volume)
        )
    pixel_size = source.pixel_size_angstroms
    axes: list[dict[str, str]] = [{"name": "t", "type": "time"}]
    for axis in "zyx":
        known = {"unit": "angstrom"} if pixel_size else {}
        axes.append({"name": axis, "type": "space", **known})
    scale = [1.0, *[float(pixel_size or 1.0)] * 3]
    datasets: list[Any] = [
        {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
    ]
    if settings.store == "volumes":
        image: dict[str, Any] = {"name": "sketch volumes", "axes": axes, "datasets": datasets}
        store.group["volumes"].attrs["ome"] = {"version": "0.5", "multiscales": [image]}


def _make(
    store: RunStore,
    writing: Writing,
    entries: list[dict[str, Any]],
    plan: DecodePlan,
    workers: Workers,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Make all volumes that no entry covers; return and journal the new entries."""
    tasks = []
    for name, rows in writing.rows.items():
        done = np.zeros(len(rows), bool)
        for entry in entries:
            if entry["array"] == name:
                done[entry["start"] : entry["stop"]] = True
        for start, stop in _gaps(done):
            tasks += [
                (name, start + a, start + b) for a, b in batches(stop - start, plan.batch_size)
            ]
    n_all = sum(map(len, writing.rows.values()))
    n_done = n_all - sum(stop - start for _, start, stop in tasks)
    made: list[dict[str, Any]] = []
    if not tasks:
        return made
    what = "decoding pilot volumes" if PILOT in writing.rows else "decoding volumes"
    progress(what, n_done, n_all)
    for _, entry in workers.run(write_batch, writing, tasks):
        store.journal_append(entry)
        made.append(entry)
        n_done += entry["stop"] - entry["start"]
        progress(what, n_done, n_all)
    return made


def _gaps(done: np.ndarray) -> list[tuple[int, int]]:
    """Spans (start, stop) of consecutive False."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], done, [True]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _gather(entries: list[dict[str, Any]], name: str, key: str, n: int) -> np.ndarray:
    """Values (n,) float64 of a key for each volume, from the batches' journal entries."""
    values = np.full(n, np.nan)
    for entry in entries:
        if entry["array"] == name:
            values[entry["start"] : entry["stop"]] = entry[key]
    if np.isnan(values).any():
        raise RunError(
            f"{int(np.isnan(values).sum())} volumes of {name} are missing after all batches were "
            "done. Give the same command again; if it stays so, choose another --output."
        )
    return values
