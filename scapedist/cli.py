"""The command line: one command for each call of the API, no logic of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from scapedist import __version__
from scapedist.errors import ScapedistError

app = typer.Typer(
    name="scapedist",
    help="Landscape analysis of a trained cryoDRGN model: states, components and a report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

STOPPED = 130
"""Exit code of a command that was stopped from the keyboard."""
Workdir = Annotated[Path, typer.Argument(help="Output directory of the cryoDRGN training.")]
Epoch = Annotated[int, typer.Argument(help="Epoch N of weights.N.pkl and z.N.pkl.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The run directory.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")]
SketchSize = Annotated[int | None, typer.Option(help="Volumes to decode. [default: 500]")]
SketchMethod = Annotated[
    str | None, typer.Option(help="kmeans, uniform or geometric. [default: kmeans]")
]
ExcludeParticles = Annotated[
    Path | None,
    typer.Option(help="Rows to leave out of the sketch (.pkl, .npy or .txt). [default: none]"),
]
Maps = Annotated[
    Path | None,
    typer.Option(help="cryoDRGN's kmeansK directory: take its sketch and maps. [default: decode]"),
]
Seed = Annotated[int | None, typer.Option(help="Of all random numbers. [default: 0]")]
BoxSize = Annotated[
    int | None,
    typer.Option(help="Voxels along an edge, even. [default: the model's, at most 128]"),
]
PixelSize = Annotated[
    float | None,
    typer.Option(help="Angstroms a voxel of the model's box. [default: from the CTF file]"),
]
Flip = Annotated[
    bool | None, typer.Option("--flip/--no-flip", help="Mirror along z. [default: no-flip]")
]
Invert = Annotated[
    bool | None,
    typer.Option("--invert/--no-invert", help="Change the density's sign. [default: no-invert]"),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Precision: float32, float64, tf32 (GPU), bfloat16, float16. [default: float32]"
    ),
]
StoreKind = Annotated[
    str | None,
    typer.Option("--store", help="volumes (whole) or masked (voxels in it). [default: volumes]"),
]
StoreDtype = Annotated[
    str | None, typer.Option(help="float32 or float16 on disk. [default: float32]")
]
PilotVolumes = Annotated[
    int | None,
    typer.Option(help="Of a masked store: volumes its mask is made from. [default: 64]"),
]
BatchSize = Annotated[
    int | None, typer.Option(help="Volumes of a batch. [default: 8, or what memory allows]")
]
Mask = Annotated[
    Path | None, typer.Option(help="MRC file of a mask. [default: made from the volumes]")
]
Threshold = Annotated[
    float | None,
    typer.Option(
        help="Density that claims a voxel. [default: mean of half the 99.99th percentile]"
    ),
]
Dilate = Annotated[float | None, typer.Option(help="Growth of the mask, angstroms. [default: 5]")]
CosineEdge = Annotated[
    float | None, typer.Option(help="Soft edge of the mask, angstroms. [default: 0]")
]
MinFraction = Annotated[
    float | None,
    typer.Option(help="Fraction of volumes that must claim a voxel. [default: 0, any one]"),
]
Components = Annotated[int | None, typer.Option(help="Components to fit. [default: 20]")]
Solver = Annotated[
    str | None, typer.Option(help="gram, iteration, or auto: what memory allows. [default: auto]")
]
ClipNegative = Annotated[
    bool | None,
    typer.Option(
        "--clip-negative/--no-clip-negative",
        help="Set negative density to zero, as cryoDRGN does. [default: no-clip-negative]",
    ),
]
SoftMask = Annotated[
    bool | None,
    typer.Option(
        "--soft-mask/--no-soft-mask",
        help="Weight voxels by the mask, as cryoDRGN does. [default: no-soft-mask]",
    ),
]
ExcludeStates = Annotated[
    str | None, typer.Option(help="States to leave out, as 3,7. [default: none]")
]
States = Annotated[int | None, typer.Option(help="Number of states. [default: 10]")]
Linkage = Annotated[
    str | None,
    typer.Option(help="average, ward, complete, single, kmeans, or hdbscan. [default: average]"),
]
Embedding = Annotated[
    str | None,
    typer.Option(
        "--embed",
        help="All particles by: reduced, exact, mlp, none. [default: reduced; exact for few]",
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(help="Of the reduced embedding: error relative to the spread. [default: 0.001]"),
]
ErrorBars = Annotated[
    bool,
    typer.Option("--error-bars", help="Also each particle's posterior covariance (reduced)."),
]
Umap = Annotated[
    bool | None,
    typer.Option("--umap/--no-umap", help="Also a UMAP of the latents. [default: no-umap]"),
]
NWorkers = Annotated[
    int | None, typer.Option("--workers", help="Local processes. [default: one a core]")
]
Scheduler = Annotated[
    str | None,
    typer.Option(help="A running Dask scheduler: tcp://HOST:PORT or its file. [default: none]"),
]
Gpus = Annotated[
    str | None,
    typer.Option(help="GPUs, a worker each: all, or numbers as 0,2. [default: none, CPUs]"),
]
Cluster = Annotated[
    Path | None,
    typer.Option(help="File that says where workers come from (cluster_configs). [default: none]"),
]
MemoryLimit = Annotated[
    str | None, typer.Option(help="What a worker may use, as 16GiB. [default: no limit]")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")]


@app.command()
def run(
    workdir: Workdir,
    epoch: Epoch,
    output: Output,
    sketch_size: SketchSize = None,
    sketch_method: SketchMethod = None,
    exclude_particles: ExcludeParticles = None,
    maps: Maps = None,
    box_size: BoxSize = None,
    pixel_size: PixelSize = None,
    flip: Flip = None,
    invert: Invert = None,
    dtype: Dtype = None,
    store: StoreKind = None,
    store_dtype: StoreDtype = None,
    batch_size: BatchSize = None,
    pilot_volumes: PilotVolumes = None,
    mask: Mask = None,
    threshold: Threshold = None,
    dilate: Dilate = None,
    cosine_edge: CosineEdge = None,
    min_fraction: MinFraction = None,
    clip_negative: ClipNegative = None,
    soft_mask: SoftMask = None,
    components: Components = None,
    states: States = None,
    linkage: Linkage = None,
    exclude_states: ExcludeStates = None,
    embed: Embedding = None,
    tolerance: Tolerance = None,
    error_bars: ErrorBars = False,
    umap: Umap = None,
    seed: Seed = None,
    workers: NWorkers = None,
    scheduler: Scheduler = None,
    gpus: Gpus = None,
    cluster: Cluster = None,
    memory_limit: MemoryLimit = None,
    overwrite: Overwrite = False,
) -> None:
    """The whole job: sketch, volumes, mask, components, states, all particles, report; resumes."""
    options = {
        "size": sketch_size,
        "method": sketch_method,
        "exclude_particles": exclude_particles,
        "maps": maps,
        "box_size": box_size,
        "pixel_size": pixel_size,
        "flip": flip,
        "invert": invert,
        "dtype": dtype,
        "store": store,
        "store_dtype": store_dtype,
        "batch_size": batch_size,
        "pilot_volumes": pilot_volumes,
        "mask": mask,
        "threshold": threshold,
        "dilate": dilate,
        "cosine_edge": cosine_edge,
        "min_fraction": min_fraction,
        "clip_negative": clip_negative,
        "soft_mask": soft_mask,
        "components": components,
        "states": states,
        "linkage": linkage,
        "exclude_states": _numbers(exclude_states),
        "umap": umap,
        "seed": seed,
        "embedding": embed,
        "tolerance": tolerance,
        "error_bars": error_bars,
    }
    where = _Where(workers, scheduler, gpus, cluster, memory_limit)
    _run_all(workdir, epoch, output, where, overwrite, options)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="The run directory.")] = Path(
        "scapedist-demo"
    ),
    sketch_size: SketchSize = None,
    workers: NWorkers = None,
    gpus: Gpus = None,
) -> None:
    """The whole job on the bundled model of adenylate kinase."""
    from importlib.resources import as_file, files

    with as_file(files("scapedist") / "data" / "adk") as workdir:
        where = _Where(workers, gpus=gpus)
        _run_all(workdir, 14, output, where, False, {"size": sketch_size})


@app.command()
def decode(
    workdir: Workdir,
    epoch: Epoch,
    latents: Annotated[Path, typer.Option(help="Rows of latents (.txt, .npy or .pkl).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the maps.")],
    box_size: Annotated[
        int | None, typer.Option(help="Voxels along an edge, even. [default: the model's]")
    ] = None,
    pixel_size: PixelSize = None,
    flip: Flip = None,
    invert: Invert = None,
    dtype: Dtype = None,
) -> None:
    """Decode latents to MRC maps, vol_001.mrc on."""
    from scapedist.landscape.decode import decode_to_maps

    with _Reporter() as reporter:
        paths = decode_to_maps(
            workdir, epoch, latents, output, box_size, pixel_size, bool(flip), bool(invert),
            dtype or "float32", reporter,
        )  # fmt: skip
    typer.echo(f"{len(paths)} maps in {output}")


@app.command()
def sketch(
    workdir: Workdir,
    epoch: Epoch,
    output: Output,
    sketch_size: SketchSize = None,
    sketch_method: SketchMethod = None,
    exclude_particles: ExcludeParticles = None,
    maps: Maps = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
) -> None:
    """Choose the particles to decode, and begin a run."""
    from scapedist.landscape import Run

    begun = Run.create(workdir, epoch, output, overwrite=overwrite)
    begun.sketch(
        size=sketch_size,
        method=sketch_method,
        exclude_particles=exclude_particles,
        maps=maps,
        seed=seed,
    )
    typer.echo(f"{begun.store.array('sketch/particle').shape[0]} particles chosen in {output}")


@app.command()
def generate(
    directory: RunDir,
    box_size: BoxSize = None,
    pixel_size: PixelSize = None,
    flip: Flip = None,
    invert: Invert = None,
    dtype: Dtype = None,
    store: StoreKind = None,
    store_dtype: StoreDtype = None,
    batch_size: BatchSize = None,
    pilot_volumes: PilotVolumes = None,
    mask: Mask = None,
    workers: NWorkers = None,
    scheduler: Scheduler = None,
    gpus: Gpus = None,
    cluster: Cluster = None,
    memory_limit: MemoryLimit = None,
) -> None:
    """Decode the sketch's volumes into the run's Zarr store; resumes."""
    where = _Where(workers, scheduler, gpus, cluster, memory_limit)
    with _at_work(directory, where) as (opened, pool):
        opened.generate(
            pool,
            box_size=box_size,
            pixel_size=pixel_size,
            flip=flip,
            invert=invert,
            dtype=dtype,
            store=store,
            store_dtype=store_dtype,
            batch_size=batch_size,
            pilot_volumes=pilot_volumes,
            mask=mask,
        )
    typer.echo(f"Volumes are complete in {directory}")


@app.command("mask")
def mask_command(
    directory: RunDir,
    mask: Mask = None,
    threshold: Threshold = None,
    dilate: Dilate = None,
    cosine_edge: CosineEdge = None,
    min_fraction: MinFraction = None,
) -> None:
    """Choose the voxels to analyse; decodes nothing."""
    opened = _stage(
        directory,
        lambda run: run.mask(
            mask=mask,
            threshold=threshold,
            dilate=dilate,
            cosine_edge=cosine_edge,
            min_fraction=min_fraction,
        ),
    )
    results = opened.store.stages["mask"]["results"]
    typer.echo(f"{results['voxels']} voxels in the mask, {results['fraction']:.2%} of the box")


@app.command()
def pca(
    directory: RunDir,
    components: Components = None,
    solver: Solver = None,
    all_particles: Annotated[
        bool,
        typer.Option(
            "--all-particles", help="Components of all particles: decodes each several times."
        ),
    ] = False,
    clip_negative: ClipNegative = None,
    soft_mask: SoftMask = None,
    exclude_states: ExcludeStates = None,
    workers: NWorkers = None,
    scheduler: Scheduler = None,
    gpus: Gpus = None,
    cluster: Cluster = None,
    memory_limit: MemoryLimit = None,
) -> None:
    """Fit the components of the masked volumes."""
    where = _Where(workers, scheduler, gpus, cluster, memory_limit)
    with _at_work(directory, where, at_once=False) as (opened, pool):
        options: dict[str, Any] = {
            "components": components,
            "solver": solver,
            "all_particles": all_particles,
            "clip_negative": clip_negative,
            "soft_mask": soft_mask,
            "exclude_states": _numbers(exclude_states),
        }
        if all_particles:
            typer.echo(opened.cost_of_all_particles(pool, **options), err=True)
        opened.pca(pool, **options)
    results = opened.store.stages["pca"]["results"]
    typer.echo(
        f"{results['components']} components of {results['volumes']} volumes explain "
        f"{results['variance_explained']:.2%} of the variance"
    )


@app.command("states")
def states_command(
    directory: RunDir,
    states: States = None,
    linkage: Linkage = None,
    seed: Seed = None,
    scheduler: Scheduler = None,
    gpus: Gpus = None,
    cluster: Cluster = None,
    memory_limit: MemoryLimit = None,
) -> None:
    """Group the volumes into states."""
    where = _Where(None, scheduler, gpus, cluster, memory_limit)
    with _at_work(directory, where, at_once=False) as (opened, pool):
        opened.states(pool, states=states, linkage=linkage, seed=seed)
    for state, n in enumerate(opened.store.stages["states"]["results"]["n_particles"]):
        typer.echo(f"state {state}: {n} particles")


@app.command()
def embed(
    directory: RunDir,
    method: Annotated[
        str | None, typer.Option(help="exact, reduced or mlp. [default: reduced]")
    ] = None,
    components: Annotated[
        int | None, typer.Option(help="Components. [default: all that were fitted]")
    ] = None,
    tolerance: Tolerance = None,
    box_size: Annotated[
        int | None, typer.Option(help="Of exact: only what a smaller box has. [default: all]")
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Of mlp: paper or cryodrgn. [default: paper]")
    ] = None,
    error_bars: ErrorBars = False,
    latents: Annotated[
        Path | None,
        typer.Option(help="Embed these rows (.txt, .npy, .pkl) by the map that is there."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where those go (.npz).")
    ] = None,
    grow_sketch: Annotated[
        bool, typer.Option("--grow-sketch", help="Add what the sketch missed, and embed again.")
    ] = False,
    seed: Seed = None,
    workers: NWorkers = None,
    scheduler: Scheduler = None,
    gpus: Gpus = None,
    cluster: Cluster = None,
    memory_limit: MemoryLimit = None,
) -> None:
    """Every particle's coordinates: by its own volume, from a few points of it, or guessed."""
    from scapedist.landscape import Run
    from scapedist.landscape.decode import embed_to_file
    from scapedist.report.in_words import summary

    if latents is not None:
        path = output or latents.with_name(f"{latents.stem}.embedded.npz")
        n = embed_to_file(Run(directory), latents, path)
        typer.echo(f"{n} latents embedded in {path}")
        return
    options: dict[str, Any] = {
        "method": method,
        "components": components,
        "tolerance": tolerance,
        "box_size": box_size,
        "variant": variant,
        "error_bars": error_bars,
        "seed": seed,
    }
    where = _Where(workers, scheduler, gpus, cluster, memory_limit)
    with _at_work(directory, where) as (opened, pool):
        opened.embed(pool, **options)
        added = opened.grow(pool) if grow_sketch else 0
        if added:
            opened.embed(pool, **options)
    if grow_sketch:
        typer.echo(f"{added} volumes added to the sketch")
    for line in summary(opened.store):
        typer.echo(line)


@app.command()
def population(
    directory: RunDir,
    groups: Annotated[
        int | None, typer.Option(help="k-means groups of all particles. [default: 10]")
    ] = None,
    seed: Seed = None,
    workers: NWorkers = None,
    scheduler: Scheduler = None,
    gpus: Gpus = None,
    cluster: Cluster = None,
    memory_limit: MemoryLimit = None,
) -> None:
    """All particles together: principal axes, k-means groups, densities of their coordinates."""
    where = _Where(workers, scheduler, gpus, cluster, memory_limit)
    with _at_work(directory, where, at_once=False) as (opened, pool):
        opened.population(pool, groups=groups, seed=seed)
    for group, n in enumerate(opened.store.beside["population"]["results"]["n_particles"]):
        typer.echo(f"group {group}: {n} particles")


@app.command()
def crosscheck(
    directory: RunDir,
    sample: Annotated[
        int, typer.Option(min=0, help="Random particles; 0 for all, once embedded exactly.")
    ] = 500,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    workers: NWorkers = None,
    scheduler: Scheduler = None,
    gpus: Gpus = None,
    cluster: Cluster = None,
    memory_limit: MemoryLimit = None,
) -> None:
    """All embeddings side by side, against exact decoding."""
    from rich.console import Console
    from rich.table import Table

    from scapedist.report.in_words import comparison

    where = _Where(workers, scheduler, gpus, cluster, memory_limit)
    with _at_work(directory, where) as (opened, pool):
        results = opened.crosscheck(pool, sample or None, seed)
    header, *rows = comparison(results)
    shown = Table(*header, title=f"{results['sample']} particles that no method has seen")
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)
    typer.echo(f"All figures: {directory / 'crosscheck.json'}")


@app.command()
def report(directory: RunDir, umap: Umap = None) -> None:
    """Write plots and report.html."""
    _stage(directory, lambda run: run.report(umap=umap))
    typer.echo(f"Report: {directory / 'report.html'}")


@app.command()
def info(directory: RunDir) -> None:
    """What is in a run, and what is missing."""
    from scapedist.landscape.verify import describe

    found = describe(directory)
    source = found["source"]
    typer.echo(
        f"{directory}: epoch {source['epoch']} of {source['workdir']}\n"
        f"  {source['n_particles']} particles, latents of {source['zdim']} dimensions, "
        f"box {source['box_size']} of {source['model_box_size']}, pixel size "
        f"{_angstroms(source['pixel_size_angstroms'])}, {found['bytes'] / 2**20:.1f} MiB on disk"
    )
    for name, record in found["stages"].items():
        if record is None:
            part = ""
            if name == "generate" and found["volumes_done"]:
                part = f" ({found['volumes_done']} of {found['volumes']} volumes are there)"
            typer.echo(f"  {name:9} missing{part}")
        else:
            chosen = ", ".join(
                f"{k} {v}" for k, v in record["settings"].items() if v not in (None, False, [])
            )
            typer.echo(f"  {name:9} {record['seconds']:8.2f} s  {chosen}")
    for name, record in found["beside"].items():
        typer.echo(f"  {name}" + (f" {record['seconds']:8.2f} s" if "seconds" in record else ""))
    for note in source["notes"]:
        typer.echo(f"  note: {note}")
    typer.echo(f"next: {found['next']}" if found["next"] else "complete")


@app.command()
def plan(
    workdir: Workdir,
    epoch: Epoch,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the run would lie.")
    ] = None,
    sketch_size: SketchSize = None,
    box_size: BoxSize = None,
    dtype: Dtype = None,
    store: StoreKind = None,
    store_dtype: StoreDtype = None,
    batch_size: BatchSize = None,
    pilot_volumes: PilotVolumes = None,
    components: Components = None,
    solver: Solver = None,
    states: States = None,
    linkage: Linkage = None,
    embed: Embedding = None,
    workers: NWorkers = None,
    memory_limit: MemoryLimit = None,
) -> None:
    """Projected time, disk and memory of a run; decodes next to nothing."""
    from rich.console import Console
    from rich.table import Table

    from scapedist.landscape.cost import cost_lines, cost_of_run, cost_table
    from scapedist.settings import by_stage, check_embedding, check_together

    options = {
        "size": sketch_size,
        "box_size": box_size,
        "dtype": dtype,
        "store": store,
        "store_dtype": store_dtype,
        "batch_size": batch_size,
        "pilot_volumes": pilot_volumes,
        "components": components,
        "solver": solver,
        "states": states,
        "linkage": linkage,
    }
    chosen = by_stage(options)
    check_together(chosen)
    check_embedding(embed, None, False, False)
    cost = cost_of_run(
        workdir, epoch, output, workers, _bytes(memory_limit), chosen, embed or "reduced"
    )
    header, *rows = cost_table(cost.stages)
    shown = Table(*header)
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)
    for line in cost_lines(cost):
        typer.echo(line)


@app.command()
def verify(
    directory: RunDir,
    sample: Annotated[int, typer.Option(min=0, help="Volumes to decode again.")] = 3,
) -> None:
    """Check checksums and completeness, and compare a sample with decoding it again."""
    from scapedist.landscape import Run
    from scapedist.landscape.verify import verify as verify_run

    with _Reporter() as reporter:
        verdict = verify_run(Run(directory, reporter), sample)
    typer.echo(f"{verdict.n_volumes - len(verdict.damaged)} of {verdict.n_volumes} volumes sound")
    if verdict.error_again is not None:
        typer.echo(f"decoded again: largest relative error {verdict.error_again:.2e}")
    if verdict.error_cryodrgn is not None:
        typer.echo(f"against cryoDRGN: largest relative error {verdict.error_cryodrgn:.2e}")
    if verdict.damaged:
        typer.echo(f"damaged volumes: {', '.join(map(str, verdict.damaged))}")
    for name in verdict.damaged_arrays:
        typer.echo(f"damaged array: {name}")
    if not verdict.sound:
        typer.echo(verdict.way_out)
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Landscape analysis of a trained cryoDRGN model: states, components and a report."""
    if show:
        typer.echo(__version__)
        raise typer.Exit()


# -- around the commands


class _Where(NamedTuple):
    """Where a command computes, as its options say."""

    workers: int | None = None
    scheduler: str | None = None
    gpus: str | None = None
    cluster: Path | None = None
    memory_limit: str | None = None

    def options(self) -> dict[str, Any]:
        """As :func:`scapedist.workers.open_workers` takes them."""
        return {
            "n_workers": self.workers,
            "scheduler": self.scheduler,
            "gpus": self.gpus,
            "cluster": self.cluster,
            "memory_limit": _bytes(self.memory_limit),
        }


def _run_all(
    workdir: Path,
    epoch: int,
    output: Path,
    where: _Where,
    overwrite: bool,
    options: dict[str, Any],
) -> None:
    from scapedist.landscape import analyze

    with _Reporter() as reporter:
        path = analyze(
            workdir,
            epoch,
            output,
            overwrite=overwrite,
            progress=reporter,
            on_workers=reporter.workers,
            **where.options(),
            **options,
        )
    from scapedist.report.in_words import summary
    from scapedist.store import RunStore

    for line in summary(RunStore(output)):
        typer.echo(line)
    typer.echo(f"Report: {path}")


@contextmanager
def _at_work(directory: Path, where: _Where, at_once: bool = True) -> Iterator[tuple[Any, Any]]:
    """A run that tells how far it is, and its workers."""
    from scapedist.landscape import Run, open_workers

    with _Reporter() as reporter:
        opened = Run(directory, reporter)
        with open_workers(**where.options()) as pool:
            if at_once:
                pool.begin()
                reporter.workers(pool)
            yield opened, pool


def _stage(directory: Path, call: Callable[[Any], Any]) -> Any:
    from scapedist.landscape import Run

    with _Reporter() as reporter:
        opened = Run(directory, reporter)
        call(opened)
    return opened


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if not text:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"states are numbers with commas, as 3,7; it is {text!r}"
        ) from None


def _bytes(text: str | None) -> int | None:
    from scapedist.plan import parse_bytes

    return None if text is None else parse_bytes(text)


def _angstroms(size: float | None) -> str:
    return "unknown" if size is None else f"{size:.4g} A"


class _Reporter:
    """Progress bars with rate and time left, on a terminal; plain lines elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description:>22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Reporter:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if not total:
            return
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total, completed=done, rate="")
            return
        task = self._bars.tasks[self._tasks[what]]
        rate = f"{task.speed:.1f}/s" if task.speed else ""
        self._bars.update(task.id, completed=done, rate=rate)

    def workers(self, pool: Any) -> None:
        """Say who computes, and where Dask's dashboard is."""
        text = f"{pool.n_workers} worker(s)"
        if pool.n_workers != 1 or pool.dashboard:
            pool.connected()
            text += f", dashboard {pool.dashboard}" if pool.dashboard else ""
        self._console.print(text)


def main() -> None:
    """Run a command; what a person can mend ends in one sentence and exit code 2."""
    try:
        app(standalone_mode=True)
    except ScapedistError as error:
        sys.stderr.write(f"scapedist: {error}\n")
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == STOPPED:
            sys.stderr.write("scapedist: stopped. The same command again resumes.\n")
        raise


if __name__ == "__main__":
    main()
