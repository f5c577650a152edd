"""Jobs of Slurm: the scripts that are submitted, and a run with a Slurm that is this machine."""

import shlex
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from harm import assert_same_arrays
from stand_ins import sketched

from scapedist.errors import InputError, ResourceError
from scapedist.workers import open_workers
from scapedist.workers.batch_systems import slurm_cluster
from scapedist.workers.cluster_file import read_cluster_file, read_settings

pytest.importorskip("dask_jobqueue")
pytest.importorskip("cryptography")

CONFIGS = Path(__file__).parents[2] / "cluster_configs"
JOBS = """
kind: slurm
jobs: 2
workers_per_job: 1
memory: 3GiB
walltime: "00:10:00"
interface: lo
wait_minutes: 0.5
"""


@pytest.fixture
def script(tmp_path):
    """The script of a job, as lines, checked by bash."""

    def write(name: str, **changes: object) -> list[str]:
        settings = replace(read_settings(CONFIGS / f"{name}.yaml"), interface="lo", **changes)
        before = signal.getsignal(signal.SIGINT)
        cluster = slurm_cluster(settings, tmp_path)
        signal.signal(signal.SIGINT, before)
        try:
            text = cluster.job_script()
        finally:
            cluster.close()
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        return [line for line in text.splitlines() if line]

    return write


def options(line: str) -> dict[str, str]:
    words = shlex.split(line)
    return {
        word: "" if after.startswith("--") else after
        for word, after in zip(words, [*words[1:], "--"], strict=True)
        if word.startswith("--")
    }


def runs(job: str) -> bool:
    """Whether a process is there, and more than a name that nobody asked after."""
    try:
        return Path(f"/proc/{job}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_job_of_cores(script):
    prologue = ("module load gcc", "export A='b c'")
    lines = script("slurm_cpu", account="chemistry", prologue=prologue)
    assert lines[:-1] == [
        "#!/usr/bin/env bash",
        "#SBATCH -J scapedist",
        "#SBATCH -p PARTITION",
        "#SBATCH -A chemistry",
        "#SBATCH -n 1",
        "#SBATCH --cpus-per-task=16",
        "#SBATCH --mem=64G",
        "#SBATCH -t 04:00:00",
        *prologue,
    ]
    command = lines[-1]
    assert shlex.split(command)[:3] == [sys.executable, "-m", "distributed.cli.dask_worker"]
    assert shlex.split(command)[3].startswith("tls://127.0.0.1:")
    given = options(command)
    assert given["--nworkers"] == "16"
    assert given["--nthreads"] == "1"
    assert given["--memory-limit"] == "4.00GiB"
    assert given["--protocol"] == "tls://"
    assert given["--interface"] == "lo"
    assert "--no-dashboard" in given
    assert given["--dashboard-address"] == "127.0.0.1:0"
    assert not any(name.startswith("--rmm") for name in given)


def test_a_job_of_gpus(script):
    lines = script("slurm_gpu")
    assert "#SBATCH --gpus-per-node=4" in lines
    assert lines.index("#SBATCH --cpus-per-task=16") > lines.index("#SBATCH --cpus-per-task=4")
    assert shlex.split(lines[-1])[1:3] == ["-m", "dask_cuda.cli"]
    given = options(lines[-1])
    assert given["--nthreads"] == "1"
    assert given["--memory-limit"] == "16.00GiB"
    assert given["--rmm-pool-size"] == "0.8"
    assert given["--set-rmm-allocator-for-libs"] == "torch,cupy"
    assert given["--protocol"] == "tls://"
    assert "--nworkers" not in given  # dask_cuda has no such option: it starts one a GPU


@pytest.mark.parametrize(
    ("asked", "added"),
    [
        ("--gres=gpu:a100:4", False),
        ("-G 4", False),
        ("--gpus-per-task=4", False),
        ("--tres-per-node=gres/gpu:4", False),
        ("--gres=nvme:1", True),
        ("--constraint=gpu", True),
    ],
)
def test_gpus_are_asked_for_once(script, asked, added):
    lines = script("slurm_gpu", directives=(asked,))
    assert f"#SBATCH {asked}" in lines
    assert ("#SBATCH --gpus-per-node=4" in lines) is added


def test_the_key_is_where_jobs_look_for_it(script, tmp_path):
    given = options(script("slurm_cpu")[-1])
    for name in ("--tls-ca-file", "--tls-cert", "--tls-key"):
        assert Path(given[name]).parent == tmp_path
        assert "-----BEGIN" in Path(given[name]).read_text()
    assert Path(given["--tls-ca-file"]).read_text() == Path(given["--tls-cert"]).read_text()


def test_jobs_compute_the_same_bytes(slurm, small_workdir, decoded_here, tmp_path, monkeypatch):
    from distributed import Client

    monkeypatch.chdir(tmp_path)
    (tmp_path / "slurm.yaml").write_text(JOBS)
    with open_workers(cluster=tmp_path / "slurm.yaml") as workers:
        assert workers.n_workers == 2
        assert workers.dashboard.startswith("http://127.0.0.1:")
        keys = list(tmp_path.glob("scapedist-key-*"))
        assert [stat.S_IMODE(key.stat().st_mode) for key in keys] == [0o700]
        assert {stat.S_IMODE(file.stat().st_mode) for file in keys[0].iterdir()} == {0o600}
        scheduler = workers.connected().scheduler_info()["address"]
        with pytest.raises(OSError, match="reset|closed|timed out"):  # not without the key
            Client(scheduler.replace("tls://", "tcp://"), timeout=1)
        sketched(small_workdir, tmp_path / "run").generate(workers, batch_size=2)
        seen = workers.connected().scheduler_info(n_workers=-1)["workers"]
    assert_same_arrays(tmp_path / "run", decoded_here)
    assert all(worker["nthreads"] == 1 for worker in seen.values())
    assert sorted(slurm.listed("cancelled")) == sorted(slurm.listed("submitted"))
    assert len(slurm.listed("submitted")) == 2
    assert not list(tmp_path.glob("scapedist-key-*"))
    until = time.monotonic() + 10
    while any(map(runs, slurm.listed("submitted"))):
        assert time.monotonic() < until, slurm.logs()
        time.sleep(0.1)


def test_ctrl_c_means_what_it_did(slurm, tmp_path):
    """The import of dask_jobqueue changes it."""
    (tmp_path / "slurm.yaml").write_text(JOBS)
    script = (
        "import signal; from scapedist.workers.cluster_file import read_cluster_file\n"
        "read_cluster_file('slurm.yaml').prepare(); import dask_jobqueue\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)


def test_what_sbatch_refuses_is_told(slurm, tmp_path):
    (tmp_path / "slurm.yaml").write_text(JOBS + f"queue: nowhere\nshared_directory: {tmp_path}\n")
    told = r"It says: sbatch: error: invalid partition: nowhere. Change queue, account, walltime"
    with pytest.raises(ResourceError, match=told):
        open_workers(cluster=tmp_path / "slurm.yaml")
    assert not list(tmp_path.glob("scapedist-key-*"))


def test_a_machine_without_slurm(tmp_path, monkeypatch):
    (tmp_path / "slurm.yaml").write_text(JOBS)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceError, match="sbatch is not on the PATH of this machine. Run"):
        read_cluster_file(tmp_path / "slurm.yaml")


def test_a_shared_directory_that_is_none(slurm, tmp_path):
    path = tmp_path / "slurm.yaml"
    path.write_text(JOBS + "shared_directory: nowhere\n")
    with pytest.raises(InputError, match=f"There is no directory {tmp_path}/nowhere. Make it, or"):
        read_cluster_file(path)
    (tmp_path / "my files").mkdir()
    path.write_text(JOBS + "shared_directory: my files\n")
    with pytest.raises(InputError, match="no blanks or shell characters. It is .*my files'. Give"):
        read_cluster_file(path)


def test_a_network_that_is_none(slurm, tmp_path):
    path = tmp_path / "slurm.yaml"
    path.write_text(JOBS.replace("lo", "ib77"))
    with pytest.raises(InputError, match="interface is ib77; there are lo.* Give one that the"):
        read_cluster_file(path)


def test_jobs_that_are_never_run_are_ended(slurm, tmp_path):
    slurm.add("sbatch", f"#!/bin/sh\necho 4194305 | tee {slurm.jobs}/submitted\n")
    path = tmp_path / "slurm.yaml"
    path.write_text(JOBS.replace("0.5", "0.02") + f"shared_directory: {tmp_path}\n")
    start = read_cluster_file(path)
    assert (start.n_workers, start.seconds, start.memory_limit) == (2, 1.2, 3 * 2**30)
    start.prepare()
    client, jobs = start.begin()
    with pytest.raises(TimeoutError):
        client.wait_for_workers(1, timeout=start.seconds)
    client.close()
    jobs.close()
    assert slurm.listed("cancelled") == ["4194305", "4194305"]
    assert not list(tmp_path.glob("scapedist-key-*"))
