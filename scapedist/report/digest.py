"""Reading what the report shows of a run: small arrays and pictures of volumes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scapedist.analysis import gram
from scapedist.analysis.mask import Mask
from scapedist.errors import RunError
from scapedist.report.images import View, view_of_mask
from scapedist.settings import writer_of

if TYPE_CHECKING:
    import zarr

_NEEDED = (
    "latents",
    "sketch/particle",
    "sketch/assignment",
    "sketch/occupancy",
    "mask",
    "sketch/coordinates",
    "components/mean",
    "components/vectors",
    "components/variance_ratio",
    "states/label",
    "states/n_volumes",
    "states/n_particles",
    "states/medoid",
    "states/mean",
)
"""Names of the arrays that the report needs, in the order of the stages."""


@dataclasses.dataclass(frozen=True)
class Digest:
    """Data of a run that the report shows; d is the volumes' box, s the side of a picture.

    Attributes
    ----------
    group
        The run's Zarr group, for what is read when it is shown.
    source, stages, beside
        Records of the run.
    particle, occupancy, label
        (n,) particle of each sketch volume, number of particles it stands for, its state or -1.
    assignment
        (n_particles,) sketch volume of each particle, or -1.
    coordinates, variance_ratio
        (n, r) coordinates of the sketch volumes; (r,) shares of the variance.
    n_volumes, n_particles, medoid
        (M,) numbers of volumes and of particles of each state, and its medoid.
    mask
        (d, d, d) weights.
    view
        View that pictures show: the mask's surroundings.
    projections, slices
        (M, 3, s, s) projections along, and slices across, z, y, x of the states' mean volumes.
    mean_slices
        (3, d', d') slices of the whole box of the mean over all particles that have a state.
    """

    group: zarr.Group
    source: Mapping[str, Any]
    stages: dict[str, Any]
    beside: dict[str, Any]
    particle: NDArray
    occupancy: NDArray
    label: NDArray
    assignment: NDArray
    coordinates: NDArray
    variance_ratio: NDArray
    n_volumes: NDArray
    n_particles: NDArray
    medoid: NDArray
    mask: NDArray
    view: View
    projections: NDArray
    slices: NDArray
    mean_slices: NDArray

    @property
    def name(self) -> str:
        """The work directory's own name."""
        return Path(str(self.source.get("workdir", ""))).name or "a trained model"

    @property
    def n_states(self) -> int:
        """Number of states."""
        return len(self.n_volumes)

    @property
    def pixel_size_angstroms(self) -> float | None:
        """Edge of the volumes' voxels in Å; None where it is unknown."""
        return self.source.get("pixel_size_angstroms") or None

    @functools.cached_property
    def inside(self) -> Mask:
        """The mask that takes volumes to the voxels above 0."""
        return Mask.of(self.mask)

    @property
    def whole_box(self) -> View:
        """View of the whole box, with the slices of ``view``."""
        return View((0, 0, 0), self.mask.shape[0], self.view.centre)

    @property
    def particle_label(self) -> NDArray:
        """State (n_particles,) of each particle's sketch volume, -1 for none."""
        return np.where(self.assignment >= 0, self.label[self.assignment], -1)

    def array(self, name: str) -> Any:
        """Give an array of the store, or None where the run has none of that name."""
        return self.group[name] if name in self.group else None


def read_digest(group: zarr.Group) -> Digest:
    """Read what the report shows; volumes are read one at a time and only their pictures kept.

    Raises
    ------
    RunError
        Where the run lacks an array that the report needs.
    """
    for name in _NEEDED:
        if name not in group:
            stage = writer_of(name)
            raise RunError(
                f"A report needs all stages up to the states. This run has no {name}, which "
                f"the stage {stage.name if stage else 'sketch'} writes. Run that stage and those "
                "after it first."
            )

    def read(name: str) -> NDArray:
        values: Any = group[name]
        return values[...]

    record: Any = group.attrs.get("scapedist", {})
    mask = read("mask")
    view = view_of_mask(mask)
    box = View((0, 0, 0), mask.shape[0], view.centre)
    means: Any = group["states/mean"]
    projections, slices, box_slices = [], [], []
    for state in range(means.shape[0]):
        mean = means[state]
        projections.append(view.projections(mean))
        slices.append(view.slices(mean))
        box_slices.append(box.slices(mean))
    n_particles = read("states/n_particles")
    return Digest(
        group=group,
        source=record.get("source", {}),
        stages=record.get("stages", {}),
        beside=record.get("beside", {}),
        particle=read("sketch/particle"),
        occupancy=read("sketch/occupancy"),
        label=read("states/label"),
        assignment=read("sketch/assignment"),
        coordinates=read("sketch/coordinates"),
        variance_ratio=read("components/variance_ratio"),
        n_volumes=read("states/n_volumes"),
        n_particles=n_particles,
        medoid=read("states/medoid"),
        mask=mask,
        view=view,
        projections=np.stack(projections),
        slices=np.stack(slices),
        mean_slices=np.average(np.stack(box_slices), axis=0, weights=n_particles),
    )


@dataclasses.dataclass(frozen=True)
class Traversal:
    """Pictures along one component, each kind from the direction where it changes most.

    Attributes
    ----------
    position
        (m,) coordinates on the component.
    volume
        (m,) sketch volumes nearest to these positions.
    direction
        Direction of each kind ("projections", "slices"): 0, 1, 2 for z, y, x.
    component
        Picture (s, s) of the component itself, by kind.
    synthetic
        Pictures (m, s, s) of mean + coordinate x component, by kind.
    real
        Pictures (m, s, s) of the sketch volumes in the mask, by kind.
    """

    position: NDArray
    volume: NDArray
    direction: dict[str, int]
    component: dict[str, NDArray]
    synthetic: dict[str, NDArray]
    real: dict[str, NDArray]


def read_traversals(digest: Digest, max_components: int, max_points: int) -> list[Traversal]:
    """Make the pictures of the first components' traversals.

    Pictures are linear in the volume: two volumes per component serve all its points.
    """
    positions = digest.array("components/traversal_position")
    volumes = digest.array("components/traversal_volume")
    if positions is None or volumes is None:
        return []
    position, volume = positions[:max_components], volumes[:max_components]
    points = np.linspace(0, position.shape[1] - 1, min(position.shape[1], max_points)).round()
    position, volume = position[:, points.astype(int)], volume[:, points.astype(int)]
    vectors = digest.array("components/vectors")[: len(position)]

    mean = _pictures(digest.view, _in_mask(digest.inside, digest.array("components/mean")[...]))
    real = {i: _pictures(digest.view, one) for i, one in _real_volumes(digest, np.unique(volume))}
    traversals = []
    for k in range(len(position)):
        vector = _pictures(digest.view, _in_mask(digest.inside, vectors[k]))
        direction = {kind: int(np.argmax(vector[kind].var((1, 2)))) for kind in vector}
        traversals.append(
            Traversal(
                position=position[k],
                volume=volume[k],
                direction=direction,
                component={kind: vector[kind][at] for kind, at in direction.items()},
                synthetic={
                    kind: mean[kind][at] + position[k][:, None, None] * vector[kind][at]
                    for kind, at in direction.items()
                },
                real={
                    kind: np.stack([real[i][kind][at] for i in volume[k].tolist()])
                    for kind, at in direction.items()
                },
            )
        )
    return traversals


def _pictures(view: View, volume: NDArray) -> dict[str, NDArray]:
    return {"projections": view.projections(volume), "slices": view.slices(volume)}


def _in_mask(mask: Mask, values: NDArray) -> NDArray[np.float32]:
    """Put (p,) values of the mask's voxels where they belong, zero elsewhere: (d, d, d)."""
    if mask.n_voxels != values.size:
        raise RunError(
            f"Components live on the mask's voxels. The mask has {mask.n_voxels}, "
            f"the components {values.size}. Run the stage pca again."
        )
    return mask.volumes_of(values[None])[0]


def _real_volumes(digest: Digest, indices: NDArray) -> Iterator[tuple[int, NDArray]]:
    """Read decoded volumes one at a time, zero outside the mask, from either store."""
    masked, full = digest.array("volumes/masked"), digest.array("volumes/0")
    inside = digest.mask > 0
    for index in indices.tolist():
        if masked is not None:
            yield index, _in_mask(digest.inside, masked[index])
        else:
            yield index, full[index] * inside


def sample_of_states(labels: NDArray, n_max: int, n_least: int, seed: int) -> NDArray[np.int64]:
    """Draw at most about ``n_max`` rows at random, but ``n_least`` of every state that has them.

    Parameters
    ----------
    labels
        (n,) states, -1 for none.
    n_max
        Number of rows drawn from all alike.
    n_least
        Smallest number of rows of a state that has as many.
    seed
        Seed of the drawing.

    Returns
    -------
    numpy.ndarray
        Sorted rows.
    """
    if len(labels) <= n_max:
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    drawn = [order[:n_max]]
    by_state = order[np.argsort(labels[order], kind="stable")]
    starts = np.searchsorted(labels[by_state], np.arange(labels.max(initial=-1) + 1))
    for start, end in zip(starts, [*starts[1:], len(by_state)], strict=False):
        drawn.append(by_state[start : min(start + n_least, end)])
    return np.unique(np.concatenate(drawn))


def principal_axes(latents: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Find the latents' own principal axes.

    Parameters
    ----------
    latents
        (n_particles, zdim) latents.

    Returns
    -------
    mean : numpy.ndarray
        (zdim,) mean of the latents.
    axes : numpy.ndarray
        (zdim, zdim), one axis per column, widest first; its largest entry is positive.
    share : numpy.ndarray
        (zdim,) share of the variance along each axis.
    """
    mean = latents.mean(0, dtype=np.float64)
    centred = latents - mean.astype(latents.dtype)
    variance, axes = gram.principal_axes((centred.T @ centred).astype(np.float64))
    return mean, axes.T, variance / max(variance.sum(), 1e-30)
