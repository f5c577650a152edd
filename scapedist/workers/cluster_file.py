"""A file that says where workers come from (``cluster_configs/``)."""

from __future__ import annotations

from pathlib import Path

from scapedist.errors import InputError
from scapedist.workers.start import Start


def read_cluster_file(path: str | Path) -> Start:
    """Where a file says that workers come from.

    Raises
    ------
    InputError
        Where the file cannot be read, or has a wrong key or value.
    """
    raise InputError(f"{path} cannot be read.")
