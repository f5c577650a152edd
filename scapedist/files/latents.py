"""Reading latents that a person gives as text or as an array."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scapedist.errors import InputError
from scapedist.files.safe_pickle import load_pickle


def read_latents(path: Path, zdim: int) -> np.ndarray:
    """Rows of latents (n, zdim) float32 from a text file, ``.npy`` or ``.pkl``.

    Parameters
    ----------
    path
    zdim
        Dimension of the model's latents, for error messages; the caller checks the rows against it.

    Raises
    ------
    InputError
        Where the file cannot be read, or holds something else than numbers.
    """
    if path.suffix == ".pkl":
        rows = load_pickle(path)
    else:
        try:
            rows = np.load(path) if path.suffix == ".npy" else np.loadtxt(path, ndmin=2)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} cannot be read as latents ({error}). Give a text file with {zdim} "
                "numbers a line, or a .npy or .pkl array."
            ) from None
    rows = np.asarray(rows)
    if rows.dtype.kind not in "fiu":
        raise InputError(f"{path} should hold numbers. Give an array of shape (n, {zdim}).")
    return np.atleast_2d(rows).astype(np.float32)
