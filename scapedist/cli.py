"""The command line: one command for each call of the API, no logic of its own."""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Self

import typer

from scapedist import __version__
from scapedist.errors import ScapedistError
from scapedist.settings import (
    EmbedSettings,
    GenerateSettings,
    JobOptions,
    MaskSettings,
    Option,
    PcaSettings,
    PopulationSettings,
    ReportSettings,
    SketchSettings,
    StatesSettings,
    WorkerOptions,
    options_of,
)

app = typer.Typer(
    name="scapedist",
    help="Landscape analysis of a trained cryoDRGN model: states, components and a report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

STOPPED = 130
"""Exit code of a command that was stopped from the keyboard."""


# -- from declared options to those of a command


def taken(kind: type, *names: str, but: str = "") -> list[Option]:
    """Options of a settings class that a command takes: all that have a flag, or those named."""
    declared = options_of(kind)
    return [declared[name] for name in names or declared if declared[name].flag and name != but]


def command(body: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function.

    A parameter that is annotated with lists of :func:`taken` options stands for all of these: the
    command has each, and the function gets a dictionary of their values by the settings' names,
    None where one is not given.
    """
    parameters: list[inspect.Parameter] = []
    homes: dict[str, tuple[str, Option]] = {}
    for own in inspect.signature(body).parameters.values():
        metadata = getattr(own.annotation, "__metadata__", ())
        if not metadata or not isinstance(metadata[0], list):
            parameters.append(own.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        for option in chain(*metadata):
            parameters.append(_parameter(option))
            homes[parameters[-1].name] = own.name, option

    def call(**values: Any) -> None:
        given: dict[str, Any] = {home: {} for home, _ in homes.values()}
        for name, value in values.items():
            if name in homes:
                home, option = homes[name]
                given[home][option.name] = _parsed(option, value)
            else:
                given[name] = value
        body(**given)

    call.__name__, call.__doc__ = body.__name__, body.__doc__
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    return app.command()(call)


@cache
def _parameter(option: Option) -> inspect.Parameter:
    """A parameter as typer reads it."""
    text = f"{option.help} [default: {option.shown}]" if option.shown else option.help
    choices = list(option.rule.choices) if option.rule else []
    declared = typer.Option(
        option.flag, help=text, autocompletion=(lambda: choices) if choices else None
    )
    return inspect.Parameter(
        option.flag.partition("/")[0].lstrip("-").replace("-", "_"),
        inspect.Parameter.KEYWORD_ONLY,
        default=None if option.shown else False,
        annotation=Annotated[option.kind | None, declared],
    )


def _parsed(option: Option, value: Any) -> Any:
    """A value as the settings have it."""
    if value is None or option.parse is None:
        return value
    try:
        return option.parse(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


# -- the commands

Workdir = Annotated[Path, typer.Argument(help="Output directory of the cryoDRGN training.")]
Epoch = Annotated[int, typer.Argument(help="Epoch N of weights.N.pkl and z.N.pkl.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The run directory.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")]
Given = dict[str, Any]
Where = Annotated[Given, taken(WorkerOptions)]


@command
def run(
    workdir: Workdir,
    epoch: Epoch,
    output: Output,
    options: Annotated[
        Given,
        taken(SketchSettings, but="seed"),
        taken(GenerateSettings),
        taken(MaskSettings),
        taken(PcaSettings, "clip_negative", "soft_mask", "components", "solver"),
        taken(StatesSettings, but="seed"),
        taken(PcaSettings, "exclude_states"),
        taken(JobOptions, "embedding"),
        taken(EmbedSettings, "tolerance", "error_bars"),
        taken(ReportSettings),
        taken(SketchSettings, "seed"),
        taken(WorkerOptions),
        taken(JobOptions, "overwrite"),
    ],
) -> None:
    """The whole job: sketch, volumes, mask, components, states, all particles, report; resumes."""
    _run_all(workdir, epoch, output, options)


@command
def demo(
    *,
    output: Output = Path("scapedist-demo"),
    options: Annotated[
        Given, taken(SketchSettings, "size"), taken(WorkerOptions, "n_workers", "gpus")
    ],
) -> None:
    """The whole job on the bundled model of adenylate kinase."""
    from importlib.resources import as_file, files

    with as_file(files("scapedist") / "data" / "adk") as workdir:
        _run_all(workdir, 14, output, options)


@command
def decode(
    *,
    workdir: Workdir,
    epoch: Epoch,
    latents: Annotated[Path, typer.Option(help="Rows of latents (.txt, .npy or .pkl).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the maps.")],
    box_size: Annotated[
        int | None, typer.Option(help="Voxels along an edge, even. [default: the model's]")
    ] = None,
    options: Annotated[Given, taken(GenerateSettings, "pixel_size", "flip", "invert", "dtype")],
) -> None:
    """Decode latents to MRC maps, vol_001.mrc on."""
    from scapedist.landscape.decode import decode_to_maps

    given = {name: value for name, value in options.items() if value is not None}
    given["pixel_size_angstroms"] = given.pop("pixel_size", None)
    with _Reporter() as reporter:
        paths = decode_to_maps(
            workdir, epoch, latents, output, box_size, progress=reporter, **given
        )
    typer.echo(f"{len(paths)} maps in {output}")


@command
def sketch(
    workdir: Workdir,
    epoch: Epoch,
    output: Output,
    options: Annotated[Given, taken(SketchSettings)],
    again: Annotated[Given, taken(JobOptions, "overwrite")],
) -> None:
    """Choose the particles to decode, and begin a run."""
    from scapedist.landscape import Run

    begun = Run.create(workdir, epoch, output, **again)
    begun.sketch(**options)
    typer.echo(f"{begun.store.array('sketch/particle').shape[0]} particles chosen in {output}")


@command
def generate(
    directory: RunDir,
    options: Annotated[Given, taken(GenerateSettings), taken(MaskSettings)],
    where: Where,
) -> None:
    """Decode the sketch's volumes into the run's Zarr store; resumes."""
    with _at_work(directory, where) as (opened, pool):
        opened.generate(pool, **options)
    typer.echo(f"Volumes are complete in {directory}")


@command
def mask(directory: RunDir, options: Annotated[Given, taken(MaskSettings)]) -> None:
    """Choose the voxels to analyse; decodes nothing."""
    opened = _stage(directory, lambda run: run.mask(**options))
    results = opened.store.stages["mask"]["results"]
    typer.echo(f"{results['voxels']} voxels in the mask, {results['fraction']:.2%} of the box")


@command
def pca(directory: RunDir, options: Annotated[Given, taken(PcaSettings)], where: Where) -> None:
    """Fit the components of the masked volumes."""
    with _at_work(directory, where, at_once=False) as (opened, pool):
        if options["all_particles"]:
            typer.echo(opened.cost_of_all_particles(pool, **options), err=True)
        opened.pca(pool, **options)
    results = opened.store.stages["pca"]["results"]
    typer.echo(
        f"{results['components']} components of {results['volumes']} volumes explain "
        f"{results['variance_explained']:.2%} of the variance"
    )


@command
def states(
    directory: RunDir,
    options: Annotated[Given, taken(StatesSettings)],
    where: Annotated[Given, taken(WorkerOptions, but="n_workers")],
) -> None:
    """Group the volumes into states."""
    with _at_work(directory, where, at_once=False) as (opened, pool):
        opened.states(pool, **options)
    for state, n in enumerate(opened.store.stages["states"]["results"]["n_particles"]):
        typer.echo(f"state {state}: {n} particles")


@command
def embed(
    *,
    directory: RunDir,
    options: Annotated[Given, taken(EmbedSettings, but="seed")],
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
    seed: Annotated[Given, taken(EmbedSettings, "seed")],
    where: Where,
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
    options |= seed
    with _at_work(directory, where) as (opened, pool):
        opened.embed(pool, **options)
        added = opened.grow(pool) if grow_sketch else 0
        if added:
            opened.embed(pool, **options)
    if grow_sketch:
        typer.echo(f"{added} volumes added to the sketch")
    for line in summary(opened.store):
        typer.echo(line)


@command
def population(
    directory: RunDir, options: Annotated[Given, taken(PopulationSettings)], where: Where
) -> None:
    """All particles together: principal axes, k-means groups, densities of their coordinates."""
    with _at_work(directory, where, at_once=False) as (opened, pool):
        opened.population(pool, **options)
    for group, n in enumerate(opened.store.beside["population"]["results"]["n_particles"]):
        typer.echo(f"group {group}: {n} particles")


@command
def crosscheck(
    *,
    directory: RunDir,
    sample: Annotated[
        int, typer.Option(min=0, help="Random particles; 0 for all, once embedded exactly.")
    ] = 500,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    where: Where,
) -> None:
    """All embeddings side by side, against exact decoding."""
    from scapedist.report.in_words import comparison

    with _at_work(directory, where) as (opened, pool):
        results = opened.crosscheck(pool, sample or None, seed)
    _print_table(comparison(results), f"{results['sample']} particles that no method has seen")
    typer.echo(f"All figures: {directory / 'crosscheck.json'}")


@command
def report(directory: RunDir, options: Annotated[Given, taken(ReportSettings)]) -> None:
    """Write plots and report.html."""
    _stage(directory, lambda run: run.report(**options))
    typer.echo(f"Report: {directory / 'report.html'}")


@command
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


@command
def plan(
    *,
    workdir: Workdir,
    epoch: Epoch,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the run would lie.")
    ] = None,
    options: Annotated[
        Given,
        taken(SketchSettings, "size", "method"),
        taken(GenerateSettings, but="flip"),
        taken(MaskSettings),
        taken(PcaSettings, "clip_negative", "components", "solver"),
        taken(StatesSettings, but="seed"),
    ],
    beside: Annotated[
        Given,
        taken(JobOptions, "embedding"),
        taken(EmbedSettings, "error_bars"),
        taken(WorkerOptions, "n_workers", "memory_limit"),
    ],
) -> None:
    """Projected time, disk and memory of a run; decodes next to nothing."""
    from scapedist.landscape.cost import cost_of_run
    from scapedist.landscape.cost_in_words import cost_lines, cost_table
    from scapedist.settings import by_stage

    cost = cost_of_run(workdir, epoch, output, chosen=by_stage(options), **beside)
    _print_table(cost_table(cost.stages))
    for line in cost_lines(cost):
        typer.echo(line)


@command
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


def _run_all(workdir: Path, epoch: int, output: Path, options: Given) -> None:
    from scapedist.landscape import analyze

    with _Reporter() as reporter:
        path = analyze(
            workdir, epoch, output, progress=reporter, on_workers=reporter.workers, **options
        )
    from scapedist.report.in_words import summary
    from scapedist.store import RunStore

    for line in summary(RunStore(output)):
        typer.echo(line)
    typer.echo(f"Report: {path}")


@contextmanager
def _at_work(directory: Path, where: Given, at_once: bool = True) -> Iterator[tuple[Any, Any]]:
    """A run that tells how far it is, and its workers."""
    from scapedist.landscape import Run, open_workers

    with _Reporter() as reporter:
        opened = Run(directory, reporter)
        with open_workers(**where) as pool:
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


def _print_table(rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """Print a table whose first row is its header."""
    from rich.console import Console
    from rich.table import Table

    header, *others = rows
    shown = Table(*header, title=title)
    for row in others:
        shown.add_row(*row)
    Console().print(shown)


def _angstroms(size: float | None) -> str:
    return "unknown" if size is None else f"{size:.4g} Å"


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

    def __enter__(self) -> Self:
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
