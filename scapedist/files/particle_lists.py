"""Reading and writing lists of particles: those a person gives, and those of each state."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scapedist.errors import InputError
from scapedist.files.aside import written_aside
from scapedist.files.safe_pickle import load_pickle

KINDS = ("rows", "stack")
"""Numbers that a state's particles are listed by: rows of the latents, of the original stack."""


def read_indices(path: Path, n_particles: int) -> NDArray[np.int64]:
    """The rows of the particles that a file names.

    Parameters
    ----------
    path
        ``.pkl`` or ``.npy`` with a 1-D array of rows, or with a boolean array of length
        ``n_particles``; or ``.txt`` with one row number per line.
    n_particles
        Number of particles; rows are 0 to ``n_particles - 1``.

    Returns
    -------
    numpy.ndarray
        (n,) int64 rows, sorted, each once, at least one.

    Raises
    ------
    InputError
        Where the file is missing, of another kind, out of range, or names no particle.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind == ".pkl":
        rows = _from_object(load_pickle(path), path)
    elif kind == ".npy":
        rows = _from_npy(path)
    elif kind == ".txt":
        rows = _from_text(path)
    else:
        raise InputError(f"Particles are read from .pkl, .npy or .txt files. {path} is none.")

    if rows.ndim != 1:
        raise InputError(
            f"A list of particles is 1-D. {path} holds an array of shape {rows.shape}."
        )
    if rows.dtype == bool:
        if len(rows) != n_particles:
            raise InputError(
                f"A boolean selection has one value a particle. {path} has {len(rows)}, "
                f"there are {n_particles} particles."
            )
        rows = np.flatnonzero(rows)
    if rows.size == 0:
        raise InputError(f"A selection names at least one particle. {path} names none.")
    if rows.dtype.kind not in "iu":
        raise InputError(
            f"Particles are integers, counted from 0. {path} holds {rows.dtype} values."
        )
    outside = rows[(rows < 0) | (rows >= n_particles)]
    if outside.size:
        shown = ", ".join(str(row) for row in outside[:5]) + (", ..." if outside.size > 5 else "")
        raise InputError(
            f"Particles are 0 to {n_particles - 1}. {path} names {outside.size} outside: {shown}. "
            "Rows are those of this model's latents, not of the original stack."
        )
    return np.unique(rows).astype(np.int64)


def _from_object(content: object, path: Path) -> NDArray:
    if isinstance(content, np.ndarray):
        return content
    if isinstance(content, list | tuple | set):
        try:
            return np.array(sorted(content) if isinstance(content, set) else content)
        except (ValueError, TypeError, OverflowError):
            pass
    raise InputError(
        f"A list of particles is a 1-D array of integers. {path} holds a {type(content).__name__} "
        "that is none."
    )


def _from_npy(path: Path) -> NDArray:
    try:
        return _from_object(np.load(path, allow_pickle=False), path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is not a whole .npy file ({error}).") from None


def _from_text(path: Path) -> NDArray:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"A .txt list of particles is plain text. {path} is not.") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(int(line))
            except ValueError:
                raise InputError(
                    f"A .txt list of particles has one integer a line. Line {number} of {path} "
                    f"is {line.strip()[:40]!r}."
                ) from None
    try:
        return np.array(rows, dtype=np.int64)
    except OverflowError:
        raise InputError(
            f"{path} holds a number beyond any particle: {max(rows, key=abs)}."
        ) from None


def write_state_particles(
    directory: Path,
    labels_of_particles: NDArray[np.integer],
    stack_indices: NDArray[np.integer] | None = None,
) -> list[Path]:
    """Write the particles of each state, as ``cryodrgn_utils filter_star --ind`` reads them.

    ``state_000_rows.pkl`` holds rows of the latents; ``state_000_stack.pkl`` the same particles
    as rows of the original stack. Where these are the same numbers, the files are one, under two
    names. Files of an earlier call that do not apply any more are removed.

    Parameters
    ----------
    directory
        Directory that the files go to.
    labels_of_particles
        State of each particle (n_particles,), 0-based, -1 for none.
    stack_indices
        Row of each particle (n_particles,) in the original stack; None where it is not known.

    Returns
    -------
    list of Path
        The files, in the order of the states.

    Raises
    ------
    ResourceError
        Where a file cannot be written.
    """
    directory = Path(directory)
    labels = np.asarray(labels_of_particles)
    written = []
    for state in range(int(labels.max(initial=-1)) + 1):
        rows = np.flatnonzero(labels == state).astype(np.int64)
        of_rows, of_stack = (directory / f"state_{state:03d}_{kind}.pkl" for kind in KINDS)
        with written_aside(of_rows) as partial:
            partial.write_bytes(pickle.dumps(rows))
        written.append(of_rows)
        if stack_indices is not None:
            indices = np.asarray(stack_indices)[rows].astype(np.int64)
            with written_aside(of_stack) as partial:
                if not (np.array_equal(indices, rows) and _linked(of_rows, partial)):
                    partial.write_bytes(pickle.dumps(indices))
            written.append(of_stack)
    for kind in KINDS:
        for path in directory.glob(f"state_[0-9]*_{kind}.pkl"):
            if path not in written:
                path.unlink()
    return written


def _linked(path: Path, other: Path) -> bool:
    """Give a file another name; False where the file system has no links."""
    try:
        other.unlink(missing_ok=True)
        other.hardlink_to(path)
    except OSError:
        return False
    return True
