"""The first two stages: the sketch, and its volumes on many workers."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from scapedist.analysis.mask import threshold_of
from scapedist.analysis.sketch import grow_sketch, quality_sample
from scapedist.errors import InputError, RunError
from scapedist.landscape.batches import VolumeSource, generate_batch, precision_error
from scapedist.landscape.ensemble import open_ensemble
from scapedist.landscape.estimate import sketch_by
from scapedist.landscape.pilot import audit, pilot_rows
from scapedist.landscape.record import Recorded
from scapedist.model.checkpoint import read_decoder
from scapedist.model.decoder import Decoder, check_dtype
from scapedist.model.lattice import check_box_size
from scapedist.output.selections import read_indices
from scapedist.plan import DecodePlan, batches, check_disk, plan_decode
from scapedist.settings import GenerateSettings, MaskSettings, SketchSettings
from scapedist.store import RunStore
from scapedist.workers import Workers

DEFAULT_BOX_SIZE = 128
"""Volumes are decoded at most at this box unless a size is asked for (as cryoDRGN does)."""
FULL, MASKED, PILOT, QUALITY = "volumes/0", "volumes/masked", "volumes/pilot", "volumes/quality"


def sketch(
    run: Recorded, settings: SketchSettings, workers: Workers, begin: Callable[[], None]
) -> dict[str, Any]:
    """Choose the particles to decode and write ``sketch/``."""
    latents = run.store.read("latents")
    excluded = None
    if settings.exclude_particles:
        excluded = read_indices(Path(settings.exclude_particles), len(latents))
    if settings.maps:
        chosen = open_ensemble(Path(settings.maps), len(latents)).sketch
        group, particle = np.zeros(0, np.int32), np.zeros(0, np.int64)
    else:
        chosen = sketch_by(workers)(
            latents, settings.size, settings.method, settings.seed, excluded
        )
        group, particle = quality_sample(
            chosen, settings.quality_groups, settings.quality_members, settings.seed
        )
    if settings.added:
        if "sketch" in run.store.stages:
            held = run.store.read("sketch/particle")[: len(chosen.particle)]
            if not np.array_equal(held, chosen.particle):
                raise RunError(
                    "A sketch grows from the particles that it has. The file of excluded particles "
                    "changed since, and gives others. Restore it, or choose another --output."
                )
        chosen = grow_sketch(chosen, latents, np.array(settings.added, np.int64))
    begin()
    store = run.store
    store.write("sketch/particle", chosen.particle, ("volume",))
    store.write("sketch/assignment", chosen.assignment, ("particle",))
    store.write("sketch/occupancy", chosen.occupancy, ("volume",))
    store.write("sketch/quality/group", group, ("sample",))
    store.write("sketch/quality/particle", particle, ("sample",))
    return {
        "volumes": len(chosen.particle),
        "excluded_particles": 0 if excluded is None else len(excluded),
    }


def generate(
    run: Recorded,
    settings: GenerateSettings,
    mask: MaskSettings,
    workers: Workers,
    fingerprint: str,
    begin: Callable[[], None],
) -> dict[str, Any]:
    """Decode the sketch's volumes batch by batch into ``volumes/``, and resume what is there."""
    from scapedist.landscape import analyse

    store = run.store
    latents = store.read("latents")
    check_dtype(settings.dtype, workers.device)
    maps = made_of_maps(run)
    workers.check_files([store.directory, *([maps] if maps else run.model.files.values())])
    if not maps:
        read_weights(run, workers)
    rows = store.read("sketch/particle")
    quality_rows = store.read("sketch/quality/particle")
    chosen = {FULL: latents[rows], QUALITY: latents[quality_rows]}
    source = make_source(run, settings, chosen, workers.device)
    n_whole = len(rows) + len(quality_rows)
    if settings.store == "masked":
        n_whole = min(len(rows), settings.pilot_volumes)
    plan = plan_generation(
        source.decoder, source.box_size, settings, n_whole, workers.memory_limit, source.device
    )
    entries = store.journal_read(fingerprint)
    if entries is None:
        _check_disk(store, plan.disk_bytes)
    begin()
    store.write_source(
        store.source
        | {
            "box_size": source.box_size,
            "pixel_size_angstroms": source.pixel_size_angstroms,
            "architecture": run.model.architecture,
        }
    )
    if entries is None:
        store.delete("volumes")
        _create_arrays(store, settings, source, len(rows), len(quality_rows))
        store.journal_write(fingerprint, [])
        entries = []
    started, n_before = time.perf_counter(), sum(e["stop"] - e["start"] for e in entries)
    counts = {FULL: len(rows), QUALITY: len(quality_rows)}
    if settings.store == "masked":
        store.remember("mask", dataclasses.asdict(mask))
        pilot = pilot_rows(latents[rows], settings.pilot_volumes)
        source = dataclasses.replace(source, latents={PILOT: latents[rows[pilot]]})
        entries += _decode(run, source, {PILOT: len(pilot)}, entries, plan, workers)
        percentiles = _gather(entries, PILOT, "percentile", len(pilot))
        weights = analyse.make_mask(run, store.array(PILOT), percentiles, mask, lambda: None)
        threshold = mask.threshold if mask.threshold is not None else threshold_of(percentiles)
        n_voxels = int((weights > 0).sum())
        if MASKED not in store or store.array(MASKED).shape[1] != n_voxels:
            n_bytes = np.dtype(settings.store_dtype).itemsize * n_voxels
            _check_disk(store, (len(rows) + len(quality_rows)) * n_bytes)
            for name, n, dimension in (
                (MASKED, len(rows), "volume"),
                (QUALITY, len(quality_rows), "sample"),
            ):
                store.create(
                    name, (n, n_voxels), settings.store_dtype, (dimension, "voxel"), (1, n_voxels)
                )
        named = {MASKED: latents[rows], QUALITY: latents[quality_rows]}
        source = dataclasses.replace(source, latents=named, mask=weights, threshold=threshold)
        counts = {MASKED: len(rows), QUALITY: len(quality_rows)}
    entries += _decode(run, source, counts, entries, plan, workers)
    main = next(iter(counts))
    store.write("volumes/percentile", _gather(entries, main, "percentile", len(rows)), ("volume",))
    seconds = time.perf_counter() - started
    n_made = sum(e["stop"] - e["start"] for e in entries) - n_before
    results: dict[str, Any] = {
        "volumes": len(rows),
        "workers": workers.n_workers,
        "device": workers.device,
        "batch_size": plan.batch_size,
        "volumes_per_second": round(n_made / seconds, 2),
        "box_size": source.box_size,
    }
    if settings.store == "masked":
        counted = (_gather(entries, MASKED, key, len(rows)) for key in ("outside", "escaped"))
        results |= audit(run, source, next(counted).astype(np.int64), next(counted), workers)
        results["mask"] = dataclasses.asdict(mask)
    if settings.dtype != "float32" or settings.store_dtype != "float32":
        exact = dataclasses.replace(source, dtype="float32", token=uuid4().hex)
        results["relative_error_against_float32"] = workers.call(precision_error, exact, main)
    return results


def stored_entries(
    store: RunStore,
    name: str,
    damaged: Sequence[int] = (),
    bad_quality: Sequence[int] = (),
    counted: bool = True,
) -> list[dict[str, Any]]:
    """Journal entries of complete volumes, but for damaged rows.

    Without ``counted`` what was counted of each volume is lost, and the sketch's volumes with it.
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


def read_weights(run: Recorded, workers: Workers) -> None:
    """Read the model's decoder where torch is loaded already, unless it is read."""
    if run.model._decoder is None:
        files = run.model.files
        run.model.decoder = workers.call(read_decoder, run.model.config, files["weights"])


def _check_disk(store: RunStore, needed_bytes: int) -> None:
    check_disk(needed_bytes, shutil.disk_usage(store.directory).free, str(store.directory))


def made_of_maps(run: Recorded) -> str | None:
    """The directory of maps that a run's volumes are taken from, where it has one."""
    settings = run.store.last_settings("sketch") or {"settings": {}}
    maps: str | None = settings["settings"].get("maps")
    return maps


def make_source(
    run: Recorded,
    settings: GenerateSettings,
    latents: dict[str, np.ndarray],
    device: str = "cpu",
) -> VolumeSource:
    """What the workers need, from the run's model or from maps on disk.

    Maps are read where volumes are decoded, but never by a GPU.
    """
    maps = made_of_maps(run)
    pixel_size = settings.pixel_size or run.model.pixel_size_angstroms
    decoder: Decoder | None = None
    paths: tuple[str, ...] = ()
    if maps:
        ensemble = open_ensemble(Path(maps), run.store.source["n_particles"])
        if settings.box_size not in (None, ensemble.box_size):
            raise InputError(
                f"Maps keep their box, {ensemble.box_size}. --box-size is {settings.box_size}."
            )
        box_size, paths = ensemble.box_size, ensemble.paths
        pixel_size = settings.pixel_size or ensemble.pixel_size_angstroms
    else:
        decoder = run.model.decoder
        box_size = volume_box_size(settings, run.model.box_size)
        if pixel_size is not None:
            pixel_size = pixel_size * run.model.box_size / box_size
    return VolumeSource(
        decoder=decoder,
        latents=latents,
        map_paths=paths,
        box_size=box_size,
        pixel_size_angstroms=pixel_size,
        dtype=settings.dtype,
        flip=settings.flip,
        invert=settings.invert,
        threshold=None,
        mask=None,
        group_path=str((run.directory / "landscape.zarr").resolve()),
        device="cpu" if maps else device,
    )


def source_of_particles(
    run: Recorded, settings: GenerateSettings, device: str = "cpu"
) -> VolumeSource:
    """What decodes any particle's volume as those of the run were, also where these are maps."""
    source = make_source(run, settings, {}, device)
    if made_of_maps(run):
        source = dataclasses.replace(source, decoder=run.model.decoder, map_paths=(), device=device)
    return source


def plan_generation(
    decoder: Decoder | None,
    box_size: int,
    settings: GenerateSettings,
    n_volumes: int,
    memory_limit: int | None,
    device: str = "cpu",
) -> DecodePlan:
    """The plan of a generation, refused where it does not fit the memory limit."""
    n_slots, n_weights, cached = 0, 0, 0
    if decoder is not None:
        lattice = decoder.lattice(box_size)
        n_slots = lattice.n_slots
        n_weights = sum(weight.size for weight in decoder.weights)
        on_cpu = device == "cpu"
        cached = decoder.cached_bytes(lattice) + decoder.encoded_bytes if on_cpu else 0
    return plan_decode(
        n_volumes=n_volumes,
        box_size=box_size,
        n_slots=n_slots,
        n_weights=n_weights,
        cached_bytes=cached,
        voxel_bytes=2 if settings.store_dtype == "float16" else 4,
        batch_size=settings.batch_size,
        memory_limit=memory_limit,
        device=device,
    )


def volume_box_size(settings: GenerateSettings, model_box_size: int) -> int:
    """The box that volumes are decoded at."""
    box_size = settings.box_size
    if box_size is None:
        box_size = min(model_box_size, DEFAULT_BOX_SIZE)
    check_box_size(box_size, model_box_size)
    return box_size


def _create_arrays(
    store: RunStore, settings: GenerateSettings, source: VolumeSource, n: int, n_quality: int
) -> None:
    """Empty arrays for the volumes, and the image's OME-Zarr metadata."""
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


def _decode(
    run: Recorded,
    source: VolumeSource,
    counts: dict[str, int],
    entries: list[dict[str, Any]],
    plan: DecodePlan,
    workers: Workers,
) -> list[dict[str, Any]]:
    """Decode all rows that no entry covers; return and journal the new entries."""
    tasks = []
    for name, n in counts.items():
        done = np.zeros(n, bool)
        for entry in entries:
            if entry["array"] == name:
                done[entry["start"] : entry["stop"]] = True
        for start, stop in _gaps(done):
            tasks += [
                (name, start + a, start + b) for a, b in batches(stop - start, plan.batch_size)
            ]
    n_all = sum(counts.values())
    n_done = n_all - sum(stop - start for _, start, stop in tasks)
    made: list[dict[str, Any]] = []
    if not tasks:
        return made
    what = "decoding pilot volumes" if PILOT in counts else "decoding volumes"
    run.progress(what, n_done, n_all)
    for _, entry in workers.run(generate_batch, source, tasks):
        run.store.journal_append(entry)
        made.append(entry)
        n_done += entry["stop"] - entry["start"]
        run.progress(what, n_done, n_all)
    return made


def _gaps(done: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of the runs of False."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], done, [True]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _gather(entries: list[dict[str, Any]], name: str, key: str, n: int) -> np.ndarray:
    """A number of each volume (n,) float64, from the batches' entries."""
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
