"""Files appear whole or not at all: they are written beside their place and renamed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from scapedist.errors import ResourceError


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a name beside ``path`` to write to; rename it to ``path`` when the block ends well.

    Parameters
    ----------
    path
        Where the file is to be. Its directory is made where there is none.

    Yields
    ------
    Path
        The file to write. It is removed where the block raises.

    Raises
    ------
    ResourceError
        Where the file system refuses (a full disk, a directory without write permission).
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise ResourceError(
            f"{path} could not be written: {error.strerror or error}. "
            "Make room there, or choose another directory."
        ) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
