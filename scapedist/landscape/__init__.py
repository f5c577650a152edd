"""The public API: a run and its stages, from the sketch to the report."""

from __future__ import annotations

import threading
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scapedist.errors import InputError, RunError, ScapedistError

__all__ = ["Run", "analyze"]

if TYPE_CHECKING:
    from scapedist.landscape.run import Run
    from scapedist.store import Progress
    from scapedist.workers import Workers


def __getattr__(name: str) -> Any:
    """Import a public name on first use: workers need only the batches."""
    if name == "Run":
        from scapedist.landscape.run import Run

        return Run
    raise AttributeError(f"module 'scapedist.landscape' has no attribute {name!r}")


PRELOADED = (
    "torch",
    "zarr",
    "distributed",
    "scapedist.sources.decoded",
    "scapedist.stages.write_volumes",
    "scapedist.model.field",
)
"""Modules that local workers are forked with, as each of them needs these to decode."""


def open_workers(n_workers: int | None = None, **options: Any) -> Workers:
    """Open workers for a run; options as for :func:`scapedist.workers.open_workers`."""
    from scapedist.workers import open_workers as any_workers

    return any_workers(n_workers, preloaded=PRELOADED, **options)


def analyze(
    workdir: str | Path,
    epoch: int,
    output: str | Path,
    *,
    n_workers: int | None = None,
    scheduler: str | None = None,
    memory_limit: int | None = None,
    gpus: str | None = None,
    cluster: str | Path | None = None,
    overwrite: bool = False,
    embedding: str | None = None,
    tolerance: float | None = None,
    error_bars: bool = False,
    progress: Progress | None = None,
    on_workers: Any = None,
    **options: Any,
) -> Path:
    """Do the whole job: sketch, volumes, mask, components, states, all particles, report.

    Parameters
    ----------
    workdir, epoch
        Work directory and epoch of the cryoDRGN training.
    output
        The run directory; an interrupted run is resumed.
    n_workers, scheduler, memory_limit, gpus, cluster
        As for :func:`scapedist.workers.open_workers`.
    overwrite
        Replace what the output holds.
    embedding
        How all particles are put on the components: ``reduced``, ``exact``, ``mlp`` or ``none``;
        None for ``reduced``, or ``exact`` for few particles without error bars, or none where
        densities are clipped.
        An approximate one is then checked on random particles.
    tolerance, error_bars
        Options of the embedding, as in :class:`~scapedist.settings.EmbedSettings`.
    progress
        Called with how far a stage is.
    on_workers
        Called with the workers when they are ready.
    **options
        Settings of any stage, by name (:mod:`scapedist.settings`).

    Returns
    -------
    pathlib.Path
        Path of the report. Where particles cannot be embedded it is written all the same, before
        the error is raised.
    """
    from scapedist.model.decoder import check_dtype
    from scapedist.settings import (
        auto_tolerance,
        by_stage,
        check_embedding,
        check_linkage,
        check_together,
    )
    from scapedist.workers import stop_forkserver

    failure: ScapedistError | None = None
    chosen = by_stage(options)
    check_together(chosen)
    clip_negative = bool(chosen["pca"].get("clip_negative"))
    check_embedding(embedding, tolerance, error_bars, clip_negative)
    if not Path(workdir).is_dir():
        raise InputError(
            f"{workdir} is not a directory. Give the output directory of a cryoDRGN training."
        )
    with open_workers(
        n_workers, scheduler=scheduler, memory_limit=memory_limit, gpus=gpus, cluster=cluster
    ) as workers:
        dtype = chosen["generate"].get("dtype") or "auto"
        if auto_tolerance(dtype) is None:
            check_dtype(dtype, workers.device)
        check_linkage(chosen, workers.budget)
        workers.begin()  # they start meanwhile
        from scapedist.landscape.run import Run

        local = workers.local and workers.n_workers > 1  # they read the weights
        run = Run.create(workdir, epoch, output, progress, overwrite, check_weights=not local)
        if error_bars:
            run.model.posterior_variance()  # there, or refused
        run.sketch(workers, **chosen["sketch"])
        # this process waits now: load what the later stages need
        if workers.local and workers.n_workers > 1:
            later = threading.Thread(target=import_module, args=("scapedist.report.report",))
            later.start()
        if on_workers is not None:
            on_workers(workers)
        run.generate(workers, **chosen["generate"] | chosen["mask"])
        _analyse(run, chosen, workers)
        try:
            _embed(run, workers, embedding, tolerance, error_bars)
        except (InputError, RunError) as error:  # the report does without; then it is told
            failure = error
        if workers.device != "cpu":
            report = run.report(workers, **chosen["report"])
    stop_forkserver()
    if workers.device == "cpu":  # memory of the workers is free again
        report = run.report(**chosen["report"])
    if failure is not None:
        raise failure
    return report


def _analyse(run: Run, chosen: dict[str, dict[str, Any]], workers: Any) -> None:
    """Do the stages of mask, components and states."""
    run.mask(**chosen["mask"])
    pca = dict(chosen["pca"])
    excluded = pca.pop("exclude_states", None)
    if not excluded or "states/base_label" not in run.store:
        run.pca(workers, **pca)
        run.states(workers, **chosen["states"])
    if excluded:
        run.pca(workers, exclude_states=excluded, **pca)
        run.states(workers, **chosen["states"])


def _embed(
    run: Run,
    workers: Any,
    method: str | None,
    tolerance: float | None,
    error_bars: bool,
) -> None:
    """Embed all particles, and check an approximate embedding on random ones."""
    from scapedist.particles.embed import embedding_of
    from scapedist.particles.methods import CHECKED_PARTICLES

    clipped = run.store.stages["pca"]["settings"]["clip_negative"]
    method = embedding_of(method, run.store.source["n_particles"], error_bars, clipped)
    if method == "none":
        return
    options = {"method": method, "tolerance": tolerance, "error_bars": error_bars}
    run.embed(workers, strict=False, **options)
    if method != "exact":
        run.crosscheck(workers, sample=CHECKED_PARTICLES)
