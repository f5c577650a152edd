"""What any source of volumes offers, whether they are decoded or lie on disk."""

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
        Of these voxels; None where it is unknown.
    flip, invert
        Mirror along z; change the sign of the density.
    device
        Where volumes are made: ``cpu`` or ``cuda``.
    token
        Tells this source from others.
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
        """How many volumes there are."""

    @abstractmethod
    def volumes(self, rows: np.ndarray) -> Iterator[Any]:
        """Yield the volumes (d, d, d) float32 of rows (m,) of the list, one after the other."""

    @property
    def record(self) -> dict[str, Any]:
        """What a run records of where its volumes are from."""
        return {
            "box_size": self.box_size,
            "pixel_size_angstroms": self.pixel_size_angstroms,
        }

    def exact(self) -> Source:
        """The same volumes in single precision, if these are made in a lower one."""
        return self

    def oriented(self, volume: Any) -> Any:
        """A volume (d, d, d) mirrored and with its sign changed, as the settings say."""
        if self.flip:
            volume = volume[::-1]
        return -volume if self.invert else volume
