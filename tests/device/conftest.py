"""The stand-in for a GPU."""

import cupy_stand_in
import pytest


@pytest.fixture
def gpu(monkeypatch):
    """Install the stand-ins for CuPy, cuML and a GPU under torch."""
    return cupy_stand_in.install(monkeypatch)
