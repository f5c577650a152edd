"""What each precision costs and how far it is off, measured on a few volumes of a model."""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from scapedist.errors import InputError
from scapedist.model.decoder import Decoder
from scapedist.model.field import Field

MEASURED_POINTS = 2**15
"""Most frequencies per volume that are measured on; of larger boxes as many random ones."""
ON_CPU = ("float32", "bfloat16")
ON_GPU = ("float32", "tf32", "float16x3", "bfloat16", "float16")
NEEDS_AMPERE = ("tf32", "bfloat16")


def measure(
    decoder: Decoder, latents: np.ndarray, box_size: int, device: str
) -> dict[str, dict[str, float | None]]:
    """Error and time of each precision that a device has.

    Errors are against float64, in coordinates on the principal components of the latents' own
    volumes, relative to the spread of these. Fields are compared: the transform to volumes is
    orthogonal up to a factor (but for the plane z = 0, which a half sphere has twice).

    Parameters
    ----------
    decoder
    latents : (n, zdim) float
        Latents of a few volumes, two or more.
    box_size
        Voxels along an edge of the volumes.
    device
        Name of a torch device.

    Returns
    -------
    dict
        For each precision ``error``, None where values are not finite, and ``seconds_a_volume`` of
        evaluating the field; the inverse transform and writing come to these.
    """
    lattice = decoder.lattice(box_size)
    chosen = np.random.default_rng(0).permutation(lattice.n_points)[:MEASURED_POINTS]
    points = np.ascontiguousarray(lattice.coordinates[np.sort(chosen)])
    exact = Field(decoder, device, "float64").coefficients(latents, points).flatten(1)
    found: dict[str, dict[str, float | None]] = {}
    for dtype in candidates(device):
        field = Field(decoder, device, dtype)
        # the first time kernels are loaded, and chosen for the products' shapes
        field.coefficients(latents[:1] if device == "cpu" else latents, points)
        _wait(device)
        started = time.perf_counter()
        values = field.coefficients(latents, points)
        _wait(device)
        seconds = (time.perf_counter() - started) / len(latents)
        error = error_in_coordinates(values.flatten(1).double(), exact)
        found[dtype] = {
            "error": error if math.isfinite(error) else None,
            "seconds_a_volume": seconds * lattice.n_points / len(points),
        }
    return found


def error_in_coordinates(found: torch.Tensor, exact: torch.Tensor) -> float:
    """RMS error of coordinates relative to the exact ones' RMS distance from their mean.

    Parameters
    ----------
    found, exact : (n, m) float64
        Fields of n volumes; the components are the principal ones of the exact fields.
    """
    centered = exact - exact.mean(0)
    variance, vectors = torch.linalg.eigh(centered @ centered.T)
    kept = variance > 1e-12 * exact.square().sum()  # others are rounding errors of float64
    if not kept.any():
        return math.inf
    projected = (found - exact) @ centered.T @ (vectors[:, kept] / variance[kept].sqrt())
    return float(projected.norm() / variance[kept].sum().sqrt())


def fastest(measured: dict[str, dict[str, float | None]], tolerance: float) -> str:
    """The fastest precision whose error is below a tolerance; float32 where none is."""
    seconds = {
        dtype: one["seconds_a_volume"] or math.inf
        for dtype, one in measured.items()
        if one["error"] is not None and one["error"] < tolerance
    }
    return min(seconds, key=seconds.__getitem__, default="float32")


def candidates(device: str) -> list[str]:
    """The precisions that are worth measuring on a device."""
    if device == "cpu":
        return list(ON_CPU)
    ampere = torch.cuda.get_device_capability(device) >= (8, 0)
    return [dtype for dtype in ON_GPU if ampere or dtype not in NEEDS_AMPERE]


def check_device(dtype: str, device: str) -> None:
    """Refuse a precision that this process's GPU only imitates; to be called where the GPU is."""
    if device != "cpu":
        name = torch.cuda.get_device_name(device)
        check_capability(dtype, torch.cuda.get_device_capability(device), name)


def check_capability(dtype: str, capability: tuple[int, int], name: str) -> None:
    """Refuse a precision that a GPU of a compute capability only imitates."""
    if dtype in NEEDS_AMPERE and capability < (8, 0):
        raise InputError(
            f"{dtype} needs a GPU of compute capability 8.0 or later. {name} has "
            f"{capability[0]}.{capability[1]}. Use --dtype float32, float16x3 or float16."
        )


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)
