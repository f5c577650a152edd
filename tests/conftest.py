"""Fixtures that all tests share: the real model, small random ones, the devices."""

from importlib.resources import as_file, files

import pytest
import torch
from random_model import write_random_model

from scapedist import open_model


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """One thread of torch: on a shared machine more of them wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def adk_workdir():
    """Work directory of the bundled model, a real training on adenylate kinase (epoch 14)."""
    with as_file(files("scapedist") / "data" / "adk") as workdir:
        yield workdir


@pytest.fixture(scope="session")
def adk(adk_workdir):
    """The bundled model."""
    return open_model(adk_workdir, 14)


@pytest.fixture(scope="session")
def small_workdir(tmp_path_factory):
    """A small train_vae work directory, epoch 19; for reading, not for writing."""
    return write_random_model(
        tmp_path_factory.mktemp("small"),
        box_size=16,
        layers=2,
        width=16,
        zdim=3,
        n_particles=20,
        with_indices=True,
    )


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """A torch device; the GPU's tests are skipped, visibly, where there is none."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param
