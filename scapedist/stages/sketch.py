"""The stage that chooses the particles to decode, and counts whom each stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from scapedist.analysis.sketch import grow_sketch, quality_sample
from scapedist.errors import RunError
from scapedist.files.particle_lists import read_indices
from scapedist.settings import SketchSettings
from scapedist.sources.open import given_sketch
from scapedist.store import Begin, RunStore
from scapedist.workers import Workers
from scapedist.workers.one import sketch_by


def choose_particles(
    store: RunStore, settings: SketchSettings, workers: Workers, begin: Begin
) -> dict[str, Any]:
    """Choose the particles to decode and write ``sketch/``."""
    latents = store.read("latents")
    excluded = None
    if settings.exclude_particles:
        excluded = read_indices(Path(settings.exclude_particles), len(latents))
    given = given_sketch(settings, len(latents))
    if given is not None:
        chosen = given
        group, particle = np.zeros(0, np.int32), np.zeros(0, np.int64)
    else:
        chosen = sketch_by(workers)(
            latents, settings.size, settings.method, settings.seed, excluded
        )
        group, particle = quality_sample(
            chosen, settings.quality_groups, settings.quality_members, settings.seed
        )
    if settings.added:
        if "sketch" in store.stages:
            held = store.read("sketch/particle")[: len(chosen.particle)]
            if not np.array_equal(held, chosen.particle):
                raise RunError(
                    "A sketch grows from the particles that it has. The file of excluded particles "
                    "changed since, and gives others. Restore it, or choose another --output."
                )
        chosen = grow_sketch(chosen, latents, np.array(settings.added, np.int64))
    begin()
    store.write("sketch/particle", chosen.particle, ("volume",))
    store.write("sketch/assignment", chosen.assignment, ("particle",))
    store.write("sketch/occupancy", chosen.occupancy, ("volume",))
    store.write("sketch/quality/group", group, ("sample",))
    store.write("sketch/quality/particle", particle, ("sample",))
    return {
        "volumes": len(chosen.particle),
        "excluded_particles": 0 if excluded is None else len(excluded),
    }
