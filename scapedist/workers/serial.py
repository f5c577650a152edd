"""The calling process as the only worker, and how a batch is computed in any process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from scapedist.backend import one_numpy_thread, out_of_memory
from scapedist.errors import ResourceError
from scapedist.plan import Budget

MEMORY_SHARE = 0.75
"""Fraction of the machine's memory that a process may use where no limit is given."""
Task = Any
Work = Callable[[Any, Task], Any]


class Serial:
    """The calling process as the only worker.

    Parameters
    ----------
    device
        Device that it computes on: ``cpu`` or ``cuda``.
    memory_limit
        Bytes of host memory that each worker may use; None for no limit.
    """

    n_workers = 1
    local = True
    """Whether the workers are processes of this machine."""
    dashboard: str | None = None

    def __init__(self, device: str = "cpu", memory_limit: int | None = None) -> None:
        self.device, self.memory_limit = device, memory_limit

    @property
    def budget(self) -> Budget:
        """Memory that a process may use: the limit, or most of what this machine has."""
        return budget_of(self.memory_limit)

    def budget_of_each(self) -> Budget:
        """The budget, with the least that is free on a worker's GPU; the workers are asked now."""
        if self.device == "cpu":
            return self.budget
        return replace(self.budget, device_bytes=min(self.everywhere(_free_bytes, self.device)))

    def begin(self) -> None:
        """Start the workers in the background; without it they start when they are first needed."""

    def run(self, work: Work, shared: Any, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """Yield (task's number, result) in order."""
        with one_thread():
            for number, task in enumerate(tasks):
                yield number, attempt(work, shared, task)

    def gather(self, work: Work, shared: Any, tasks: Sequence[Task]) -> list[Any]:
        """All results, in the order of the tasks."""
        found = dict(self.run(work, shared, tasks))
        return [found[number] for number in range(len(tasks))]

    def call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run one call in a process that has torch and the device."""
        return work(*arguments)

    def everywhere(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Results of one call in each worker's process."""
        return [work(*arguments)]

    def check_files(self, paths: Sequence[str | Path]) -> None:
        """Refuse where a worker cannot read what it will need."""

    def close(self) -> None:
        """Release the workers; there is nothing to release here."""

    def __enter__(self) -> Serial:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def attempt(work: Work, shared: Any, task: Task) -> Any:
    """The result of a task; where its memory does not suffice, an error that says so."""
    try:
        return work(shared, task)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        found = str(error).partition("\n")[0] or type(error).__name__
        raise ResourceError(
            f"A worker's memory must hold what it computes. It did not ({found[:200]}). Use a "
            "smaller --batch-size, --box-size or --sketch-size, fewer --workers, or a machine with "
            "more memory."
        ) from None


def _free_bytes(device: str) -> int:
    from scapedist.model.field import free_bytes

    return free_bytes(device)


def attempt_call(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The result of one call; where its memory does not suffice, an error that says so."""
    return attempt(lambda _, given: work(*given), None, arguments)


def budget_of(memory_limit: int | None) -> Budget:
    """The memory that a process may use: the limit, or most of the machine's without one."""
    if memory_limit is not None:
        return Budget(memory_limit)
    return Budget(int(MEMORY_SHARE * available_memory()), asked=False)


def available_memory() -> int:
    """Bytes of memory that this process can have: the machine's, or its control group's limit."""
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            size = min(size, int(Path("/sys/fs/cgroup", name).read_text()))
    return size


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Context with torch and numpy on one thread: a batch's sums are the same everywhere."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with one_numpy_thread():
            yield
    finally:
        torch.set_num_threads(before)
