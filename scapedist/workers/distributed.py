"""Workers of a Dask scheduler: what they are asked, and what happens when one is lost."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

from scapedist.errors import ResourceError
from scapedist.workers.serial import Serial, Task, Work, attempt, one_thread
from scapedist.workers.start import Start

TASKS_AHEAD = 8
"""Tasks handed to the scheduler for each worker: enough that none waits for its next."""
MOST_LOSSES = 5
"""Times that what is shared may be lost with all workers that hold it."""


class Distributed(Serial):
    """Workers of a Dask scheduler.

    Parameters
    ----------
    start
        Where they come from.
    """

    def __init__(self, start: Start) -> None:
        super().__init__(start.device)
        self.n_workers, self.local = start.n_workers, start.local
        self._start = start
        self._starting: threading.Thread | None = None
        self._client: Any = None
        self._cluster: Any = None
        self._failure: BaseException | None = None
        for name in ("distributed", "tornado", "bokeh"):  # failures reach the user as our errors
            logging.getLogger(name).setLevel(logging.CRITICAL)
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
            self._client, self._cluster = self._start.begin()
        except BaseException as error:  # handed to the caller by connected()
            self._failure = error

    def connected(self) -> Any:
        """The client, as soon as the workers are there.

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
        if self.dashboard is None:
            if not self.local:
                self._check_workers()
            if "dashboard" in self._client.scheduler_info(n_workers=0)["services"]:
                self.dashboard = self._client.dashboard_link
        return self._client

    def _check_workers(self) -> None:
        """Wait for workers; refuse those without scapedist, or with another version of it."""
        with contextlib.suppress(TimeoutError):
            self._client.wait_for_workers(self._start.n_workers or 1, timeout=self._start.seconds)
        self.n_workers = len(self._client.scheduler_info(n_workers=-1)["workers"])
        if not self.n_workers:
            raise ResourceError(
                f"{self._start.name} has no workers after {self._start.seconds:.0f} s. "
                f"{self._start.way_out}"
            )
        ours = metadata.version("scapedist")
        theirs = self._client.run(metadata.version, "scapedist", on_error="return")
        for worker, version in theirs.items():
            if version != ours:
                found = "none" if isinstance(version, Exception) else version
                raise ResourceError(
                    f"All workers have this scapedist, {ours}. The worker {worker} has {found}. "
                    "Install the same in the workers' environment."
                )

    def check_files(self, paths: Sequence[str | Path]) -> None:
        """Refuse where a worker does not see a file or directory that it will need.

        Raises
        ------
        ResourceError
            Naming the worker and the path.
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
        """The same once; a few tasks a worker are with the scheduler at any time."""
        from distributed import CancelledError, as_completed
        from distributed.scheduler import KilledWorker

        client = self.connected()
        common = client.scatter(shared, broadcast=True, hash=False)
        ahead = TASKS_AHEAD * max(self.n_workers, 1)
        waiting = iter(list(tasks.items()))
        number: dict[str, int] = {}

        def more(n: int) -> list[Any]:
            some = list(islice(waiting, n))
            futures = client.map(
                _on_one_thread, [task for _, task in some], work=work, shared=common, pure=False
            )
            number.update(zip((f.key for f in futures), (i for i, _ in some), strict=True))
            return list(futures)

        done = as_completed(more(ahead))
        held = set(done.futures)
        n_out = len(held)
        try:
            for future in done:
                held.discard(future)
                n_out -= 1
                if n_out <= ahead // 2:
                    fresh = more(ahead - n_out)
                    held.update(fresh)
                    n_out += len(fresh)
                    done.update(fresh)
                try:
                    result = future.result()
                except KilledWorker as error:
                    raise ResourceError(
                        f"A worker died several times over the same batch ({error}). It may lack "
                        "memory: use a smaller --batch-size, fewer --workers, or --memory-limit."
                    ) from None
                except CancelledError:  # the last worker that held what is shared is gone
                    raise _Lost from None
                yield number.pop(future.key), result
                future.release()
        finally:
            client.cancel(list(held), force=True)

    def call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """The result of one call, made by a worker where it is near or has the device."""
        if not self.local and self.device == "cpu":
            return work(*arguments)
        return self.connected().submit(work, *arguments, pure=False).result()

    def close(self) -> None:
        """Release the client, and the workers where they are our own."""
        if self._starting is not None:
            self._starting.join()
        for part in (self._client, self._cluster):
            if part is not None:
                with contextlib.suppress(Exception):
                    part.close()
        self._client = self._cluster = None


class _Lost(Exception):
    """What all tasks share is gone with the workers that held it."""


def _on_one_thread(task: Task, work: Work, shared: Any) -> Any:
    with one_thread():
        return attempt(work, shared, task)


def _missing(paths: Sequence[str]) -> list[str]:
    return [path for path in paths if not os.path.exists(path)]
