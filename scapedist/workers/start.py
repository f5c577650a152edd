"""Starting workers: local processes, local GPUs, a scheduler that runs already."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scapedist.errors import ResourceError

CONNECT_SECONDS = 30
LIGHT = {
    "distributed.worker.profile.enabled": False,  # its sampling takes time from Python
    "distributed.admin.tick.interval": "1s",  # every 20 ms takes 5 % of a core, doing nothing
}
"""Dask settings of local workers and their scheduler that leave the cores to the work."""
AS_NVML_COUNTS = {"distributed.nanny.pre-spawn-environ.CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""Dask settings with which a number of a GPU means the same one to a worker's CUDA and to us."""


@dataclass(frozen=True)
class Start:
    """The start of some workers; each kind says how it begins.

    Attributes
    ----------
    n_workers
        Number of workers there will be, where that is known.
    device
        Device that each computes on: ``cpu`` or ``cuda``.
    local
        Whether the workers are processes of this machine that we start.
    memory_limit
        Bytes of host memory that each worker may use; None for no limit.
    seconds
        Seconds to wait for the workers.
    """

    n_workers: int = 0
    device: str = "cpu"
    local: bool = False
    memory_limit: int | None = None
    seconds: float = CONNECT_SECONDS
    way_out = "Start workers with `dask worker`."

    @property
    def name(self) -> str:
        """Name of these workers in an error message."""
        return "The scheduler"

    def prepare(self) -> None:
        """Do what must be done in the calling thread before :meth:`begin`."""

    def begin(self) -> tuple[Any, Any]:
        """Start the workers; return a Dask client, and what is to be closed after it (or None)."""
        raise NotImplementedError

    def refusal(self, error: BaseException) -> ResourceError:
        """The error to raise where :meth:`begin` failed."""
        if isinstance(error, ResourceError):
            return error
        return ResourceError(f"Workers could not be started ({error}). {self.way_out}")


@dataclass(frozen=True)
class LocalProcesses(Start):
    """Workers in processes of this machine, forked from one that has imported what they need.

    Attributes
    ----------
    preloaded
        Names of the modules that the forked process has imported.
    """

    local: bool = True
    preloaded: tuple[str, ...] = ()
    way_out = "Use --workers 1."

    def prepare(self) -> None:
        """Start the process that workers are forked from."""
        with main_module_left_alone():
            start_forkserver(self.preloaded)

    def begin(self) -> tuple[Any, Any]:
        """Start the processes."""
        import dask
        from distributed import Client, LocalCluster

        forked = {"distributed.worker.multiprocessing-method": "forkserver"}
        with dask.config.set(forked | LIGHT), main_module_left_alone():
            cluster = LocalCluster(
                n_workers=self.n_workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=self.memory_limit or 0,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            )
        client = Client(cluster)
        client.run(gc.freeze)  # no collection visits, and thereby copies, what the fork shares
        return client, cluster


@dataclass(frozen=True)
class LocalGpus(Start):
    """Workers on GPUs of this machine, one per GPU; torch and CuPy share its memory pool.

    Attributes
    ----------
    gpus
        Whole UUIDs of GPUs or of MIG instances, or numbers of GPUs as NVML counts.
    pool_bytes
        Size of the pool on each GPU when it starts; it grows where a GPU has more. It is bytes, as
        dask-cuda takes a fraction of the whole first card, whatever a worker's own is.
    """

    device: str = "cuda"
    local: bool = True
    gpus: tuple[str, ...] = ()
    pool_bytes: int = 0
    way_out = "Check `nvidia-smi`; --gpus takes part of the GPUs, without it CPUs compute."

    def begin(self) -> tuple[Any, Any]:
        """Start the processes."""
        import dask
        from dask_cuda import LocalCUDACluster
        from distributed import Client

        with dask.config.set(LIGHT | AS_NVML_COUNTS), main_module_left_alone():
            cluster = LocalCUDACluster(
                CUDA_VISIBLE_DEVICES=",".join(self.gpus),
                threads_per_worker=1,
                memory_limit=self.memory_limit or 0,
                rmm_pool_size=self.pool_bytes,
                rmm_allocator_external_lib_list=["torch", "cupy"],
                rmm_track_allocations=True,  # a worker asks how much of the pool is free
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            )
        return Client(cluster), cluster


@dataclass(frozen=True)
class GivenScheduler(Start):
    """Workers of a Dask scheduler that runs already.

    Attributes
    ----------
    where
        Address (``tcp://host:port``) or scheduler file of the scheduler.
    """

    where: str = ""

    @property
    def name(self) -> str:
        """Name of these workers in an error message."""
        return f"The scheduler {self.where}"

    def begin(self) -> tuple[Any, Any]:
        """Connect to the scheduler."""
        from distributed import Client

        if "://" in self.where:
            return Client(self.where, timeout=self.seconds), None
        return Client(scheduler_file=self.where, timeout=self.seconds), None

    def refusal(self, error: BaseException) -> ResourceError:
        """The error that the scheduler could not be reached."""
        return ResourceError(
            f"{self.name} could not be reached in {self.seconds:.0f} s ({type(error).__name__}). "
            "Check that it runs and can be reached from here, or use --workers."
        )


def start_forkserver(preloaded: Sequence[str]) -> None:
    """Start the process that local workers are forked from; it imports what they need, once.

    Called first of all, it imports while this process does.
    """
    import multiprocessing
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preloaded))
    forkserver.ensure_running()


def stop_forkserver() -> None:
    """End the process that workers are forked from, where none runs: it holds torch in memory."""
    from multiprocessing import active_children, forkserver

    if not active_children():
        forkserver._forkserver._stop()  # type: ignore[attr-defined]


@contextlib.contextmanager
def main_module_left_alone() -> Iterator[None]:
    """Context in which started processes do not run the caller's script again.

    multiprocessing would import it in each worker: slow for the command line, and an error for a
    script without ``if __name__ == "__main__"``. Workers need nothing of it.
    """
    main = sys.modules["__main__"].__dict__
    hidden: dict[str, Any] = {n: main.pop(n) for n in ("__file__", "__spec__") if n in main}
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(hidden)
