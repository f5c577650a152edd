"""A trained decoder as arrays, from which it is evaluated anywhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scapedist.errors import InputError
from scapedist.model.lattice import Lattice, make_lattice

DTYPES = ("float64", "float32", "tf32", "float16x3", "bfloat16", "float16")
GPU_ONLY = ("tf32", "float16x3")
ENCODED_ARRAYS = 4
"""Number of arrays of a block's size that are held while positions are encoded."""
CACHE_BYTES = 64 * 2**20
"""Most bytes of first-layer activations of all points that are kept between batches."""


@dataclass(frozen=True)
class Decoder:
    """The weights and rules of a decoder.

    Attributes
    ----------
    kind
        Lattice rule: ``fourier_sphere``, ``fourier_slice``, ``hartley_cube``, ``hypervolume``.
    encoding
        ``gaussian`` (frequencies (m, 3)), ``axes`` (frequencies (m,), the same along x, y and z)
        or ``none``.
    frequencies : float64 (gaussian) or float32 (axes, as cryoDRGN computes them)
        Angular frequencies of the positional encoding, its scale included.
    weights, biases : tuples of float64 arrays (out, in) and (out,)
        Linear layers in order, skip connections folded in.
    negative_slope
        0 for relu, 0.01 for leaky_relu.
    zdim
        Dimension of the latents.
    latent_frequencies : (m,) float32 or None
        Geometric encoding of the latents (abinit), where the model has one.
    box_size, extent
        Voxels along the edge of the model's box (even); frequency of its lattice's last point.
    norm
        Mean and standard deviation of the training data's Hartley coefficients.
    mask_radius
        Radius of abinit's output mask in lattice points, where it has one.
    """

    kind: str
    encoding: str
    frequencies: np.ndarray
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    negative_slope: float
    zdim: int
    box_size: int
    extent: float
    norm: tuple[float, float]
    latent_frequencies: np.ndarray | None = None
    mask_radius: float | None = None

    def lattice(self, box_size: int | None = None) -> Lattice:
        """The lattice of evaluation points of a box (default: the model's)."""
        background = 0.0 if self.kind == "fourier_slice" else self.norm[0]
        return make_lattice(
            self.kind,
            self.box_size,
            self.box_size if box_size is None else box_size,
            self.extent,
            background,
            self.mask_radius,
        )

    @property
    def hidden_size(self) -> int:
        """Width of the hidden layers."""
        return len(self.biases[0])

    @property
    def flops_per_point(self) -> int:
        """Floating-point operations of the layers behind the first, for one point and latent."""
        return sum(2 * weight.size for weight in self.weights[1:])

    def cached_bytes(self, lattice: Lattice) -> int:
        """Bytes of first-layer activations that are kept between batches."""
        n_bytes = lattice.n_points * self.hidden_size * 4
        return n_bytes if n_bytes <= CACHE_BYTES else 0

    @property
    def encoded_bytes(self) -> int:
        """Bytes of encoded positions, on the CPU, while a block of the first layer is made."""
        n_features = self.weights[0].size // self.hidden_size
        return ENCODED_ARRAYS * 4 * cpu_block_rows(self.hidden_size) * n_features


def cpu_block_rows(hidden_size: int) -> int:
    """Number of points per block on one core, whose activations about fill its own cache."""
    return max(1024, 3 * 2**16 // hidden_size)


def check_latents(latents: np.ndarray, zdim: int) -> np.ndarray:
    """Latents as a finite, contiguous (n, zdim) float array."""
    latents = np.ascontiguousarray(latents)
    if latents.ndim != 2 or latents.shape[1] != zdim or latents.dtype.kind not in "fiu":
        raise InputError(
            f"Latents are rows of the model's latent dimension, {zdim}. These have the shape "
            f"{latents.shape} ({latents.dtype}). Give an array of numbers of shape (n, {zdim})."
        )
    if not np.isfinite(latents).all():
        rows = np.flatnonzero(~np.isfinite(latents).all(1))
        raise InputError(
            f"Latents are finite numbers. {len(rows)} rows are not, row {rows[0]} first. "
            "Remove these rows."
        )
    return latents


def check_dtype(dtype: str, device: str = "cpu") -> None:
    """Refuse a precision that is unknown or that the device does not have."""
    if dtype not in DTYPES:
        raise InputError(f"A precision is one of {', '.join(DTYPES)}. It is {dtype!r}.")
    if dtype in GPU_ONLY and device == "cpu":
        raise InputError(
            f"{dtype} needs a GPU, and the decoding runs on the CPU. Use float32, or --gpus."
        )
