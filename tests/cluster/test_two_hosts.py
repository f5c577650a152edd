"""Scheduler and client on one host, workers on another, files on both, a key between them."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time

import pytest
from harm import assert_same_arrays
from stand_ins import Host, sketched

DASK = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--protocol", "tls"]
WORKER = [sys.executable, "-m", "distributed.cli.dask_worker", "--protocol", "tls"]
LOOPBACK = ["--dashboard-address", "127.0.0.1:0"]


@pytest.fixture
def keyed(tmp_path) -> dict[str, str]:
    """An environment whose Dask speaks to nobody without the key."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=scapedist"]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    dask = {"REQUIRE_ENCRYPTION": "True", "TLS__CA_FILE": str(certificate)}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        dask |= {f"TLS__{role}__CERT": str(certificate), f"TLS__{role}__KEY": str(key)}
    return os.environ | {f"DASK_DISTRIBUTED__COMM__{name}": value for name, value in dask.items()}


def ports(host: Host) -> set[str]:
    """Ports that something listens on, but for those of loopback."""
    words = [*host.enter, "ss", "--no-header", "--listening", "--tcp", "--numeric"]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = {line.split()[3] for line in printed.splitlines()}
    return {a.rpartition(":")[2] for a in found if not a.startswith(("127.", "[::1]"))}


def wait_for(holds, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.2)


def test_the_same_bytes(two_hosts, keyed, small_workdir, decoded_here, tmp_path):
    here, there = two_hosts
    file = tmp_path / "scheduler.json"
    log = tmp_path / "log"
    sketched(small_workdir, tmp_path / "run")
    (tmp_path / "workers.yaml").write_text("kind: scheduler\nfile: scheduler.json\n")
    generate = ["-m", "scapedist.cli", "generate", str(tmp_path / "run"), "--batch-size", "2"]
    with contextlib.ExitStack() as stack:

        def start(host: Host, *words: object) -> subprocess.Popen:
            process = subprocess.Popen(
                [*host.enter, *map(str, words)],
                env=keyed,
                stdout=stack.enter_context(log.open("a")),
                stderr=subprocess.STDOUT,
                cwd=tmp_path,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        where = ["--scheduler-file", file]
        start(here, *DASK, "--host", here.address, "--port", "0", *LOOPBACK, *where)
        wait_for(lambda: file.exists() and file.stat().st_size)
        for _ in range(2):
            start(there, *WORKER, *where, "--nthreads", "1", "--no-nanny", *LOOPBACK)
        wait_for(lambda: log.read_text().count("Registered to") == 2)
        reached = [ports(here), ports(there)]
        client = start(here, sys.executable, *generate, "--cluster", "workers.yaml")
        assert client.wait(120) == 0, log.read_text()
    printed = log.read_text()
    address = json.loads(file.read_text())["address"]
    workers = re.findall(rf"Start worker at:\s+tls://{re.escape(there.address)}:(\d+)", printed)
    assert address.startswith(f"tls://{here.address}:")
    assert len(workers) == 2
    assert reached == [{address.rpartition(":")[2]}, set(workers)]  # all of them want the key
    assert_same_arrays(tmp_path / "run", decoded_here)
