"""The pilot of a masked store's mask, and the audit of what of all volumes lies outside it."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np

from scapedist.analysis.placing import farthest_first
from scapedist.files.mrc import write_map
from scapedist.stages.write_volumes import Writing
from scapedist.store import RunStore
from scapedist.workers import Workers

SHOWN = 4
"""Number of volumes whose density outside the mask is written as a map."""
NOTABLE = 0.02
"""Report a volume when more than this fraction of its density lies outside the mask."""


def pilot_rows(latents: np.ndarray, n: int) -> np.ndarray:
    """Rows (m,) int64 of a sketch's latents (k, zdim) that are spread out over them."""
    return np.sort(farthest_first(latents.astype(np.float64), n))


def audit(
    store: RunStore,
    writing: Writing,
    counts: np.ndarray,
    fractions: np.ndarray,
    workers: Workers,
) -> dict[str, Any]:
    """Record what of the volumes a mask leaves out, and write maps of the worst of it.

    Writes ``volumes/outside`` (claimed voxels) and ``volumes/escaped`` (fraction of the density
    that claims voxels), and ``maps/escaped/volume_NNNNN.mrc``: a volume where it claims voxels
    outside the mask, zero elsewhere.

    Parameters
    ----------
    store
    writing
        Arrays of the masked volumes, and their source.
    counts : (n,) int64
        Number of claimed voxels of each volume outside the mask.
    fractions : (n,) float64
        Fraction of the density of all claimed voxels that lies outside the mask.
    workers
        Workers that decode the worst volumes once more.
    """
    store.write("volumes/outside", counts, ("volume",))
    store.write("volumes/escaped", fractions.astype(np.float32), ("volume",))
    directory = store.directory / "maps" / "escaped"
    shutil.rmtree(directory, ignore_errors=True)
    worst = np.argsort(-fractions, kind="stable")[:SHOWN]
    worst = worst[fractions[worst] > NOTABLE]
    assert writing.mask is not None
    assert writing.threshold is not None
    name = next(iter(writing.rows))
    for row in worst.tolist():
        volume = workers.call(Writing.volume, writing, name, row)
        escaped = np.where(volume >= writing.threshold, volume, 0)
        escaped.ravel()[writing.mask.inside] = 0
        path = directory / f"volume_{row:05d}.mrc"
        write_map(path, escaped, writing.source.pixel_size_angstroms)
    return {
        "claimed_voxels_outside_mask_max": int(counts.max()),
        "escaped_fraction_median": float(np.median(fractions)),
        "escaped_fraction_max": float(fractions.max()),
        "volumes_that_escape": int((fractions > NOTABLE).sum()),
        "worst_volumes": worst.tolist(),
    }
