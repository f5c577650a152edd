"""Speed of this machine at the parts of a run, from a few seconds' measurement."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scapedist import backend
from scapedist.analysis.coordinates import ROWS
from scapedist.analysis.mask import (
    Mask,
    check_user_mask,
    density_percentile,
    threshold_of,
)
from scapedist.analysis.placing import Volumes
from scapedist.files.mrc import read_map
from scapedist.model.field import Field
from scapedist.model.workdir import Model
from scapedist.particles.fit_reduced import HIDDEN_FEATURES
from scapedist.plan import spread_evenly
from scapedist.settings import GenerateSettings, MaskSettings, auto_tolerance
from scapedist.stages.mask import weights_of
from scapedist.workers import one_thread

PILOT_SECONDS = 1.5
"""Seconds spent estimating the mask's size."""
UNKNOWN_MASK = 0.1
"""Assumed mask fraction when a pilot is too slow."""


@dataclass(frozen=True)
class Rates:
    """Speed of one thread of this machine.

    Attributes
    ----------
    products_per_second
        Multiply-adds in float64, of large matrices.
    read_bytes_per_second
        Bytes of volumes read, checksums included, while the disk's cache holds them.
    """

    products_per_second: float
    read_bytes_per_second: float

    @classmethod
    def measured(cls) -> Rates:
        """Measure the speeds now, in a second."""
        block = np.zeros(2**24, np.uint8)
        with backend.one_numpy_thread():
            products = _products_per_second()
            read = seconds_of(lambda: (zlib.adler32(block.data), block.copy()), 0.3)
        return cls(products, len(block) / read)


class Measured:
    """Time that this machine takes for the parts of a run, measured in a few seconds."""

    def __init__(
        self, model: Model, settings: GenerateSettings, box_size: int, n: int, mask: MaskSettings
    ) -> None:
        self._latents, self.volume_bytes = model.latents, 4 * box_size**3
        self.zdim = self._latents.shape[1]
        self.start_seconds = _seconds_since_start()
        # what is to be measured is priced as what it is compared with
        dtype = "float32" if auto_tolerance(settings.dtype) else settings.dtype
        self._field = values = Field(model.decoder, dtype=dtype)
        self._lattice = lattice = values.lattice(box_size)
        self.n_frequencies, self.hidden_size = lattice.n_points, model.decoder.hidden_size
        with one_thread():
            points = np.ascontiguousarray(lattice.coordinates[: 8 * values.block_rows()])
            share = len(points) / lattice.n_points
            one = partial(values.coefficients, model.latents[:1], points)
            self.field_seconds = seconds_of(one, 1.0) / share
            volume = np.random.default_rng(0).random((box_size,) * 3, np.float32)
            self._finish = seconds_of(lambda: _finish(volume), 0.3)
            self.seconds_a_volume = self.field_seconds + self._finish
            pixel_size = settings.pixel_size or model.pixel_size_angstroms or 1.0
            pixel_size *= model.box_size / box_size
            sign = -1 if settings.invert else 1
            self.n_voxels = self._voxels_of_a_mask(values, box_size, n, pixel_size, sign, mask)
            self.read_seconds = seconds_of(lambda: _read(volume), 0.2)
            self.product_rate = _products_per_second()

    def _voxels_of_a_mask(
        self, values: Field, box_size: int, n: int, pixel_size: float, sign: int, mask: MaskSettings
    ) -> int:
        """Estimated number of voxels in the mask of n volumes, from a pilot of them."""
        if mask.mask is not None:
            weights = check_user_mask(read_map(Path(mask.mask))[0], box_size, str(mask.mask))
            return Mask.of(weights).n_voxels
        n_pilot = min(int(PILOT_SECONDS / self.seconds_a_volume), 32, n)
        if n_pilot < 2:
            return int(UNKNOWN_MASK * box_size**3)
        rows = np.linspace(0, len(self._latents) - 1, n_pilot).astype(int)
        decoded = values.volumes(self._latents[rows], box_size)
        volumes = np.stack([sign * backend.as_array(volume.float()) for volume in decoded])
        threshold = mask.threshold
        if threshold is None:
            threshold = threshold_of(np.array([density_percentile(each) for each in volumes]))
        claims = (volumes >= threshold).sum(0, dtype=np.int32)
        return Mask.of(weights_of(claims, n_pilot, pixel_size, mask)).n_voxels

    def reduced_seconds(self, n_points: int, n_components: int) -> float:
        """Seconds per particle of the reduced embedding by some points, on one thread."""
        import torch

        coordinates = self._lattice.coordinates
        points = np.ascontiguousarray(coordinates[spread_evenly(len(coordinates), n_points)])
        n_hidden = min(len(points), HIDDEN_FEATURES // self.hidden_size)
        latents = self._latents[: ROWS["cpu"]]
        n_features = self._field.features(latents[:1], points, n_hidden).shape[1]
        readout = torch.ones((n_features, n_components), dtype=torch.float32)

        def embed() -> None:
            features = self._field.features(latents, points, n_hidden).float()
            features.sub_(1).matmul(readout)

        with one_thread():
            return seconds_of(embed, 0.3) / len(latents)

    @staticmethod
    def placing_seconds(n_volumes: int, n_components: int) -> float:
        """Seconds to place a particle among some volumes, on one thread."""
        rng = np.random.default_rng(0)
        points = rng.standard_normal((n_volumes, n_components))
        volumes = Volumes.of(points, np.ones(n_volumes), np.arange(n_volumes) % 10)
        some = rng.standard_normal((512, n_components))
        with backend.one_numpy_thread():
            return seconds_of(lambda: volumes.place(some, np.ones(len(some))), 0.1) / len(some)


def _finish(volume: np.ndarray) -> None:
    """Do about the work on a volume beside evaluating its field."""
    import torch

    torch.fft.irfftn(torch.fft.rfftn(torch.from_numpy(volume)))
    density_percentile(volume)
    volume.tobytes()


def _products_per_second() -> float:
    """Multiply-adds per second in float64, of large matrices."""
    left, right = np.random.default_rng(1).random((2, 400, 4000))  # numpy halves A @ A.T
    return 400 * 400 * 4000 / seconds_of(lambda: left @ right.T, 0.3)


def _read(volume: np.ndarray) -> None:
    """Do about the work of reading a volume and looking at it."""
    zlib.adler32(volume.data)
    np.count_nonzero(volume.copy() >= 0.5)


def seconds_of(call: Callable[[], Any], at_least: float) -> float:
    """Seconds per call, from calls over at least some seconds; the first is not counted."""
    call()
    started, n = time.perf_counter(), 0
    while n == 0 or time.perf_counter() - started < at_least:
        call()
        n += 1
    return (time.perf_counter() - started) / n


def _seconds_since_start() -> float:
    """Seconds since this process began; a usual value where the system does not tell."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
        return up - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 2.0
