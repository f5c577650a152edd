"""The interface of all sources of volumes, whether these are decoded or lie on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import numpy as np


@dataclass(frozen=True)
class Source(ABC):
    """A list of volumes that any process can make; sent to each worker once.

    Attributes
    ----------
    box_size
        Voxels along an edge.
    pixel_size_angstroms
        Edge of a voxel in Å; None where it is unknown.
    flip, invert
        Whether to mirror along z; whether to change the sign of the density.
    device
        Device that makes volumes: ``cpu`` or ``cuda``.
    token
        Text that tells this source from others.
    """

    box_size: int
    pixel_size_angstroms: float | None
    flip: bool = False
    invert: bool = False
    device: str = "cpu"
    token: str = field(default_factory=lambda: uuid4().hex)

    @property
    @abstractmethod
    def n_volumes(self) -> int:
        """Number of volumes."""

    @abstractmethod
    def volumes(self, rows: np.ndarray) -> Iterator[Any]:
        """Yield the volumes (d, d, d) float32 of rows (m,) of the list, one after the other."""

    @property
    def record(self) -> dict[str, Any]:
        """Record of where the volumes are from."""
        return {
            "box_size": self.box_size,
            "pixel_size_angstroms": self.pixel_size_angstroms,
        }

    def exact(self) -> Source:
        """The source of these volumes in single precision, where this one has a lower precision."""
        return self

    def oriented(self, volume: Any) -> Any:
        """A volume (d, d, d) mirrored and with its sign changed, as the settings say."""
        if self.flip:
            volume = volume[::-1]
        return -volume if self.invert else volume
