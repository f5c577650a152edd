"""Opening the source of a run's volumes: its model, or maps that were made already."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scapedist.analysis.sketch import Sketch
from scapedist.errors import InputError
from scapedist.model.decoder import GPU_ONLY, check_dtype
from scapedist.settings import GenerateSettings, SketchSettings
from scapedist.sources.decoded import Decoded, read_weights, volume_box_size
from scapedist.sources.maps import Maps, open_ensemble
from scapedist.sources.source import Source
from scapedist.store import RunStore
from scapedist.workers import Workers

if TYPE_CHECKING:
    from scapedist.model.workdir import Model


def given_sketch(settings: SketchSettings, n_particles: int) -> Sketch | None:
    """The sketch that comes with volumes made already; None where one is to be chosen."""
    if settings.maps is None:
        return None
    return open_ensemble(Path(settings.maps), n_particles).sketch


def maps_of(store: RunStore) -> str | None:
    """The directory of maps that a run's volumes are taken from, where it has one."""
    settings = store.last_settings("sketch") or {"settings": {}}
    maps: str | None = settings["settings"].get("maps")
    return maps


def source_of_sketch(
    store: RunStore, model: Model, settings: GenerateSettings, workers: Workers
) -> Source:
    """The source of a run's sketch volumes, followed by the volumes of its quality check.

    Raises
    ------
    InputError, ResourceError
        Where the precision does not go with the device, or a worker does not see a file.
    """
    check_dtype(settings.dtype, workers.device)
    maps = maps_of(store)
    workers.check_files([store.directory, *([maps] if maps else model.files.values())])
    if workers.device != "cpu":
        workers.call(_check_device, settings.dtype, workers.device)
    if not maps:
        read_weights(model, workers)
    names = ("sketch/particle", "sketch/quality/particle")
    particles = np.concatenate([store.read(name) for name in names])
    return open_source(store, model, settings, store.read("latents")[particles], workers.device)


def _check_device(dtype: str, device: str) -> None:
    from scapedist.model.precision import check_device  # where torch is

    check_device(dtype, device)


def open_source(
    store: RunStore,
    model: Model,
    settings: GenerateSettings,
    latents: np.ndarray,
    device: str = "cpu",
) -> Source:
    """The source of a run's volumes.

    Parameters
    ----------
    store, model
        Store and model of the run.
    settings
        Settings of the run's volumes.
    latents : (n, zdim) float32
        Latents that the model decodes; unused where the volumes are maps.
    device
        Device that decodes the volumes.
    """
    maps = maps_of(store)
    if maps is None:
        return decoded_by(model, settings, latents, device)
    ensemble = open_ensemble(Path(maps), store.source["n_particles"])
    if settings.box_size not in (None, ensemble.box_size):
        raise InputError(
            f"Maps keep their box, {ensemble.box_size}. --box-size is {settings.box_size}."
        )
    return Maps(
        box_size=ensemble.box_size,
        pixel_size_angstroms=settings.pixel_size or ensemble.pixel_size_angstroms,
        flip=settings.flip,
        invert=settings.invert,
        paths=ensemble.paths,
    )


def decoded_by(
    model: Model, settings: GenerateSettings, latents: np.ndarray, device: str = "cpu"
) -> Decoded:
    """The source of a model's volumes of latents (n, zdim), by the settings of a run's volumes.

    What GPUs alone have is float32 on the CPU: particles of a run can be decoded on either.
    """
    box_size = volume_box_size(settings, model.box_size)
    pixel_size = settings.pixel_size or model.pixel_size_angstroms
    return Decoded(
        box_size=box_size,
        pixel_size_angstroms=pixel_size and pixel_size * model.box_size / box_size,
        flip=settings.flip,
        invert=settings.invert,
        device=device,
        decoder=model.decoder,
        latents=latents,
        dtype="float32" if device == "cpu" and settings.dtype in GPU_ONLY else settings.dtype,
        architecture=model.architecture,
    )


def source_of_particles(
    store: RunStore, model: Model, settings: GenerateSettings, device: str = "cpu"
) -> Decoded:
    """The source that decodes any particle as a run's volumes were made, also where these are maps.

    Its own list of volumes is empty: it decodes the latents that it is given.
    """
    same_box = dataclasses.replace(settings, box_size=store.source["box_size"])
    return decoded_by(model, same_box, model.latents[:0], device)
