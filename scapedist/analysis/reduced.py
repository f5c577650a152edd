"""The reduced embedding: coordinates of a particle's volume from a few points of its field.

The decoder is evaluated at m chosen frequencies instead of all; the features of a particle are
the field there and the decoder's last hidden layer there, which is computed anyway. Coordinates
on the components are an affine function of the whole field, and a ridge regression from the
features, trained on volumes whose coordinates are known, recovers it: this is the least-squares
fit of gappy POD with the training volumes as the basis and a prior on their coefficients, and the
hidden units are further measurements of the same network. With n training volumes all is done
through their n x n kernel, which is added up over points: no field is ever held.

What the fit cannot explain is seen at the same points: the field there is predicted back from the
coordinates, and the misfit, calibrated on exactly decoded particles, gives each particle its
residual and its error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scapedist.analysis.sketch import nearest_center

GOLDEN = (np.sqrt(5) - 1) / 2
POOL = 20_000
"""Most particles from which further training volumes are drawn."""
RIDGES = np.logspace(-12, -3, 19)
"""Ridge parameters tried, relative to the kernel's trace."""


def draw_candidates(coordinates: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Candidate points for the reduced map: n of a lattice's points, as many at any radius.

    Parameters
    ----------
    coordinates : (n_points, 3) float
    n
        Number of candidates; all points where there are no more.

    Returns
    -------
    (n,) int64, sorted
    """
    if len(coordinates) <= n:
        return np.arange(len(coordinates))
    squared = np.square(coordinates.astype(np.float64)).sum(1)
    chance = 1 / np.maximum(squared, 1e-4 * squared.max())
    # Gumbel's trick: n draws without replacement, with chances in proportion
    gumbel = -np.log(-np.log(np.random.default_rng(seed).random(len(chance))))
    return np.sort(np.argpartition(np.log(chance) + gumbel, -n)[-n:])


def choose_points(coordinates: np.ndarray, energy: np.ndarray, n: int) -> np.ndarray:
    """Points drawn in proportion to their energy, spread evenly over space.

    The candidates are put in the order of a space-filling curve and cut where multiples of the
    golden ratio fall on their summed energy; the first points are as well spread as all.

    Parameters
    ----------
    coordinates : (m, 3) float
        Frequencies of the candidates.
    energy : (m,) float
        Variance of the field there, over volumes.
    n
        Number of points wanted; fewer are given where fewer have energy.

    Returns
    -------
    (<= n,) int64
        Positions among the candidates, in the order drawn.
    """
    curve = _space_filling(coordinates)
    total = np.cumsum(np.asarray(energy, np.float64)[curve])
    drawn: dict[int, None] = {}
    start, most = 0, 64 * n
    while len(drawn) < n and start < most:
        heights = (0.5 + np.arange(start, start + n) * GOLDEN) % 1 * total[-1]
        found = curve[np.minimum(np.searchsorted(total, heights), len(curve) - 1)]
        drawn |= dict.fromkeys(found.tolist())
        start += n
    return np.array(list(drawn)[:n], np.int64)


def _space_filling(coordinates: np.ndarray) -> np.ndarray:
    """The order of points (m, 3) along a Morton curve."""
    low = coordinates.min(0)
    width = max(float((coordinates.max(0) - low).max()), np.finfo(np.float32).tiny)
    cells = np.rint((coordinates - low) / width * 1023).astype(np.int64)
    code = np.zeros(len(cells), np.int64)
    for bit in range(10):
        for axis in range(3):
            code |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
    return np.argsort(code, kind="stable")


def spread_rows(latents: np.ndarray, chosen: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Rows drawn with a chance that grows with their squared distance to those chosen already.

    Parameters
    ----------
    latents : (n_particles, zdim) float
    chosen : (m,) int64
        Rows that are there already; never drawn again.
    n
        Number of rows wanted.

    Returns
    -------
    (n,) int64, in the order drawn
    """
    rng = np.random.default_rng(seed)
    pool = rng.permutation(np.setdiff1d(np.arange(len(latents)), chosen))[:POOL]
    deviation = np.maximum(latents.std(0, dtype=np.float64), 1e-12)
    points = (latents[pool] / deviation).astype(np.float32)
    distance, _ = nearest_center(latents[chosen] / deviation, points)
    distance = np.square(distance).astype(np.float32)
    drawn = np.empty(min(n, len(pool)), np.int64)
    left = np.ones(len(pool), bool)
    for i in range(len(drawn)):
        total = np.cumsum(distance * left, dtype=np.float64)
        if total[-1] <= 0:  # all that is left coincides with what was chosen
            drawn[i:] = np.flatnonzero(left)[: len(drawn) - i]
            break
        row = np.searchsorted(total, rng.random() * total[-1], side="right")
        drawn[i] = min(int(row), len(pool) - 1)
        left[drawn[i]] = False
        difference = points - points[drawn[i]]
        np.minimum(distance, np.einsum("ij,ij->i", difference, difference), out=distance)
    return pool[drawn]


@dataclass(frozen=True)
class Ridge:
    """A ridge regression in its dual form.

    Attributes
    ----------
    weights : (n, r) float64
        Weights of the training rows: a prediction is kernel row @ weights + mean.
    mean : (r,) float64
        Mean of the training targets.
    left_out : (n, r) float64
        Error of each training row when it is predicted from the others.
    ridge
        Ridge parameter that was chosen.
    """

    weights: np.ndarray
    mean: np.ndarray
    left_out: np.ndarray
    ridge: float

    def predict(self, kernel: np.ndarray) -> np.ndarray:
        """Predictions (k, r) from kernel rows (k, n) against the training rows."""
        return kernel @ self.weights + self.mean


def fit_ridge(kernel: np.ndarray, targets: np.ndarray) -> Ridge:
    """The ridge regression that predicts left-out rows best.

    Parameters
    ----------
    kernel : (n, n) float64
        Inner products of centered features.
    targets : (n, r) float64
    """
    mean = targets.mean(0)
    values, vectors = np.linalg.eigh(kernel)
    projected = vectors.T @ (targets - mean)
    best: Ridge | None = None
    least, squared = np.inf, np.square(vectors)
    for ridge in RIDGES * float(np.trace(kernel)):
        inverse = 1 / (np.maximum(values, 0) + ridge)
        weights = vectors @ (inverse[:, None] * projected)
        # residual / (1 - leverage); the row's share in the mean counts as leverage too
        slack = ridge * (squared @ inverse) - 1 / len(kernel)
        left_out = ridge * weights / np.maximum(slack, 1e-12)[:, None]
        # the median: training volumes lie at the landscape's rim, most particles within
        error = float(np.median(np.square(left_out).sum(1)))
        if error < least:
            best, least = Ridge(weights, mean, left_out, float(ridge)), error
    assert best is not None
    return best


@dataclass(frozen=True)
class FieldModel:
    """The field at some points as an affine function of coordinates, and its misfit.

    Attributes
    ----------
    basis : (r, q) float64
    mean : (q,) float64
    center : (r,) float64
        Center of the fit: the field is about ``(coordinates - center) @ basis + mean``.
    weight : (q,) float64
        Weight of each value in the misfit: points were drawn in proportion to their energy.
    """

    basis: np.ndarray
    mean: np.ndarray
    center: np.ndarray
    weight: np.ndarray

    @classmethod
    def fit(cls, coordinates: np.ndarray, values: np.ndarray) -> FieldModel:
        """Fit the model by least squares to volumes' coordinates (n, r) and values (n, q)."""
        center, mean = coordinates.mean(0), values.mean(0, dtype=np.float64)
        centered = coordinates - center
        covariance = centered.T @ centered
        covariance[np.diag_indices_from(covariance)] += 1e-12 * np.trace(covariance)
        basis = np.linalg.solve(covariance, centered.T @ (values - mean))
        spread = values.std(0, dtype=np.float64)
        weight = 1 / np.maximum(spread, max(1e-3 * spread.max(), 1e-30)) / np.sqrt(len(mean))
        return cls(basis, mean, center, weight)

    def misfit(self, coordinates: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Weighted norm (n,) of what coordinates (n, r) leave unexplained of values (n, q)."""
        predicted = (coordinates - self.center) @ self.basis + self.mean
        return np.linalg.norm((values - predicted) * self.weight, axis=1)

    def arrays(self) -> dict[str, tuple[np.ndarray, tuple[str, ...]]]:
        """The arrays to store, by name: float32 array and names of its dimensions."""
        dimensions = {
            "basis": ("component", "value"),
            "mean": ("value",),
            "center": ("component",),
            "weight": ("value",),
        }
        return {k: (getattr(self, k).astype(np.float32), d) for k, d in dimensions.items()}


@dataclass(frozen=True)
class Calibration:
    """Conversion of a particle's misfits at the points into its residual and its error.

    Attributes
    ----------
    residual_scale
        Residual (squared norm) per squared misfit to the sketch's model of the field.
    error_at_one, exponent
        Expected error (norm) is ``error_at_one * misfit ** exponent``, with the misfit to the
        model of all training volumes.
    """

    residual_scale: float
    error_at_one: float
    exponent: float

    def residual(self, misfit: np.ndarray) -> np.ndarray:
        """Residuals (n,) of particles: squared norms that the components miss."""
        return self.residual_scale * np.square(misfit)

    def error(self, misfit: np.ndarray) -> np.ndarray:
        """Expected norms (n,) of the errors of particles' coordinates."""
        return self.error_at_one * np.power(np.maximum(misfit, 1e-30), self.exponent)


def calibrate(
    to_sketch: np.ndarray, to_training: np.ndarray, residual: np.ndarray, error: np.ndarray
) -> Calibration:
    """Fit a calibration to particles of known misfits, residuals and errors, all (n,)."""
    tiny = np.finfo(np.float64).tiny
    ratio = np.maximum(residual, tiny) / np.maximum(np.square(to_sketch), tiny)
    x, y = np.log(np.maximum(to_training, tiny)), np.log(np.maximum(error, tiny))
    spread = float(np.square(x - x.mean()).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread else 1.0
    slope = min(max(slope, 0.5), 3.0)
    scatter = y - slope * x
    # the root mean square of a log-normal; outliers of the sample do not move it much
    level = float(np.exp(scatter.mean() + min(float(scatter.var()), 1.0)))
    return Calibration(float(np.exp(np.median(np.log(ratio)))), level, slope)
