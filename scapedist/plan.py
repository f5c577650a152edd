"""Integer arithmetic of a run: batches, blocks, bytes; it computes no data and touches no file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt

import numpy as np

from scapedist.errors import ResourceError

GIB = 2**30
BATCH_VOLUMES = {"cpu": 8, "cuda": 64}
"""Volumes per batch where memory allows: enough to share the first layer and to make the
scheduler's part small, few enough to lose."""
IMPORT_BYTES = 360 * 2**20
"""Resident memory of a worker before its first batch (interpreter, torch, zarr, distributed)."""
MAIN_BYTES = 280 * 2**20
"""Resident memory of this process before any work where workers compute: it needs no torch."""
GPU_IMPORT_BYTES = 3 * GIB
"""Resident host memory of a worker with a GPU before its first batch: torch, CuPy, cuDF and cuML
with their libraries of kernels, and the driver's part. It is an allowance, not a measurement."""
BLOCK_BYTES = 128 * 2**20
"""Bytes of masked voxels that the analysis holds at once by default in host memory."""
BLOCK_SHARE = 0.5
"""Fraction of a GPU's free memory in which the analysis holds masked voxels."""
TILE_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}
"""Most bytes of a Gram matrix's tile, which is computed from two blocks and sent at once."""
CHUNK_BYTES = 32 * 2**20
"""Bytes of rows in float64 that a pass over all rows multiplies at once."""
CENTERED_BYTES = {"cpu": 8 * 2**20, "cuda": 512 * 2**20}
"""Bytes of centered rows in float64 that a product of two blocks takes at once, as all columns
are too many for the processor's cache, or too large for a GPU."""
PANEL_BYTES = 16 * 2**20
"""Bytes of the distances, or of a stored Gram matrix, that are handled at once."""
SPARE_COLUMNS = 12
"""Number of columns of an iteration's block beyond the components, for the next ones."""
ISOMETRIC_COLUMNS = 256
"""Number of isometric coordinates kept per volume where the Gram matrix is too large."""
COORDINATE_COPIES = 6
"""Copies of the isometric coordinates held during linkage."""
TILES_AHEAD = 32
"""Most received Gram tiles waiting to be placed."""
MICRO_STATES = 4000
"""Most micro-states of linkage in two levels."""
HOST_COPIES = 16
"""Most volumes that are on their way from a GPU to the disk at any time."""
FFT_VOLUMES = 6
"""Number of arrays of a volume's size held while one volume is transformed and written."""


@dataclass(frozen=True)
class Budget:
    """Memory that a process may use.

    Attributes
    ----------
    n_bytes
        Size of the host memory.
    asked
        Whether someone asked for this limit; else it is most of what the machine has.
    device_bytes
        Free memory of the GPU that a worker computes on; 0 where it computes in host memory.
    """

    n_bytes: int
    asked: bool = True
    device_bytes: int = 0

    def less(self, n_bytes: int) -> Budget:
        """The budget that is left beside a use of some bytes of host memory."""
        return replace(self, n_bytes=self.n_bytes - n_bytes)


UNLIMITED = Budget(2**63, asked=False)
"""Budget of a plan whose memory nobody limits."""


@dataclass(frozen=True)
class DecodePlan:
    """Plan of decoding volumes: the batches, and the memory and disk they take.

    Attributes
    ----------
    n_volumes, box_size, batch_size
        Number of volumes, voxels along an edge, volumes per batch.
    worker_bytes
        Projected peak memory of one worker, imports included.
    disk_bytes
        Size of the volumes in the store.
    """

    n_volumes: int
    box_size: int
    batch_size: int
    worker_bytes: int
    disk_bytes: int

    @property
    def n_batches(self) -> int:
        """Number of batches."""
        return -(-self.n_volumes // self.batch_size)


def batches(n: int, size: int) -> list[tuple[int, int]]:
    """The (start, stop) of n items in consecutive batches of a size; the last may be shorter."""
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def spread_evenly(n: int, n_wanted: int) -> np.ndarray:
    """Row numbers (m,) int64 spread evenly over n rows; all where no fewer are wanted."""
    return np.unique(np.linspace(0, n - 1, min(n, n_wanted)).round().astype(np.int64))


def import_bytes(device: str) -> int:
    """Resident host memory of a worker on a device before its first batch."""
    return IMPORT_BYTES if device == "cpu" else GPU_IMPORT_BYTES


def worker_bytes(
    batch_size: int,
    box_size: int,
    n_slots: int,
    n_weights: int,
    cached_bytes: int,
    device: str = "cpu",
) -> int:
    """Projected peak of the host memory of a worker that decodes a batch."""
    values = batch_size * n_slots * 4
    volume = box_size**3 * 4
    lattice = 2 * volume + n_slots * 12
    beside = lattice + 8 * n_weights + cached_bytes
    held = (FFT_VOLUMES if device == "cpu" else HOST_COPIES) * volume
    return import_bytes(device) + values + held + beside


def plan_decode(
    n_volumes: int,
    box_size: int,
    n_slots: int,
    n_weights: int,
    cached_bytes: int,
    voxel_bytes: int,
    n_voxels: int | None = None,
    batch_size: int | None = None,
    budget: Budget = UNLIMITED,
    device: str = "cpu",
) -> DecodePlan:
    """The plan of a decoding, refused where not even one volume at a time fits the limit.

    Parameters
    ----------
    n_volumes, box_size
        Volumes to decode and voxels along their edge.
    n_slots
        Number of values per volume in frequency space (``Lattice.n_slots``).
    n_weights
        Number of the decoder's parameters.
    cached_bytes
        Size of the first-layer activations kept between batches.
    voxel_bytes
        Bytes per stored voxel: 4 or 2.
    n_voxels
        Voxels stored per volume (default: all).
    batch_size
        Volumes per batch; None for the largest that fits, up to 8, or 64 on a GPU.
    budget
        Memory of a worker; it is a limit where it was asked for.
    device
        Where values are: ``cpu``, or ``cuda``, which does with what memory it has.

    Raises
    ------
    ResourceError
        Where it does not fit, with the batch size or the limit that would do.
    """

    def need(size: int) -> int:
        held = size if device == "cpu" else 1
        return worker_bytes(held, box_size, n_slots, n_weights, cached_bytes, device)

    sizes = range(1, BATCH_VOLUMES[device] + 1) if batch_size is None else range(batch_size, 0, -1)
    fitting = [size for size in sizes if not budget.asked or need(size) <= budget.n_bytes]
    wanted = batch_size or 1
    if not fitting or (batch_size is not None and fitting[0] != batch_size):
        way_out = (
            f"Use --batch-size {fitting[0]} or less."
            if fitting
            else f"Use --memory-limit {-(-need(1) // 2**20)}MiB or more, or a smaller --box-size."
        )
        raise ResourceError(
            f"Decoding {wanted} volume(s) of {box_size}^3 at a time needs "
            f"{need(wanted) / GIB:.2f} GiB; a worker may use {budget.n_bytes / GIB:.2f} GiB. "
            f"{way_out}"
        )
    size = batch_size or fitting[-1]
    stored = n_voxels if n_voxels is not None else box_size**3
    return DecodePlan(
        n_volumes=n_volumes,
        box_size=box_size,
        batch_size=size,
        worker_bytes=need(size),
        disk_bytes=n_volumes * (stored * voxel_bytes + 4),
    )


def kept_bytes(budget: Budget = UNLIMITED) -> int:
    """Bytes of masked voxels as float32 that the analysis holds at once: two blocks or more."""
    if budget.device_bytes:
        return int(BLOCK_SHARE * budget.device_bytes)
    return max(budget.n_bytes // 16, 2**20) if budget.asked else BLOCK_BYTES


def block_rows(n_voxels: int, budget: Budget = UNLIMITED) -> int:
    """Number of rows of masked voxels per block; a product takes two blocks."""
    rows = kept_bytes(budget) // (8 * max(n_voxels, 1))
    tile = TILE_BYTES["cuda" if budget.device_bytes else "cpu"]
    return max(1, min(rows, isqrt(tile // 8)))


@dataclass(frozen=True)
class ComponentsPlan:
    """Plan of finding components: the solver, and the memory and disk it takes.

    Attributes
    ----------
    solver
        ``gram``: from the Gram matrix of the volumes; ``iteration``: from passes over them.
    block_rows
        Number of volumes per block.
    kept
        Whether a process keeps the masked voxels of all volumes, and reads each once.
    columns, isometric
        Columns of the iteration's space; number of isometric coordinates kept. 0 with ``gram``.
    here_bytes, worker_bytes
        Projected peak memory of this process and of each worker, imports included.
    disk_bytes
        Size of what is stored.
    """

    solver: str
    block_rows: int
    kept: bool
    columns: int
    isometric: int
    here_bytes: int
    worker_bytes: int
    disk_bytes: int

    @property
    def most_bytes(self) -> int:
        """Projected peak memory of any process."""
        return max(self.here_bytes, self.worker_bytes)


def plan_components(
    n: int,
    n_voxels: int,
    n_components: int,
    budget: Budget,
    n_workers: int = 1,
    solver: str = "auto",
) -> ComponentsPlan:
    """Plan how the components of n volumes are found within a memory.

    They are found by the Gram matrix, which gives every distance exactly, where it fits; else by
    passes over the volumes.

    Parameters
    ----------
    n, n_voxels, n_components
        Number of volumes, of voxels in the mask, and of components wanted.
    budget
        Memory of each process; blocks have their usual size where it was not asked for, and on a
        GPU the size that its free memory has room for.
    n_workers
        Number of workers; a single one without a GPU is this process.
    solver
        ``gram`` or ``iteration``, or ``auto`` for what fits.

    Raises
    ------
    ResourceError
        Where neither fits, with what would.
    """
    memory = budget.n_bytes

    def plans(given: int) -> list[ComponentsPlan]:
        limit = replace(budget, n_bytes=given)
        block, kept = block_rows(n_voxels, limit), kept_bytes(limit)
        whole = 4 * n * n_voxels
        held = min(whole, max(8 * block * n_voxels, kept))
        sizes = (n, n_voxels, n_components, limit, block, held == whole, held, n_workers == 1)
        ways = {"gram": _by_gram, "iteration": _by_iteration}
        return [make(*sizes) for name, make in ways.items() if solver in ("auto", name)]

    for plan in plans(memory):
        if plan.most_bytes <= memory:
            return plan
    needed, enough = 0, memory
    while needed != enough:  # blocks grow with the memory
        needed, enough = enough, max(enough, min(plan.most_bytes for plan in plans(enough)))
    raise ResourceError(
        f"Components of {n} volumes of {n_voxels} voxels need {needed / GIB:.2f} GiB in one "
        f"process; it may use {memory / GIB:.2f} GiB. Use --memory-limit "
        f"{-(-needed // 2**20)}MiB or more, fewer --components, or a smaller --box-size."
    )


def _by_gram(
    n: int, p: int, r: int, budget: Budget, block: int, kept: bool, held: int, alone: bool
) -> ComponentsPlan:
    imports, held, alone = _of_worker(budget, held, alone)
    tile = 8 * min(block, n) ** 2
    few = 8 * p * (3 * r + 3)
    product = held + 2 * CENTERED_BYTES["cpu"] + 2 * tile
    worker = imports + few + product
    here = IMPORT_BYTES + few + 8 * n * n + PANEL_BYTES + 8 * n * 16 * (r + SPARE_COLUMNS)
    here += product if alone else min(TILES_AHEAD * tile, 8 * n * n)
    disk = 8 * n * n + 4 * p * r
    return ComponentsPlan("gram", block, kept, 0, 0, here, worker, disk)


def _of_worker(budget: Budget, held: int, alone: bool) -> tuple[int, int, bool]:
    """A worker's imports, the rows that it holds in host memory, whether it is this process."""
    if budget.device_bytes:
        return GPU_IMPORT_BYTES, 0, False
    return IMPORT_BYTES, held, alone


def _by_iteration(
    n: int, p: int, r: int, budget: Budget, block: int, kept: bool, held: int, alone: bool
) -> ComponentsPlan:
    imports, held, alone = _of_worker(budget, held, alone)
    width = r + SPARE_COLUMNS
    held += min(2 * CHUNK_BYTES, 16 * min(block, n) * p)
    fixed = 8 * p * (7 * width + 3) + 16 * n * ISOMETRIC_COLUMNS
    room = budget.n_bytes - IMPORT_BYTES - fixed - held
    columns = max(r + 2 * width, min(16 * width, room // (8 * p)))
    isometric = min(ISOMETRIC_COLUMNS, columns, n)
    worker = imports + held + 8 * p * max(2 * width + 3, isometric)
    here = IMPORT_BYTES + fixed + 8 * p * columns + (held if alone else 0)
    disk = 4 * p * r + 4 * n * isometric
    return ComponentsPlan("iteration", block, kept, columns, isometric, here, worker, disk)


@dataclass(frozen=True)
class LinkagePlan:
    """Plan of joining volumes: the kind of linkage, and the memory it takes.

    Attributes
    ----------
    kind
        ``distances``: from those of all pairs, in memory; ``vectors``: from coordinates (Ward,
        k-means, HDBSCAN);
        ``two-level``: by k-means into micro-states, then linkage of these.
    micro_states
        Most micro-states; 0 where there are none.
    here_bytes
        Projected peak memory of this process, imports included, or that of a worker's GPU.
    """

    kind: str
    micro_states: int
    here_bytes: int


def plan_linkage(n: int, method: str, budget: Budget) -> LinkagePlan:
    """Plan how n volumes are joined within a memory: this process's, or that of a worker's GPU.

    Raises
    ------
    ResourceError
        Where not even their coordinates fit, with how many would.
    """
    on_gpu, in_pairs = budget.device_bytes > 0, method not in ("kmeans", "hdbscan")
    memory = budget.device_bytes or budget.n_bytes
    # a GPU has the whole matrix, this process each pair once
    start, pair = (0, 8) if on_gpu else (IMPORT_BYTES, 4)
    distances = start + pair * n * n + 4 * PANEL_BYTES
    if distances <= memory and in_pairs:
        return LinkagePlan("distances", 0, distances)
    each = COORDINATE_COPIES * 8 * ISOMETRIC_COLUMNS
    fixed = start + 16 * PANEL_BYTES + 2**12
    needed = fixed + n * each
    if needed <= memory and method in ("ward", "kmeans", "hdbscan"):
        return LinkagePlan("vectors", 0, needed)
    if needed <= memory:
        micro = max(2, min(n // 4, MICRO_STATES, isqrt((memory - needed) // 32)))
        return LinkagePlan("two-level", micro, needed + 32 * micro**2)
    least, most = needed, (memory - fixed) // each
    if in_pairs:
        least = min(least, distances)
        most = max(most, isqrt(max(memory - start - 4 * PANEL_BYTES, 0) // pair))
    smaller = f"--sketch-size {most} or less, or " if most >= 2 else ""
    raise ResourceError(
        f"Joining {n} volumes needs {least / GIB:.2f} GiB "
        + ("of a GPU's memory" if on_gpu else "in this process")
        + f"; it may use {memory / GIB:.2f} GiB. Use {smaller}"
        + (
            "CPUs, without --gpus."
            if on_gpu
            else f"--memory-limit {-(-least // 2**20)}MiB or more."
        )
    )


def check_disk(needed_bytes: int, free_bytes: int, where: str) -> None:
    """Refuse a run whose volumes cannot fit on the disk.

    Raises
    ------
    ResourceError
        Where they do not fit, with both sizes.
    """
    if needed_bytes > free_bytes:
        raise ResourceError(
            f"The volumes must fit on the disk. They take {needed_bytes / GIB:.3g} GiB, {where} "
            f"has {free_bytes / GIB:.3g} GiB free. Use --store masked, --store-dtype float16, a "
            "smaller --box-size or --sketch-size, or another disk."
        )


def parse_bytes(text: str) -> int:
    """Number of bytes in a size such as ``16GiB``, ``500MB`` or ``2e9``.

    Raises
    ------
    ResourceError
        Where it is not a size.
    """
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    units |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
    number = text.strip().upper().rstrip("KMGTIB")
    unit = text.strip().upper()[len(number) :]
    try:
        size = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size <= 0:
        raise ResourceError(f"A memory size is a number with a unit, as 16GiB. It is {text!r}.")
    return size
