"""Projected time, memory and disk of each stage of a run, from a few seconds' measurement."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scapedist.analysis.sketch import (
    MAX_ITERATIONS,
    PLUSPLUS_LIMIT,
    draw_spread,
    nearest_center,
)
from scapedist.errors import InputError
from scapedist.landscape.speed import Measured, seconds_of
from scapedist.model.workdir import open_model
from scapedist.particles.embed import embedding_of
from scapedist.particles.exact import WRITE_ROWS
from scapedist.particles.fit_reduced import (
    HELD_OUT,
    MANY_FURTHER,
    POINT_SHARE,
    POINTS,
    SKETCH_ROWS,
    further_volumes,
)
from scapedist.particles.memory import MAP_BLOCK_BYTES, MAP_MATRICES, particle_bytes
from scapedist.particles.methods import CHECKED_PARTICLES
from scapedist.particles.place import FEW_PAIRS
from scapedist.plan import (
    IMPORT_BYTES,
    ISOMETRIC_COLUMNS,
    MAIN_BYTES,
    PANEL_BYTES,
    ComponentsPlan,
    LinkagePlan,
    check_disk,
    plan_components,
    plan_linkage,
)
from scapedist.settings import check_embedding, check_together, settings_of
from scapedist.sources.decoded import plan_generation, volume_box_size
from scapedist.stages.components import FEW_PRODUCTS, TRAVERSAL_POINTS, TRAVERSED_COMPONENTS
from scapedist.stages.components_of_all import USUAL_PASSES
from scapedist.stages.distances import panel_rows
from scapedist.workers import available_cores
from scapedist.workers.serial import budget_of

USUAL_POINTS = 400
"""Usual number of points of a reduced map that meets the default tolerance, where the lattice has
enough."""
UNSURE, MANY_PARTICLES = 0.005, 200_000
"""Usual fraction of the particles that a reduced map is unsure of, which are decoded; number of
particles above which it takes twice as many points."""
ROW_SECONDS = 5e-5
"""Seconds to read a volume's masked voxels, however few."""
MATRIX_SECONDS = 5.5e-8
"""Seconds per entry of a Gram matrix beside its products: placing, centering, storing, solving."""
PAIR_SECONDS = 3.2e-8
"""Seconds of linkage per entry of the matrix of distances."""
WARD_ROUNDS, MEDOID_ROUNDS = 3.5, 1.5
"""Approximate all-pairs passes of Ward's linkage, and of the medoids."""
KMEANS_SECONDS, HDBSCAN_SECONDS = 4e-4, 5e-7
"""Seconds of k-means on isometric coordinates per volume; of HDBSCAN per pair of volumes."""
STAGE_SECONDS = 0.4
"""Constant seconds of a stage that writes maps, beside what grows with the volumes."""
QUERY_SHARE = 0.65
"""Time of finding nearest centers once these are spread, as a fraction of that at first."""
MIB = 2**20
WORKER_BYTES = 250 * MIB
"""Resident memory of each worker before any work; plans are refused by the larger IMPORT_BYTES of a
process that does all."""
REPORT_MEMORY_BYTES = 44 * MIB
"""Memory that the report needs beyond that of other stages."""
MISSED_GROUPS = 10
"""Usual number of groups of missed particles; a volume of each is kept twice."""
MAP_BLOCKS = 2
"""Number of blocks of features that building the reduced map holds."""
REPORT_BYTES, REPORT_SECONDS = 8 * MIB, 2.0
MAP_BYTES, MAP_SECONDS = 2 * MIB, 2.0
"""Disk and time of building the reduced map, beside decoding and fitting."""
FIT_SECONDS = 4e-10
"""Seconds of a fit of a reduced map, per cube of the number of its training volumes."""
PARTICLE_SECONDS = 1.5e-5
"""Seconds per particle of this process alone: sending, keeping, writing, and the report."""


@dataclass(frozen=True)
class StageCost:
    """Projected cost of a stage.

    Attributes
    ----------
    seconds
        Elapsed time with all workers.
    here_bytes, worker_bytes
        Peak memory of this process and of each worker.
    disk_bytes, files
        Size and number of the files that the stage leaves on disk.
    """

    seconds: float
    here_bytes: int
    worker_bytes: int
    disk_bytes: int
    files: int = 0


@dataclass(frozen=True)
class Cost:
    """Projected cost of a run.

    Attributes
    ----------
    volumes, box_size, voxels
        Number of volumes decoded for the sketch and its check; their box size; approximate number
        of voxels in the mask.
    frequencies
        Number of frequencies evaluated per volume.
    batch_size, workers
        Number of volumes per batch; number of workers.
    seconds_a_volume
        Seconds per volume of one worker.
    particles
        Number of particles.
        solver, linkage
        How components are found and volumes are joined.
    stages
        Cost of each stage by name, in order.
    exact_seconds, whole_seconds
        Time to embed all particles exactly; time to find the components of all particles.
    disk_free_bytes
        Free space of the disk that the run would lie on.
    """

    volumes: int
    box_size: int
    voxels: int
    frequencies: int
    batch_size: int
    workers: int
    seconds_a_volume: float
    particles: int
    solver: str
    linkage: str
    stages: dict[str, StageCost] = field(default_factory=dict)
    exact_seconds: float = 0.0
    whole_seconds: float = 0.0
    disk_free_bytes: int = 0

    @property
    def seconds(self) -> float:
        """Seconds of all stages together."""
        return sum(stage.seconds for stage in self.stages.values())

    @property
    def here_bytes(self) -> int:
        """Peak memory of this process."""
        return max(stage.here_bytes for stage in self.stages.values())

    @property
    def worker_bytes(self) -> int:
        """Peak memory of each worker."""
        return max(stage.worker_bytes for stage in self.stages.values())

    @property
    def disk_bytes(self) -> int:
        """Disk space that the run takes."""
        return sum(stage.disk_bytes for stage in self.stages.values())

    @property
    def files(self) -> int:
        """Number of the run's files."""
        return sum(stage.files for stage in self.stages.values())


def cost_of_run(
    workdir: str | Path,
    epoch: int,
    output: str | Path | None = None,
    n_workers: int | None = None,
    memory_limit: int | None = None,
    chosen: dict[str, dict[str, Any]] | None = None,
    embedding: str | None = None,
    error_bars: bool = False,
) -> Cost:
    """The projected cost of a run, for which next to nothing is decoded.

    Parameters
    ----------
    workdir, epoch, output, n_workers, memory_limit, embedding, error_bars
        As for :func:`scapedist.landscape.analyze`.
    chosen
        Options by stage, as :func:`scapedist.settings.by_stage` sorts them.

    Raises
    ------
    InputError
        Where a number is impossible.
    ResourceError
        Where memory or disk does not suffice, with what would.
    """
    given = chosen or {}
    check_together(given)
    options = settings_of(given)
    sketch, generate, clipped = options["sketch"], options["generate"], options["pca"].clip_negative
    check_embedding(embedding, None, error_bars, clipped)
    model = open_model(workdir, epoch)
    embedding = embedding_of(embedding, len(model.latents), error_bars, clipped)
    if sketch.size > len(model.latents):
        raise InputError(
            f"A sketch has at most as many volumes as there are particles, {len(model.latents)}. "
            f"{sketch.size} were asked for. Use --sketch-size {len(model.latents)} or less."
        )
    if n_workers is not None and n_workers < 1:
        raise InputError(f"There is at least one worker. --workers is {n_workers}.")
    workers = n_workers or available_cores()
    n_quality = sketch.quality_groups * sketch.quality_members
    box_size = volume_box_size(generate, model.box_size)
    budget = budget_of(memory_limit)
    decoding = plan_generation(model.decoder, box_size, generate, sketch.size + n_quality, budget)
    linkage = plan_linkage(sketch.size, options["states"].linkage, budget)
    free = _free_bytes(output)
    if generate.store == "volumes":
        check_disk(decoding.disk_bytes, free, str(output or "."))
    measured = Measured(model, generate, box_size, sketch.size, options["mask"])
    components = plan_components(
        sketch.size, measured.n_voxels, options["pca"].components, budget, workers,
        solver=options["pca"].solver,
    )  # fmt: skip
    r, p, n = options["pca"].components, measured.n_voxels, sketch.size
    volume = measured.volume_bytes
    voxel_bytes = 2 if generate.store_dtype == "float16" else 4
    stored = p * voxel_bytes if generate.store == "masked" else volume * voxel_bytes // 4
    n_pilot = min(n, generate.pilot_volumes) if generate.store == "masked" else 0
    n_states, particles = options["states"].states, len(model.latents)
    alone = workers == 1
    base = IMPORT_BYTES if alone else MAIN_BYTES
    spared_here, spared = IMPORT_BYTES - base, 0 if alone else IMPORT_BYTES - WORKER_BYTES
    reading, maps = n * measured.read_seconds, 2 * TRAVERSAL_POINTS * min(TRAVERSED_COMPONENTS, r)
    panels = -(-n // panel_rows(n)) if components.solver == "gram" else 1
    # panels of distances are no larger than the distances of all pairs
    unused = 4 * max(PANEL_BYTES - 8 * n * n, 0) if linkage.kind == "distances" else 0
    work = decoding.worker_bytes - spared
    stages = {
        "start": StageCost(measured.start_seconds * (1 if alone else 2.2), base, work, 0, 3),
        "sketch": StageCost(
            sketch_seconds(model.latents, n, sketch.method),
            base + particle_bytes(particles, model.latents.shape[1], 0), 0,
            4 * particles * (model.latents.shape[1] + 1), 18,
        ),
        "generate": StageCost(
            (n + n_quality + n_pilot) * measured.seconds_a_volume / workers,
            work if alone else base,
            work,
            (n + n_quality) * stored + n_pilot * volume * voxel_bytes // 4,
            n + n_quality + n_pilot + 5,
        ),
        "mask": StageCost(reading + 0.1, base + 8 * volume, 0, volume, 4),
        "pca": StageCost(
            components_seconds(components, n, p, workers, measured.product_rate, reading)
            + maps * measured.read_seconds,
            components.here_bytes - spared_here,
            components.worker_bytes - spared,
            components.disk_bytes + maps * volume, 22 + panels + maps,
        ),
        "states": StageCost(
            states_seconds(
                linkage, n, options["states"].linkage, measured.product_rate, reading
            ),
            linkage.here_bytes - spared_here - unused, 0,
            n_states * 5 * volume, 13 + 7 * n_states,
        ),
    }  # fmt: skip
    if embedding != "none":
        stages["embed"] = _embedding(
            measured, embedding, workers, particles, n, r, base, work, n_states
        )
    drawing = base + REPORT_MEMORY_BYTES
    stages["report"] = StageCost(REPORT_SECONDS, drawing + 8 * volume, 0, REPORT_BYTES, 14)
    cost = Cost(
        volumes=n + n_quality, box_size=box_size, voxels=p, frequencies=measured.n_frequencies,
        batch_size=decoding.batch_size, workers=workers,
        seconds_a_volume=measured.seconds_a_volume, particles=particles,
        solver=components.solver, linkage=linkage.kind, stages=stages,
        exact_seconds=measured.seconds_a_volume * particles / workers,
        whole_seconds=measured.seconds_a_volume * particles / workers * USUAL_PASSES,
        disk_free_bytes=free,
    )  # fmt: skip
    check_disk(cost.disk_bytes, free, str(output or "."))
    return cost


def sketch_seconds(latents: np.ndarray, n: int, method: str = "kmeans") -> float:
    """Seconds to make a sketch of n volumes by a method, from a short measurement."""
    latents, rng = latents.astype(np.float64), np.random.default_rng(0)
    centers = latents[rng.choice(len(latents), n, replace=False)]
    some = latents[rng.choice(len(latents), min(len(latents), 10_000), replace=False)]
    tree = seconds_of(lambda: nearest_center(centers, some[:1]), 0.1)
    found = seconds_of(lambda: nearest_center(centers, some), 0.2) - tree
    found *= QUERY_SHARE * len(latents) / len(some)
    if method != "kmeans":
        return tree + found  # every particle goes to its nearest representative, once
    seconds = (MAX_ITERATIONS + 1) * (tree + found)
    if n <= PLUSPLUS_LIMIT:
        seconds += n * seconds_of(lambda: draw_spread(latents, 5, rng), 0.1) / 4
    return seconds


def components_seconds(
    plan: ComponentsPlan, n: int, n_voxels: int, n_workers: int, rate: float, reading: float
) -> float:
    """Seconds to find components.

    Parameters
    ----------
    plan
    n, n_voxels, n_workers
    rate
        Multiply-adds per second of one thread, float64.
    reading
        Seconds to read all volumes once.
    """
    reading += ROW_SECONDS * n
    n_blocks = -(-n // plan.block_rows)
    if plan.solver == "gram":
        products = n * n * n_voxels / 2
        shared = products / rate + reading * (1 if plan.kept else n_blocks / 2 + 1.5)
        beside = STAGE_SECONDS + MATRIX_SECONDS * n * n
        return beside + shared / (n_workers if products * 2 > FEW_PRODUCTS else 1)
    width = plan.columns // 16 + 1
    passes = 2 * USUAL_PASSES * n * n_voxels * width / rate
    passes += n * n_voxels * plan.isometric / rate
    return STAGE_SECONDS + (passes + reading * (1 if plan.kept else USUAL_PASSES + 1)) / n_workers


def states_seconds(plan: LinkagePlan, n: int, method: str, rate: float, reading: float) -> float:
    """Seconds to join n volumes by a method and to average the volumes of each state."""
    once = n * n * ISOMETRIC_COLUMNS / rate / available_cores()
    seconds = STAGE_SECONDS + 6 * reading + ROW_SECONDS * n
    if plan.kind == "distances":
        return seconds + PAIR_SECONDS * n * n
    seconds += MEDOID_ROUNDS * once
    if plan.kind == "two-level":
        k_means = (MAX_ITERATIONS + 1) * once * plan.micro_states / n
        return seconds + k_means + PAIR_SECONDS * plan.micro_states**2
    of = {"ward": WARD_ROUNDS * once, "hdbscan": HDBSCAN_SECONDS * n * n}
    return seconds + of.get(method, KMEANS_SECONDS * n)


def _embedding(
    measured: Measured, method: str, workers: int, particles: int, n: int, r: int, base: int,
    work: int, n_states: int,
) -> StageCost:  # fmt: skip
    """Cost of embedding all particles, of finding those missed, and of the check."""
    one = measured.seconds_a_volume / workers
    seconds, here, worker = particles * one, 0, work
    arrays = 4 if method == "reduced" else 2
    if method == "reduced":
        taught = min(SKETCH_ROWS, n)
        rungs = [taught + k for k in further_volumes(particles) if k <= MANY_FURTHER]
        decoded = HELD_OUT + rungs[-1] - taught + CHECKED_PARTICLES + UNSURE * particles
        points = max(POINTS[0], measured.n_frequencies // POINT_SHARE)
        points = min(USUAL_POINTS, points * (2 if particles > MANY_PARTICLES else 1))
        seconds = decoded * one + particles * measured.reduced_seconds(points, r) / workers
        seconds += MAP_SECONDS + FIT_SECONDS * sum(size**3 for size in rungs)
        features = 4 * (rungs[-1] + HELD_OUT) * (measured.hidden_size + 2) * points
        blocks = MAP_BLOCKS * min(MAP_BLOCK_BYTES["cpu"], features)
        here, worker = MAP_MATRICES * 8 * rungs[-1] ** 2, work + blocks
    elif method == "mlp":
        seconds = CHECKED_PARTICLES * one + MAP_SECONDS
    placing = particles * measured.placing_seconds(n, r)
    seconds += placing / (workers if particles * n >= FEW_PAIRS else 1)
    seconds += PARTICLE_SECONDS * particles
    frame = 4 * r * measured.n_voxels + 8 * measured.volume_bytes // 4
    if workers == 1:
        here = max(here + worker - work, work - base)
    return StageCost(
        seconds,
        base + particle_bytes(particles, measured.zdim, n) + here,
        worker + frame,
        4 * particles * (r + 18) + 2 * MISSED_GROUPS * measured.volume_bytes + MAP_BYTES,
        40 + 2 * n_states + 2 * MISSED_GROUPS + arrays * -(-particles // WRITE_ROWS)
        + (80 if method == "reduced" else 0),
    )  # fmt: skip


def _free_bytes(output: str | Path | None) -> int:
    """Free bytes of the disk that a run would lie on."""
    place = Path(output or ".")
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
