"""What the tests of workers elsewhere share: a Slurm that is this machine, hosts, a small run."""

import contextlib
import os
import signal
import sys
from pathlib import Path

from scapedist.landscape import Run

SBATCH = """\
#!/usr/bin/env bash
# A job is a process group of this machine, in the directory that it is submitted from.
if grep -q '^#SBATCH -p nowhere' "$1"; then
    echo "sbatch: error: invalid partition: nowhere" >&2
    exit 1
fi
cp "$1" "JOBS/$$.sh"
setsid bash "JOBS/$$.sh" >"JOBS/$$.log" 2>&1 &
echo $! >>JOBS/submitted
echo "Submitted batch job $!"
"""
SCANCEL = """\
#!/usr/bin/env bash
echo "$1" >>JOBS/cancelled
kill -TERM -- "-$1"
"""
SRUN = """\
#!/usr/bin/env bash
# As many tasks as there are, each where TASK_PREFIX leads; they end with it.
trap 'kill $(jobs -p); wait' TERM
for ((i = 0; i < ${SLURM_NTASKS:-1}; i++)); do ${TASK_PREFIX:-} "$@" & done
wait
"""


class Slurm:
    """Stands in for Slurm: the commands that it has, and what they did."""

    def __init__(self, place: Path) -> None:
        self.jobs = place / "jobs"
        self.commands = place / "bin"
        self.jobs.mkdir(parents=True)
        self.commands.mkdir()
        for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL), ("srun", SRUN)):
            self.add(name, text.replace("JOBS", str(self.jobs)))

    def add(self, name: str, text: str) -> None:
        (self.commands / name).write_text(text)
        (self.commands / name).chmod(0o755)

    @property
    def path(self) -> str:
        """A PATH with these commands, and those of this environment."""
        own = Path(sys.executable).parent
        return os.pathsep.join([str(self.commands), str(own), os.environ["PATH"]])

    def listed(self, name: str) -> list[str]:
        path = self.jobs / name
        return path.read_text().split() if path.exists() else []

    def logs(self) -> str:
        return "".join(path.read_text() for path in sorted(self.jobs.glob("*.log")))

    def end(self) -> None:
        for job in self.listed("submitted"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(job), signal.SIGKILL)


class Host:
    """A network of its own: the words that run a command in it, and its address."""

    def __init__(self, name: str, address: str) -> None:
        self.enter = ["ip", "netns", "exec", name]
        self.address = address


def sketched(workdir: Path, output: Path) -> Run:
    return Run.create(workdir, 19, output).sketch(size=8)
