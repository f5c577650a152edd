"""What can be chosen for each stage, with its defaults."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from scapedist.analysis.linkage import LINKAGES
from scapedist.analysis.sketch import METHODS
from scapedist.errors import InputError
from scapedist.model.decoder import DTYPES
from scapedist.plan import PANEL_BYTES, Budget, plan_linkage

S = TypeVar("S")
NOT_WHERE_CLIPPED = (
    "The reduced embedding does not apply: components of densities clipped at zero have "
    "coordinates that are no affine function of the field, and a few points do not say where "
    "density is negative. Use the method exact, or do without --clip-negative."
)


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
    added
        Particles that a sketch has grown by.
    seed
        Of all random numbers of the sketch.
    """

    size: int = 500
    method: str = "kmeans"
    exclude_particles: str | None = None
    maps: str | None = None
    quality_groups: int = 8
    quality_members: int = 4
    added: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("A sketch method", self.method, METHODS)
        _at_least("A sketch has 2 volumes or more", self.size, 2, "--sketch-size")
        _at_least("Groups are counted from 0", self.quality_groups, 0, "quality_groups")
        _at_least("Members are counted from 0", self.quality_members, 0, "quality_members")
        _at_least("A seed is 0 or more", self.seed, 0, "--seed")


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

    def __post_init__(self) -> None:
        _one_of("A precision", self.dtype, DTYPES)
        _one_of("A store", self.store, ("volumes", "masked"))
        _one_of("The type of stored volumes", self.store_dtype, ("float32", "float16"))
        check_pixel_size(self.pixel_size)
        if self.batch_size is not None:
            _at_least("A batch has a volume or more", self.batch_size, 1, "--batch-size")
        _at_least("A pilot has a volume or more", self.pilot_volumes, 1, "pilot_volumes")


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

    def __post_init__(self) -> None:
        lengths = (self.dilate, self.cosine_edge)
        if not all(0 <= length < math.inf for length in lengths) or not 0 <= self.min_fraction <= 1:
            raise InputError(
                "Dilation and edge are 0 angstroms or more, the fraction of volumes is from 0 to "
                f"1. They are {self.dilate}, {self.cosine_edge} and {self.min_fraction}. Give "
                "others."
            )
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise InputError(f"A threshold is a density. It is {self.threshold}. Give a number.")


@dataclass(frozen=True)
class PcaSettings:
    """How components are fitted.

    Attributes
    ----------
    components
        Number of components.
    solver
        ``gram``: from the matrix of the volumes' inner products; ``iteration``: from passes over
        the volumes; ``auto``: the former where it fits the memory.
    all_particles
        Components of all particles' volumes, decoded in every pass, instead of the sketch's.
    clip_negative, soft_mask
        cryoDRGN's habits: density below zero set to zero; voxels weighted by the mask.
    exclude_states
        States (of the last analysis of all volumes) whose volumes are left out.
    """

    components: int = 20
    solver: str = "auto"
    all_particles: bool = False
    clip_negative: bool = False
    soft_mask: bool = False
    exclude_states: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _at_least("There is a component or more", self.components, 1, "--components")
        _one_of("A solver", self.solver, ("auto", "gram", "iteration"))


@dataclass(frozen=True)
class StatesSettings:
    """How volumes are grouped into states.

    Attributes
    ----------
    states
        Number of states.
    linkage
        ``average``, ``ward``, ``complete``, ``single``, or ``kmeans`` for k-means on the volumes;
        or ``hdbscan`` for as many dense groups as there are, and volumes in no state.
    seed
        Of k-means.
    """

    states: int = 10
    linkage: str = "average"
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("A linkage", self.linkage, (*LINKAGES, "kmeans", "hdbscan"))
        _at_least("There is a state or more", self.states, 1, "--states")
        _at_least("A seed is 0 or more", self.seed, 0, "--seed")


@dataclass(frozen=True)
class ReportSettings:
    """What the report shows beyond the rest.

    Attributes
    ----------
    umap
        Also a UMAP of the latents (takes a minute or more).
    """

    umap: bool = False


@dataclass(frozen=True)
class EmbedSettings:
    """How every particle is put on the components.

    Attributes
    ----------
    method
        ``reduced``, ``exact`` or ``mlp``.
    components
        How many; None for all that were fitted.
    tolerance
        Of ``reduced``: root mean square error relative to the total standard deviation.
    box_size
        Of ``exact``: decode the frequencies of a smaller box alone; None for all.
    variant
        Of ``mlp``: ``paper`` (50 epochs, learning rate 1e-3) or ``cryodrgn`` (200, 1e-4).
    error_bars
        Of ``reduced``: also the posterior covariance of each particle's leading coordinates.
    seed
        Of all random numbers.
    """

    method: str = "reduced"
    components: int | None = None
    tolerance: float = 1e-3
    box_size: int | None = None
    variant: str = "paper"
    error_bars: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("An embedding's method", self.method, ("reduced", "exact", "mlp"))
        _one_of("The MLP's variant", self.variant, ("paper", "cryodrgn"))
        if self.components is not None:
            _at_least("There is a component or more", self.components, 1, "--components")
        _at_least("A seed is 0 or more", self.seed, 0, "--seed")
        if not 0 < self.tolerance < 1:
            raise InputError(
                f"A tolerance is a fraction of the spread, between 0 and 1. It is "
                f"{self.tolerance}. Give another --tolerance."
            )
        if self.error_bars and self.method != "reduced":
            raise InputError(
                f"Error bars are for --method reduced. The method is {self.method}. Leave out "
                "--error-bars."
            )
        if self.box_size is not None and self.method != "exact":
            raise InputError(
                f"A smaller box is for --method exact. The method is {self.method}. Leave out "
                "--box-size."
            )


@dataclass(frozen=True)
class PopulationSettings:
    """How all particles are looked at together.

    Attributes
    ----------
    groups
        Of k-means.
    seed
        Of k-means.
    """

    groups: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("There is a group or more", self.groups, 1, "--groups")
        _at_least("A seed is 0 or more", self.seed, 0, "--seed")


def check_pixel_size(angstroms: float | None) -> None:
    """Refuse a pixel size that none can have."""
    if angstroms is not None and not 0 < angstroms < math.inf:
        raise InputError(
            f"A pixel size is a length above 0 angstroms. It is {angstroms}. Give another "
            "--pixel-size."
        )


def check_embedding(
    method: str | None, tolerance: float | None, error_bars: bool, clip_negative: bool
) -> None:
    """Refuse an embedding that cannot be had, before anything is decoded."""
    if method == "none" and error_bars:
        raise InputError(
            "Error bars are for --embed reduced. Nothing is embedded. Leave out --error-bars."
        )
    options = {"tolerance": tolerance, "error_bars": error_bars}
    changed(EmbedSettings(), options | {"method": None if method == "none" else method})
    if clip_negative and (method == "reduced" or error_bars):
        raise InputError(NOT_WHERE_CLIPPED)


def check_together(options: dict[str, dict[str, Any]]) -> None:
    """Refuse options of any stage that can be told to be wrong before anything is decoded.

    Parameters
    ----------
    options
        By stage, as :func:`by_stage` gives them.
    """
    chosen = {
        name: changed(stage.settings(), options.get(name, {})) for name, stage in STAGES.items()
    }
    size, states = chosen["sketch"].size, chosen["states"].states
    if states > size and not chosen["sketch"].maps:
        raise InputError(
            f"There are at most as many states as volumes, {size}. {states} were asked for. "
            f"Use --states {size} or less, or a larger --sketch-size."
        )
    for path in (chosen["mask"].mask, chosen["sketch"].exclude_particles):
        if path is not None and not Path(path).is_file():
            raise InputError(f"{path} cannot be read: there is no such file. Give its path.")


def check_linkage(options: dict[str, dict[str, Any]], budget: Budget) -> None:
    """Refuse a sketch that cannot be joined within a memory, before anything is decoded."""
    sketch = changed(SketchSettings(), options.get("sketch", {}))
    if not sketch.maps and 8 * sketch.size**2 > PANEL_BYTES:  # of few volumes anything has room
        linkage = changed(StatesSettings(), options.get("states", {})).linkage
        plan_linkage(sketch.size, linkage, budget)


def _at_least(rule: str, value: int, least: int, option: str) -> None:
    if value < least:
        raise InputError(f"{rule}. {option} is {value}. Use {least} or more.")


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{what} is one of {', '.join(allowed)}. It is {value!r}. Choose one.")


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


def options_of(kind: type[Any], options: dict[str, Any]) -> dict[str, Any]:
    """Those of some options that a kind of settings has."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in options.items() if name in names}


def from_record(kind: type[S], record: dict[str, Any] | None) -> S:
    """Settings as a stage's record holds them; the defaults without a record."""
    if record is None:
        return kind()
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in record["settings"].items()}
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{k: v for k, v in values.items() if k in known})


@dataclass(frozen=True)
class NoSettings:
    """The settings of what leaves nothing to choose."""


@dataclass(frozen=True)
class Stage:
    """A part of a run that is made in one go and has one record.

    Attributes
    ----------
    name
        Of its record, and of the command that makes it.
    settings
        What can be chosen.
    after
        The stage that it builds on; empty for the first.
    arrays
        What it writes in the store: arrays and groups, by the beginning of their names.
    files
        What it writes beside the store: paths in the run, as patterns.
    beside
        Whether it stands beside the stages of the whole job: it can be there or not.
    dear
        Whether other settings need another run, volumes being dear.
    """

    name: str
    settings: type[Any]
    after: str
    arrays: tuple[str, ...]
    files: tuple[str, ...] = ()
    beside: bool = False
    dear: bool = False


_EVERY = (
    Stage("sketch", SketchSettings, "", ("sketch",), dear=True),
    Stage(
        "generate", GenerateSettings, "sketch", ("volumes",),
        ("volumes.journal", "maps/escaped"), dear=True,
    ),
    Stage(
        "mask", MaskSettings, "generate",
        ("mask", "mask_claims", "sketch/quality/distance", "sketch/quality/between"),
        ("maps/mask.mrc",),
    ),
    Stage(
        "pca", PcaSettings, "mask", ("components", "sketch/coordinates", "sketch/residual"),
        ("components.passes", "maps/components"),
    ),
    Stage("states", StatesSettings, "pca", ("states",), ("states", "maps/states")),
    Stage("report", ReportSettings, "states", (), ("plots", "report.html")),
    Stage("embedding", EmbedSettings, "pca", ("embedding",), ("embedding.*.rows",), beside=True),
    Stage("missed", NoSettings, "pca", ("missed", "axes"), ("maps/missed",), beside=True),
    Stage(
        "population", PopulationSettings, "pca", ("population",), ("maps/population",), beside=True
    ),
    Stage("crosscheck", NoSettings, "states", ("crosscheck",), ("crosscheck.json",), beside=True),
    Stage("particles", NoSettings, "states", ("particles",), ("states/by_volume",), beside=True),
)  # fmt: skip
STAGES = {stage.name: stage for stage in _EVERY if not stage.beside}
"""The stages of the whole job, in order."""
BESIDE = {stage.name: stage for stage in _EVERY if stage.beside}
"""What can be made of a run besides; a record is named by its stage, ``embedding/exact`` too."""


def writer_of(array: str) -> Stage | None:
    """The stage that writes an array, by its name; None for what is written with the run itself."""
    found = [
        (len(start), stage)
        for stage in _EVERY
        for start in stage.arrays
        if array == start or array.startswith(f"{start}/")
    ]
    return max(found, key=lambda item: item[0])[1] if found else None


def by_stage(options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options of the whole job, sorted by the stages that have them (``seed``: several).

    Raises
    ------
    InputError
        Where no stage has an option of that name.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for stage in STAGES.values():
        chosen[stage.name] = options_of(stage.settings, options)
    unknown = set(options).difference(*chosen.values())
    if unknown:
        raise InputError(f"No stage has the setting {sorted(unknown)[0]!r}.")
    return chosen
