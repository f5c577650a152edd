"""The GPUs of this machine: which there are, whether they can be used, and their free memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

from scapedist.errors import InputError, ResourceError
from scapedist.workers.start import LocalGpus

POOL_FRACTION = 0.8
"""Fraction of a GPU's free memory in the pool that torch and CuPy share."""
DRIVER_OF = {12: 525, 13: 580}
"""First driver version for each CUDA major version."""
WITHOUT = "CPUs compute without --gpus, or by a cluster file of kind cpus."


@dataclass(frozen=True)
class Gpu:
    """A GPU that can be used.

    Attributes
    ----------
    identity
        Number or UUID of the GPU, as ``CUDA_VISIBLE_DEVICES`` names it.
    name
    free_bytes
    """

    identity: str
    name: str
    free_bytes: int


def local_gpus(asked: str, memory_limit: int | None = None) -> LocalGpus:
    """The start of workers on GPUs of this machine, one per GPU.

    Parameters
    ----------
    asked
        ``all``, or numbers as ``0,2`` among those that are visible.
    memory_limit
        Bytes of host memory that a worker may use.

    Raises
    ------
    InputError
        Where there is no such GPU.
    ResourceError
        Where the packages are missing, the driver is too old, or there is no GPU.
    """
    check_packages()
    chosen = choose(asked, visible_gpus())
    return LocalGpus(
        n_workers=len(chosen),
        gpus=tuple(gpu.identity for gpu in chosen),
        pool_bytes=int(POOL_FRACTION * min(gpu.free_bytes for gpu in chosen)) // 256 * 256,
        memory_limit=memory_limit,
    )


def check_packages() -> None:
    """Refuse where the packages of the GPU extra are missing."""
    missing = [name for name in ("cupy", "rmm", "dask_cuda") if find_spec(name) is None]
    if missing:
        raise ResourceError(
            f"GPUs need the extra cuda13, or cuda12 for older drivers: {missing[0]} is not "
            f"installed. Give `pip install 'scapedist[cuda13]'`. {WITHOUT}"
        )


def needed_cuda() -> int:
    """CUDA major version that the installed GPU extra was built for."""
    return 12 if any(_has(f"cupy-cuda{major}x") for major in (11, 12)) else 13


def _has(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def visible_gpus() -> list[Gpu]:
    """GPUs that this process may use, in the order of ``CUDA_VISIBLE_DEVICES``.

    Raises
    ------
    ResourceError
        Where there is no driver, or one that is too old.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise ResourceError(
            f"No GPU is visible: the NVIDIA driver does not answer ({error}). Check `nvidia-smi` "
            f"on this machine. {WITHOUT}"
        ) from None
    try:
        check_driver(
            pynvml.nvmlSystemGetDriverVersion(),
            pynvml.nvmlSystemGetCudaDriverVersion_v2() // 1000,
            needed_cuda(),
        )
        handles = {}
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            handles[str(index)] = handles[pynvml.nvmlDeviceGetUUID(handle)] = handle
        numbers = [identity for identity in handles if identity.isdigit()]
        return [
            Gpu(
                identity,
                pynvml.nvmlDeviceGetName(handle),
                int(pynvml.nvmlDeviceGetMemoryInfo(handle).free),
            )
            for identity in named_visible(os.environ.get("CUDA_VISIBLE_DEVICES"), numbers)
            for handle in [h for name, h in handles.items() if name.startswith(identity)][:1]
        ]
    finally:
        pynvml.nvmlShutdown()


def named_visible(variable: str | None, numbers: Sequence[str]) -> list[str]:
    """The GPUs of the machine that ``CUDA_VISIBLE_DEVICES`` lets a process see."""
    if variable is None:
        return list(numbers)
    return [name.strip() for name in variable.split(",") if name.strip()]


def check_driver(driver: str, its_cuda: int, needed: int) -> None:
    """Refuse a driver that is too old for the installed packages.

    Parameters
    ----------
    driver
        Version of the driver, as ``570.86.15``.
    its_cuda
        Newest CUDA major version that the driver runs.
    needed
        CUDA major version of the installed packages.
    """
    if its_cuda < needed:
        older = ", or `pip install 'scapedist[cuda12]'`" if needed > 12 and its_cuda >= 12 else ""
        raise ResourceError(
            f"The packages need CUDA {needed}, whose first driver is {DRIVER_OF[needed]}. The "
            f"driver of this machine is {driver}, for CUDA {its_cuda}. Install a newer driver"
            f"{older}. {WITHOUT}"
        )


def choose(asked: str, found: Sequence[Gpu]) -> list[Gpu]:
    """The GPUs that were asked for.

    Raises
    ------
    InputError
        Where one does not exist, or is named twice.
    ResourceError
        Where there is none.
    """
    if not found:
        raise ResourceError(
            "No GPU is visible to this process. Check `nvidia-smi` and CUDA_VISIBLE_DEVICES. "
            f"{WITHOUT}"
        )
    if asked == "all":
        return list(found)
    try:
        numbers = [int(part) for part in asked.split(",")]
    except ValueError:
        numbers = []
    if not numbers or len(set(numbers)) < len(numbers):
        raise InputError(f"GPUs are `all` or different numbers, as 0,2. --gpus is {asked!r}.")
    for number in numbers:
        if not 0 <= number < len(found):
            there = ", ".join(f"{i} ({gpu.name})" for i, gpu in enumerate(found))
            raise InputError(
                f"There is no GPU {number} on this machine. There are: {there}. Give others, or "
                "--gpus all."
            )
    return [found[number] for number in numbers]
