"""Writing files so that they appear whole or not at all: beside their place, then renamed."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from scapedist.errors import ResourceError

_NO_PLACE = (
    errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY,
)  # fmt: skip


@contextlib.contextmanager
def renamed(path: Path) -> Iterator[Path]:
    """Give a name beside ``path`` to write to; rename it to ``path`` when the block ends well.

    The directory is made where there is none. What was written is removed where the block raises.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a name to write to, as :func:`renamed` does, for a file that a person takes away.

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
    try:
        with renamed(path) as partial:
            yield partial
    except OSError as error:
        raise ResourceError(
            f"{path} could not be written: {error.strerror or error}. "
            "Make room there, or choose another directory."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file of a run, whole or not at all."""
    with disk_errors(path.parent), renamed(path) as partial:
        partial.write_text(text)


@contextlib.contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Turn a full disk or a lost permission into a sentence with a way out."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"The disk of {directory} is full. What was complete is kept. Make room, then "
                "give the same command again: it resumes."
            ) from None
        if error.errno in _NO_PLACE:
            raise ResourceError(
                f"{directory} cannot be written to ({error.strerror}). Choose another --output."
            ) from None
        raise
