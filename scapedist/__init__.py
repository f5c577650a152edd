"""scapedist: out-of-core, distributed landscape analysis of cryoDRGN models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Model", "Run", "ScapedistError", "open_model"]

if TYPE_CHECKING:
    from scapedist.errors import ScapedistError
    from scapedist.landscape import Run
    from scapedist.model.workdir import Model, open_model

_HOMES = {
    "Model": "scapedist.model.workdir",
    "open_model": "scapedist.model.workdir",
    "Run": "scapedist.landscape",
    "ScapedistError": "scapedist.errors",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``--help`` needs no torch."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'scapedist' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
