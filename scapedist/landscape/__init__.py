"""The public API: a run and its stages, from the sketch to the report."""

from __future__ import annotations

import threading
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__all__ = ["Run", "analyze"]

if TYPE_CHECKING:
    from scapedist.landscape.run import Progress, Run


def __getattr__(name: str) -> Any:
    """Import the run when it is asked for: workers need the batches alone."""
    if name == "Run":
        from scapedist.landscape.run import Run

        return Run
    raise AttributeError(f"module 'scapedist.landscape' has no attribute {name!r}")


def analyze(
    workdir: str | Path,
    epoch: int,
    output: str | Path,
    *,
    n_workers: int | None = None,
    scheduler: str | None = None,
    memory_limit: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    on_workers: Any = None,
    **options: Any,
) -> Path:
    """The whole job: sketch, volumes, mask, components, states, report.

    Parameters
    ----------
    workdir, epoch
        Of the cryoDRGN training.
    output
        The run directory; an interrupted run is resumed.
    n_workers, scheduler, memory_limit
        As for :func:`scapedist.workers.open_workers`.
    overwrite
        Replace what the output holds.
    progress
        Told how far a stage is.
    on_workers
        Called with the workers when they are ready.
    **options
        Settings of any stage, by name (:mod:`scapedist.landscape.settings`).

    Returns
    -------
    pathlib.Path
        The report.
    """
    from scapedist.landscape.settings import by_stage, check_together
    from scapedist.workers import open_workers, stop_forkserver

    chosen = by_stage(options)
    check_together(chosen)
    if not Path(workdir).is_dir():
        from scapedist.errors import InputError

        raise InputError(
            f"{workdir} is not a directory. Give the output directory of a cryoDRGN training."
        )
    with open_workers(n_workers, scheduler, memory_limit) as workers:  # they start meanwhile
        from scapedist.landscape.run import Run

        local = scheduler is None and workers.n_workers > 1  # they read the weights
        run = Run.create(workdir, epoch, output, progress, overwrite, check_weights=not local)
        run.sketch(**chosen["sketch"])
        if workers.n_workers > 1:  # this process waits now: load what the later stages need
            later = threading.Thread(target=import_module, args=("scapedist.output.report",))
            later.start()
        if on_workers is not None:
            on_workers(workers)
        run.generate(workers, memory_limit, **chosen["generate"] | chosen["mask"])
    stop_forkserver()
    run.mask(**chosen["mask"])
    excluded = chosen["pca"].pop("exclude_states", None)
    if not excluded or "states/base_label" not in run.store:
        run.pca(memory_limit, **chosen["pca"])
        run.states(**chosen["states"])
    if excluded:
        run.pca(memory_limit, exclude_states=excluded, **chosen["pca"])
        run.states(**chosen["states"])
    return run.report(**chosen["report"])
