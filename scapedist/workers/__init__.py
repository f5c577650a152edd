"""Workers: this process, local processes, processes on GPUs, or those of a Dask scheduler.

All do the same: call a function with shared data and one task after the other, and hand back
results as they come. What is computed depends on the task alone, never on who computes it: on the
CPU each task runs on one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scapedist.backend import available_cores
from scapedist.errors import InputError, ResourceError
from scapedist.plan import GIB, import_bytes
from scapedist.workers.distributed import Distributed
from scapedist.workers.serial import Serial, one_thread
from scapedist.workers.start import GivenScheduler, LocalProcesses, stop_forkserver

__all__ = [
    "Serial",
    "Workers",
    "available_cores",
    "one_thread",
    "open_workers",
    "or_here",
    "stop_forkserver",
]

Workers = Serial


def or_here(workers: Workers | None) -> Workers:
    """The workers that were given, or else this process."""
    return workers or Serial()


def open_workers(
    n_workers: int | None = None,
    scheduler: str | None = None,
    memory_limit: int | None = None,
    gpus: str | None = None,
    cluster: str | Path | None = None,
    preloaded: Sequence[str] = (),
) -> Workers:
    """Open the workers to compute on.

    Parameters
    ----------
    n_workers
        Number of local processes; None for as many as there are cores, 1 for this process alone.
    scheduler
        Address or scheduler file of a running Dask scheduler, instead of local processes.
    memory_limit
        Bytes of host memory that a worker may use.
    gpus
        GPUs of this machine, one worker per GPU: ``all``, or numbers as ``0,2`` among those that
        are visible. With a scheduler ``all``: its workers compute on the GPU that each has.
    cluster
        File that says where workers come from (``cluster_configs/``).
    preloaded
        Modules that local processes are forked with, by name.

    Raises
    ------
    InputError
        Where these exclude one another, a number is out of range, or a file has a wrong key.
    ResourceError
        Where the workers cannot be had.
    """
    given = {"--workers": n_workers, "--scheduler": scheduler, "--cluster": cluster}
    named = [name for name, value in given.items() if value is not None]
    if gpus is not None and scheduler is None:
        named.append("--gpus")
    if len(named) > 1:
        raise InputError(f"Workers come from one place. Give {named[0]} or {named[1]}, not both.")
    if cluster is not None:
        from scapedist.workers.cluster_file import read_cluster_file

        start = read_cluster_file(cluster)
        if isinstance(start, LocalProcesses):
            start = replace(start, preloaded=tuple(preloaded))
        return Distributed(replace(start, memory_limit=memory_limit or start.memory_limit))
    if scheduler is not None:
        return Distributed(replace(_given(scheduler, gpus), memory_limit=memory_limit))
    n = available_cores() if n_workers is None else n_workers
    least = import_bytes("cpu" if gpus is None else "cuda")
    if (gpus is not None or n > 1) and memory_limit is not None and memory_limit < least:
        raise ResourceError(
            f"A worker takes {least / GIB:.2f} GiB before its first batch; it may use "
            f"{memory_limit / GIB:.2f} GiB. Use --memory-limit {2 * least / GIB:.1f}GiB."
        )
    if gpus is not None:
        from scapedist.workers.gpus import local_gpus

        return Distributed(local_gpus(gpus, memory_limit))
    if n < 1:
        raise InputError(f"There is at least one worker. --workers is {n}.")
    if n == 1:
        return Serial(memory_limit=memory_limit)
    return Distributed(
        LocalProcesses(n_workers=n, memory_limit=memory_limit, preloaded=tuple(preloaded))
    )


def _given(scheduler: str, gpus: str | None) -> GivenScheduler:
    if "://" not in scheduler and not Path(scheduler).is_file():
        raise InputError(
            f"A scheduler is an address (tcp://HOST:PORT) or a scheduler file. {scheduler} is "
            "neither. Start one with `dask scheduler --scheduler-file FILE`."
        )
    if gpus not in (None, "all"):
        raise InputError(
            f"Each worker of a scheduler has the GPU that it was started with. --gpus is {gpus}. "
            "Give --gpus all, or start other workers with `dask cuda worker`."
        )
    return GivenScheduler(where=scheduler, device="cuda" if gpus else "cpu")
