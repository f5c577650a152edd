"""Reading pickles of numpy arrays and plain containers without executing anything from them."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core.multiarray import _reconstruct, scalar

from scapedist.errors import InputError


def _plain_dtype(*arguments: Any) -> np.dtype[Any]:
    """A dtype of numbers or text; one of objects is refused: its bytes could pose as pointers."""
    dtype = np.dtype(*arguments)
    if dtype.kind not in "biufcSU":
        raise pickle.UnpicklingError(f"it holds an array of {dtype}")
    return dtype


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _plain_dtype,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): scalar,
    ("numpy.core.multiarray", "scalar"): scalar,
    ("numpy._core.numeric", "_frombuffer"): lambda buffer, dtype, shape, order: np.frombuffer(
        buffer, dtype
    ).reshape(shape, order=order),
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    ("builtins", "bytes"): bytes,
    ("builtins", "bytearray"): bytearray,
    ("builtins", "set"): set,
    ("datetime", "datetime"): datetime,  # an old config.pkl says when it was written
}
_ALLOWED[("numpy.core.numeric", "_frombuffer")] = _ALLOWED[("numpy._core.numeric", "_frombuffer")]


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        try:  # protocols below 3 have Python 2's name of builtins
            return _ALLOWED[module.replace("__builtin__", "builtins"), name]
        except KeyError:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}") from None


def load_pickles(path: Path) -> list[Any]:
    """All objects of a file that holds one or more pickles, in order.

    Parameters
    ----------
    path
        File to read. cryoDRGN's ``z.N.pkl`` holds two pickles, for example.

    Returns
    -------
    list
        numpy arrays and plain containers, in the file's order.

    Raises
    ------
    InputError
        Where the file is missing, cut short, not a pickle, or holds anything else than numpy
        arrays and plain containers (which could execute code).
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    stream = io.BytesIO(data)
    objects: list[Any] = []
    while stream.tell() < len(data):
        try:
            objects.append(_PlainUnpickler(stream).load())
        except Exception as error:
            raise InputError(
                f"{path} is not a pickle of numpy arrays and plain containers, or is cut short "
                f"({error}). Give the file as cryoDRGN wrote it."
            ) from None
    if not objects:
        raise InputError(f"{path} is empty. Give the file as cryoDRGN wrote it.")
    return objects


def load_pickle(path: Path) -> Any:
    """The one object of a pickle file; see :func:`load_pickles`."""
    return load_pickles(path)[0]
