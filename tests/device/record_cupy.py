"""Record what CuPy has of numpy's names, for the stand-in, where CuPy is installed.

    python tests/device/record_cupy.py

It needs no GPU. The file that it writes, ``cupy_names.json``, holds facts alone: names of functions
and the names of their parameters (none of a universal function), names of an array's members, and
the version.
"""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np

PLACE = Path(__file__).with_name("cupy_names.json")


def parameters(function: Any) -> list[str] | None:
    """Names of a function's parameters; None where it is a universal function, or does not say."""
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None


def functions(theirs: Any, ours: Any) -> dict[str, list[str] | None]:
    """The functions of a module of CuPy that numpy has too, with their parameters."""
    names = [name for name in dir(theirs) if not name.startswith("_") and hasattr(ours, name)]
    found = {name: getattr(theirs, name) for name in names}
    return {
        name: parameters(value)
        for name, value in found.items()
        if callable(value) and not inspect.isclass(value)
    }


def main() -> None:
    """Write the file."""
    import cupy

    members = [name for name in dir(cupy.ndarray) if hasattr(np.ndarray, name) or name == "get"]
    record = {
        "version": cupy.__version__,
        "functions": functions(cupy, np),
        "linalg": functions(cupy.linalg, np.linalg),
        "ndarray": sorted(members),
    }
    PLACE.write_text(json.dumps(record, indent=0, separators=(",", ":")).replace(",\n", ",") + "\n")


if __name__ == "__main__":
    main()
