"""Cluster files: what each kind may say, and what is told where one is wrong."""

import sys
from pathlib import Path

import pytest

from scapedist.errors import InputError, ResourceError
from scapedist.workers import available_cores, open_workers
from scapedist.workers.cluster_file import read_cluster_file, read_settings
from scapedist.workers.cluster_keys import Cpus, Gpus, Kubernetes, Slurm
from scapedist.workers.start import GivenScheduler, LocalProcesses

GIB = 2**30
CONFIGS = Path(__file__).parents[2] / "cluster_configs"
JOBS = "kind: slurm\njobs: 2\nmemory: 8GiB\nwalltime: '01:00:00'\n"
MANIFEST = """
apiVersion: kubernetes.dask.org/v1
kind: DaskCluster
metadata: {name: some}
spec:
  scheduler: {spec: {containers: [{name: scheduler}]}, service: {type: ClusterIP}}
  worker:
    replicas: 3
    spec: {containers: [{name: worker, resources: {limits: {nvidia.com/gpu: "2"}}}]}
"""


@pytest.fixture
def file(tmp_path):
    """Write a cluster file."""

    def write(content: str) -> Path:
        path = tmp_path / "workers.yaml"
        path.write_text(content)
        return path

    return write


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cpu", Cpus),
        ("gpu_1", Gpus),
        ("gpu_4", Gpus),
        ("gpu_8", Gpus),
        ("slurm_cpu", Slurm),
        ("slurm_gpu", Slurm),
        ("kubernetes", Kubernetes),
    ],
)
def test_what_is_shipped_is_right(name, kind):
    assert isinstance(read_settings(CONFIGS / f"{name}.yaml"), kind)


def test_all_that_is_shipped_is_tested():
    kinds = {path.stem for path in CONFIGS.glob("*.yaml")}
    names = {"cpu", "gpu_1", "gpu_4", "gpu_8", "slurm_cpu", "slurm_gpu", "kubernetes"}
    assert kinds == names | {"kubernetes_dask_cluster", "kubernetes_network_policy"}


@pytest.mark.parametrize("n_gpus", [1, 4, 8])
def test_gpus_of_a_workstation(n_gpus):
    settings = read_settings(CONFIGS / f"gpu_{n_gpus}.yaml")
    assert settings.gpus == ",".join(map(str, range(n_gpus)))


def test_cpus(file):
    start = read_cluster_file(file("kind: cpus\nworkers: 3\nmemory_limit: 4GiB\n"))
    assert start == LocalProcesses(n_workers=3, memory_limit=4 * GIB)
    start = read_cluster_file(file("kind: cpus\nmemory_limit:\n"))
    assert start == LocalProcesses(n_workers=available_cores())


def test_local_processes_of_a_file_compute(file):
    with open_workers(cluster=file("kind: cpus\nworkers: 2\n")) as workers:
        assert workers.gather(pow, 2, list(range(5))) == [1, 2, 4, 8, 16]
        assert workers.n_workers == 2


@pytest.mark.parametrize(("written", "asked"), [("all", "all"), ("[2, 0]", "2,0")])
def test_gpus(file, written, asked):
    settings = read_settings(file(f"kind: gpus\ngpus: {written}\nmemory_limit: 2e10\n"))
    assert settings == Gpus(asked, 20 * 10**9)
    assert read_settings(file("kind: gpus\n")).gpus == "all"


def test_a_scheduler(file, tmp_path):
    start = read_cluster_file(file("kind: scheduler\naddress: tls://10.0.0.1:8786\ngpus: true\n"))
    assert start == GivenScheduler(where="tls://10.0.0.1:8786", device="cuda")
    (tmp_path / "scheduler.json").write_text("{}")
    start = read_cluster_file(file("kind: scheduler\nfile: scheduler.json\n"))
    assert start == GivenScheduler(where=str(tmp_path / "scheduler.json"))


def test_slurm_in_full(file, tmp_path):
    path = file(
        JOBS.replace("8GiB", "16GiB")
        + "gpus_per_job: 4\nqueue: gpu\naccount: 1234\ninterface: ib0\nwait_minutes: 0.5\n"
        "directives: [--constraint=a100]\nprologue:\n  - module load cuda\nshared_directory: keys\n"
    )
    assert read_settings(path) == Slurm(
        jobs=2,
        memory=16 * GIB,
        walltime="01:00:00",
        gpus_per_job=4,
        queue="gpu",
        account="1234",
        interface="ib0",
        directives=("--constraint=a100",),
        prologue=("module load cuda",),
        shared_directory=tmp_path / "keys",
        wait_minutes=0.5,
    )


def test_workers_of_kubernetes_are_those_of_the_manifest(file, tmp_path):
    pytest.importorskip("dask_kubernetes")
    (tmp_path / "manifest.yaml").write_text(MANIFEST)
    path = file("kind: kubernetes\nmanifest: manifest.yaml\ndevice: cuda\nwait_minutes: 2\n")
    start = read_cluster_file(path)
    assert (start.n_workers, start.device, start.seconds) == (6, "cuda", 120)


SLURM_KEYS = (
    "jobs, memory, walltime, workers_per_job, gpus_per_job, queue, account, interface, "
    "directives, prologue, shared_directory, wait_minutes"
)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "A cluster file has lines of KEY: VALUE. FILE is empty. Start from a file in"),
        ("- kind: cpus\n", "FILE holds a list. Start from a file in cluster_configs."),
        ("kind: cpus\n  workers: 2\n", "A cluster file is YAML. FILE is not (line 2: mapping"),
        ("kind: [cpus\n", "A cluster file is YAML. FILE is not (line 2: expected ',' or ']'"),
        ("kind: !!python/object:os.system x\n", "FILE is not (line 1: could not determine"),
        (
            "workers: 2\n",
            "The key kind says where workers come from: cpus, gpus, slurm, kubernetes, scheduler. "
            "FILE has none. Add one of these.",
        ),
        ("kind: slrum\n", "In FILE it is 'slrum'. Write slurm."),
        ("kind: lsf\n", "In FILE it is 'lsf'. Write one of these."),
        ("kind: [cpus]\n", "In FILE it is ['cpus']. Write "),
        (
            "kind: cpus\nworker: 2\n",
            "Workers of kind cpus have the keys workers, memory_limit. FILE has 'worker'. Write "
            "workers.",
        ),
        (
            JOBS + "partition: long\n",
            f"Workers of kind slurm have the keys {SLURM_KEYS}. FILE has 'partition'. Leave it ",
        ),
        ("kind: cpus\n1: 2\n", "have the keys workers, memory_limit. FILE has 1. Leave it out."),
        (
            "kind: slurm\njobs: 2\nmemory: 8GiB\n",
            'Workers of kind slurm need the key walltime: a time in quotes, as "04:00:00". FILE '
            "has none. Add it.",
        ),
        ("kind: kubernetes\n", "Workers of kind kubernetes need the key manifest: a path."),
        ("kind: cpus\nworkers: 0\n", "workers is a whole number, 1 or more. In FILE it is 0."),
        ("kind: cpus\nworkers: true\n", "1 or more. In FILE it is True. Change it there."),
        ("kind: cpus\nworkers: 1.5\n", "workers is a whole number, 1 or more. In FILE it is 1.5."),
        ("kind: cpus\nworkers: '2'\n", "workers is a whole number, 1 or more. In FILE it is '2'."),
        (
            "kind: cpus\nmemory_limit: much\n",
            "memory_limit is a size with its unit, as 16GiB. In FILE it is 'much'. Change it",
        ),
        ("kind: cpus\nmemory_limit: 0\n", "with its unit, as 16GiB. In FILE it is 0."),
        ("kind: cpus\nmemory_limit: [4GiB]\n", "as 16GiB. In FILE it is ['4GiB']."),
        (
            "kind: gpus\ngpus: 0,1\n",
            "gpus is all, or a list of different numbers, as [0, 2]. In FILE it is '0,1'.",
        ),
        ("kind: gpus\ngpus: [0, 0]\n", "a list of different numbers, as [0, 2]. In FILE it is [0"),
        ("kind: gpus\ngpus: [[0]]\n", "as [0, 2]. In FILE it is [[0]]."),
        ("kind: gpus\ngpus: []\n", "as [0, 2]. In FILE it is []."),
        ("kind: gpus\ngpus: -1\n", "as [0, 2]. In FILE it is -1."),
        (
            JOBS.replace("'01:00:00'", "10:00:00"),  # YAML's number of base 60
            'walltime is a time in quotes, as "04:00:00". In FILE it is 36000. Change it there.',
        ),
        (JOBS.replace("01:00:00", "soon"), "In FILE it is 'soon'."),
        (
            JOBS.replace("jobs: 2", "jobs: -2"),
            "jobs is a whole number, 1 or more. In FILE it is -2",
        ),
        (
            JOBS + "gpus_per_job: -1\n",
            "gpus_per_job is a whole number, 0 or more. In FILE it is -1",
        ),
        (JOBS + "gpus_per_job: false\n", "a whole number, 0 or more. In FILE it is False."),
        (
            JOBS + "queue: long; rm x\n",
            "queue is a name without blanks or shell characters. In FILE it is 'long; rm x'.",
        ),
        (
            JOBS + "directives: --exclusive\n",
            "directives is a list of sbatch options, as [--constraint=a100]. In FILE it is '--excl",
        ),
        (JOBS + "directives: [exclusive]\n", "In FILE it is ['exclusive']."),
        (JOBS + 'directives: ["-p x\\nrm x"]\n', "In FILE it is ['-p x\\nrm x']."),
        (JOBS + "prologue: [{module: cuda}]\n", "prologue is a list of shell lines. In FILE it is"),
        (
            JOBS + "wait_minutes: 0\n",
            "wait_minutes is a number of minutes above 0. In FILE it is 0",
        ),
        (JOBS + "wait_minutes: .inf\n", "a number of minutes above 0. In FILE it is inf."),
        (JOBS + "jobs:\n", "jobs is a whole number, 1 or more. In FILE it is None."),
        (
            JOBS,
            "A job has workers: workers_per_job on cores, or gpus_per_job with one a GPU. FILE has "
            "neither. Add one.",
        ),
        (
            JOBS + "workers_per_job: 2\ngpus_per_job: 4\n",
            "There is one worker a GPU. In FILE workers_per_job is 2 and gpus_per_job 4. Leave out "
            "workers_per_job.",
        ),
        (
            "kind: scheduler\n",
            "A scheduler is known by its address or by its file. FILE has neither. Give one of",
        ),
        ("kind: scheduler\naddress: tcp://a:1\nfile: b\n", "FILE has both. Give one of them."),
        (
            "kind: scheduler\naddress: node1:8786\n",
            "address is an address, as tcp://HOST:PORT. In FILE it is 'node1:8786'.",
        ),
        (
            "kind: scheduler\nfile: none.json\n",
            "none.json cannot be read: there is no such file. Start a scheduler with `dask",
        ),
        ("kind: scheduler\nfile: .\ngpus: all\n", "gpus is true or false. In FILE it is 'all'."),
        (
            "kind: kubernetes\nmanifest: none.yaml\n",
            "none.yaml cannot be read: there is no such file. Give its path, relative to FILE.",
        ),
        ("kind: kubernetes\nmanifest: FILE\ndevice: gpu\n", "device is cpu or cuda. In FILE it is"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(file, content, told):
    path = file("")
    path.write_text(content.replace("FILE", path.name))
    with pytest.raises(InputError) as error:
        read_cluster_file(path)
    message = str(error.value)
    assert told.replace("FILE", str(path)) in message
    assert message.endswith(".")
    assert "\n" not in message


def test_a_file_that_cannot_be_read(tmp_path):
    path = tmp_path / "none.yaml"
    with pytest.raises(InputError, match="no such file. Give its path, or start from a file in"):
        read_cluster_file(path)
    with pytest.raises(InputError, match="cannot be read: Is a directory. Start from a file in"):
        read_cluster_file(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read: it is not text. Start from a file in"):
        read_cluster_file(path)
    path.write_bytes(b"kind: \x01cpus\n")
    with pytest.raises(InputError, match="A cluster file is YAML. .* is not .*Mend it there"):
        read_cluster_file(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("kind: cpus\nmemory_limit: 4\n", "memory_limit is 0.00 GiB for 1 of them. Give 0.7GiB."),
        (
            JOBS.replace("8GiB", "1GiB") + "workers_per_job: 16\n",
            "A worker takes 0.35 GiB before its first batch. In .* memory is 1.00 GiB for 16 of "
            "them. Give 11.2GiB.",
        ),
    ],
)
def test_too_little_memory(file, content, told):
    with pytest.raises(ResourceError, match=told):
        read_cluster_file(file(content))


@pytest.mark.parametrize(
    ("content", "extra", "package"),
    [
        (JOBS + "workers_per_job: 1\n", "slurm", "dask_jobqueue"),
        (JOBS + "workers_per_job: 1\n", "slurm", "cryptography"),
        ("kind: kubernetes\nmanifest: manifest.yaml\n", "kubernetes", "dask_kubernetes"),
    ],
)
def test_a_missing_package_is_told_with_its_extra(
    file, tmp_path, monkeypatch, content, extra, package
):
    (tmp_path / "manifest.yaml").write_text(MANIFEST)
    for name in ("dask_jobqueue", "cryptography", "dask_kubernetes"):
        found = sys if name != package else None  # what Python itself takes for "cannot be had"
        monkeypatch.setitem(sys.modules, name, found)
    told = (
        f"Workers of kind {extra} need the extra {extra}: {package} is not installed. Give "
        f"`pip install 'scapedist\\[{extra}\\]'`."
    )
    with pytest.raises(ResourceError, match=told):
        open_workers(cluster=file(content))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("kind: DaskCluster", "kind: Pod", "is not ('kind: DaskCluster')"),
        ("metadata: {name: some}", "metadata: {}", "is not ('name')"),
        (", service: {type: ClusterIP}", "", "is not ('service')"),
        ("containers: [{name: worker", "containers: [worker", "is not ("),
        ("replicas: 3", "replicas: many", "is not (invalid literal"),
        ("spec:", "spec: {", "is not ("),
    ],
)
def test_a_manifest_of_something_else(file, tmp_path, old, new, told):
    pytest.importorskip("dask_kubernetes")
    (tmp_path / "manifest.yaml").write_text(MANIFEST.replace(old, new))
    with pytest.raises(InputError) as error:
        read_cluster_file(file("kind: kubernetes\nmanifest: manifest.yaml\n"))
    message = str(error.value)
    assert "A manifest is one DaskCluster resource with a scheduler and workers." in message
    assert told in message
    assert message.endswith("Start from kubernetes_dask_cluster.yaml in cluster_configs.")
    assert "\n" not in message


def test_a_file_excludes_other_ways_to_have_workers(file):
    with pytest.raises(InputError, match="Give --workers or --cluster, not both"):
        open_workers(n_workers=2, cluster=file("kind: cpus\n"))
