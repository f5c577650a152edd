"""What the tests of harm done to runs share: options, comparing, damaging."""

import hashlib
import shutil
from pathlib import Path

import mrcfile
import numpy as np
import zarr

from scapedist.store import RunStore

SKETCH = ["--sketch-size", "12"]
SMALL = [*SKETCH, "--box-size", "16", "--workers", "1", "--states", "3", "--components", "4"]
SMALL += ["--embed", "none"]


class Done:
    """How a command ended."""

    def __init__(self, code: object, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def arrays(run: Path) -> dict[str, np.ndarray]:
    members = zarr.open_group(run / "landscape.zarr", mode="r").members(max_depth=None)
    return {name: np.asarray(node[...]) for name, node in members if isinstance(node, zarr.Array)}


def assert_same_arrays(found: Path, wanted: Path) -> None:
    ours, theirs = arrays(found), arrays(wanted)
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        assert values.tobytes() == theirs[name].tobytes(), name


def content(run: Path) -> dict[str, str]:
    """All files of a run but the lock, by name, as hashes."""
    files = [path for path in run.rglob("*") if path.is_file() and path.name != ".lock"]
    return {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def stages(run: Path) -> list[str]:
    """The stages that are complete; none where there is no run."""
    return list(RunStore(run).stages) if (run / "landscape.zarr").exists() else []


def write_mask(path: Path, mask: np.ndarray) -> Path:
    with mrcfile.new(path, mask.astype(np.float32)):
        pass
    return path


def fill(disk: Path, free_bytes: int) -> None:
    """Leave so much room on a disk."""
    free = shutil.disk_usage(disk).free
    (disk / "ballast").write_bytes(bytes(free - free_bytes))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
