"""Stand-ins for a GPU. Triton's interpreter must be chosen before Triton loads."""

import os

import cupy_stand_in
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def gpu(monkeypatch):
    """Install the stand-ins for CuPy, cuML and a GPU under torch."""
    return cupy_stand_in.install(monkeypatch)
