"""Workers that a batch system starts: jobs of Slurm, pods of Kubernetes."""

from __future__ import annotations

import logging
import re
import shlex
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from scapedist.errors import InputError, ResourceError
from scapedist.workers.cluster_keys import NOT_IN_SCRIPTS, Kubernetes, Slurm
from scapedist.workers.gpus import POOL_FRACTION
from scapedist.workers.start import Start

LOOPBACK = "127.0.0.1:0"
"""Address of status pages; on a network they would have neither key nor password."""
CLOSE_SECONDS = 30
"""Seconds that Kubernetes may take to delete what could not be used."""
GPU_REQUEST = re.compile(r"--gpus|-G|--(gres|tres-per).*gpu")
"""Pattern of the options of sbatch that ask for GPUs."""


def slurm_jobs(settings: Slurm) -> SlurmJobs:
    """The start of workers in jobs of Slurm; nothing is submitted yet.

    Raises
    ------
    InputError
        Where the shared directory or the network interface cannot be used.
    ResourceError
        Where a package or ``sbatch`` is missing.
    """
    _check_packages("slurm", "dask_jobqueue", "cryptography")
    for command in ("sbatch", "scancel"):
        if shutil.which(command) is None:
            raise ResourceError(
                f"Jobs are submitted and ended by Slurm's own commands. {command} is not on the "
                "PATH of this machine. Run scapedist where it is, as on a login node."
            )
    directory = _shared_directory(settings)
    if not directory.is_dir():
        raise InputError(
            "Jobs find the key of the connection in shared_directory. There is no directory "
            f"{directory}. Make it, or give another."
        )
    if NOT_IN_SCRIPTS.search(str(directory)):
        raise InputError(
            "The path of shared_directory is put into job scripts, so it has no blanks or shell "
            f"characters. It is {str(directory)!r}. Give another."
        )
    networks = [name for _, name in socket.if_nameindex()]
    if settings.interface is not None and settings.interface not in networks:
        raise InputError(
            "The scheduler listens on a network of this machine. The cluster file's interface is "
            f"{settings.interface}; there are {', '.join(networks)}. Give one that the nodes reach."
        )
    return SlurmJobs(
        n_workers=settings.jobs * settings.workers_of_a_job,
        device="cuda" if settings.gpus_per_job else "cpu",
        seconds=60 * settings.wait_minutes,
        memory_limit=settings.memory // settings.workers_of_a_job,
        settings=settings,
    )


@dataclass(frozen=True)
class SlurmJobs(Start):
    """Workers in jobs of Slurm; the scheduler is in this process, and its key is needed to connect.

    Attributes
    ----------
    settings
        Settings of the cluster file.
    """

    settings: Slurm | None = None
    way_out = (
        "Look at `squeue --me` and at the jobs' logs (slurm-*.out), or give more wait_minutes in "
        "the cluster file."
    )

    @property
    def name(self) -> str:
        """Name of these workers in an error message."""
        return "The scheduler of the Slurm jobs"

    def prepare(self) -> None:
        """Import what submits jobs, keeping what Ctrl-C does, which the import would change."""
        if threading.current_thread() is not threading.main_thread():
            raise ResourceError(
                "Slurm jobs are submitted from the main thread of a program. This is "
                f"{threading.current_thread().name}. Open the workers there."
            )
        before = signal.getsignal(signal.SIGINT)
        try:
            import dask_jobqueue  # noqa: F401
        finally:
            signal.signal(signal.SIGINT, before)

    def begin(self) -> tuple[Any, Any]:
        """Submit the jobs."""
        from distributed import Client

        assert self.settings is not None
        stack = ExitStack()
        try:
            place = _shared_directory(self.settings)
            private = stack.enter_context(TemporaryDirectory(prefix="scapedist-key-", dir=place))
            cluster = slurm_cluster(self.settings, Path(private))
            stack.callback(cluster.close)
            for _ in range(self.settings.jobs):
                cluster.worker_spec.update(cluster.new_worker_spec())
            # submits all that is missing; `scale` would not say where sbatch refuses
            cluster.sync(cluster.scale_down, [])
            return Client(cluster), stack
        except BaseException:
            stack.close()
            raise

    def refusal(self, error: BaseException) -> ResourceError:
        """The error with what Slurm said against the jobs."""
        said = str(error).partition("stderr:\n")[2].split("\n")
        if not any(said):
            return super().refusal(_in_a_line(error))
        return ResourceError(
            "Jobs must be such as this Slurm takes. It says: "
            f"{'; '.join(line.strip() for line in said if line.strip())}. Change queue, account, "
            "walltime, memory or directives in the cluster file."
        )


def slurm_cluster(settings: Slurm, private: Path) -> Any:
    """A scheduler in this process, and jobs that can be submitted (``SLURMCluster``).

    Parameters
    ----------
    settings
        Settings of the cluster file.
    private
        Directory that only this user can read, and jobs see; the connection's key is put there.
    """
    from dask_jobqueue import SLURMCluster
    from distributed import Status

    slurm_job: Any = SLURMCluster.job_cls

    class Job(slurm_job):
        """A job that can be closed although sbatch refused it."""

        async def close(self) -> None:
            await super().close()
            self.status = Status.closed

    n_workers = settings.workers_of_a_job
    options = ["--no-dashboard", "--dashboard-address", LOOPBACK]
    directives = list(settings.directives)
    command = "distributed.cli.dask_worker"
    if settings.gpus_per_job:
        command = "dask_cuda.cli"
        options += ["--rmm-pool-size", str(POOL_FRACTION)]
        options += ["--rmm-track-allocations", "--set-rmm-allocator-for-libs", "torch,cupy"]
        if not any(map(GPU_REQUEST.match, directives)):
            directives.insert(0, f"--gpus-per-node={settings.gpus_per_job}")
    of_jobs: Any = SLURMCluster
    return of_jobs(
        job_cls=Job,
        cores=n_workers,
        processes=n_workers,
        memory=f"{settings.memory} B",
        walltime=settings.walltime,
        queue=settings.queue,
        account=settings.account,
        interface=settings.interface,
        job_name="scapedist",
        job_extra_directives=directives,
        job_script_prologue=list(settings.prologue),
        python=shlex.quote(sys.executable),
        worker_command=command,
        worker_extra_args=options,
        protocol="tls://",
        security=_key_in(private),
        scheduler_options={"dashboard_address": LOOPBACK},
        silence_logs=logging.CRITICAL,
    )


def _key_in(private: Path) -> Any:
    """Make a new key for the scheduler, the workers and this process, as files of a directory."""
    from distributed.security import Security

    made = Security.temporary().get_tls_config_for_role("worker")
    paths = {name: str(private / f"{name}.pem") for name in ("ca_file", "cert", "key")}
    for name, path in paths.items():
        Path(path).touch(mode=0o600)
        Path(path).write_text(made[name])
    roles = {
        f"tls_{role}_{name}": paths[name]
        for role in ("scheduler", "worker", "client")
        for name in ("cert", "key")
    }
    return Security(require_encryption=True, tls_ca_file=paths["ca_file"], **roles)


def kubernetes_pods(settings: Kubernetes) -> KubernetesPods:
    """The start of workers in pods of Kubernetes; nothing is created yet.

    Raises
    ------
    InputError
        Where the manifest is none of a DaskCluster.
    ResourceError
        Where a package is missing.
    """
    _check_packages("kubernetes", "dask_kubernetes")
    return KubernetesPods(
        n_workers=_workers_of(settings.manifest),
        device=settings.device,
        seconds=60 * settings.wait_minutes,
        settings=settings,
    )


@dataclass(frozen=True)
class KubernetesPods(Start):
    """Workers in pods that the Dask operator makes of a manifest.

    Attributes
    ----------
    settings
        Settings of the cluster file.
    """

    settings: Kubernetes | None = None
    way_out = (
        "Check with `kubectl get daskclusters,pods` that the Dask operator runs and that the pods "
        "get what they ask for, or give more wait_minutes in the cluster file."
    )

    @property
    def name(self) -> str:
        """Name of these workers in an error message."""
        return "The scheduler in Kubernetes"

    def begin(self) -> tuple[Any, Any]:
        """Create the resource, and wait for its scheduler."""
        from dask_kubernetes.operator import KubeCluster
        from distributed import Client

        assert self.settings is not None
        options = {
            "custom_cluster_spec": str(self.settings.manifest),
            "namespace": self.settings.namespace,
            "resource_timeout": round(self.seconds),
            "quiet": True,
        }
        base: Any = KubeCluster
        begun: list[Any] = []

        class Pods(base):
            """A cluster that is known before it is ready, so that it is closed if it never is."""

            def __init__(self) -> None:
                begun.append(self)
                super().__init__(**options)

        failure = _within(self.seconds, Pods)
        (pods,) = begun
        if failure is not None:
            _within(CLOSE_SECONDS, pods.close)
            pods.shutdown_on_close = False  # closing was tried: not again at exit
            raise failure
        return Client(pods), pods

    def refusal(self, error: BaseException) -> ResourceError:
        """The error with what Kubernetes, or its client, said."""
        return super().refusal(_in_a_line(error))


def _in_a_line(error: BaseException) -> BaseException:
    if isinstance(error, ResourceError):
        return error
    return RuntimeError(" ".join(str(error).split()) or type(error).__name__)


def _within(seconds: float, work: Callable[[], Any]) -> BaseException | None:
    """The error of some work, or that it takes too long; it is not waited for any longer.

    It is for work that waits without end, as KubeCluster does for a pod that never runs.
    """
    failures: list[BaseException] = []

    def done() -> None:
        try:
            work()
        except BaseException as error:  # handed to the caller
            failures.append(error)

    thread = threading.Thread(target=done, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return TimeoutError(f"no scheduler after {seconds:.0f} s")
    return failures[0] if failures else None


def _workers_of(manifest: Path) -> int:
    """Number of workers of a manifest's default group, one per GPU where pods ask for any."""
    try:
        content = yaml.safe_load(manifest.read_text())
        if content["kind"] != "DaskCluster":
            raise KeyError("kind: DaskCluster")
        content["metadata"]["name"], content["spec"]["scheduler"]["service"]
        worker = content["spec"]["worker"]
        limits = worker["spec"]["containers"][0].get("resources", {}).get("limits", {})
        return int(worker.get("replicas", 1)) * max(int(limits.get("nvidia.com/gpu", 1)), 1)
    except (yaml.YAMLError, KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"A manifest is one DaskCluster resource with a scheduler and workers. {manifest} is "
            f"not ({what}). Start from kubernetes_dask_cluster.yaml in cluster_configs."
        ) from None


def _shared_directory(settings: Slurm) -> Path:
    return settings.shared_directory or Path.cwd()


def _check_packages(extra: str, *packages: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            raise ResourceError(
                f"Workers of kind {extra} need the extra {extra}: {package} is not installed. "
                f"Give `pip install 'scapedist[{extra}]'`."
            )
