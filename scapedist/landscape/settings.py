"""What can be chosen for each stage, with its defaults."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

from scapedist.errors import InputError

S = TypeVar("S")


@dataclass(frozen=True)
class SketchSettings:
    """Which particles are decoded.

    Attributes
    ----------
    size
        Volumes.
    method
        ``kmeans``, ``uniform`` or ``geometric``.
    exclude_particles
        File of rows that are left out, or None.
    maps
        Directory of cryoDRGN's ``kmeansK``, whose sketch and maps are taken instead.
    quality_groups, quality_members
        Groups, and further members of each, decoded to compare volumes within a group.
    seed
        Of all random numbers of the sketch.
    """

    size: int = 500
    method: str = "kmeans"
    exclude_particles: str | None = None
    maps: str | None = None
    quality_groups: int = 8
    quality_members: int = 4
    seed: int = 0


@dataclass(frozen=True)
class GenerateSettings:
    """How the sketch's volumes are decoded and stored.

    Attributes
    ----------
    box_size
        Voxels along an edge; None for the model's, at most 128.
    pixel_size
        Angstroms a voxel of the model's full box; None for what the CTF file says.
    flip, invert
        Mirror along z; change the sign of the density.
    dtype
        Precision of the evaluation.
    store
        ``volumes`` or ``masked``.
    store_dtype
        ``float32`` or ``float16``.
    batch_size
        Volumes of a batch; None for what memory allows, up to 8.
    pilot_volumes
        Volumes of the sketch that the mask of a masked store is made from.
    """

    box_size: int | None = None
    pixel_size: float | None = None
    flip: bool = False
    invert: bool = False
    dtype: str = "float32"
    store: str = "volumes"
    store_dtype: str = "float32"
    batch_size: int | None = None
    pilot_volumes: int = 64


@dataclass(frozen=True)
class MaskSettings:
    """Which voxels are analysed.

    Attributes
    ----------
    mask
        MRC file of a mask, instead of the rules below.
    threshold
        Density that claims a voxel; None for cryoDRGN's rule (the mean over volumes of half
        their 99.99th percentile).
    dilate, cosine_edge
        Growth and soft edge, angstroms.
    min_fraction
        Fraction of the volumes that must claim a voxel; 0 for any one of them.
    """

    mask: str | None = None
    threshold: float | None = None
    dilate: float = 5.0
    cosine_edge: float = 0.0
    min_fraction: float = 0.0


@dataclass(frozen=True)
class PcaSettings:
    """How components are fitted.

    Attributes
    ----------
    components
        Number of components.
    clip_negative, soft_mask
        cryoDRGN's habits: density below zero set to zero; voxels weighted by the mask.
    exclude_states
        States (of the last analysis of all volumes) whose volumes are left out.
    """

    components: int = 20
    clip_negative: bool = False
    soft_mask: bool = False
    exclude_states: tuple[int, ...] = ()


@dataclass(frozen=True)
class StatesSettings:
    """How volumes are grouped into states.

    Attributes
    ----------
    states
        Number of states.
    linkage
        ``average``, ``ward``, ``complete``, ``single``, or ``kmeans`` for k-means on the volumes.
    seed
        Of k-means.
    """

    states: int = 10
    linkage: str = "average"
    seed: int = 0


@dataclass(frozen=True)
class ReportSettings:
    """What the report shows beyond the rest.

    Attributes
    ----------
    umap
        Also a UMAP of the latents (takes a minute or more).
    """

    umap: bool = False


def changed(settings: S, options: dict[str, Any]) -> S:
    """Settings with the options that were given (not None) in place of theirs.

    Raises
    ------
    InputError
        Where there is no setting of that name.
    """
    names = {field.name for field in dataclasses.fields(settings)}  # type: ignore[arg-type]
    unknown = set(options) - names
    if unknown:
        raise InputError(
            f"There is no setting {sorted(unknown)[0]!r}. {type(settings).__name__} has "
            f"{', '.join(sorted(names))}."
        )
    given = {name: value for name, value in options.items() if value is not None}
    return dataclasses.replace(settings, **given)  # type: ignore[type-var]


def from_record(kind: type[S], record: dict[str, Any] | None) -> S:
    """Settings as a stage's record holds them; the defaults without a record."""
    if record is None:
        return kind()
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in record["settings"].items()}
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{k: v for k, v in values.items() if k in known})


STAGE_SETTINGS: dict[str, type[Any]] = {
    "sketch": SketchSettings,
    "generate": GenerateSettings,
    "mask": MaskSettings,
    "pca": PcaSettings,
    "states": StatesSettings,
    "report": ReportSettings,
}


def by_stage(options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options of the whole job, sorted by the stages that have them (``seed``: several).

    Raises
    ------
    InputError
        Where no stage has an option of that name.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for stage, kind in STAGE_SETTINGS.items():
        names = {field.name for field in dataclasses.fields(kind)}
        chosen[stage] = {name: value for name, value in options.items() if name in names}
    unknown = set(options).difference(*chosen.values())
    if unknown:
        raise InputError(f"No stage has the setting {sorted(unknown)[0]!r}.")
    return chosen
