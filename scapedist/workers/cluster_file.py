"""Reading a file that says where workers come from (``cluster_configs/``)."""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from scapedist.backend import available_cores
from scapedist.errors import InputError, ResourceError
from scapedist.plan import GIB, import_bytes
from scapedist.workers.batch_systems import kubernetes_pods, slurm_jobs
from scapedist.workers.cluster_keys import (
    KINDS,
    PATH,
    Cpus,
    Gpus,
    Kubernetes,
    Rule,
    Scheduler,
    Settings,
    Slurm,
)
from scapedist.workers.gpus import local_gpus
from scapedist.workers.start import GivenScheduler, LocalProcesses, Start

EXAMPLES = "Start from a file in cluster_configs."


def read_cluster_file(path: str | Path) -> Start:
    """The start of the workers that a cluster file describes.

    Raises
    ------
    InputError
        Where the file cannot be read, or has a wrong key or value.
    ResourceError
        Where this machine lacks a package, a command or a GPU that such workers need.
    """
    settings = read_settings(path)
    if isinstance(settings, Cpus):
        n_workers = settings.workers or available_cores()
        return LocalProcesses(n_workers=n_workers, memory_limit=settings.memory_limit)
    if isinstance(settings, Gpus):
        return local_gpus(settings.gpus, settings.memory_limit)
    if isinstance(settings, Slurm):
        return slurm_jobs(settings)
    if isinstance(settings, Kubernetes):
        return kubernetes_pods(settings)
    where = settings.address or str(settings.file)
    return GivenScheduler(where=where, device="cuda" if settings.gpus else "cpu")


def read_settings(path: str | Path) -> Settings:
    """The settings of a cluster file; nothing is looked up or started.

    Paths in it are relative to the file.

    Raises
    ------
    InputError
        Where the file cannot be read, or has a wrong key or value.
    ResourceError
        Where it gives a worker less memory than any needs.
    """
    path = Path(path)
    content = _mapping(path)
    kind = _kind(path, content.pop("kind", None))
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = {}
    for name, value in content.items():
        if name not in fields:
            raise InputError(
                f"Workers of kind {kind.kind} have the keys {', '.join(fields)}. {path} has "
                f"{name!r}. {_instead(str(name), fields)}"
            )
        if value is None and fields[name].default is None:
            continue
        values[name] = _value(path, name, value, fields[name].metadata["rule"])
    for name, field in fields.items():
        if field.default is MISSING and name not in values:
            raise InputError(
                f"Workers of kind {kind.kind} need the key {name}: "
                f"{field.metadata['rule'].expected}. {path} has none. Add it."
            )
    settings = kind(**values)
    _check(path, settings)
    return settings


def _mapping(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise InputError(
            f"{path} cannot be read: there is no such file. Give its path, or s{EXAMPLES[1:]}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InputError(f"{path} cannot be read: {what}. {EXAMPLES}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(
            f"A cluster file is YAML. {path} is not ({where}{what}). Mend it there."
        ) from None
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise InputError(f"A cluster file has lines of KEY: VALUE. {path} {found}. {EXAMPLES}")
    return content


def _kind(path: Path, found: Any) -> type[Settings]:
    if isinstance(found, str) and found in KINDS:
        return KINDS[found]
    rule = f"The key kind says where workers come from: {', '.join(KINDS)}."
    if found is None:
        raise InputError(f"{rule} {path} has none. Add one of these.")
    near = get_close_matches(str(found), KINDS, n=1)
    way_out = f"Write {near[0]}." if near else "Write one of these."
    raise InputError(f"{rule} In {path} it is {found!r}. {way_out}")


def _instead(name: str, fields: dict[str, Any]) -> str:
    near = get_close_matches(name, fields, n=1)
    return f"Write {near[0]}." if near else "Leave it out."


def _value(path: Path, name: str, value: Any, rule: Rule) -> Any:
    try:
        read = rule.read(value)
    except (ValueError, TypeError):
        raise InputError(
            f"{name} is {rule.expected}. In {path} it is {value!r}. Change it there."
        ) from None
    if rule is PATH:
        return (path.parent / Path(read).expanduser()).resolve()
    return read


def _check(path: Path, settings: Settings) -> None:
    """Refuse values that their keys allow but that contradict one another."""
    if isinstance(settings, Cpus | Gpus) and settings.memory_limit is not None:
        device = "cpu" if isinstance(settings, Cpus) else "cuda"
        _check_memory(path, "memory_limit", settings.memory_limit, 1, device)
    if isinstance(settings, Slurm):
        given, gpus = settings.workers_per_job, settings.gpus_per_job
        if not given and not gpus:
            raise InputError(
                "A job has workers: workers_per_job on cores, or gpus_per_job with one a GPU. "
                f"{path} has neither. Add one."
            )
        if given and gpus and given != gpus:
            raise InputError(
                f"There is one worker a GPU. In {path} workers_per_job is {given} and gpus_per_job "
                f"{gpus}. Leave out workers_per_job."
            )
        device = "cuda" if gpus else "cpu"
        _check_memory(path, "memory", settings.memory, settings.workers_of_a_job, device)
    if isinstance(settings, Scheduler):
        if (settings.address is None) == (settings.file is None):
            found = "neither" if settings.file is None else "both"
            raise InputError(
                f"A scheduler is known by its address or by its file. {path} has {found}. "
                "Give one of them."
            )
        if settings.file is not None and not settings.file.is_file():
            raise InputError(
                f"The scheduler file {settings.file} cannot be read: there is no such file. "
                "Start a scheduler with `dask scheduler --scheduler-file FILE`."
            )
    if isinstance(settings, Kubernetes) and not settings.manifest.is_file():
        raise InputError(
            f"The manifest {settings.manifest} cannot be read: there is no such file. Give its "
            f"path, relative to {path}."
        )


def _check_memory(path: Path, name: str, size: int, n_workers: int, device: str) -> None:
    least = import_bytes(device)
    if size < n_workers * least:
        raise ResourceError(
            f"A worker takes {least / GIB:.2f} GiB before its first batch. In {path} "
            f"{name} is {size / GIB:.2f} GiB for {n_workers} of them. Give "
            f"{2 * n_workers * least / GIB:.1f}GiB."
        )
