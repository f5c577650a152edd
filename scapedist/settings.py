"""What can be chosen: each option once, with its default, help, flag, choices and rule."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from scapedist.errors import InputError

if TYPE_CHECKING:
    from scapedist.plan import Budget

S = TypeVar("S")
NOT_WHERE_CLIPPED = (
    "The reduced embedding does not apply: components of densities clipped at zero have "
    "coordinates that are no affine function of the field, and a few points do not say where "
    "density is negative. Use the method exact, or do without --clip-negative."
)


class Rule(NamedTuple):
    """What a value must be: what an error says of it, whether a value holds to it, the way out."""

    says: str
    holds: Callable[[Any], bool]
    way_out: str
    named: bool = False
    """Whether the error gives the value by the option's name."""
    choices: tuple[str, ...] = ()
    """The words that hold, where they are few."""


class Option(NamedTuple):
    """One thing that can be chosen, as its field declares it."""

    name: str
    default: Any
    kind: Any
    """Type of the value as it is typed."""
    help: str
    flag: str
    """On the command line; empty where the API alone has it."""
    shown: str
    """The default in words; empty for a bare flag, which is off unless given."""
    rule: Rule | None
    parse: Callable[[str], Any] | None
    """Makes the value of what is typed, where that is not the value."""

    def check(self, value: Any) -> None:
        """Refuse a value that breaks the rule."""
        if self.rule is None or (value is None and self.default is None) or self.rule.holds(value):
            return
        subject = (self.flag or self.name) if self.rule.named else "It"
        shown = repr(value) if isinstance(value, str) else value
        raise InputError(f"{self.rule.says}. {subject} is {shown}. {self.rule.way_out}.")


def option(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    shown: str | None = None,
    kind: Any = None,
    rule: Rule | None = None,
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """A field of a settings class that is an :class:`Option`.

    Unless they are given the flag is made of the field's name (``--x``; ``--x/--no-x`` where it is
    true or false), the default in words of the default, and the kind is the field's type.
    """
    declared = {"kind": kind, "help": help, "flag": flag, "shown": shown}
    return dataclasses.field(default=default, metadata=declared | {"rule": rule, "parse": parse})


@cache
def options_of(kind: type) -> dict[str, Option]:
    """The options that a settings class declares, by the names of its fields."""
    found = {}
    for field in dataclasses.fields(kind):
        name, default, declared = field.name, field.default, dict(field.metadata)
        flag, word = declared["flag"], name.replace("_", "-")
        if isinstance(default, bool):
            declared["shown"] = f"no-{word}" if flag is None else ""
            word = f"{word}/--no-{word}"
        elif declared["shown"] is None:
            declared["shown"] = "none" if default in (None, ()) else f"{default}".removesuffix(".0")
        declared["flag"] = f"--{word}" if flag is None else flag
        declared["kind"] = declared["kind"] or field.type
        found[name] = Option(name=name, default=default, **declared)
    return found


def at_least(least: int, says: str) -> Rule:
    """A number that is not too small."""
    return Rule(says, lambda value: bool(value >= least), f"Use {least} or more", named=True)


def one_of(what: str, *choices: str) -> Rule:
    """A word among a few."""
    says = f"{what} is one of {', '.join(choices)}"
    return Rule(says, lambda value: value in choices, "Choose one", choices=choices)


def _numbers(text: str) -> tuple[int, ...] | None:
    """Numbers with commas between them; None where there are none."""
    if not text:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"states are numbers with commas, as 3,7; it is {text!r}") from None


def _bytes(text: str) -> int:
    from scapedist.plan import parse_bytes

    return parse_bytes(text)


def _seed() -> Any:
    return option(0, "Of all random numbers.", rule=at_least(0, "A seed is 0 or more"))


PRECISIONS = ("auto", "float64", "float32", "tf32", "float16x3", "bfloat16", "float16")


def auto_tolerance(dtype: str) -> float | None:
    """Largest error of a precision that is to be measured; None of one that has a name."""
    word, colon, number = dtype.partition(":")
    if word != "auto":
        return None
    try:
        tolerance = float(number) if colon else 1e-3
    except ValueError:
        return None
    return tolerance if 0 < tolerance < 1 else None


class Settings:
    """Values of options, each held to its rule."""

    def __post_init__(self) -> None:
        for name, declared in options_of(type(self)).items():  # type: ignore[arg-type]
            declared.check(getattr(self, name))


@dataclass(frozen=True)
class SketchSettings(Settings):
    """Which particles are decoded."""

    size: int = option(
        500,
        "Volumes to decode.",
        flag="--sketch-size",
        rule=at_least(2, "A sketch has 2 volumes or more"),
    )
    method: str = option(
        "kmeans",
        "kmeans, uniform or geometric.",
        flag="--sketch-method",
        rule=one_of("A sketch method", "kmeans", "uniform", "geometric"),
    )
    exclude_particles: str | None = option(
        None, "Rows to leave out of the sketch (.pkl, .npy or .txt).", kind=Path
    )
    maps: str | None = option(
        None, "cryoDRGN's kmeansK directory: take its sketch and maps.", shown="decode", kind=Path
    )
    quality_groups: int = option(
        8,
        "Groups of particles whose volumes are compared among themselves.",
        flag="",
        rule=at_least(0, "Groups are counted from 0"),
    )
    quality_members: int = option(
        4,
        "Further members of each such group to decode.",
        flag="",
        rule=at_least(0, "Members are counted from 0"),
    )
    added: tuple[int, ...] = option((), "Particles that the sketch has grown by.", flag="")
    seed: int = _seed()


@dataclass(frozen=True)
class GenerateSettings(Settings):
    """How the sketch's volumes are decoded and stored."""

    box_size: int | None = option(
        None, "Voxels along an edge, even.", shown="the model's, at most 128"
    )
    pixel_size: float | None = option(
        None,
        "Å per voxel of the model's box.",
        shown="from the CTF file",
        rule=Rule(
            "A pixel size is a length above 0 Å",
            lambda value: bool(0 < value < math.inf),
            "Give another --pixel-size",
        ),
    )
    flip: bool = option(False, "Mirror along z.")
    invert: bool = option(False, "Change the density's sign.")
    dtype: str = option(
        "float32",
        "Precision: float64, float32, bfloat16, float16, on GPUs tf32 and float16x3; auto: the "
        "fastest whose error in coordinates is below 0.001 of their spread; auto:0.01: below that.",
        shown="float32; auto on GPUs",
        rule=Rule(
            f"A precision is one of {', '.join(PRECISIONS)}, or as auto:0.01 with a tolerance",
            lambda value: value in PRECISIONS or auto_tolerance(str(value)) is not None,
            "Choose one",
            choices=PRECISIONS,
        ),
    )
    store: str = option(
        "volumes",
        "volumes (whole) or masked (voxels in it).",
        rule=one_of("A store", "volumes", "masked"),
    )
    store_dtype: str = option(
        "float32",
        "float32 or float16 on disk.",
        rule=one_of("The type of stored volumes", "float32", "float16"),
    )
    batch_size: int | None = option(
        None,
        "Volumes of a batch.",
        shown="8, or what memory allows",
        rule=at_least(1, "A batch has a volume or more"),
    )
    pilot_volumes: int = option(
        64,
        "Of a masked store: volumes its mask is made from.",
        rule=at_least(1, "A pilot has a volume or more"),
    )


@dataclass(frozen=True)
class MaskSettings(Settings):
    """Which voxels are analysed: those of a file's mask, or by the rules of the other fields."""

    mask: str | None = option(None, "MRC file of a mask.", shown="made from the volumes", kind=Path)
    threshold: float | None = option(
        None,
        "Density that claims a voxel.",
        shown="mean of half the 99.99th percentile",
        rule=Rule("A threshold is a density", math.isfinite, "Give a number"),
    )
    dilate: float = option(5.0, "Growth of the mask, Å.")
    cosine_edge: float = option(0.0, "Soft edge of the mask, Å.")
    min_fraction: float = option(
        0.0, "Fraction of volumes that must claim a voxel.", shown="0, any one"
    )

    def __post_init__(self) -> None:
        lengths = (self.dilate, self.cosine_edge)
        if not all(0 <= length < math.inf for length in lengths) or not 0 <= self.min_fraction <= 1:
            raise InputError(
                "Dilation and edge are 0 Å or more, the fraction of volumes is from 0 to "
                f"1. They are {self.dilate}, {self.cosine_edge} and {self.min_fraction}. Give "
                "others."
            )
        super().__post_init__()


@dataclass(frozen=True)
class PcaSettings(Settings):
    """How components are fitted.

    The solver ``gram`` goes by the matrix of the volumes' inner products, ``iteration`` by passes
    over the volumes. States to leave out are those of the last analysis of all volumes.
    """

    components: int = option(
        20, "Components to fit.", rule=at_least(1, "There is a component or more")
    )
    solver: str = option(
        "auto",
        "gram, iteration, or auto: what memory allows.",
        rule=one_of("A solver", "auto", "gram", "iteration"),
    )
    all_particles: bool = option(
        False, "Components of all particles: decodes each several times.", flag="--all-particles"
    )
    clip_negative: bool = option(False, "Set negative density to zero, as cryoDRGN does.")
    soft_mask: bool = option(False, "Weight voxels by the mask, as cryoDRGN does.")
    exclude_states: tuple[int, ...] = option(
        (), "States to leave out, as 3,7.", kind=str, parse=_numbers
    )


@dataclass(frozen=True)
class StatesSettings(Settings):
    """How volumes are grouped into states.

    The first four linkages join volumes by their distances; ``kmeans`` is k-means on the volumes,
    ``hdbscan`` gives as many dense groups as there are, and leaves volumes in no state.
    """

    states: int = option(10, "Number of states.", rule=at_least(1, "There is a state or more"))
    linkage: str = option(
        "average",
        "average, ward, complete, single, kmeans, or hdbscan.",
        rule=one_of("A linkage", "average", "ward", "complete", "single", "kmeans", "hdbscan"),
    )
    seed: int = _seed()


@dataclass(frozen=True)
class ReportSettings(Settings):
    """What the report shows beyond the rest; a UMAP takes a minute or more."""

    umap: bool = option(False, "Also a UMAP of the latents.")


@dataclass(frozen=True)
class EmbedSettings(Settings):
    """How every particle is put on the components.

    The tolerance is a root mean square error relative to the total standard deviation. The variant
    ``paper`` trains for 50 epochs at a rate of 1e-3, ``cryodrgn`` for 200 at 1e-4.
    """

    method: str = option(
        "reduced",
        "exact, reduced or mlp.",
        rule=one_of("An embedding's method", "reduced", "exact", "mlp"),
    )
    components: int | None = option(
        None,
        "Components.",
        shown="all that were fitted",
        rule=at_least(1, "There is a component or more"),
    )
    tolerance: float = option(
        1e-3,
        "Of the reduced embedding: error relative to the spread.",
        rule=Rule(
            "A tolerance is a fraction of the spread, between 0 and 1",
            lambda value: bool(0 < value < 1),
            "Give another --tolerance",
        ),
    )
    box_size: int | None = option(None, "Of exact: only what a smaller box has.", shown="all")
    variant: str = option(
        "paper", "Of mlp: paper or cryodrgn.", rule=one_of("The MLP's variant", "paper", "cryodrgn")
    )
    error_bars: bool = option(
        False, "Also each particle's posterior covariance (reduced).", flag="--error-bars"
    )
    seed: int = _seed()

    def __post_init__(self) -> None:
        super().__post_init__()
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
class PopulationSettings(Settings):
    """How all particles are looked at together."""

    groups: int = option(
        10, "k-means groups of all particles.", rule=at_least(1, "There is a group or more")
    )
    seed: int = _seed()


@dataclass(frozen=True)
class JobOptions(Settings):
    """What a whole run is asked beside the settings of its stages."""

    embedding: str | None = option(
        None,
        "All particles by: reduced, exact, mlp, none.",
        flag="--embed",
        shown="reduced; exact for few",
        rule=one_of("An embedding of all particles", "reduced", "exact", "mlp", "none"),
    )
    overwrite: bool = option(False, "Replace the run that is there.", flag="--overwrite")


@dataclass(frozen=True)
class WorkerOptions(Settings):
    """Where a command computes, as :func:`scapedist.workers.open_workers` takes it."""

    n_workers: int | None = option(None, "Local processes.", flag="--workers", shown="one per core")
    scheduler: str | None = option(None, "A running Dask scheduler: tcp://HOST:PORT or its file.")
    gpus: str | None = option(
        None, "GPUs, one worker per GPU: all, or numbers as 0,2.", shown="none, CPUs"
    )
    cluster: str | None = option(
        None, "File that says where workers come from (cluster_configs).", kind=Path
    )
    memory_limit: int | None = option(
        None, "What a worker may use, as 16GiB.", shown="no limit", kind=str, parse=_bytes
    )


def check_pixel_size(angstroms: float | None) -> None:
    """Refuse a pixel size that none can have."""
    changed(GenerateSettings(), {"pixel_size": angstroms})


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
    chosen = settings_of(options)
    size, states = chosen["sketch"].size, chosen["states"].states
    if states > size and not chosen["sketch"].maps:
        raise InputError(
            f"{states} states were requested, but there are only {size} volumes. "
            f"Use --states {size} or less, or a larger --sketch-size."
        )
    for path in (chosen["mask"].mask, chosen["sketch"].exclude_particles):
        if path is not None and not Path(path).is_file():
            raise InputError(f"{path} cannot be read: there is no such file. Give its path.")


def check_linkage(options: dict[str, dict[str, Any]], budget: "Budget") -> None:
    """Refuse a sketch that cannot be joined within a memory, before anything is decoded."""
    from scapedist.plan import PANEL_BYTES, plan_linkage

    chosen = settings_of(options)
    sketch = chosen["sketch"]
    if not sketch.maps and 8 * sketch.size**2 > PANEL_BYTES:  # of few volumes anything has room
        plan_linkage(sketch.size, chosen["states"].linkage, budget)


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


def those_of(kind: type[Any], options: dict[str, Any]) -> dict[str, Any]:
    """Those of some options that a kind of settings has."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in options.items() if name in names}


def from_record(kind: type[S], record: dict[str, Any] | None) -> S:
    """Settings as a stage's record holds them; the defaults without a record."""
    if record is None:
        return kind()
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in record["settings"].items()}
    return kind(**those_of(kind, values))


@dataclass(frozen=True)
class NoSettings(Settings):
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


def settings_of(options: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The settings of each stage of the whole job, from options as :func:`by_stage` sorts them."""
    return {
        name: changed(stage.settings(), options.get(name, {})) for name, stage in STAGES.items()
    }


def by_stage(options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options of the whole job, sorted by the stages that have them (``seed``: several).

    Raises
    ------
    InputError
        Where no stage has an option of that name.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for stage in STAGES.values():
        chosen[stage.name] = those_of(stage.settings, options)
    unknown = set(options).difference(*chosen.values())
    if unknown:
        raise InputError(f"No stage has the setting {sorted(unknown)[0]!r}.")
    return chosen
