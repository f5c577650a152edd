"""Work by a Dask scheduler's workers, and what happens when one of them is lost."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from scapedist.backend import device_lost
from scapedist.errors import ResourceError
from scapedist.workers.serial import Serial, Task, Work, attempt, attempt_call, one_thread
from scapedist.workers.start import Start

TASKS_AHEAD = 16
"""Number of tasks handed to the scheduler per worker: enough that none waits for its next."""
WATCH_SECONDS = 1.0
"""Seconds between looks at how many workers there are."""
MOST_LOSSES = 5
"""Number of times that shared data may be lost with all workers that hold them."""


class Distributed(Serial):
    """Workers of a Dask scheduler.

    Parameters
    ----------
    start
        Start of the workers.
    """

    def __init__(self, start: Start) -> None:
        super().__init__(start.device, start.memory_limit)
        self.n_workers, self.local = start.n_workers, start.local
        self._start = start
        self._starting: threading.Thread | None = None
        self._client: Any = None
        self._cluster: Any = None
        self._failure: BaseException | None = None
        self._checked = False
        if not start.local:  # refused at once where it cannot be reached
            try:
                self.connected()
            except BaseException:
                self.close()
                raise

    def begin(self) -> None:
        """Start the workers while the caller goes on reading and sketching."""
        if self._starting is None:
            self._start.prepare()
            self._starting = threading.Thread(target=self._connect, daemon=True)
            self._starting.start()

    def _connect(self) -> None:
        try:
            _quiet()
            self._client, self._cluster = self._start.begin()
            _quiet()  # importing distributed sets its own levels
        except BaseException as error:  # handed to the caller by connected()
            self._failure = error

    def connected(self) -> Any:
        """The Dask client, as soon as the workers are there.

        Raises
        ------
        ResourceError
            Where the scheduler, or a worker, cannot be had.
        """
        self.begin()
        assert self._starting is not None
        self._starting.join()
        if self._failure is not None:
            raise self._start.refusal(self._failure) from None
        if not self._checked:
            if not self.local:
                self._check_workers()
            self._checked = True
            if "dashboard" in self._client.scheduler_info(n_workers=0)["services"]:
                self.dashboard = self._client.dashboard_link
        return self._client

    def _check_workers(self) -> None:
        """Wait for workers; refuse those without scapedist or with another version of it."""
        self._wait(self._start.n_workers)
        ours = metadata.version("scapedist")
        theirs = self._client.run(metadata.version, "scapedist", on_error="return")
        for worker, version in theirs.items():
            if version != ours:
                found = "none" if isinstance(version, Exception) else version
                raise ResourceError(
                    f"All workers have this scapedist, {ours}. The worker {worker} has {found}. "
                    "Install the same in the workers' environment."
                )

    def _wait(self, wanted: int = 1) -> None:
        """Wait for the workers wanted, as long as their start allows; refuse where none comes."""
        try:
            self._client.wait_for_workers(max(wanted, 1), timeout=self._start.seconds)
        except TimeoutError:
            if not self._count():
                raise self._gone() from None
        self._count()

    def _gone(self) -> ResourceError:
        return ResourceError(
            f"{self._start.name} has no workers after {self._start.seconds:.0f} s. "
            f"{self._start.way_out}"
        )

    def _count(self) -> int:
        """Number of workers that the scheduler has now, as they come and go."""
        there = len(self._client.nthreads())  # what the client remembers can be of another moment
        self.n_workers = max(there, 1)
        return there

    def check_files(self, paths: Sequence[str | Path]) -> None:
        """Refuse where a worker does not see a file or directory that it will need.

        Raises
        ------
        ResourceError
            Where a path is missing, naming the worker and the path.
        """
        if self.local:
            return
        wanted = [str(Path(path).resolve()) for path in paths]
        for worker, missing in self.connected().run(_missing, wanted).items():
            if missing:
                raise ResourceError(
                    "All workers see the run and the model under the same paths. The worker "
                    f"{worker} does not see {missing[0]}. Put it on a file system that this "
                    "machine and the workers share."
                )

    def run(self, work: Work, shared: Any, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """Yield (task's number, result) as they are done; a dead worker's tasks are done again."""
        left = dict(enumerate(tasks))
        if not left:
            return
        for loss in range(MOST_LOSSES + 1):
            try:
                for number, result in self._run(work, shared, left):
                    del left[number]
                    yield number, result
                return
            except _Lost:
                if loss == MOST_LOSSES:
                    raise ResourceError(
                        f"All workers were lost {MOST_LOSSES + 1} times. They may lack memory: use "
                        "a smaller --batch-size, fewer --workers, or --memory-limit."
                    ) from None

    def _run(self, work: Work, shared: Any, tasks: dict[int, Task]) -> Iterator[tuple[int, Any]]:
        """Yield results until shared data are lost, with a few tasks per worker scheduled."""
        client = self.connected()  # before imports, which the thread that starts workers does too
        from distributed import CancelledError, as_completed
        from distributed.scheduler import KilledWorker

        self._wait()
        common = client.scatter(shared, broadcast=True, hash=False)
        waiting = iter(list(tasks.items()))
        number: dict[str, int] = {}
        held: set[Any] = set()
        done = as_completed(with_results=True)

        def send(n: int) -> None:
            """Hand the next n tasks to the scheduler."""
            some = list(islice(waiting, n))
            futures = client.map(
                _on_one_thread, [task for _, task in some], work=work, shared=common, pure=False
            )
            number.update(zip((f.key for f in futures), (i for i, _ in some), strict=True))
            held.update(futures)
            done.update(futures)

        ahead = TASKS_AHEAD * self.n_workers
        send(ahead)
        watch = _Watch(self, held)
        try:
            for future, result in done:
                held.discard(future)
                if len(held) <= ahead // 2:
                    self._count()
                    ahead = TASKS_AHEAD * self.n_workers
                    send(max(ahead - len(held), 0))
                if isinstance(result, CancelledError):
                    if watch.abandoned:
                        raise self._gone()
                    raise _Lost  # with the last worker that held what is shared
                if isinstance(result, _Broken):
                    self._dismiss(result)
                    again = number.pop(future.key)
                    future.release()
                    waiting = chain([(again, tasks[again])], waiting)
                    send(1)
                    continue
                yield number.pop(future.key), result
                future.release()
        except KilledWorker as error:
            raise ResourceError(
                f"A worker died several times over the same batch ({error}). It may lack memory: "
                "use a smaller --batch-size, fewer --workers, or --memory-limit."
            ) from None
        finally:
            watch.stop()
            client.cancel(list(held), force=True)

    def _dismiss(self, broken: _Broken) -> None:
        """Let a worker go whose GPU answers no more; refuse where it was the last one."""
        there = self._client.nthreads()
        if not there.keys() - {broken.worker}:
            raise ResourceError(
                f"The GPU of the last worker, {broken.worker}, answers no more ({broken.why}). "
                "Look at `nvidia-smi` on its machine, and give the same command again on another "
                "GPU: what is complete is kept."
            )
        if broken.worker in there:
            self._client.retire_workers([broken.worker], close_workers=True, remove=True)
        self._count()

    def call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run one call on a worker if workers are local or have a GPU, else in this process."""
        if not self.local and self.device == "cpu":
            return work(*arguments)
        client = self.connected()
        from distributed.scheduler import KilledWorker

        future = client.submit(attempt_call, work, arguments, pure=False)
        try:
            return future.result()
        except KilledWorker as error:
            raise ResourceError(
                f"A worker died several times over one step of the analysis ({error}). It may lack "
                "host memory: use a larger --memory-limit, or a smaller --sketch-size."
            ) from None

    def everywhere(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Results of one call in each worker's process."""
        return list(self.connected().run(work, *arguments).values())

    def close(self) -> None:
        """Release the client, and the workers where they are our own."""
        if self._starting is not None:
            self._starting.join()
        for part in (self._client, self._cluster):
            if part is not None:
                with contextlib.suppress(Exception):
                    part.close()
        self._client = self._cluster = None


class _Watch:
    """A watch that gives up all tasks when all workers have left and none comes back."""

    def __init__(self, workers: Distributed, held: set[Any]) -> None:
        self.abandoned = False
        self._workers, self._held, self._stopped = workers, held, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        without = 0
        while not self._stopped.wait(WATCH_SECONDS):
            with contextlib.suppress(Exception):  # a client that is closing
                without = 0 if self._workers._count() else without + 1
                if without * WATCH_SECONDS >= self._workers._start.seconds:
                    self.abandoned = True
                    self._workers._client.cancel(list(self._held), force=True)
                    return

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        self._thread.join()


class _Lost(Exception):
    """Signal that the data that all tasks share are gone with the workers that held them."""


def _quiet() -> None:
    """Keep Dask's messages off the terminal, as failures reach the user as our errors."""
    for name in ("distributed", "tornado", "bokeh"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class _Broken(NamedTuple):
    """A worker whose GPU answers no more, and what its driver said: the result of such a task."""

    worker: str
    why: str


def _on_one_thread(task: Task, work: Work, shared: Any) -> Any:
    with one_thread():
        try:
            return attempt(work, shared, task)
        except Exception as error:
            if not device_lost(error):
                raise
            from distributed import get_worker

            return _Broken(get_worker().address, str(error).partition("\n")[0][:200])


def _missing(paths: Sequence[str]) -> list[str]:
    return [path for path in paths if not os.path.exists(path)]
