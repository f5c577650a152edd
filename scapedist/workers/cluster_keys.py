"""The kinds of workers of a cluster file, the keys of each kind and the values of each key."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from scapedist.errors import ResourceError
from scapedist.plan import parse_bytes

NOT_IN_SCRIPTS = re.compile(r"[^\w@%+=:,./~-]")
"""Pattern of the characters that a shell would not take as they are."""


@dataclass(frozen=True)
class Rule:
    """The values that a key may have.

    Attributes
    ----------
    expected
        Description of the values in an error message, after "KEY is".
    read
        Function from the file's value to the setting; ValueError where it is not as expected.
    """

    expected: str
    read: Callable[[Any], Any]


def _refused_unless(holds: bool) -> None:
    if not holds:
        raise ValueError


def _count(value: Any) -> int:
    _refused_unless(type(value) is int and value >= 1)
    return int(value)


def _count_or_none(value: Any) -> int:
    return 0 if value == 0 and type(value) is int else _count(value)


def _size(value: Any) -> int:
    _refused_unless(type(value) in (int, float, str))
    try:
        return parse_bytes(str(value))
    except ResourceError as error:
        raise ValueError from error


def _minutes(value: Any) -> float:
    _refused_unless(type(value) in (int, float) and 0 < value < float("inf"))
    return float(value)


def _switch(value: Any) -> bool:
    _refused_unless(type(value) is bool)
    return bool(value)


def _text(value: Any) -> str:
    _refused_unless(isinstance(value, str) and bool(value.strip()) and "\n" not in value)
    return str(value)


def _word(value: Any) -> str:
    text = str(value) if type(value) is int else _text(value)
    _refused_unless(not NOT_IN_SCRIPTS.search(text))
    return text


def _device(value: Any) -> str:
    _refused_unless(value in ("cpu", "cuda"))
    return str(value)


def _walltime(value: Any) -> str:
    _refused_unless(bool(re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", _text(value))))
    return str(value)


def _address(value: Any) -> str:
    _refused_unless(bool(re.fullmatch(r"\w+://\S+", _text(value))))
    return str(value)


def _gpus(value: Any) -> str:
    if value == "all":
        return "all"
    _refused_unless(isinstance(value, list) and bool(value))
    _refused_unless(all(type(number) is int and number >= 0 for number in value))
    _refused_unless(len(set(value)) == len(value))
    return ",".join(map(str, value))


def _lines(value: Any) -> tuple[str, ...]:
    _refused_unless(isinstance(value, list))
    return tuple(_text(line) for line in value)


def _directives(value: Any) -> tuple[str, ...]:
    lines = _lines(value)
    _refused_unless(all(line.startswith("-") for line in lines))
    return lines


COUNT = Rule("a whole number, 1 or more", _count)
COUNT_OR_NONE = Rule("a whole number, 0 or more", _count_or_none)
SIZE = Rule("a size with its unit, as 16GiB", _size)
MINUTES = Rule("a number of minutes above 0", _minutes)
SWITCH = Rule("true or false", _switch)
WORD = Rule("a name without blanks or shell characters", _word)
DEVICE = Rule("cpu or cuda", _device)
WALLTIME = Rule('a time in quotes, as "04:00:00"', _walltime)
ADDRESS = Rule("an address, as tcp://HOST:PORT", _address)
PATH = Rule("a path", _text)
GPUS = Rule("all, or a list of different numbers, as [0, 2]", _gpus)
LINES = Rule("a list of shell lines", _lines)
DIRECTIVES = Rule("a list of sbatch options, as [--constraint=a100]", _directives)


def key(rule: Rule, default: Any = dataclasses.MISSING) -> Any:
    """A key of a kind of workers; one without a default must be given."""
    return dataclasses.field(default=default, metadata={"rule": rule})


@dataclass(frozen=True)
class Cpus:
    """Workers on the cores of this machine.

    Attributes
    ----------
    workers
        Number of workers; None for one per core.
    memory_limit
        Bytes that each worker may use; None for no limit.
    """

    kind: ClassVar[str] = "cpus"
    workers: int | None = key(COUNT, None)
    memory_limit: int | None = key(SIZE, None)


@dataclass(frozen=True)
class Gpus:
    """Workers on GPUs of this machine, one per GPU.

    Attributes
    ----------
    gpus
        ``all``, or numbers as ``0,2`` among those that are visible.
    memory_limit
        Bytes of host memory that each worker may use; None for no limit.
    """

    kind: ClassVar[str] = "gpus"
    gpus: str = key(GPUS, "all")
    memory_limit: int | None = key(SIZE, None)


@dataclass(frozen=True)
class Slurm:
    """Workers in jobs that are submitted to Slurm.

    Attributes
    ----------
    jobs
        Number of jobs.
    memory
        Bytes of host memory per job.
    walltime
        Time that a job may take, as sbatch reads it.
    workers_per_job
        Workers of one thread per job; with GPUs there is one per GPU.
    gpus_per_job
        GPUs per job; 0 to compute on cores.
    queue, account
        Partition and account that jobs run in; None for the machine's own.
    interface
        Network that the scheduler and the workers talk over; None for the default one.
    directives
        Further options of sbatch.
    prologue
        Shell lines that a job runs before its workers.
    shared_directory
        Directory where a job finds the key of the connection; None for the current one.
    wait_minutes
        Minutes to wait for the queue.
    """

    kind: ClassVar[str] = "slurm"
    jobs: int = key(COUNT)
    memory: int = key(SIZE)
    walltime: str = key(WALLTIME)
    workers_per_job: int | None = key(COUNT, None)
    gpus_per_job: int = key(COUNT_OR_NONE, 0)
    queue: str | None = key(WORD, None)
    account: str | None = key(WORD, None)
    interface: str | None = key(WORD, None)
    directives: tuple[str, ...] = key(DIRECTIVES, ())
    prologue: tuple[str, ...] = key(LINES, ())
    shared_directory: Path | None = key(PATH, None)
    wait_minutes: float = key(MINUTES, 30.0)

    @property
    def workers_of_a_job(self) -> int:
        """Workers per job, one per GPU where jobs have any."""
        return self.gpus_per_job or self.workers_per_job or 1


@dataclass(frozen=True)
class Kubernetes:
    """Workers in pods, which the Dask operator makes of a manifest.

    Attributes
    ----------
    manifest
        File of a DaskCluster resource.
    namespace
        Namespace of the resource; None for the current one.
    device
        Device that the workers compute on: ``cpu`` or ``cuda``.
    wait_minutes
        Minutes to wait for the pods.
    """

    kind: ClassVar[str] = "kubernetes"
    manifest: Path = key(PATH)
    namespace: str | None = key(WORD, None)
    device: str = key(DEVICE, "cpu")
    wait_minutes: float = key(MINUTES, 10.0)


@dataclass(frozen=True)
class Scheduler:
    """Workers of a Dask scheduler that runs already.

    Attributes
    ----------
    address, file
        Address or scheduler file of the scheduler; one of them.
    gpus
        Whether each of its workers computes on a GPU.
    """

    kind: ClassVar[str] = "scheduler"
    address: str | None = key(ADDRESS, None)
    file: Path | None = key(PATH, None)
    gpus: bool = key(SWITCH, False)


Settings = Cpus | Gpus | Slurm | Kubernetes | Scheduler
KINDS: dict[str, type[Settings]] = {
    kind.kind: kind for kind in (Cpus, Gpus, Slurm, Kubernetes, Scheduler)
}
