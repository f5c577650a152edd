"""Computing coordinates on components from latents: exactly, or from the field at a few points.

Arrays are where the field is: numpy's, or CuPy's on a GPU, which shares them with torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scapedist import backend
from scapedist.analysis.mask import Mask
from scapedist.analysis.reduced import Calibration, FieldModel

if TYPE_CHECKING:  # what sends batches starts without torch
    from scapedist.model.field import Field

ROWS = {"cpu": 64, "cuda": 2048}
"""Number of particles per product in the reduced embedding, constant so that sums are the same."""


class Frame(NamedTuple):
    """Components on the device that projects volumes onto them.

    Attributes
    ----------
    mean : (n_voxels,) float64
    vectors : (r, n_voxels) float32
    mask
        Function from volumes to masked voxels.
    """

    mean: Any
    vectors: Any
    mask: Mask

    def project(self, volumes: Iterable[Any], n: int) -> np.ndarray:
        """Coordinates and residuals of n volumes, (n, r + 1) float32, a numpy array.

        The last column is the squared norm that the coordinates miss of the masked voxels minus
        their mean. Volumes are taken one after the other; nothing waits for a GPU in between.
        """
        xp = backend.array_module(self.mean)
        found = xp.empty((n, len(self.vectors) + 1), np.float32)
        for row, volume in zip(found, volumes, strict=True):
            difference = (self.mask.rows_of(volume) - self.mean).astype(np.float32)
            row[:-1] = self.vectors @ difference
            missed = (difference - row[:-1] @ self.vectors).astype(np.float64)
            row[-1] = missed @ missed
        return backend.to_host(found)


class ReducedMap(NamedTuple):
    """Arrays of the reduced embedding; torch tensors where they enter products.

    Attributes
    ----------
    points : (m, 3) float32
        Frequencies at which the field is evaluated, a numpy array.
    n_hidden
        Number of points whose hidden activations are features too.
    feature_mean : (q,) float32
    readout : (q, r) float32
    offset : (r,) float32
    of_sketch, of_training
        Models of the field at the points, by the sketch and by all training volumes.
    calibration
        Conversion of misfits at the points into residuals and errors.
    """

    points: np.ndarray
    n_hidden: int
    feature_mean: Any
    readout: Any
    offset: Any
    of_sketch: FieldModel
    of_training: FieldModel
    calibration: Calibration

    def evaluate(self, field: Field, latents: np.ndarray) -> np.ndarray:
        """Coordinates, residual and expected error of latents (n, zdim): (n, r + 2) float32."""
        n_values = len(self.of_sketch.mean)
        rows = ROWS["cpu" if field.device == "cpu" else "cuda"]
        result = []
        for start in range(0, len(latents), rows):
            some = latents[start : start + rows]
            padded = np.concatenate([some, np.repeat(some[:1], rows - len(some), 0)])
            features = field.features(padded, self.points, self.n_hidden)
            values = backend.as_array(features[:, :n_values].float().clone())
            features = features.float().sub_(self.feature_mean)
            coordinates = backend.as_array(features @ self.readout + self.offset)
            residual = self.calibration.residual(self.of_sketch.misfit(coordinates, values))
            error = self.calibration.error(self.of_training.misfit(coordinates, values))
            found = np.concatenate([coordinates, residual[:, None], error[:, None]], 1)
            result.append(backend.to_host(found)[: len(some)])
        return np.concatenate(result).astype(np.float32)
