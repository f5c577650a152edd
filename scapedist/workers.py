"""Where work is done: in this process, in local processes, or on a given Dask scheduler.

All three do the same: call a function with what is shared and one task after the other, and hand
back results as they come. What is computed depends on the task alone, never on who computes it:
on the CPU each task runs on one thread.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from scapedist.backend import one_numpy_thread
from scapedist.errors import InputError, ResourceError
from scapedist.plan import GIB, IMPORT_BYTES

CONNECT_SECONDS = 30
Task = Any
Work = Callable[[Any, Task], Any]


class Serial:
    """The calling process."""

    n_workers = 1
    dashboard: str | None = None

    def run(self, work: Work, shared: Any, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """Yield (task's number, result) in order."""
        with one_thread():
            for number, task in enumerate(tasks):
                yield number, work(shared, task)

    def gather(self, work: Work, shared: Any, tasks: Sequence[Task]) -> list[Any]:
        """All results, in the order of the tasks."""
        found = dict(self.run(work, shared, tasks))
        return [found[number] for number in range(len(tasks))]

    def call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """The result of one call, made where torch is loaded already and files can be read."""
        return work(*arguments)

    def close(self) -> None:
        """Nothing to release."""

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Distributed(Serial):
    """Workers of a Dask scheduler, our own or a given one.

    Parameters
    ----------
    n_workers
        Local processes to start, where no scheduler is given.
    scheduler
        An address (``tcp://host:port``) or a scheduler file.
    memory_limit
        Bytes that a local worker may use; None for no limit.
    """

    def __init__(
        self, n_workers: int = 0, scheduler: str | None = None, memory_limit: int | None = None
    ) -> None:
        self.n_workers = n_workers
        self._scheduler = scheduler
        self._memory_limit = memory_limit
        self._client: Any = None
        self._cluster: Any = None
        self._failure: BaseException | None = None
        if scheduler is None:
            with _main_module_left_alone():
                start_forkserver()
        # local workers start while the caller goes on reading and sketching
        self._starting = threading.Thread(target=self._start, daemon=True)
        self._starting.start()
        if scheduler is not None:
            self.connected()

    def _start(self) -> None:
        try:
            self._client = self._connect() if self._scheduler else self._start_local()
        except BaseException as error:  # handed to the caller by connected()
            self._failure = error

    def _start_local(self) -> Any:
        import dask
        from distributed import Client, LocalCluster

        _quiet()
        forked = {
            "distributed.worker.multiprocessing-method": "forkserver",
            "distributed.worker.profile.enabled": False,  # its sampling takes time from Python
        }
        with dask.config.set(forked), _main_module_left_alone():
            self._cluster = LocalCluster(
                n_workers=self.n_workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=self._memory_limit or 0,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            )
        client = Client(self._cluster)
        client.run(gc.freeze)  # no collection visits, and thereby copies, what the fork shares
        return client

    def _connect(self) -> Any:
        from distributed import Client

        _quiet()
        where = str(self._scheduler)
        if "://" in where:
            return Client(where, timeout=CONNECT_SECONDS)
        return Client(scheduler_file=where, timeout=CONNECT_SECONDS)

    def connected(self) -> Any:
        """The client, as soon as the workers are there."""
        self._starting.join()
        if self._failure is not None:
            if self._scheduler is None:
                raise ResourceError(
                    f"Local workers could not be started ({self._failure}). Use --workers 1."
                ) from None
            raise ResourceError(
                f"The scheduler {self._scheduler} could not be reached in {CONNECT_SECONDS} s "
                f"({type(self._failure).__name__}). Check that it runs and can be reached from "
                "here, or use --workers."
            ) from None
        if self._scheduler is not None:
            with contextlib.suppress(TimeoutError):
                self._client.wait_for_workers(1, timeout=CONNECT_SECONDS)
            self.n_workers = len(self._client.scheduler_info(n_workers=-1)["workers"])
            if not self.n_workers:
                raise ResourceError(
                    f"The scheduler {self._scheduler} has no workers after {CONNECT_SECONDS} s. "
                    "Start some with `dask worker`."
                )
            self._check_versions()
        if "dashboard" in self._client.scheduler_info(n_workers=0)["services"]:
            self.dashboard = self._client.dashboard_link
        return self._client

    def _check_versions(self) -> None:
        """Refuse workers without scapedist, or with another version of it."""
        ours = metadata.version("scapedist")
        theirs = self._client.run(metadata.version, "scapedist", on_error="return")
        for worker, version in theirs.items():
            if version != ours:
                found = "none" if isinstance(version, Exception) else version
                raise ResourceError(
                    f"All workers have this scapedist, {ours}. The worker {worker} has {found}. "
                    "Install the same in the workers' environment."
                )

    def run(self, work: Work, shared: Any, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """Yield (task's number, result) as they are done; a dead worker's tasks are done again."""
        from distributed import as_completed
        from distributed.scheduler import KilledWorker

        client = self.connected()
        common = client.scatter(shared, broadcast=True, hash=False)
        futures = client.map(_on_one_thread, tasks, work=work, shared=common, pure=False)
        number = {future.key: i for i, future in enumerate(futures)}
        try:
            for future in as_completed(futures):
                try:
                    result = future.result()
                except KilledWorker as error:
                    raise ResourceError(
                        f"A worker died several times over the same batch ({error}). It may lack "
                        "memory: use a smaller --batch-size, fewer --workers, or --memory-limit."
                    ) from None
                yield number[future.key], result
                future.release()
        finally:
            client.cancel(futures, force=True)

    def call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """The result of one call, made by a local worker; here, if the workers may be far."""
        if self._scheduler is not None:
            return work(*arguments)
        return self.connected().submit(work, *arguments, pure=False).result()

    def close(self) -> None:
        """Release the client, and the workers where they are our own."""
        self._starting.join()
        for part in (self._client, self._cluster):
            if part is not None:
                with contextlib.suppress(Exception):
                    part.close()
        self._client = self._cluster = None


Workers = Serial


def open_workers(
    n_workers: int | None = None, scheduler: str | None = None, memory_limit: int | None = None
) -> Workers:
    """Workers to compute on.

    Parameters
    ----------
    n_workers
        Local processes; None for as many as there are cores, 1 for this process alone.
    scheduler
        Address or scheduler file of a running Dask scheduler, instead of local processes.
    memory_limit
        Bytes a worker may use.

    Raises
    ------
    InputError
        Where both are given, or the number is not positive.
    ResourceError
        Where the scheduler cannot be reached.
    """
    if scheduler is not None:
        if n_workers is not None:
            raise InputError("Workers are local or a scheduler's. Give --workers or --scheduler.")
        if "://" not in scheduler and not Path(scheduler).is_file():
            raise InputError(
                f"A scheduler is an address (tcp://HOST:PORT) or a scheduler file. {scheduler} is "
                "neither. Start one with `dask scheduler --scheduler-file FILE`."
            )
        return Distributed(scheduler=scheduler)
    n = available_cores() if n_workers is None else n_workers
    if n > 1 and memory_limit is not None and memory_limit < IMPORT_BYTES:
        raise ResourceError(
            f"A worker takes {IMPORT_BYTES / GIB:.2f} GiB before its first batch; it may use "
            f"{memory_limit / GIB:.2f} GiB. Use --memory-limit {2 * IMPORT_BYTES / GIB:.1f}GiB."
        )
    if n < 1:
        raise InputError(f"There is at least one worker. --workers is {n}.")
    return Serial() if n == 1 else Distributed(n, memory_limit=memory_limit)


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start_forkserver() -> None:
    """Start the process that local workers are forked from; it imports what they need, once.

    Called first of all, it imports while this process does.
    """
    import multiprocessing
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "zarr", "distributed", "scapedist.landscape.batches", "scapedist.model.field"]
    )
    forkserver.ensure_running()


def stop_forkserver() -> None:
    """End that process where nothing else runs from it: it holds torch, and the rest needs none."""
    from multiprocessing import active_children, forkserver

    if not active_children():
        forkserver._forkserver._stop()  # type: ignore[attr-defined]


@contextlib.contextmanager
def _main_module_left_alone() -> Iterator[None]:
    """Start processes that do not run the caller's script again.

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


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch and numpy on one thread: a batch's sums are the same everywhere, none waits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with one_numpy_thread():
            yield
    finally:
        torch.set_num_threads(before)


def _on_one_thread(task: Task, work: Work, shared: Any) -> Any:
    with one_thread():
        return work(shared, task)


def _quiet() -> None:
    """Keep Dask's own warnings off the terminal: failures reach the user as our errors."""
    for name in ("distributed", "tornado", "bokeh"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
