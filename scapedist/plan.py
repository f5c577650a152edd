"""Integer arithmetic of a run: batches, blocks, bytes; nothing here computes or touches a file."""

from __future__ import annotations

from dataclasses import dataclass

from scapedist.errors import ResourceError

GIB = 2**30
BATCH_VOLUMES = {"cpu": 8, "cuda": 64}
"""Volumes of a batch where memory allows: enough to share the first layer and to make the
scheduler's part small, few enough to lose."""
IMPORT_BYTES = 450 * 2**20
"""Resident memory of a worker before its first batch (interpreter, torch, zarr, distributed)."""
BLOCK_BYTES = {"cpu": 64 * 2**20, "cuda": 8 * 2**30}
"""Masked voxels (as float64) that one block of the analysis holds by default."""
FFT_VOLUMES = 6
"""Arrays of a volume's size in flight while one volume is transformed and written."""


@dataclass(frozen=True)
class DecodePlan:
    """How volumes are decoded: which batches there are and what a worker holds meanwhile.

    Attributes
    ----------
    n_volumes, box_size, batch_size
        Volumes in all, voxels along an edge, volumes of a batch.
    worker_bytes
        Projected peak of one worker, imports included.
    disk_bytes
        What the volumes take in the store.
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
    """Consecutive (start, stop) of n items in batches of a size; the last may be shorter."""
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def worker_bytes(
    batch_size: int, box_size: int, n_slots: int, n_weights: int, cached_bytes: int
) -> int:
    """Projected peak of a worker that decodes a batch: values, one transform, maps, weights."""
    values = batch_size * n_slots * 4
    volume = box_size**3 * 4
    lattice = 2 * volume + n_slots * 12
    return IMPORT_BYTES + values + FFT_VOLUMES * volume + lattice + 8 * n_weights + cached_bytes


def plan_decode(
    n_volumes: int,
    box_size: int,
    n_slots: int,
    n_weights: int,
    cached_bytes: int,
    voxel_bytes: int,
    n_voxels: int | None = None,
    batch_size: int | None = None,
    memory_limit: int | None = None,
    device: str = "cpu",
) -> DecodePlan:
    """The plan of a decoding, refused where not even one volume at a time fits the limit.

    Parameters
    ----------
    n_volumes, box_size
        Volumes to decode and voxels along their edge.
    n_slots
        Values of a volume in frequency space (``Lattice.n_slots``).
    n_weights
        Parameters of the decoder.
    cached_bytes
        First-layer activations kept between batches.
    voxel_bytes
        Bytes of a stored voxel: 4 or 2.
    n_voxels
        Voxels stored of each volume (default: all).
    batch_size
        Volumes of a batch; None for the largest that fits, up to 8, or 64 on a GPU.
    memory_limit
        Bytes of host memory that a worker may use; None for no limit.
    device
        Where values are: ``cpu``, or ``cuda``, which does with what memory it has.

    Raises
    ------
    ResourceError
        With the batch size or the limit that would do.
    """

    def need(size: int) -> int:
        held = size if device == "cpu" else 1
        return worker_bytes(held, box_size, n_slots, n_weights, cached_bytes)

    sizes = range(1, BATCH_VOLUMES[device] + 1) if batch_size is None else range(batch_size, 0, -1)
    fitting = [s for s in sizes if memory_limit is None or need(s) <= memory_limit]
    wanted = batch_size or 1
    if not fitting or (batch_size is not None and fitting[0] != batch_size):
        way_out = (
            f"Use --batch-size {fitting[0]} or less."
            if fitting
            else f"Use --memory-limit {-(-need(1) // 2**20)}MiB or more, or a smaller --box-size."
        )
        raise ResourceError(
            f"Decoding {wanted} volume(s) of {box_size}^3 at a time needs "
            f"{need(wanted) / GIB:.2f} GiB; a worker may use {(memory_limit or 0) / GIB:.2f} GiB. "
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


def block_rows(n_voxels: int, memory_limit: int | None = None, device: str = "cpu") -> int:
    """Rows of masked voxels that the analysis holds at once, two blocks at a time."""
    budget = BLOCK_BYTES[device] if memory_limit is None else max(memory_limit // 8, 2**20)
    return max(1, budget // (8 * max(n_voxels, 1)))


def check_disk(needed_bytes: int, free_bytes: int, where: str) -> None:
    """Refuse a run whose volumes cannot fit on the disk.

    Raises
    ------
    ResourceError
        With both numbers.
    """
    if needed_bytes > free_bytes:
        raise ResourceError(
            f"The volumes must fit on the disk. They take {needed_bytes / GIB:.3g} GiB, {where} "
            f"has {free_bytes / GIB:.3g} GiB free. Use --store masked, --store-dtype float16, a "
            "smaller --box-size or --sketch-size, or another disk."
        )


def parse_bytes(text: str) -> int:
    """Bytes of a size such as ``16GiB``, ``500MB`` or ``2e9``.

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
