"""The same jobs on more workers, and as much work for each of them.

Jobs: ``exact`` (decode, mask, project), ``generate`` (decode into the Zarr store) and ``reduced``
(the field at a few points), each handed to workers and kept as a run does it. One worker is this
process on one thread; n workers are processes of one thread each, or GPUs. All have read their
decoder and components before. Numbers of workers take turns (GPUs cannot: each set of workers has
them alone), and a time counts where other programs took less than 5 % of the cores meanwhile.
Processes alone are as many without a scheduler, each with its share: what these cores give. The
scheduler, or the disk, is full where workers keep it as busy as they are themselves.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import statistics
import tempfile
import time
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import harness
import numpy as np
import psutil
from harness import EPOCH, MIB, Panel, Row, Table, exhaust, seconds_of

from scapedist import Run
from scapedist.landscape import PRELOADED, open_workers
from scapedist.particles.exact import Embedder, exact_batch
from scapedist.particles.fit_reduced import ensure_map
from scapedist.particles.reduced import REDUCED_ROWS, reduced_batch
from scapedist.plan import BATCH_VOLUMES, batches
from scapedist.settings import EmbedSettings
from scapedist.stages.stored_rows import FULL
from scapedist.stages.write_volumes import Writing, write_batch
from scapedist.store import RowFile, RunStore
from scapedist.workers import Serial, Workers, available_cores, one_thread
from scapedist.workers.gpus import visible_gpus
from scapedist.workers.start import main_module_left_alone, start_forkserver

TITLE = "Scaling"
TABLES = (
    Table(
        "scaling",
        "case | job | workers | seconds: time, s | ratio: times as fast | lowest | highest "
        "| machine: processes alone | of_machine: of these | weak: efficiency, as much work each",
    ),
    Table(
        "overhead",
        "case | job | batches_of | particles | workers | task_seconds: a task, s "
        "| task_fraction: of the time | first_full | at_workers "
        "| disk_rate: bytes a second to the disk",
        "What the scheduler takes, and what more workers fill first.",
    ),
)
PLOTS = (
    Panel("scaling", "workers", "{job}, {case}", "ratio", "times as fast as one worker", "workers"),
    Panel("scaling", "workers", "{job}, {case}", "weak", "efficiency", "workers"),
)
JOBS = ("exact", "generate", "reduced")
QUIET = 0.05
"""Of all cores: what other programs may take while a time is measured that counts."""
TASKS_OF = {"cpu": 1, "cuda": 8}
"""Times as many tasks in a round where a batch takes less time."""


Case = namedtuple("Case", "name box_size width n_particles sketch tolerance jobs n_tasks n_rounds")
"""A model, ``bundled`` or random of a box and a width of three layers, and what is done: particles,
sketch and tolerance are of its run. A round has so many tasks for each of the largest number of
workers; at most twice as many rounds are made as quiet ones are wanted."""
SIZES: dict[str, tuple[tuple[Case, ...], tuple[int, int], int]] = {
    "tiny": ((Case("D=16 3x16", 16, 16, 240, 24, 0.5, JOBS, 2, 1),), (2, 6), 2 * MIB),
    "small": ((Case("bundled", 48, 128, 4000, 100, 1e-3, JOBS, 3, 3),), (30, 90), 128 * MIB),
    "full": (
        (
            Case("bundled", 48, 128, 20_000, 200, 1e-3, JOBS, 4, 5),
            Case("D=64 3x256", 64, 256, 600, 32, 1e-3, ("exact", "generate"), 1, 3),
        ),
        (100, 300),
        512 * MIB,
    ),
}
"""Cases, numbers of tasks that do nothing, and bytes that each process writes."""
OPTIONS: dict[str, Row] = {
    "--gpus": {"help": "all, or numbers as 0,2 (default: CPUs)"},
    "--workers": {"type": int, "metavar": "N", "help": "most CPU workers (default: cores)"},
}


# -- what is timed


class Timing(NamedTuple):
    """Seconds on the clock, CPU seconds of this process, and the cores' share of others."""

    seconds: float
    cpu_seconds: float
    elsewhere: float


def watched(call: Callable[[], Any]) -> Timing:
    """What a call took; the scheduler's CPU seconds are this process's."""
    ours, busy = _cpu_seconds()
    cpu = time.process_time()
    seconds = seconds_of(call)
    cpu = time.process_time() - cpu
    ours_after, busy_after = _cpu_seconds()
    others = (busy_after - busy) - (ours_after - ours)
    return Timing(seconds, cpu, max(0.0, others) / (seconds * (os.cpu_count() or 1)))


def _cpu_seconds() -> tuple[float, float]:
    """CPU seconds of this process and all that it started, and of the whole machine."""
    ours = psutil.Process()
    times = [process.cpu_times() for process in (ours, *ours.children(recursive=True))]
    machine = psutil.cpu_times()
    idle = machine.idle + getattr(machine, "iowait", 0.0)
    return sum(t.user + t.system for t in times), sum(machine) - idle


class Assignment(NamedTuple):
    """Tasks of a job, and what the caller does with each result."""

    work: Callable[[Any, Any], Any]
    shared: Any
    tasks: Sequence[Any]
    keep: Callable[[int, Any], None]

    def on(self, workers: Workers) -> None:
        """Do it, as ``Embedder.fill`` and the generation do."""
        for number, result in workers.run(self.work, self.shared, self.tasks):
            self.keep(number, result)


@contextmanager
def assignment(
    job: str, embedder: Embedder, n_tasks: int, size: int, empty: bool = False
) -> Iterator[Assignment]:
    """A job's tasks, of ``size`` particles each, with files of its own; ``empty``: do nothing."""
    rows = np.arange(n_tasks * size) % len(embedder.latents)
    spans, shared = batches(len(rows), size), embedder.projection
    place = embedder.directory / f"scaling{uuid4().hex}"
    try:
        if job == "generate":
            store, box = RunStore(place, "w-"), (shared.source.box_size,) * 3
            store.create(FULL, (len(rows), *box), "float32", ("t", "z", "y", "x"), (1, *box))
            source = dataclasses.replace(shared.source, latents=embedder.latents[rows])
            writing = Writing(source, store.reader, {FULL: np.arange(len(rows))})
            yield Assignment(
                empty_entry if empty else write_batch,
                writing,
                [(FULL, start, stop) for start, stop in spans],
                lambda _, entry: store.journal_append(entry),
            )
        else:
            place.mkdir()
            columns, batch = {"exact": (1, exact_batch), "reduced": (2, reduced_batch)}[job]
            file = RowFile(place / "rows", "scaling", embedder.r + columns)
            yield Assignment(
                partial(empty_rows, embedder.r + columns) if empty else batch,
                shared,
                [embedder.latents[rows[start:stop]] for start, stop in spans],
                lambda number, found: file.append(rows[slice(*spans[number])], found),
            )
    finally:
        shutil.rmtree(place, ignore_errors=True)


def empty_rows(columns: int, shared: Any, latents: np.ndarray) -> np.ndarray:
    """A result as large as a batch's."""
    return np.zeros((len(latents), columns), np.float32)


def empty_entry(shared: Any, task: tuple[str, int, int]) -> Row:
    """A journal's entry as long as a batch's."""
    name, start, stop = task
    percentile = [0.123456789012345] * (stop - start)
    return {"array": name, "start": start, "stop": stop, "percentile": percentile, "outside": []}


def warm(job: str, embedder: Embedder, size: int) -> None:
    """Have every worker read what it needs."""
    workers = embedder.workers
    with assignment(job, embedder, 2 * workers.n_workers, size) as given:
        if hasattr(workers, "connected"):
            workers.connected().run(once, given.work, given.shared, given.tasks[0])
        given.on(workers)


def once(work: Callable[[Any, Any], Any], shared: Any, task: Any) -> None:
    """One task, as a worker does it."""
    with one_thread():
        work(shared, task)


# -- processes without a scheduler


Aside = Callable[[int, Any, Any, Sequence[Any]], Timing]
"""Time of work on n processes, given with what is shared and the tasks."""


@contextmanager
def side_by_side(most: int) -> Iterator[Aside]:
    """Processes that each work through a share of the tasks, nobody between them."""
    context = get_context("forkserver")
    pipes = [context.Pipe() for _ in range(most)]
    ends = [ours for ours, _ in pipes]
    processes = [context.Process(target=serve, args=(end,), daemon=True) for _, end in pipes]
    with main_module_left_alone():
        start_forkserver(PRELOADED)
        for process in processes:
            process.start()
    for _, theirs in pipes:
        theirs.close()

    def together(n: int, work: Any, shared: Any, tasks: Sequence[Any]) -> Timing:
        """Until the last of n processes is done; what they need is there before."""
        for number, end in enumerate(ends[:n]):
            end.send((work, shared, tasks[number::n]))
        exhaust(end.recv() for end in ends[:n])

        def go() -> None:
            for end in ends[:n]:
                end.send(None)
            exhaust(end.recv() for end in ends[:n])

        return watched(go)

    try:
        yield together
    finally:
        for end in ends:
            end.close()
        for process in processes:
            process.join(10)


def serve(end: Connection) -> None:
    """Do what comes: (work, shared, tasks), then a word to begin, until there is no more."""
    try:
        while True:
            work, shared, tasks = end.recv()
            end.send(None)
            end.recv()
            exhaust(Serial().run(work, shared, tasks))
            end.send(None)
    except EOFError:
        return


def disk_rate(aside: Aside, n: int, place: Path, n_bytes: int) -> float:
    """Bytes a second that n processes write together, down to the disk.

    It counts where more is written than memory holds.
    """
    rates = []
    for _ in range(3):
        place.mkdir()
        rates.append(n * n_bytes / aside(n, write_file, (place, n_bytes), range(n)).seconds)
        shutil.rmtree(place)
    return statistics.median(rates)


def write_file(shared: tuple[Path, int], number: int) -> None:
    """Write bytes to a file in blocks of up to 8 MiB, and down to the disk."""
    place, n_bytes = shared
    block = bytes(range(256)) * (min(8 * MIB, n_bytes) // 256)
    with (place / str(number)).open("wb", buffering=0) as stream:
        for _ in range(n_bytes // len(block)):
            stream.write(block)
        os.fsync(stream.fileno())


# -- measuring


def batch_of(job: str, device: str) -> int:
    """Particles of a task, by default."""
    return REDUCED_ROWS[device] if job == "reduced" else BATCH_VOLUMES[device]


def worker_counts(most: int) -> list[int]:
    """1, 2, 4 and so on, and the largest number itself."""
    return sorted({2**k for k in range(most.bit_length())} | {most})


def landscape(case: Case, place: Path, workers: Workers, n_particles: int) -> Run:
    """A case's run up to its components, and its reduced map where that is measured."""
    from random_model import copy_with_particles, write_random_model  # not in workers: cryoDRGN

    model, epoch = place / "model", 19
    if case.name == "bundled":
        epoch = EPOCH
        with harness.bundled() as (shipped, _):
            copy_with_particles(shipped, EPOCH, np.resize(np.arange(20_000), n_particles), model)
    else:
        write_random_model(model, box_size=case.box_size, width=case.width, n_particles=n_particles)
    made = Run.create(model, epoch, place / "run")
    made.sketch(size=case.sketch, quality_groups=0)
    made.generate(workers, box_size=case.box_size).mask().pca(components=20)
    if "reduced" in case.jobs:
        ensure_map(made.embedder(workers), EmbedSettings(tolerance=case.tolerance))
    return made


Times = dict[tuple[str, int], list[Timing]]
"""Of each round, by what was done (``strong``, ``weak``, ``machine``) and workers."""


def rounds(
    job: str, case: Case, embedders: dict[int, Embedder], most: int, aside: Aside | None
) -> Times:
    """Times of a job on each number of workers, and in processes aside, in turns."""
    device = embedders[max(embedders)].workers.device
    size, each = batch_of(job, device), case.n_tasks * TASKS_OF[device]
    plan = [("strong", n, each * most) for n in embedders]
    plan += [("weak", n, each * n) for n in embedders if n < most]
    for embedder in embedders.values():
        warm(job, embedder, size)
    if aside is not None:
        plan += [("machine", n, each * most) for n in embedders if n > 1]
        with assignment(job, embedders[1], 2 * most, size) as given:
            aside(most, given.work, given.shared, given.tasks)
    times: Times = {(kind, n): [] for kind, n, _ in plan}
    n_quiet = n_made = 0
    while n_quiet < case.n_rounds and n_made < 2 * case.n_rounds:
        for kind, n, n_tasks in plan:
            with assignment(job, embedders[n], n_tasks, size) as given:
                if kind == "machine" and aside is not None:
                    found = aside(n, given.work, given.shared, given.tasks)
                else:
                    found = watched(partial(given.on, embedders[n].workers))
                times[kind, n].append(found)
        n_made += 1
        n_quiet += all(values[-1].elsewhere < QUIET for values in times.values())
        plan = [*plan[1:], plan[0]]
    if most in embedders:
        times["weak", most] = times["strong", most]
    return times


def ratios(above: Sequence[Timing], below: Sequence[Timing]) -> tuple[list[float], int]:
    """Ratios round by round where both were quiet, and their number; all where none was."""
    both = list(zip(above, below, strict=False))
    quiet = [pair for pair in both if max(t.elsewhere for t in pair) < QUIET]
    return [a.seconds / b.seconds for a, b in quiet or both], len(quiet)


def median_time(times: Sequence[Timing]) -> float:
    """Median seconds of the quiet rounds; of all where none was."""
    quiet = [t.seconds for t in times if t.elsewhere < QUIET]
    return statistics.median(quiet or [t.seconds for t in times])


def summary(job: str, case: Case, times: Times, most: int, device: str) -> list[Row]:
    """A row for each number of workers: ratios to one worker, round by round and their medians."""
    n_tasks, rows = case.n_tasks * TASKS_OF[device] * most, []
    for n in sorted(n for kind, n in times if kind == "strong"):
        mine, alone = times["strong", n], times["strong", 1]
        strong, n_quiet = ratios(alone, mine)
        weak, _ = ratios(times["weak", 1], times["weak", n])
        row: Row = {
            "case": case.name,
            "job": job,
            "workers": n,
            "particles": n_tasks * batch_of(job, device),
            "tasks": n_tasks,
            "seconds": median_time(mine),
            "ratio": statistics.median(strong),
            "lowest": min(strong),
            "highest": max(strong),
            "quiet": n_quiet,
            "rounds": len(mine),
            "weak_seconds": median_time(times["weak", n]),
            "weak": statistics.median(weak),
        }
        if ("machine", n) in times:
            row["machine"] = statistics.median(ratios(alone, times["machine", n])[0])
            row["of_machine"] = statistics.median(ratios(times["machine", n], mine)[0])
        rows.append(row)
    return rows


def empty_tasks(job: str, embedder: Embedder, size: int, counts: Sequence[int]) -> Row:
    """What a task costs that does nothing: seconds on the clock, and CPU seconds of this process.

    It is as large as one of ``size`` particles. A line through the times of several numbers of
    tasks has a start and a slope.
    """
    times: dict[int, list[Timing]] = {n_tasks: [] for n_tasks in counts}
    with assignment(job, embedder, 2, size, empty=True) as given:
        given.on(embedder.workers)
    for n_tasks in 3 * tuple(counts):
        with assignment(job, embedder, n_tasks, size, empty=True) as given:
            times[n_tasks].append(watched(partial(given.on, embedder.workers)))
    start, task = fit_line(counts, [median_time(times[n]) for n in counts])
    cpus = [statistics.median(t.cpu_seconds for t in times[n]) for n in counts]
    row: Row = {"job": job, "particles": size, "workers": embedder.workers.n_workers}
    row |= {"start_seconds": start, "task_seconds": task}
    return row | {"client_cpu_seconds": fit_line(counts, cpus)[1]}


def fit_line(counts: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Start and slope of times at some counts, neither below 0, by relative errors."""
    n, t = np.asarray(counts, float), np.asarray(seconds, float)
    columns = np.stack([1 / t, n / t], 1)
    start, slope = np.linalg.lstsq(columns, np.ones_like(t), rcond=None)[0]
    alone = columns.sum(0) / np.square(columns).sum(0)
    if start < 0:
        return 0.0, float(alone[1])
    return (float(alone[0]), 0.0) if slope < 0 else (float(start), float(slope))


def fractions(empty: Row, one: Row, most: int, disk: float) -> Row:
    """What part of a worker's time a task takes elsewhere, and at how many workers that is all.

    ``one`` has the times of one worker, with all tasks and with its share of ``most``; ``disk`` is
    the bytes a second of all workers. This process begins at once, a GPU's does not.
    """
    start = empty["start_seconds"] if empty["batches_of"] == "cuda" else 0.0
    times = {one["particles"]: one["seconds"], one["particles"] // most: one["weak_seconds"]}
    each = statistics.mean((seconds - start) / n for n, seconds in times.items())
    batch, task, cpu = each * empty["particles"], empty["task_seconds"], empty["client_cpu_seconds"]
    found: Row = {"batch_seconds": batch, "task_fraction": task / (task + batch)}
    busy = {"scheduler": cpu / batch}
    if empty["job"] == "generate":
        busy["disk"] = empty["volume_bytes"] / disk / each
        found["disk_rate"] = disk
    first = max(busy, key=busy.__getitem__)
    at_workers = 1 / busy[first] if busy[first] else ""  # other work hid what it takes
    return found | {"first_full": first, "at_workers": at_workers}


def measure(
    case: Case, n_empty: tuple[int, int], place: Path, gpus: Sequence[str], most: int, aside: Aside
) -> tuple[list[Row], list[Row]]:
    """Rows of a case: of scaling, and of tasks that do nothing."""
    device, counts, n_particles = "cuda" if gpus else "cpu", worker_counts(most), case.n_particles
    if gpus:  # each task has particles of its own
        n_tasks = case.n_tasks * TASKS_OF[device] * most
        n_particles = max(n_particles, n_tasks * REDUCED_ROWS[device])
    times: dict[str, Times] = {job: {} for job in case.jobs}
    overhead: list[Row] = []
    place.mkdir()
    for some in [[n] for n in reversed(counts)] if gpus else [counts]:
        with ExitStack() as stack:
            embedders = {}
            for n in reversed(some):
                workers = open_workers(gpus=",".join(gpus[:n])) if gpus else open_workers(n)
                stack.enter_context(workers)
                if n == most:
                    made = landscape(case, place, workers, n_particles)
                embedders[n] = made.embedder(workers)
            if most in embedders:
                warm(case.jobs[0], embedders[most], 1)
                about: Row = {"case": case.name, "batches_of": device}
                about["volume_bytes"] = 4 * case.box_size**3 + 4  # with its checksum
                overhead = [
                    about | empty_tasks(job, embedders[most], batch_of(job, device), n_empty)
                    for job in case.jobs
                ]
            for job in case.jobs:
                times[job] |= rounds(job, case, embedders, most, None if gpus else aside)
    scaling = [row for job in case.jobs for row in summary(job, case, times[job], most, device)]
    return scaling, overhead


def run(size: str, gpus: str | None = None, workers: int | None = None) -> Row:
    """Measure on GPUs of this machine, ``all`` or numbers, or on at most so many CPU workers.

    These are 2 or more (default: one a core).
    """
    (cases, n_empty, disk_bytes), identities = SIZES[size], list[str]()
    if gpus is not None:
        every = [str(number) for number in range(len(visible_gpus()))]
        identities = every if gpus == "all" else gpus.split(",")
    most = len(identities) or max(2, workers or available_cores())
    scaling, overhead = list[Row](), list[Row]()
    with tempfile.TemporaryDirectory() as directory, side_by_side(most) as aside:
        place = Path(directory)
        for case in cases:
            found = measure(case, n_empty, place / case.name, identities, most, aside)
            scaling += found[0]
            overhead += found[1]
        disk = disk_rate(aside, most, place / "disk", disk_bytes)
    of_one = {(row["case"], row["job"]): row for row in scaling if row["workers"] == 1}
    for row in overhead:
        row |= fractions(row, of_one[row["case"], row["job"]], most, disk)
    return {
        "device": "cuda" if identities else "cpu",
        "worker_counts": worker_counts(most),
        "scaling": scaling,
        "overhead": overhead,
    }


if __name__ == "__main__":
    harness.main("scaling")
