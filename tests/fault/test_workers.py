"""Workers that are lost, missing, or not what a run needs; GPUs that are not there."""

import os
import signal
import socket
import subprocess
import sys
import time
from importlib import metadata

import numpy as np
import psutil
import pytest
from distributed import LocalCluster, get_worker

from scapedist.analysis.gram import fit_components, gram_matrix
from scapedist.errors import InputError, ResourceError
from scapedist.workers import Serial, open_workers
from scapedist.workers.distributed import TASKS_AHEAD, Distributed
from scapedist.workers.start import GivenScheduler, LocalProcesses


def times(factor, task):
    time.sleep(0.02)
    return factor * task


def killed_once(marker, task):
    """Dies at the first try of task 3."""
    if task == 3 and not os.path.exists(marker):
        open(marker, "x").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return task**2


def exhausted(_, task):
    raise MemoryError(f"std::bad_alloc for task {task}")


class Rows:
    """Reads rows of a matrix that is made anew by whoever reads."""

    def __init__(self, n, p):
        self.n, self.p = n, p

    def __call__(self, start, stop):
        rows = np.random.default_rng(0).standard_normal((self.n, self.p)) + 30
        return rows[start:stop].astype(np.float32)


@pytest.fixture(scope="module")
def two():
    with open_workers(2) as workers:
        workers.connected()
        yield workers


@pytest.mark.parametrize("n", [0, 1, 5, 100])
def test_more_workers_than_tasks_and_more_tasks_than_are_sent_ahead(two, n):
    assert two.gather(times, 3, list(range(n))) == [3 * task for task in range(n)]


def test_few_tasks_are_with_the_scheduler_at_a_time(two):
    """However many there are: its memory and its time do not grow with the particles."""
    results = two.run(times, 1, list(range(400)))
    most = 0
    for _ in range(50):
        next(results)
        most = max(most, len(two.connected().futures))
    results.close()
    assert most <= TASKS_AHEAD * two.n_workers + 2
    assert two.gather(times, 1, [1, 2]) == [1, 2]  # what was given up is not in the way


@pytest.mark.parametrize("block", [1, 7, 13, 40])
def test_components_are_the_same_by_any_number_of_workers(two, block):
    rows = Rows(37, 900)
    matrices, vectors = [], []
    for workers in (Serial(), two):
        gram = gram_matrix(rows, 37, block, workers.run)
        fitted = fit_components(gram, rows, block, 5, workers.run)
        matrices.append(gram.matrix.tobytes() + gram.mean.tobytes())
        vectors.append(fitted.vectors.tobytes())
    assert matrices[0] == matrices[1]
    assert vectors[0] == vectors[1]


def test_a_killed_worker_s_task_is_done_again(two, tmp_path):
    found = two.gather(killed_once, str(tmp_path / "marker"), list(range(8)))
    assert found == [task**2 for task in range(8)]
    assert (tmp_path / "marker").exists()


def test_all_workers_killed_at_once(tmp_path):
    """What tasks share is lost with them, and sent again to those that come back."""
    with open_workers(2) as workers:
        pids = list(workers.connected().run(os.getpid).values())
        results = workers.run(times, 7, list(range(120)))
        found = dict([next(results)])
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        found |= dict(results)
        assert found == {task: 7 * task for task in range(120)}
        again = set(workers.connected().run(os.getpid).values())
        assert not again & set(pids)


def test_a_task_that_always_kills_is_given_up(two):
    with pytest.raises(
        ResourceError, match="died several times over the same batch|All workers were lost"
    ):
        two.gather(always_killed, None, [1])
    assert two.gather(times, 2, [4]) == [8]


def always_killed(_, task):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("kind", ["serial", "two"])
def test_a_batch_that_does_not_fit_is_one_sentence(two, kind):
    workers = two if kind == "two" else Serial()
    with pytest.raises(ResourceError, match=r"bad_alloc for task 5\). Use a smaller --batch-size"):
        workers.gather(exhausted, None, [5])


def test_local_workers_that_cannot_be_started(monkeypatch):
    def refuse(self):
        raise OSError("Too many open files")

    monkeypatch.setattr(LocalProcesses, "begin", refuse)
    workers = open_workers(2)
    with pytest.raises(ResourceError, match=r"Too many open files.*--workers 1"):
        workers.connected()
    workers.close()


# -- a scheduler's workers


def test_workers_that_all_leave_for_good(scheduler):
    """As when a batch system ends their jobs: the command ends too, and can be given again."""
    scheduler.scale(1)
    where = GivenScheduler(where=scheduler.scheduler_address, seconds=3)
    with Distributed(where) as workers:
        results = workers.run(times, 1, list(range(500)))
        next(results)
        scheduler.scale(0)
        with pytest.raises(ResourceError, match=r"no workers after 3 s.*dask worker"):
            list(results)


def test_workers_that_join_later_get_tasks(scheduler):
    scheduler.scale(1)
    with Distributed(GivenScheduler(where=scheduler.scheduler_address)) as workers:
        assert workers.n_workers == 1
        results = workers.run(who, 0.02, list(range(200)))
        found = [next(results)[1]]
        scheduler.scale(2)
        found += [name for _, name in results]
        assert len(found) == 200
        assert len(set(found)) == 2
        assert workers.n_workers == 2


def who(seconds, task):
    time.sleep(seconds)
    return get_worker().address


def test_most_workers_leave_while_tasks_are_ahead(scheduler):
    """More tasks are with the scheduler than those that stay are given: none is lost or twice."""
    scheduler.scale(4)
    with Distributed(GivenScheduler(where=scheduler.scheduler_address)) as workers:
        scheduler.wait_for_workers(4)
        results = workers.run(times, 3, list(range(400)))
        found = [next(results) for _ in range(8)]
        assert workers.n_workers == 4
        scheduler.scale(1)
        found += results
        assert sorted(found) == [(task, 3 * task) for task in range(400)]
        assert workers.n_workers == 1


@pytest.mark.slow
def test_very_many_small_tasks(two):
    """Neither the scheduler nor this process keeps anything of a task that is done."""
    n, sizes, total = 100_000, [], 0
    for done, (_, result) in enumerate(two.run(product, 1, list(range(n))), 1):
        total += result
        if done % 10_000 == 0:
            sizes.append(psutil.Process().memory_info().rss)  # the scheduler is in this process
            known = two.connected().run_on_scheduler(
                lambda dask_scheduler: len(dask_scheduler.tasks)
            )
            assert known <= TASKS_AHEAD * two.n_workers + 2
    assert total == n * (n - 1) // 2
    assert sizes[-1] - sizes[2] < 500 * (n - 30_000)  # bytes a task, once the logs are full


def product(factor, task):
    return factor * task


def test_a_worker_whose_card_fell_off_stand_in(scheduler, tmp_path):
    """Its batches go to the others, and it gets no more; CUDA's own words stand for the card."""
    scheduler.scale(2)
    with Distributed(GivenScheduler(where=scheduler.scheduler_address)) as workers:
        scheduler.wait_for_workers(2)
        first = sorted(workers.connected().nthreads())[0]
        found = workers.gather(without_card, [first], list(range(100)))
        assert found == [task**2 for task in range(100)]
        assert first not in workers.connected().nthreads()
        assert workers.n_workers == 1


def test_the_last_worker_s_card_fell_off_stand_in(scheduler):
    scheduler.scale(1)
    with Distributed(GivenScheduler(where=scheduler.scheduler_address)) as workers:
        only = list(workers.connected().nthreads())
        with pytest.raises(
            ResourceError,
            match=r"GPU of the last worker, \S+, answers no more \(CUDA error: unspec",
        ):
            workers.gather(without_card, only, [1, 2, 3])


def without_card(lost, task):
    time.sleep(0.01)
    if get_worker().address in lost:
        raise RuntimeError(
            "CUDA error: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA"
        )
    return task**2


def test_a_scheduler_that_cannot_be_reached():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        where = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(ResourceError, match=rf"{where} could not be reached in 2 s"):
            Distributed(GivenScheduler(where=where, seconds=2))
        assert 1 < time.monotonic() - started < 20


@pytest.fixture
def scheduler():
    where = {"protocol": "tcp://", "host": "127.0.0.1", "dashboard_address": None}
    with LocalCluster(n_workers=0, processes=False, **where) as cluster:
        yield cluster


def test_a_scheduler_without_workers(scheduler):
    where = scheduler.scheduler_address
    with pytest.raises(ResourceError, match=rf"{where} has no workers after 1 s.*dask worker"):
        Distributed(GivenScheduler(where=where, seconds=1))


def test_workers_of_another_version(scheduler, tmp_path):
    """They are told by what is installed where they run."""
    info = tmp_path / "scapedist-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scapedist\nVersion: 9.9\n")
    where = scheduler.scheduler_address
    command = [sys.executable, "-m", "distributed.cli.dask_worker", where, "--no-nanny",
               "--no-dashboard", "--nthreads=1"]  # fmt: skip
    worker = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, stderr=subprocess.DEVNULL
    )
    ours = metadata.version("scapedist")
    try:
        with pytest.raises(ResourceError, match=rf"scapedist, {ours}.* has 9.9\. Install the same"):
            Distributed(GivenScheduler(where=where, seconds=30))
    finally:
        worker.kill()
        worker.wait()


def test_workers_that_do_not_see_the_files(scheduler, tmp_path):
    scheduler.scale(1)
    here, gone = tmp_path / "here", tmp_path / "gone"
    here.mkdir()
    with Distributed(GivenScheduler(where=scheduler.scheduler_address)) as workers:
        workers.check_files([here])
        with pytest.raises(ResourceError, match=rf"worker \S+ does not see {gone}\. Put it on"):
            workers.check_files([here, gone])


def test_workers_come_from_one_place():
    for options in (
        {"n_workers": 2, "scheduler": "tcp://127.0.0.1:1"},
        {"n_workers": 2, "gpus": "all"},
        {"gpus": "0", "cluster": "a.yaml"},
        {"scheduler": "tcp://127.0.0.1:1", "cluster": "a.yaml"},
    ):
        with pytest.raises(InputError, match=r"Workers come from one place. Give --\w+ or --\w+"):
            open_workers(**options)
    with pytest.raises(InputError, match=r"the GPU that it was started with. --gpus is 0,1"):
        open_workers(scheduler="tcp://127.0.0.1:1", gpus="0,1")


# -- GPUs


def test_gpus_where_the_packages_or_the_driver_are_missing():
    with pytest.raises(
        ResourceError, match=r"(cuda13|No GPU is visible).*CPUs compute without --gpus"
    ):
        open_workers(gpus="all")
    before = len(psutil.Process().children(recursive=True))
    assert before < 20  # nothing was started
