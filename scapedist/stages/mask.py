"""The stage that chooses the voxels to analyse: from the volumes' density, or a given mask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scapedist.analysis import mask as masks
from scapedist.errors import RunError
from scapedist.files.mrc import read_map, write_map
from scapedist.plan import batches
from scapedist.settings import MaskSettings, PcaSettings, from_record
from scapedist.stages.stored_rows import FULL, MASKED, QUALITY, READ_BYTES, stored_rows
from scapedist.store import Begin, Progress, RunStore, read_rows

if TYPE_CHECKING:
    import zarr

N_PAIRS = 200
"""Number of random pairs of sketch volumes that distances within groups are compared with."""


def choose_voxels(
    store: RunStore, settings: MaskSettings, begin: Begin, progress: Progress
) -> dict[str, Any]:
    """Write ``mask``, ``mask_claims``, ``sketch/quality`` and ``maps/mask.mrc``."""
    if MASKED in store:
        weights = _check_masked_store(store, settings)
        begin()
    else:
        percentiles = store.read("volumes/percentile")
        weights = make_mask(store, store.array(FULL), percentiles, settings, begin, progress)
    write_map(store.directory / "maps" / "mask.mrc", weights, store.source["pixel_size_angstroms"])
    _measure_quality(store)
    n_voxels = masks.Mask.of(weights).n_voxels
    return {
        "voxels": n_voxels,
        "fraction": n_voxels / weights.size,
        "threshold": store.array("mask").attrs.get("threshold"),
    }


def make_mask(
    store: RunStore,
    volumes: zarr.Array,
    percentiles: np.ndarray,
    settings: MaskSettings,
    begin: Begin,
    progress: Progress,
) -> np.ndarray:
    """Make the mask of volumes by the settings, write it and return it, (d, d, d) float32."""
    box_size = int(volumes.shape[-1])
    threshold = None
    if settings.mask is not None:
        path = Path(settings.mask)
        weights = masks.check_user_mask(read_map(path)[0], box_size, str(path))
        begin()
        store.delete("mask_claims")
    else:
        threshold = settings.threshold
        if threshold is None:
            threshold = masks.threshold_of(percentiles)
        claims = np.zeros((box_size,) * 3, np.int32)
        for block in _blocks(volumes, "masking", progress):
            claims += (block >= threshold).sum(0, dtype=np.int32)
        pixel_size = store.source["pixel_size_angstroms"]
        weights = weights_of(claims, volumes.shape[0], pixel_size, settings)
        begin()
        fractions = (claims / volumes.shape[0]).astype(np.float32)
        store.write("mask_claims", fractions, ("z", "y", "x"))
    store.write("mask", weights, ("z", "y", "x"))
    store.array("mask").attrs["threshold"] = threshold
    return weights


def weights_of(
    claims: np.ndarray, n_volumes: int, pixel_size_angstroms: float | None, settings: MaskSettings
) -> np.ndarray:
    """A mask (d, d, d) float32 from how many volumes claim each voxel, by the settings' rules."""
    return masks.mask_from_claims(
        claims,
        n_volumes,
        pixel_size_angstroms or 1.0,
        settings.dilate,
        settings.cosine_edge,
        settings.min_fraction,
    )


def _check_masked_store(store: RunStore, settings: MaskSettings) -> np.ndarray:
    """The mask that a masked store was made with; other settings are refused."""
    made_with = store.stages["generate"]["results"]["mask"]
    if from_record(MaskSettings, {"settings": made_with}) != settings:
        raise RunError(
            f"The volumes of {store.directory} are stored inside one mask only ({made_with}). "
            "Another mask needs another generation: give its options to `scapedist run` with "
            "--overwrite, or store whole volumes with --store volumes."
        )
    return store.read("mask")


def _measure_quality(store: RunStore) -> None:
    """Write distances in the mask within sampled groups and between random sketch volumes."""
    group = store.read("sketch/quality/group")
    if not len(group):
        store.delete("sketch/quality/distance")
        store.delete("sketch/quality/between")
        return
    rows = stored_rows(store, PcaSettings())
    members = rows.of(QUALITY, np.arange(len(group)))
    centers = rows.of(rows.main, np.unique(group))
    within = members - centers[np.searchsorted(np.unique(group), group)]
    rng = np.random.default_rng(0)
    n = store.array(rows.main).shape[0]
    sample = np.sort(rng.choice(n, min(n, 64), replace=False))
    spread = rows.of(rows.main, sample)
    left, right = np.triu_indices(len(sample), 1)
    some = rng.choice(len(left), min(N_PAIRS, len(left)), replace=False)
    between = spread[left[some]] - spread[right[some]]
    store.write("sketch/quality/distance", _rms(within), ("sample",))
    store.write("sketch/quality/between", _rms(between), ("pair",))


def _rms(differences: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(differences.astype(np.float64)).mean(1))


def _blocks(volumes: zarr.Array, what: str, progress: Progress) -> Iterator[np.ndarray]:
    """Yield blocks (m, d, d, d) of consecutive volumes."""
    size = max(1, READ_BYTES // int(np.prod(volumes.shape[1:]) * 4))
    for start, stop in batches(volumes.shape[0], size):
        yield read_rows(volumes, slice(start, stop))
        progress(what, stop, volumes.shape[0])
