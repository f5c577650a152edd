"""A run that is killed at any moment resumes, and ends with the same arrays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zarr
from harm import arrays, assert_same_arrays

SKETCH = ["--sketch-size", "24", "--box-size", "16"]


def command(workdir: Path, output: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "scapedist.cli", "run", str(workdir), "14", "--output",
            str(output), *SKETCH, *more]  # fmt: skip


def chunk_files(output: Path) -> dict[str, bytes]:
    volumes = output / "landscape.zarr" / "volumes" / "0"
    return {path.name: path.read_bytes() for path in volumes.glob("c.*")}


@pytest.fixture(scope="module")
def undisturbed(adk_workdir, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    subprocess.run(command(adk_workdir, output, "--workers", "1"), check=True, capture_output=True)
    return output


@pytest.mark.parametrize("n_workers", ["2", "3"])
def test_any_number_of_workers_gives_the_same_bytes(adk_workdir, undisturbed, tmp_path, n_workers):
    output = tmp_path / "run"
    done = subprocess.run(
        command(adk_workdir, output, "--workers", n_workers), check=True, capture_output=True
    )
    assert f"{n_workers} worker(s), dashboard http://127.0.0.1:" in done.stderr.decode()
    assert_same_arrays(undisturbed, output)
    assert chunk_files(undisturbed) == chunk_files(output)


def test_a_given_scheduler_gives_the_same_bytes(adk_workdir, undisturbed, tmp_path):
    file = tmp_path / "scheduler.json"
    where = ["--scheduler-file", str(file)]
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads=1", "--no-dashboard"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    started = [
        subprocess.Popen([*dask, "--port", "0", "--no-dashboard", *where], **quiet),
        subprocess.Popen([*worker, *where], **quiet),
    ]
    try:
        output = tmp_path / "run"
        for _ in range(100):
            if file.exists():
                break
            time.sleep(0.1)
        full = command(adk_workdir, output, "--scheduler", str(file))
        done = subprocess.run(full, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert_same_arrays(undisturbed, output)
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()


@pytest.mark.parametrize("n_workers", ["1", "2"])
def test_killed_while_decoding_resumes_to_the_same_bytes(
    adk_workdir, undisturbed, tmp_path, n_workers
):
    output = tmp_path / "run"
    journal = output / "volumes.journal"
    kill_when(
        command(adk_workdir, output, "--workers", n_workers, "--batch-size", "2"),
        lambda: journal.exists() and len(journal.read_text().splitlines()) > 2,
    )
    n_done = len(journal.read_text().splitlines()) - 1
    assert 2 <= n_done < 28
    with pytest.raises(KeyError):  # nothing claims to be complete
        zarr.open_group(output / "landscape.zarr").attrs["scapedist"]["stages"]["generate"]
    kept = newest(output)
    resume = command(adk_workdir, output, "--workers", n_workers, "--batch-size", "2")
    subprocess.run(resume, check=True, capture_output=True)
    again = newest(output)
    n_kept = sum(again[name] == stamp for name, stamp in kept.items())
    assert n_kept >= 2 * (n_done - 1)  # complete batches were not decoded again
    for name, values in arrays(undisturbed).items():
        assert arrays(output)[name].tobytes() == values.tobytes(), name


@pytest.mark.parametrize("seconds", [1.5, 3.0, 5.0])
def test_killed_at_any_moment_resumes_to_the_same_bytes(
    adk_workdir, undisturbed, tmp_path, seconds
):
    output = tmp_path / "run"
    started = time.monotonic()
    kill_when(
        command(adk_workdir, output, "--workers", "1"),
        lambda: time.monotonic() - started > seconds,
    )
    resume = command(adk_workdir, output, "--workers", "1")
    subprocess.run(resume, check=True, capture_output=True)
    assert_same_arrays(undisturbed, output)
    assert (output / "report.html").stat().st_size > 1e6


def test_a_second_run_of_the_same_command_does_nothing(adk_workdir, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()}
    again = command(adk_workdir, undisturbed, "--workers", "1")
    subprocess.run(again, check=True, capture_output=True)
    changed = [p for p, stamp in before.items() if p.stat().st_mtime_ns != stamp]
    assert [path.name for path in changed] in ([], [".lock"])


def newest(output: Path) -> dict[str, int]:
    volumes = output / "landscape.zarr" / "volumes" / "0"
    return {path.name: path.stat().st_mtime_ns for path in volumes.glob("c.*")}


def kill_when(full_command: list[str], condition) -> None:
    """Start a command and kill it and all that it started (SIGKILL) when a condition holds."""
    process = subprocess.Popen(
        full_command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not condition():
            if process.poll() is not None:
                return
            time.sleep(0.01)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def test_killed_before_any_change_of_the_disk(adk_workdir, tmp_path):
    """A sample of all that there are; the script's arguments choose others."""
    script = Path(__file__).with_name("kill_points.py")
    program = [sys.executable, "-W", "error", script, adk_workdir, tmp_path, "7", "83"]
    done = subprocess.run([str(part) for part in program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert int(done.stderr.split()[0]) > 10
