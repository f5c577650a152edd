"""Volumes that cryoDRGN has made: a sketch and its maps in a ``kmeansK`` directory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scapedist.analysis.sketch import Sketch
from scapedist.errors import InputError
from scapedist.files.mrc import read_map
from scapedist.files.safe_pickle import load_pickle
from scapedist.sources.source import Source


@dataclass(frozen=True, kw_only=True)
class Maps(Source):
    """Volumes that lie on disk as maps; read where they are needed, never by a GPU.

    Attributes
    ----------
    paths
        Files of the maps, one per volume.
    """

    paths: tuple[str, ...]

    @property
    def n_volumes(self) -> int:
        """Number of maps."""
        return len(self.paths)

    def volumes(self, rows: np.ndarray) -> Iterator[Any]:
        """Yield the volumes (d, d, d) float32 of rows (m,), one after the other."""
        for row in rows.tolist():
            yield self.oriented(read_map(Path(self.paths[row]))[0])


@dataclass(frozen=True)
class Ensemble:
    """Maps on disk and the sketch that they belong to.

    Attributes
    ----------
    sketch
        Sketch whose representatives the maps are.
    paths
        Files of the maps, one per representative, in the sketch's order.
    box_size
        Voxels along an edge.
    pixel_size_angstroms
        Pixel size in Å from the first map's header; None where it says nothing.
    """

    sketch: Sketch
    paths: tuple[str, ...]
    box_size: int
    pixel_size_angstroms: float | None


def open_ensemble(directory: Path, n_particles: int) -> Ensemble:
    """Read the sketch of cryoDRGN's ``analyze`` or ``analyze_landscape``.

    Parameters
    ----------
    directory
        Directory ``kmeansK`` with ``centers_ind.txt``, ``labels.pkl`` and ``vol_*.mrc``.
    n_particles
        Number of the model's particles.

    Raises
    ------
    InputError
        Where a file is missing or the files do not fit each other.
    """
    paths = sorted(directory.glob("vol_[0-9]*.mrc"), key=lambda path: (len(path.name), path.name))
    centers, labels = directory / "centers_ind.txt", directory / "labels.pkl"
    if not (paths and centers.is_file() and labels.is_file()):
        raise InputError(
            f"{directory} is no sketch of cryoDRGN: it needs vol_*.mrc, centers_ind.txt and "
            "labels.pkl. Give the kmeansK directory of analyze_landscape."
        )
    particle = np.loadtxt(centers, ndmin=1).astype(np.int64)
    assignment = np.asarray(load_pickle(labels))
    if assignment.shape != (n_particles,) or len(particle) != len(paths):
        raise InputError(
            f"{directory} should have one map a center and one label a particle. It has "
            f"{len(paths)} maps, {len(particle)} centers and {assignment.shape} labels for "
            f"{n_particles} particles. Give the directory as cryoDRGN wrote it."
        )
    assignment = (assignment - assignment.min()).astype(np.int32)
    if particle.max() >= n_particles or assignment.max() >= len(particle):
        raise InputError(
            f"{directory} belongs to another training: its particles run to {particle.max()}, its "
            f"labels to {assignment.max()}. Give the sketch of this one."
        )
    volume, pixel_size = read_map(paths[0])
    return Ensemble(
        sketch=Sketch(particle=particle, assignment=assignment),
        paths=tuple(str(path.resolve()) for path in paths),
        box_size=len(volume),
        pixel_size_angstroms=pixel_size,
    )
