"""A method of a benchmark in a process of its own: what it found, its memory, or its error.

Peaks are of Linux, which can begin them anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

MEMORY_SHARE = 0.75
"""Of the machine's memory, that a method may ask for before it fails."""
CHILD = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
print(json.dumps(getattr(importlib.import_module(sys.argv[2]), sys.argv[3])(*sys.argv[4:])))
"""


def alone(script: str, *arguments: str, child: str = "child") -> dict[str, Any]:
    """What a function of a script returns in a fresh process; ``error`` where that fails."""
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), script, child, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"ended with {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def limit_memory() -> None:
    """Let this process and its children fail before they take all of the machine's memory."""
    import resource

    most = int(MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def first_line(error: Exception) -> str:
    """The name of an error and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def reset_peak() -> int:
    """Resident bytes of this process, from which its peak begins anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes(pid: int | str = "self") -> int:
    """The most bytes of a process that were resident, by default of this one."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("This system does not say how much memory a process had.")
