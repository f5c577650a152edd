"""The same jobs on more workers, and as much work for each of them.

Jobs: ``exact`` (decode, mask, project), ``generate`` (decode into the Zarr store) and ``reduced``
(the field at a few points), each handed to workers and kept as a run does it. One worker is this
process on one thread; n workers are processes of one thread each, or GPUs. All have read their
decoder and components before. Numbers of workers take turns (GPUs cannot: each set of workers has
them alone), and a time counts where other programs took less than 5 % of the cores meanwhile.
Processes alone are as many without a scheduler, each with its share: what these cores give.

The paper's network is projected by a model that is fitted to that, not measured.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from uuid import uuid4

import harness
import numpy as np
import psutil
import scaling_model
from harness import EPOCH, MIB, Panel, Row, Table, exhaust, seconds_of
from scaling_model import JOBS, PAPER_BOX, PAPER_LAYERS, PAPER_WIDTH, batch_of, fit_line

from scapedist import Run
from scapedist.landscape import PRELOADED, open_workers
from scapedist.particles.exact import Embedder, exact_batch
from scapedist.particles.fit_reduced import ensure_map
from scapedist.particles.reduced import REDUCED_ROWS, reduced_batch
from scapedist.plan import batches
from scapedist.settings import EmbedSettings
from scapedist.stages.stored_rows import FULL
from scapedist.stages.write_volumes import Writing, write_batch
from scapedist.store import RowFile, RunStore, write_row
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
        "| task_fraction: of the time",
        "What the scheduler takes.",
    ),
    Table(
        "check",
        "case | job | workers | measured | model | error | on_machine | its_error",
        "The model against more workers than it was fitted to.",
    ),
    Table(
        "disk_bytes_a_second",
        "page_cache | disk | write_row",
        "Bytes a second that processes write together.",
    ),
    Table(
        "paper.rows",
        "job | particles | workers | hours | limit | first_full | at_workers | basis",
        "Projected: the paper's network.",
    ),
)
PLOTS = (
    Panel("scaling", "workers", "{job}, {case}", "ratio", "times as fast as one worker", "workers"),
    Panel("scaling", "workers", "{job}, {case}", "weak", "efficiency", "workers"),
    Panel(
        "paper.rows", "workers", "{job}", "hours", "the paper's network by the model, h", "workers"
    ),
)
QUIET = 0.05
"""Of all cores: what other programs may take while a time is measured that counts."""
TASKS_OF = {"cpu": 1, "cuda": 8}
"""Times as many tasks in a round where a batch takes less time."""


@dataclass(frozen=True)
class Case:
    """A model, and what is done with it.

    The model is ``bundled`` or random, of a box and a width of three layers; particles, sketch and
    tolerance are of its run. A round has so many tasks for each of the largest number of workers;
    at most twice as many rounds are made as quiet ones are wanted.
    """

    name: str
    box_size: int
    width: int
    n_particles: int
    sketch: int
    tolerance: float
    jobs: tuple[str, ...]
    n_tasks: int
    n_rounds: int


@dataclass(frozen=True)
class Size:
    """Cases, numbers of tasks that do nothing, and bytes that each process writes."""

    cases: tuple[Case, ...]
    n_empty: tuple[int, int]
    disk_bytes: int


SIZES = {
    "tiny": Size((Case("D=16 3x16", 16, 16, 240, 24, 0.5, JOBS, 2, 1),), (2, 6), 2 * MIB),
    "small": Size((Case("bundled", 48, 128, 4000, 100, 1e-3, JOBS, 3, 3),), (30, 90), 128 * MIB),
    "full": Size(
        (
            Case("bundled", 48, 128, 20_000, 200, 1e-3, JOBS, 4, 5),
            Case("D=64 3x256", 64, 256, 600, 32, 1e-3, ("exact", "generate"), 1, 3),
        ),
        (100, 300),
        512 * MIB,
    ),
}
OPTIONS: dict[str, Row] = {
    "--gpus": {"help": "all, or numbers as 0,2 (default: CPUs)"},
    "--workers": {"type": int, "metavar": "N", "help": "most CPU workers (default: cores)"},
}


# -- what is timed


@dataclass(frozen=True)
class Timing:
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


@dataclass(frozen=True)
class Assignment:
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


def warm(job: str, embedder: Embedder, size: int) -> float:
    """Have every worker read what it needs; the seconds of that."""
    workers = embedder.workers
    with assignment(job, embedder, 2 * workers.n_workers, size) as given:
        started = time.perf_counter()
        if hasattr(workers, "connected"):
            workers.connected().run(once, given.work, given.shared, given.tasks[0])
        seconds = time.perf_counter() - started
        given.on(workers)
    return seconds


def once(work: Callable[[Any, Any], Any], shared: Any, task: Any) -> None:
    """One task, as a worker does it."""
    with one_thread():
        work(shared, task)


# -- processes without a scheduler


class SideBySide:
    """So many processes that each work through a share of the tasks, nobody between them."""

    def __init__(self, n: int) -> None:
        context = get_context("forkserver")
        self._ends: list[Connection] = []
        self._processes = []
        with main_module_left_alone():
            start_forkserver(PRELOADED)
            for _ in range(n):
                ours, theirs = context.Pipe()
                process = context.Process(target=serve, args=(theirs,), daemon=True)
                process.start()
                theirs.close()
                self._ends.append(ours)
                self._processes.append(process)

    def time(self, n: int, work: Any, shared: Any, tasks: Sequence[Any]) -> Timing:
        """Until the last of n processes is done; what they need is there before."""
        ends = self._ends[:n]
        for number, end in enumerate(ends):
            end.send((work, shared, tasks[number::n]))
        exhaust(end.recv() for end in ends)

        def go() -> None:
            for end in ends:
                end.send(None)
            exhaust(end.recv() for end in ends)

        return watched(go)

    def close(self) -> None:
        """End the processes."""
        for end in self._ends:
            end.close()
        for process in self._processes:
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


def disk_rates(aside: SideBySide, n: int, place: Path, n_bytes: int, box: int) -> dict[str, float]:
    """Bytes a second that n processes write together: files, and chunks of volumes.

    ``page_cache`` and ``write_row`` end in memory; ``disk`` is down to the disk, which counts
    where more is written than memory holds.
    """
    n_rows = max(1, n_bytes // (4 * box**3))
    asked: dict[str, tuple[Any, Any, int]] = {
        "page_cache": (write_file, (place, n_bytes, False), n * n_bytes),
        "disk": (write_file, (place, n_bytes, True), n * n_bytes),
        "write_row": (write_volumes, (place, n_rows, box), 4 * n * n_rows * box**3),
    }
    rates: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(3):
        for name, (work, shared, total) in asked.items():
            place.mkdir()
            if name == "write_row":
                shape, chunk = (n * n_rows, box, box, box), (1, box, box, box)
                RunStore(place / "store", "w-").create(FULL, shape, "float32", (), chunk)
            rates[name].append(total / aside.time(n, work, shared, range(n)).seconds)
            shutil.rmtree(place)
    return {name: statistics.median(values) for name, values in rates.items()}


def write_file(shared: tuple[Path, int, bool], number: int) -> None:
    """Write bytes to a file in blocks of up to 8 MiB, down to the disk where that is asked for."""
    place, n_bytes, sync = shared
    block = bytes(range(256)) * (min(8 * MIB, n_bytes) // 256)
    with (place / str(number)).open("wb", buffering=0) as stream:
        for _ in range(n_bytes // len(block)):
            stream.write(block)
        if sync:
            os.fsync(stream.fileno())


def write_volumes(shared: tuple[Path, int, int], number: int) -> None:
    """Write a process's rows of an array of volumes, one after the other."""
    place, n_rows, box = shared
    array = RunStore(place / "store", "r+").array(FULL)
    volume = np.ones((box, box, box), np.float32)
    for row in range(number * n_rows, (number + 1) * n_rows):
        write_row(array, row, volume)


# -- measuring


def worker_counts(most: int) -> list[int]:
    """1, 2, 4 and so on, and the largest number itself."""
    return sorted({2**k for k in range(most.bit_length())} | {most})


def landscape(case: Case, place: Path, workers: Workers, n_particles: int) -> Run:
    """A case's run up to its components, and its reduced map where that is measured."""
    from random_model import copy_with_particles, write_random_model  # not in workers: cryoDRGN

    epoch, model = EPOCH if case.name == "bundled" else 19, place / "model"
    if case.name == "bundled":
        with harness.bundled() as (shipped, _):
            copy_with_particles(shipped, EPOCH, np.resize(np.arange(20_000), n_particles), model)
    else:
        shape: Row = {"box_size": case.box_size, "width": case.width}
        write_random_model(model, n_particles=n_particles, **shape)
    made = Run.create(model, epoch, place / "run")
    made.sketch(size=case.sketch, quality_groups=0)
    made.generate(workers, box_size=case.box_size).mask().pca(components=20)
    if "reduced" in case.jobs:
        ensure_map(made.embedder(workers), EmbedSettings(tolerance=case.tolerance))
    return made


Times = dict[tuple[str, int], list[Timing]]
"""Of each round, by what was done (``strong``, ``weak``, ``machine``) and workers."""


def rounds(
    job: str, case: Case, embedders: dict[int, Embedder], most: int, aside: SideBySide | None
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
            aside.time(most, given.work, given.shared, given.tasks)
    times: Times = {(kind, n): [] for kind, n, _ in plan}
    n_quiet = n_made = 0
    while n_quiet < case.n_rounds and n_made < 2 * case.n_rounds:
        for kind, n, n_tasks in plan:
            with assignment(job, embedders[n], n_tasks, size) as given:
                if kind == "machine" and aside is not None:
                    found = aside.time(n, given.work, given.shared, given.tasks)
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
        mine = times["strong", n]
        strong, n_quiet = ratios(times["strong", 1], mine)
        weak, _ = ratios(times["weak", 1], times["weak", n])
        row: Row = {"case": case.name, "job": job, "workers": n}
        row |= {"particles": n_tasks * batch_of(job, device), "tasks": n_tasks}
        row |= {"seconds": median_time(mine), "ratio": statistics.median(strong)}
        row |= {"lowest": min(strong), "highest": max(strong), "ratios": strong}
        row |= {"quiet": n_quiet, "rounds": len(mine)}
        if ("machine", n) in times:
            aside, _ = ratios(times["strong", 1], times["machine", n])
            beside, _ = ratios(times["machine", n], mine)
            row |= {"machine": statistics.median(aside), "machine_ratios": aside}
            row |= {"of_machine": statistics.median(beside)}
        if n > 1:
            row["client_cpu"] = statistics.median(t.cpu_seconds / t.seconds for t in mine)
        row |= {"weak_seconds": median_time(times["weak", n]), "weak": statistics.median(weak)}
        rows.append(row | {"weak_ratios": weak})
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


def measure(
    case: Case,
    n_empty: tuple[int, int],
    place: Path,
    most: int,
    gpus: Sequence[str],
    aside: SideBySide,
) -> Row:
    """All that is measured of a case: ``scaling``, ``overhead`` and what the model needs."""
    device, counts, n_particles = "cuda" if gpus else "cpu", worker_counts(most), case.n_particles
    if gpus:  # each task has particles of its own
        n_tasks = case.n_tasks * TASKS_OF[device] * most
        n_particles = max(n_particles, n_tasks * REDUCED_ROWS[device])
    times: dict[str, Times] = {job: {} for job in case.jobs}
    found: Row = {"case": case, "device": device, "overhead": [], "connect_seconds": {}}
    place.mkdir()
    for some in [[n] for n in reversed(counts)] if gpus else [counts]:
        with ExitStack() as stack:
            embedders = {}
            for n in reversed(some):
                workers = open_workers(gpus=",".join(gpus[:n])) if gpus else open_workers(n)
                stack.enter_context(workers)
                if hasattr(workers, "connected"):
                    found["connect_seconds"][n] = seconds_of(workers.connected)
                if n == most:
                    made = landscape(case, place, workers, n_particles)
                embedders[n] = made.embedder(workers)
            if most in embedders:
                found["warm_seconds"] = warm(case.jobs[0], embedders[most], 1)
                found["idle"] = watched(partial(time.sleep, 0.5)).cpu_seconds / 0.5
                found["overhead"] = [
                    {"case": case.name, "batches_of": device}
                    | empty_tasks(job, embedders[most], batch_of(job, device), n_empty)
                    for job in case.jobs
                ]
            for job in case.jobs:
                times[job] |= rounds(job, case, embedders, most, None if gpus else aside)
            source = embedders[max(embedders)].projection.source
    decoder: Any = source.decoder
    n_points = dict.fromkeys(JOBS, decoder.lattice(source.box_size).n_points)
    if "reduced" in case.jobs:
        n_points["reduced"] = made.store.beside["embedding/map"]["results"]["points"]
    found["points"] = n_points
    found["flops"] = {job: n * decoder.flops_per_point for job, n in n_points.items()}
    found["scaling"] = [
        row for job in case.jobs for row in summary(job, case, times[job], most, device)
    ]
    return found


def on_gpu(gpus: Sequence[str]) -> dict[str, float]:
    """Seconds for a volume of the paper's model on the first of these GPUs, and copied bytes."""
    with open_workers(gpus=gpus[0]) as workers:
        return {
            "decode_seconds": workers.call(gpu_seconds),
            "copy_bytes_a_second": workers.call(copy_rate, 4 * PAPER_BOX**3),
        }


def gpu_seconds(n: int = 64) -> float:
    """Seconds for a volume on a GPU in float32, called where it is."""
    import torch
    from gpu_check import decode_all, random_decoder

    from scapedist.model.field import Field

    field = Field(random_decoder(PAPER_BOX, PAPER_WIDTH, PAPER_LAYERS), "cuda")

    def decode() -> None:
        decode_all(field, n)
        torch.cuda.synchronize()

    decode()
    return statistics.median(seconds_of(decode) for _ in range(3)) / n


def copy_rate(n_bytes: int) -> float:
    """Bytes a second from a GPU to pinned memory of its host, called where it is."""
    import torch

    there = torch.zeros(n_bytes, dtype=torch.uint8, device="cuda")
    here = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)

    def copy() -> None:
        for _ in range(16):
            here.copy_(there, non_blocking=True)
        torch.cuda.synchronize()

    copy()
    return 16 * n_bytes / statistics.median(seconds_of(copy) for _ in range(5))


def run(size: str, gpus: str | None = None, workers: int | None = None) -> Row:
    """Measure, fit, project.

    On GPUs of this machine, ``all`` or numbers, or else on at most so many CPU workers, 2 or more
    (default: one a core).
    """
    of, identities = SIZES[size], list[str]()
    if gpus is not None:
        every = [str(number) for number in range(len(visible_gpus()))]
        identities = every if gpus == "all" else gpus.split(",")
    most = len(identities) or max(2, workers or available_cores())
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        place, aside = Path(directory), SideBySide(most)
        stack.callback(aside.close)
        measured = [
            measure(case, of.n_empty, place / str(number), most, identities, aside)
            for number, case in enumerate(of.cases)
        ]
        disk = disk_rates(aside, most, place / "disk", of.disk_bytes, of.cases[0].box_size)
    first = measured[0] | (on_gpu(identities) if identities else {})
    costs = [scaling_model.fit(found, disk["page_cache"]) for found in measured]
    rates = {job: first["flops"][job] / costs[0][job].volume_seconds for job in JOBS}
    pairs = list(zip(measured, costs, strict=True))
    return {
        "device": first["device"],
        "worker_counts": worker_counts(most),
        "scaling": [row for found in measured for row in found["scaling"]],
        "overhead": [row for found in measured for row in found["overhead"]],
        "check": [row for pair in pairs for row in scaling_model.check(*pair)],
        "costs": {
            found["case"].name: {job: scaling_model.plain(c) for job, c in its_costs.items()}
            for found, its_costs in pairs
        },
        "disk_bytes_a_second": disk,
        "flops_a_second": rates,
        "connect_seconds": first["connect_seconds"],
        "warm_seconds": first["warm_seconds"],
        "idle_client_cpu": first["idle"],
        "on_gpu": {k: first.get(k) for k in ("decode_seconds", "copy_bytes_a_second")},
        "paper": scaling_model.paper(first, disk["disk"], rates),
    }


if __name__ == "__main__":
    harness.main("scaling")
