"""The GPUs of this machine: which there are, whether they can be used, and their free memory."""

from __future__ import annotations

import contextlib
import math
import os
import runpy
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scapedist.errors import InputError, ResourceError
from scapedist.workers.start import LocalGpus

POOL_FRACTION = 0.8
"""Fraction of a GPU's free memory in the pool that torch and CuPy share."""
LEAST_FREE_GIB = 4
"""Least GiB that are free on a GPU that can be used.

The fifth of them that the pool leaves holds CUDA's context and the kernels of torch and cuML.
"""
DRIVER_OF = {12: 525, 13: 580}
"""First driver version for each CUDA major version."""
CAPABILITY_OF = {12: (7, 0), 13: (7, 5)}
"""Least compute capability of the packages for each CUDA major version (RAPIDS' and torch's)."""
WITHOUT = "CPUs compute without --gpus, or by a cluster file of kind cpus."


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a MIG instance of one, that a worker can have for itself.

    Attributes
    ----------
    identity
        What LocalCUDACluster is told: the whole UUID, or the number (see ``_has_affinity``).
    name
    free_bytes
    capability
        Compute capability, as (9, 0).
    names
        Its whole UUID, and what else ``CUDA_VISIBLE_DEVICES`` may begin to name it by.
    """

    identity: str
    name: str
    free_bytes: int
    capability: tuple[int, int]
    names: tuple[str, ...]

    def begins(self, name: str) -> bool:
        """Whether a name is what one of this GPU's names begins with."""
        return bool(name) and any(own.startswith(name) for own in self.names)


def local_gpus(asked: str, memory_limit: int | None = None) -> LocalGpus:
    """The start of workers on GPUs of this machine, one per GPU or MIG instance.

    Parameters
    ----------
    asked
        ``all``, or numbers as ``0,2`` among those that are visible.
    memory_limit
        Bytes of host memory that a worker may use.

    Raises
    ------
    InputError
        Where there is no such GPU, or it is not clear which is meant.
    ResourceError
        Where the packages are missing, the driver is too old, or there is no GPU that can be used.
    """
    check_packages()
    found = visible_gpus()
    chosen = choose(asked, found)
    for gpu in chosen:
        check_gpu(found.index(gpu), gpu, needed_cuda())
    if "CUDA_VISIBLE_DEVICES" in os.environ:  # distributed looks up its first name, if it is whole
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.names[0] for gpu in found)
    return LocalGpus(
        n_workers=len(chosen),
        gpus=tuple(gpu.identity for gpu in chosen),
        pool_bytes=int(POOL_FRACTION * min(gpu.free_bytes for gpu in chosen)) // 256 * 256,
        memory_limit=memory_limit,
    )


def check_packages() -> None:
    """Refuse where the packages of the GPU extra are missing, or torch is built for CPUs."""
    names = ("cuml", "cupy", "rmm", "dask_cuda")
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ResourceError(
            f"GPUs need the extra cuda13, or cuda12 for older drivers: {missing[0]} is not "
            f"installed. Give `pip install 'scapedist[cuda13]'`. {WITHOUT}"
        )
    torch = find_spec("torch")  # not imported: that takes a second
    assert torch is not None
    assert torch.origin is not None
    build = runpy.run_path(str(Path(torch.origin).with_name("version.py")))
    if build["cuda"] is None:
        raise ResourceError(
            f"GPUs need a torch that is built for CUDA. {build['__version__']} is installed, "
            "which is not. Give `pip uninstall --yes torch` and then "
            f"`pip install 'scapedist[cuda{needed_cuda()}]'`. {WITHOUT}"
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
    InputError
        Where the variable's numbers may mean other GPUs to CUDA.
    ResourceError
        Where there is no driver, one that is too old, or one that does not tell of its GPUs.
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
        cards = [card_gpus(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        raise ResourceError(
            f"The NVIDIA driver does not tell of this machine's GPUs ({error}). Check "
            f"`nvidia-smi`. {WITHOUT}"
        ) from None
    finally:
        pynvml.nvmlShutdown()
    by_bus = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    return named_visible(os.environ.get("CUDA_VISIBLE_DEVICES"), cards, by_bus)


def card_gpus(number: int) -> list[Gpu]:
    """What a card of this machine has for workers: itself or, where MIG is on, its instances."""
    import pynvml

    card = pynvml.nvmlDeviceGetHandleByIndex(number)
    uuid = pynvml.nvmlDeviceGetUUID(card)
    parts: dict[tuple[str, ...], Any] = {}
    by_number = False
    if not _mig_is_on(card):
        parts[uuid,] = card
        by_number = not _has_affinity(card)
    else:
        for i in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(card)):
            with contextlib.suppress(pynvml.NVMLError_NotFound):
                part = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, i)
                group = pynvml.nvmlDeviceGetGpuInstanceId(part)
                older = f"MIG-{uuid}/{group}/{pynvml.nvmlDeviceGetComputeInstanceId(part)}"
                parts[pynvml.nvmlDeviceGetUUID(part), uuid, older] = part
    return [
        Gpu(
            str(number) if by_number else names[0],
            pynvml.nvmlDeviceGetName(part),
            int(pynvml.nvmlDeviceGetMemoryInfo(part).free),
            pynvml.nvmlDeviceGetCudaComputeCapability(card),
            names,
        )
        for names, part in parts.items()
    ]


def _mig_is_on(card: Any) -> bool:
    import pynvml

    try:
        return bool(pynvml.nvmlDeviceGetMigMode(card)[0] == pynvml.NVML_DEVICE_MIG_ENABLE)
    except pynvml.NVMLError:  # most cards do not know of it
        return False


def _has_affinity(card: Any) -> bool:
    """Whether the driver tells a card's cores; dask-cuda 26.10 wants a number where it does not."""
    import pynvml

    try:
        pynvml.nvmlDeviceGetCpuAffinity(card, math.ceil((os.cpu_count() or 1) / 64))
    except pynvml.NVMLError:  # as on WSL
        return False
    return True


def named_visible(variable: str | None, cards: Sequence[list[Gpu]], by_bus: bool) -> list[Gpu]:
    """GPUs that ``CUDA_VISIBLE_DEVICES`` lets a process see, up to its first name of none.

    Parameters
    ----------
    variable
        Numbers of cards, and UUIDs of cards and MIG instances or what they alone begin with.
    cards
        GPUs of each card, as NVML counts cards: by their places on the bus.
    by_bus
        Whether CUDA counts so too; else it begins with the fastest card.

    Raises
    ------
    InputError
        Where numbers may mean other cards to CUDA.
    """
    every = [gpu for card in cards for gpu in card]
    if variable is None:
        return every
    found: dict[Gpu, None] = {}
    numbered = False
    for name in variable.split(","):
        name = name.strip()
        if name.isdecimal():
            fitting, numbered = list(cards[int(name) : int(name) + 1]), True
        else:
            fitting = [[gpu for gpu in card if gpu.begins(name)] for card in cards]
        fitting = [gpus for gpus in fitting if gpus]
        if len(fitting) != 1:
            break
        found |= dict.fromkeys(fitting[0])
    models = {gpu.name.split(" MIG ")[0] for gpu in every}
    if numbered and not by_bus and len(models) > 1 and len(found) < len(every):
        raise InputError(
            "Where cards differ, a number in CUDA_VISIBLE_DEVICES may mean another to CUDA than "
            f"to `nvidia-smi`. It is {variable}; there are: {', '.join(sorted(models))}. Give "
            "UUIDs (`nvidia-smi -L`), or set CUDA_DEVICE_ORDER=PCI_BUS_ID."
        )
    return list(found)


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


def check_gpu(number: int, gpu: Gpu, cuda: int) -> None:
    """Refuse a GPU that the packages for a CUDA major version cannot use, or that is full."""
    least, its_own = CAPABILITY_OF[cuda], ".".join(map(str, gpu.capability))
    if gpu.capability < least:
        older = ", or `pip install 'scapedist[cuda12]'`" if gpu.capability >= (7, 0) else ""
        raise ResourceError(
            f"The packages for CUDA {cuda} need a GPU of compute capability {least[0]}.{least[1]} "
            f"or more. GPU {number} ({gpu.name}) has {its_own}. Give others, as --gpus 0,2{older}. "
            f"{WITHOUT}"
        )
    if gpu.free_bytes < LEAST_FREE_GIB * 2**30:
        raise ResourceError(
            f"A worker needs a GPU with {LEAST_FREE_GIB} GiB of free memory. GPU {number} "
            f"({gpu.name}) has {gpu.free_bytes / 2**30:.1f} GiB. End what else is on it "
            f"(`nvidia-smi` tells), or give others, as --gpus 0,2. {WITHOUT}"
        )


def choose(asked: str, found: Sequence[Gpu]) -> list[Gpu]:
    """The GPUs that were asked for.

    Raises
    ------
    InputError
        Where one does not exist or is named twice, or whole GPUs and MIG instances are mixed.
    ResourceError
        Where there is none.
    """
    if not found:
        raise ResourceError(
            "No GPU is visible to this process. Check `nvidia-smi -L` and CUDA_VISIBLE_DEVICES. "
            f"{WITHOUT}"
        )
    try:
        numbers = list(range(len(found))) if asked == "all" else [int(n) for n in asked.split(",")]
    except ValueError:
        numbers = []
    if not numbers or len(set(numbers)) < len(numbers):
        raise InputError(f"GPUs are `all` or different numbers, as 0,2. --gpus is {asked!r}.")
    there = ", ".join(f"{i} ({gpu.name})" for i, gpu in enumerate(found))
    for number in numbers:
        if not 0 <= number < len(found):
            raise InputError(
                f"There is no GPU {number} on this machine. There are: {there}. Give others, or "
                "--gpus all."
            )
    chosen = [found[number] for number in numbers]
    if len({gpu.identity.startswith("MIG-") for gpu in chosen}) > 1:
        raise InputError(
            "Workers are on whole GPUs or on MIG instances: where CUDA sees an instance it sees "
            f"nothing else. There are: {there}. Give some of one kind, as --gpus 0,2."
        )
    return chosen
