"""Commands as typed, a finished run, and a disk that is small."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harm import Done

from scapedist import cli
from scapedist.landscape import analyze


@pytest.fixture
def scapedist(monkeypatch, capfd):
    """Call the command line in this process."""

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["scapedist", *map(str, arguments)])
        capfd.readouterr()
        code: object = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return call


@pytest.fixture
def refused(scapedist):
    """Call a command that must be refused; give back its message."""

    def call(match: str, *arguments: object) -> str:
        done = scapedist(*arguments)
        assert done.code == 2, done.out + done.err
        assert "Traceback" not in done.err
        assert done.err.count("scapedist: ") == 1
        message = done.err[done.err.index("scapedist: ") :]
        assert message.endswith(".\n"), message
        assert message.count("\n") == 1, message  # one line, the last one
        assert re.search(match, message), message
        assert not done.out
        return message

    return call


@pytest.fixture(scope="session")
def finished(adk_workdir, tmp_path_factory) -> Path:
    """A complete run of 12 volumes of 16^3; for reading."""
    output = tmp_path_factory.mktemp("finished") / "run"
    analyze(
        adk_workdir,
        14,
        output,
        n_workers=1,
        size=12,
        box_size=16,
        states=3,
        components=4,
        embedding="none",
    )
    return output


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the complete run; for harming."""
    left_out = shutil.ignore_patterns("maps", "plots", "report.html")
    return shutil.copytree(finished, tmp_path / "copy", ignore=left_out)


@pytest.fixture
def workdir(adk_workdir, tmp_path) -> Path:
    """A copy of the work directory; for harming."""
    return shutil.copytree(adk_workdir, tmp_path / "adk", ignore=shutil.ignore_patterns("ref*"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MiB of its own; skipped, visibly, where mounting is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)
