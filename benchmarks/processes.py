"""Time and memory of a command and all processes that it starts; disk of what it left."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alone import peak_bytes

GROWN, RARELY_SECONDS = 1.01, 1.0
"""Proportional sizes take the system 10 ms or more of a core that the command has use for: they
are read when resident sizes, which cost nothing, have grown, and rarely otherwise."""


@dataclass(frozen=True)
class Measured:
    """What a command took.

    Attributes
    ----------
    seconds
        Wall-clock time, from the start of the interpreter.
    cpu_seconds
        Of all its processes.
    peak_bytes
        Largest sum over its processes, at one moment, of their proportional set sizes: memory
        that processes share is counted once. Seen to about 1 %, at ``interval_seconds``.
    largest_bytes
        Largest resident size that any one of its processes ever had (Linux counts it): what
        processes share is in each.
    others_seconds
        CPU time that the machine spent meanwhile on anything else (Linux): where it is not small
        next to ``seconds``, the command shared the cores, and its times say little.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    largest_bytes: int
    others_seconds: float


def measure(
    command: Sequence[str], interval_seconds: float = 0.1, log: Path | None = None
) -> Measured:
    """Run a command from a cold start to its end; an error of it is raised.

    What it prints goes to the file ``log``, if any.
    """
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start, busy = time.perf_counter(), _busy_seconds()
    with open(log or os.devnull, "wb") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.PIPE)
    peak, largest, done = 0, 0, threading.Event()

    def watch() -> None:
        nonlocal peak, largest
        highest, last = 0, start
        while not done.wait(interval_seconds):
            members, now = _tree(process.pid), time.perf_counter()
            resident = resident_bytes(members)
            if resident > GROWN * highest or now - last > RARELY_SECONDS:
                highest, last = max(highest, resident), now
                peak = max(peak, sum(map(_bytes, members)))
            for member in members:
                with contextlib.suppress(OSError, RuntimeError):  # it has just ended
                    largest = max(largest, peak_bytes(member))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, stderr = process.communicate()
    seconds, busy = time.perf_counter() - start, _busy_seconds() - busy
    done.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed: {stderr.decode()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return Measured(seconds, cpu, peak, largest, max(busy - cpu, 0.0))


def resident_bytes(members: Sequence[int]) -> int:
    """Sum of the resident sizes of processes, bytes (Linux); 0 of those that ended."""
    pages = 0
    for member in members:
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{member}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def disk_bytes(directory: Path) -> int:
    """Sum of the sizes of all files under a directory; a link counts for itself."""
    return sum(path.lstat().st_size for path in directory.rglob("*") if not path.is_dir())


def _busy_seconds() -> float:
    """CPU time of all cores since the machine started."""
    fields = Path("/proc/stat").read_text().split()[1:8]  # waiting is the fourth and fifth
    user, nice, system, _, _, *interrupts = map(int, fields)
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def _bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:  # grows while it is walked
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in task.read_text().split()]
    return found
