"""What a worker does to put volumes on a run's components: exactly, or from a few points."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any
from uuid import uuid4

import numpy as np
import zarr

from scapedist import backend
from scapedist.analysis.embedding import Calibration, FieldModel
from scapedist.analysis.project import Frame, ReducedMap
from scapedist.errors import RunError
from scapedist.landscape.batches import VolumeSource, field_of
from scapedist.plan import batches
from scapedist.store import read_rows

EXACT_BYTES = 8 * 2**20
"""Of a map's features in float64 at once."""
COVARIANCE_COMPONENTS = 10
"""Leading coordinates whose posterior covariance is computed."""


@dataclass(frozen=True)
class Projection:
    """All that a worker needs to project; sent to each worker once, arrays are read there.

    Attributes
    ----------
    source
        Decodes.
    clip_negative, soft_mask
        As the components were fitted.
    low_pass
        Box whose frequencies alone are decoded, or None for all.
    map_name
        The reduced map that is used: ``map``, or ``coarse``, of fewer points.
    """

    source: VolumeSource
    clip_negative: bool
    soft_mask: bool
    low_pass: int | None = None
    map_name: str = "map"
    token: str = field(default_factory=lambda: uuid4().hex)

    @cached_property
    def weights(self) -> np.ndarray:
        """The mask (d, d, d)."""
        return self.array("mask")

    @cached_property
    def inside(self) -> np.ndarray:
        """Flat positions of the mask's voxels."""
        return np.flatnonzero(self.weights > 0)

    def array(self, name: str) -> np.ndarray:
        """A whole array of the run."""
        return read_rows(zarr.open_array(f"{self.source.group_path}/{name}", mode="r"))


_FRAMES: dict[str, Frame] = {}
_MAPS: dict[str, ReducedMap] = {}


def _frame_of(projection: Projection) -> Frame:
    """Components in this process, read once."""
    if projection.token not in _FRAMES:
        mean = projection.array("components/mean")
        if projection.low_pass is not None:
            mean = mean - projection.array("embedding/low_pass/shift")
        frame = _frame(projection, mean, projection.array("components/vectors"))
        _FRAMES.clear()
        _FRAMES[projection.token] = frame
    return _FRAMES[projection.token]


def _frame(projection: Projection, mean: np.ndarray, vectors: np.ndarray) -> Frame:
    weights = projection.weights[projection.weights > 0] if projection.soft_mask else None
    return Frame(
        _on_device(projection, mean),
        _on_device(projection, vectors),
        _on_device(projection, projection.inside),
        None if weights is None else _on_device(projection, weights),
        projection.clip_negative,
    )


def _on_device(projection: Projection, array: np.ndarray) -> Any:
    return backend.to_device(array, projection.source.device)


def masked_rows(projection: Projection, latents: np.ndarray) -> Any:
    """Masked voxels (b, n_voxels) float32 of latents (b, zdim), where they are decoded."""
    frame = _frame(projection, np.zeros(0), np.zeros((0, 0), np.float32))
    rows = backend.array_module(frame.inside).empty((len(latents), len(frame.inside)), np.float32)
    volumes = projection.source.decode(latents, projection.low_pass)
    for row, volume in zip(rows, volumes, strict=True):
        row[:] = frame.voxels(volume)
    return rows


def masked_batch(projection: Projection, latents: np.ndarray) -> np.ndarray:
    """Masked voxels (b, n_voxels) float32 of latents (b, zdim), as the components take them."""
    return backend.to_host(masked_rows(projection, latents))


def whole_volumes(projection: Projection, latents: np.ndarray) -> np.ndarray:
    """Volumes (b, d, d, d) float32 of latents (b, zdim)."""
    decoded = projection.source.decode(latents)
    return np.stack([backend.to_host(volume).copy() for volume in decoded])


def exact_batch(projection: Projection, latents: np.ndarray) -> np.ndarray:
    """Decode latents (b, zdim) and project their volumes, one after the other.

    Returns
    -------
    (b, r + 1) float32
        Coordinates, and the squared norm that they miss of the masked voxels minus their mean.

    Raises
    ------
    RunError
        Where a volume is not finite.
    """
    volumes = projection.source.decode(latents, projection.low_pass)
    result = _frame_of(projection).project(volumes, len(latents))
    if not np.isfinite(result).all():
        raise RunError(
            "Volumes are finite. That of a particle is not. The model may have diverged, or its "
            "precision does not suffice: generate with --dtype float32."
        )
    return result


# -- building the reduced map


@dataclass(frozen=True)
class Training:
    """Latents whose coordinates are known, and the points that a map is built from.

    Attributes
    ----------
    projection
    latents : (n + k, zdim) float32
        n to train with, then k held out.
    n
        How many are trained with.
    points : (m, 3) float32
    weights : (n, r) float64 or None
        The regression's, once they are known.
    scales
        Factors of the field's and of the hidden layer's part of the kernel.
    """

    projection: Projection
    latents: np.ndarray
    n: int
    points: np.ndarray
    weights: np.ndarray | None = None
    scales: tuple[float, float] = (1.0, 1.0)

    def features(self, start: int, stop: int, hidden: bool) -> tuple[Any, Any, int]:
        """Centered features (n + k, q) of points start..stop, their mean, and the field's share."""
        import torch

        field = field_of(self.projection.source)
        points = self.points[start:stop]
        rows = field.features(self.latents, points, len(points) if hidden else 0)
        mean = torch.cat([some.mean(0) for some in _exactly(rows[: self.n])]).to(rows.dtype)
        n_values = rows.shape[1] - hidden * len(points) * field.decoder.hidden_size
        rows -= mean
        return rows, mean, n_values


def _exactly(rows: Any) -> Iterator[Any]:
    """Columns of features (n, q) in float64, a few at a time: a block of them is large."""
    size = max(1, EXACT_BYTES // (8 * len(rows)))
    for start, stop in batches(rows.shape[1], size):
        yield rows[:, start:stop].double()


def energy_of(projection: Projection, latents: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Variance (m,) float64 of the field at points (m, 3) over latents, outputs added up."""
    field = field_of(projection.source)
    values = field.coefficients(latents, points).double()
    return (values - values.mean(0)).square().sum((0, 2)).cpu().numpy()


def kernel_block(
    training: Training, task: tuple[int, int, bool]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What some points add to the kernel, and the field there.

    Returns
    -------
    (n + k, n) float32, twice
        Inner products of the field's features, and of the hidden layer's.
    (n + k, q) float32
        The field.
    """
    rows, mean, n_values = training.features(*task)
    values, hidden = rows[:, :n_values], rows[:, n_values:]
    return (
        (values @ values[: training.n].T).float().cpu().numpy(),
        (hidden @ hidden[: training.n].T).float().cpu().numpy(),
        (values + mean[:n_values]).float().cpu().numpy(),
    )


def readout_block(training: Training, task: tuple[int, int, bool]) -> dict[str, np.ndarray]:
    """The part of the map that some points make."""
    import torch

    rows, mean, n_values = training.features(*task)
    weights = torch.from_numpy(training.weights).to(rows.device)
    readout = torch.cat([some.T @ weights for some in _exactly(rows[: training.n])])
    readout[:n_values] *= training.scales[0]
    readout[n_values:] *= training.scales[1]
    return {
        "mean": mean.cpu().numpy(),
        "readout": readout.float().cpu().numpy(),
        "n_values": np.int64(n_values),
    }


# -- using it


def read_map(projection: Projection) -> ReducedMap:
    """The run's reduced map in this process, read once."""
    import torch

    if projection.token not in _MAPS:
        place = f"embedding/{projection.map_name}"
        group = zarr.open_group(f"{projection.source.group_path}/{place}", mode="r")

        def array(name: str) -> np.ndarray:
            return projection.array(f"{place}/{name}")

        def model(name: str) -> FieldModel:
            names = ("basis", "mean", "center", "weight")
            return FieldModel(*(_on_device(projection, array(f"{name}/{key}")) for key in names))

        def tensor(name: str) -> torch.Tensor:
            return torch.from_numpy(array(name)).to(projection.source.device)

        rules: Any = group.attrs["rules"]
        _MAPS.clear()
        _MAPS[projection.token] = ReducedMap(
            points=array("points"),
            n_hidden=int(rules["n_hidden"]),
            feature_mean=tensor("feature_mean"),
            readout=tensor("readout"),
            offset=tensor("offset"),
            of_sketch=model("field_of_sketch"),
            of_training=model("field_of_training"),
            calibration=Calibration(**rules["calibration"]),
        )
    return _MAPS[projection.token]


def reduced_batch(projection: Projection, latents: np.ndarray) -> np.ndarray:
    """Coordinates of latents (b, zdim) from the field at a few points.

    Returns
    -------
    (b, r + 2) float32
        Coordinates, residual (squared norm), and expected error (norm).
    """
    return read_map(projection).evaluate(field_of(projection.source), latents)


Posterior = tuple[np.ndarray, np.ndarray, int]
"""Latent means and standard deviations, both (b, zdim) float32, and how many components, k."""


def posterior_batch(projection: Projection, task: Posterior) -> np.ndarray:
    """Covariance (b, k, k) of the leading coordinates of uncertain latents, by the reduced map."""
    return covariance_of(partial(reduced_batch, projection), *task)


def exact_posterior(projection: Projection, task: Posterior) -> np.ndarray:
    """The same by exact decoding."""
    return covariance_of(partial(exact_batch, projection), *task)


def covariance_of(
    embed: Callable[[np.ndarray], np.ndarray], means: np.ndarray, deviations: np.ndarray, k: int
) -> np.ndarray:
    """Covariance (b, k, k) float32 of the leading coordinates that ``embed`` gives.

    The posterior is Gaussian with a diagonal covariance; each of its axes is followed for one
    standard deviation to both sides, and the differences of coordinates are what a derivative
    there would give.
    """
    b, zdim = means.shape
    steps = deviations[:, :, None] * np.eye(zdim, dtype=np.float32)
    both = np.concatenate([means[:, None] + steps, means[:, None] - steps], 1)
    found = embed(both.reshape(-1, zdim).astype(np.float32))[:, :k].astype(np.float64)
    plus, minus = np.split(found.reshape(b, 2 * zdim, k), 2, axis=1)
    differences = (plus - minus) / 2
    return np.einsum("bik,bil->bkl", differences, differences).astype(np.float32)
