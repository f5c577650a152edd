"""Kills a run right before its k-th change of the disk, resumes it, and compares the arrays.

``python kill_points.py WORKDIR DIRECTORY FIRST STEP`` does so for k = FIRST, FIRST + STEP, ... and
prints a line for each k that went wrong. A file about to be opened for writing is also left empty,
as a crash just after may leave it. Each attempt is a fork of a process that has all modules loaded.
"""

import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

import scipy.cluster.hierarchy
import scipy.ndimage
import scipy.spatial  # noqa: F401
from harm import assert_same_arrays

import scapedist.model.field
import scapedist.report.report  # noqa: F401
from scapedist.landscape import analyze

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")


class Saboteur:
    """Counts a process's changes below a directory and kills it before the one asked for."""

    def __init__(self, root: Path, kill_before: int, leave_empty: bool) -> None:
        self.root, self.kill_before, self.leave_empty = str(root), kill_before, leave_empty
        self.n_changes, self.armed = 0, True
        self.opened: list[int] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.armed or not arguments or not isinstance(arguments[0], str | os.PathLike):
            return
        path = os.fspath(arguments[0])
        flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else 0
        writes = flags & (os.O_WRONLY | os.O_RDWR)
        if not path.startswith(self.root) or not (writes or event in CHANGES):
            return
        self.n_changes += 1
        if writes:
            self.opened.append(self.n_changes)
        if self.n_changes == self.kill_before:
            self.armed = False
            if self.leave_empty and flags & os.O_TRUNC:  # threads: k may be another
                Path(path).write_bytes(b"")
            os.kill(os.getpid(), signal.SIGKILL)


def attempt(workdir: Path, output: Path, kill_before: int = 0, leave_empty: bool = False) -> str:
    """Run the job in a fork; what it said of its changes, or of what went wrong."""
    said = output.with_suffix(".said")
    said.write_text("")
    child = os.fork()
    if child == 0:
        code = 0
        saboteur = Saboteur(output, kill_before, leave_empty)
        try:
            analyze(
                workdir,
                14,
                output,
                n_workers=1,
                size=12,
                box_size=12,
                states=3,
                components=3,
                embedding="none",
            )
            saboteur.armed = False
            said.write_text(f"{saboteur.n_changes} {','.join(map(str, saboteur.opened))}")
        except BaseException:
            saboteur.armed = False
            said.write_text(traceback.format_exc())
            code = 1
        os._exit(code)
    _, status = os.waitpid(child, 0)
    if kill_before and not os.WIFSIGNALED(status):
        return f"was not killed: {said.read_text()}"
    if not kill_before and status:
        raise RuntimeError(said.read_text())
    return said.read_text()


def main() -> None:
    """Try the kill points asked for."""
    workdir, directory = Path(sys.argv[1]), Path(sys.argv[2])
    first, step = int(sys.argv[3]), int(sys.argv[4])
    undisturbed, output = directory / "undisturbed", directory / "run"
    n_changes, opened = attempt(workdir, undisturbed).split()
    n_tried = 0
    for k in range(first, int(n_changes) + 1, step):
        for leave_empty in (False, True) if str(k) in opened.split(",") else (False,):
            shutil.rmtree(output, ignore_errors=True)
            n_tried += 1
            try:
                wrong = attempt(workdir, output, k, leave_empty)
                if not wrong:
                    attempt(workdir, output)
                    assert_same_arrays(output, undisturbed)
                    assert (output / "report.html").stat().st_size > 1e6
            except (RuntimeError, AssertionError) as error:
                wrong = str(error)
            if wrong:
                print(f"killed before change {k} of {n_changes}, empty {leave_empty}: {wrong}")
    print(f"{n_tried} kill points tried", file=sys.stderr)


if __name__ == "__main__":
    main()
