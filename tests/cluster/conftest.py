"""A batch system that is this machine, a small run, and a second host of its own network."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from stand_ins import Host, Slurm, sketched


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Commands of a Slurm whose only node is this machine, on the PATH."""
    slurm = Slurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", slurm.path)
    yield slurm
    slurm.end()


@pytest.fixture(scope="session")
def decoded_here(small_workdir, tmp_path_factory) -> Path:
    """Volumes of the small model as this process makes them; for reading."""
    output = tmp_path_factory.mktemp("here") / "run"
    sketched(small_workdir, output).generate(batch_size=2)
    return output


@pytest.fixture
def two_hosts():
    """Two hosts with nothing but a cable between them; neither is reached over loopback.

    They are network namespaces. Skipped, visibly, where they are not allowed.
    """
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and ip")
    number = os.getpid() % 250
    names = [f"scapedist-{side}-{os.getpid()}" for side in "ab"]
    addresses = [f"10.231.{number}.{host}" for host in (1, 2)]
    cables = [f"sd{side}{os.getpid()}" for side in "ab"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here ({error.stderr.decode()})")
        for name, cable, address in zip(names, cables, addresses, strict=True):
            ip("link", "set", cable, "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", cable)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "route", "add", "default", "dev", cable)
        yield [Host(name, address) for name, address in zip(names, addresses, strict=True)]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        subprocess.run(["ip", "link", "delete", cables[0]], capture_output=True)
