"""The bundled model is whole, is what its README says, and names nobody's paths."""

from importlib.resources import files
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
import yaml

from scapedist.files.safe_pickle import load_pickles

N_PARTICLES, ZDIM, BOX_SIZE, PIXEL_SIZE = 20_000, 8, 48, 2.5


@pytest.fixture(scope="module")
def adk() -> Path:
    return Path(str(files("scapedist") / "data" / "adk"))


def test_latents_and_their_log_variances_fit_the_particles(adk):
    means, log_variances = load_pickles(adk / "z.14.pkl")
    assert means.shape == log_variances.shape == (N_PARTICLES, ZDIM)
    assert np.isfinite(means).all()
    assert np.isfinite(log_variances).all()


def test_weights_load_as_arrays_alone_and_fit_the_config(adk):
    config = yaml.safe_load((adk / "config.yaml").read_text())
    weights = torch.load(adk / "weights.14.pkl", map_location="cpu", weights_only=True)
    assert weights["epoch"] == 14
    assert config["model_args"]["zdim"] == ZDIM
    assert config["lattice_args"]["D"] == BOX_SIZE + 1
    assert not any("/" in str(value) for value in config["dataset_args"].values())


def test_poses_and_ctf_are_those_of_every_particle(adk):
    rotations, translations = load_pickles(adk / "poses.pkl")[0]
    (ctf,) = load_pickles(adk / "ctf.pkl")
    assert rotations.shape == (N_PARTICLES, 3, 3)
    assert translations.shape == (N_PARTICLES, 2)
    assert np.abs(translations).max() <= 3 / BOX_SIZE
    assert ctf.shape == (N_PARTICLES, 9)
    assert (ctf[:, 0] == BOX_SIZE).all()
    assert (ctf[:, 1] == PIXEL_SIZE).all()


def test_truth_counts_the_states(adk):
    with np.load(adk / "truth.npz") as truth:
        assert np.bincount(truth["state"]).tolist() == [19_100, 800, 100]
        assert truth["t"].shape == (N_PARTICLES,)
        assert truth["t"].min() >= 0
        assert truth["t"].max() <= 1


def test_there_is_a_reference_map_for_each_reference_latent(adk):
    latents = np.loadtxt(adk / "reference" / "z.txt")
    maps = sorted((adk / "reference").glob("vol_*.mrc"))
    assert latents.shape == (len(maps), ZDIM) == (3, ZDIM)
    for path in maps:
        with mrcfile.open(path) as mrc:
            assert mrc.data.shape == (BOX_SIZE,) * 3
            assert mrc.voxel_size.x == pytest.approx(PIXEL_SIZE)
