"""The precision of a run's volumes where it is to be measured: chosen once, then kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from scapedist.plan import spread_evenly
from scapedist.settings import GenerateSettings, auto_tolerance
from scapedist.sources.decoded import Decoded, read_weights
from scapedist.sources.open import decoded_by
from scapedist.store import Progress, RunStore
from scapedist.workers import Workers

if TYPE_CHECKING:
    from scapedist.model.workdir import Model

MEASURED_VOLUMES = 12
"""Number of the sketch's volumes, spread over it, that precisions are measured on."""


def settled(
    store: RunStore,
    model: Callable[[], Model],
    settings: GenerateSettings,
    asked: str | None,
    workers: Workers,
    progress: Progress,
) -> GenerateSettings:
    """Settings with a precision by its name in place of ``auto``, which GPUs have by default.

    What a run's volumes were begun with holds, whatever the device; else it is measured on a
    worker, and what was found is kept in the run. The model is opened for that alone.
    """
    begun = store.last_settings("generate")
    tolerance = auto_tolerance(asked or "auto")
    if tolerance is None or (asked is None and (begun or workers.device == "cpu")):
        return settings
    if begun:
        return dataclasses.replace(settings, dtype=begun["settings"]["dtype"])
    if "sketch" not in store.stages:  # which is told next
        return settings
    settings = dataclasses.replace(settings, dtype="float32")
    progress("measuring precisions", 0, 0)
    opened = model()
    read_weights(opened, workers)
    particles = store.read("sketch/particle")
    some = particles[spread_evenly(len(particles), MEASURED_VOLUMES)]
    latents = store.read("latents")[some]
    source = decoded_by(opened, settings, latents, workers.device)
    (found,) = workers.gather(_measured, source, [(latents, tolerance)])
    with store.lock():
        store.write_source(store.source | {"precision": found})
    return dataclasses.replace(settings, dtype=found["dtype"])


def _measured(source: Decoded, task: tuple[np.ndarray, float]) -> dict[str, Any]:
    latents, tolerance = task
    from scapedist.model import precision  # where torch is

    of_each = precision.measure(source.decoder, latents, source.box_size, source.device)
    return {
        "dtype": precision.fastest(of_each, tolerance),
        "device": source.device,
        "tolerance": tolerance,
        "volumes": len(latents),
        "candidates": of_each,
    }


def recorded(store: RunStore, settings: GenerateSettings) -> dict[str, Any]:
    """For the record of the volumes: how their precision was chosen, where it was measured."""
    found = store.source.get("precision")
    if found is None or found["dtype"] != settings.dtype:
        return {}
    return {"dtype": found["dtype"], "precision": found}
