"""Embeddings against cryoDRGN's ``eval_volume``, masking and scikit-learn's ``PCA.transform``."""

import numpy as np
import pytest
import torch
from models import EPOCH, Reference, fourier_crop, relative_error
from random_model import write_random_model
from sklearn.decomposition import PCA

from scapedist.landscape import Run
from scapedist.model.regressor import fit_and_predict
from scapedist.settings import GenerateSettings, by_stage
from scapedist.sources.decoded import field_of
from scapedist.sources.open import decoded_by

SKETCH, BOX = 20, 16
CASES = {
    "gaussian": {},
    "geometric": {"encoding": "geom_ft", "domain": "fourier"},
    "hartley": {"encoding": "geom_full", "domain": "hartley"},
    "train_dec": {"command": "train_dec", "encoding": "linear_lowf"},
    "abinit": {"command": "abinit"},
    "leaky": {"activation": "leaky_relu", "encoding": "gaussian"},
    "no encoding": {"encoding": "none", "domain": "fourier"},
}
OPTIONS = [
    {},
    {"clip_negative": True, "soft_mask": True, "cosine_edge": 4.0, "dilate": 0.0},
    {"flip": True, "invert": True, "threshold": -1e9},
]


def by_cryodrgn(workdir, run, latents):
    """Coordinates of latents and what they miss, one volume at a time."""
    reference, store = Reference.load(workdir), run.store
    generated = store.stages["generate"]["settings"]
    fitted = store.stages["pca"]["settings"]
    weights = store.read("mask")

    def voxels(latent):
        volume = reference.volume(latent, BOX)
        volume = volume[::-1] if generated["flip"] else volume
        volume = -volume if generated["invert"] else volume
        rows = volume[weights > 0].astype(np.float64)
        if fitted["soft_mask"]:
            rows = rows * weights[weights > 0]
        return np.maximum(rows, 0) if fitted["clip_negative"] else rows

    every = store.read("latents")
    sketch = np.stack([voxels(latent) for latent in every[store.read("sketch/particle")]])
    fit = PCA(store.array("components/vectors").shape[0], svd_solver="full").fit(sketch)
    signs = np.sign((fit.components_ * store.read("components/vectors")).sum(1))
    rows = np.stack([voxels(latent) for latent in latents])
    coordinates = fit.transform(rows)
    missed = rows - fit.inverse_transform(coordinates)
    return coordinates * signs, np.square(missed).sum(1)


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "clipped", "flipped"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_exact_is_cryodrgn_and_scikit_learn(tmp_path, case, options):
    workdir = write_random_model(
        tmp_path / "model", box_size=BOX, width=24, layers=2, zdim=3, n_particles=50, **case
    )
    stages = by_stage({"size": SKETCH, "components": 6, "quality_groups": 0} | options)
    run = Run.create(workdir, EPOCH, tmp_path / "run")
    run.sketch(**stages["sketch"]).generate(**stages["generate"])
    run.mask(**stages["mask"]).pca(**stages["pca"]).embed(method="exact")
    coordinates, missed = by_cryodrgn(workdir, run, run.store.read("latents"))
    found = run.store.read("embedding/exact/coordinates")
    assert found.shape == (50, 6)
    assert relative_error(found, coordinates) < 1e-4
    assert relative_error(run.store.read("embedding/exact/residual"), missed) < 1e-3
    # on the sketch it is the fit itself
    rows = run.store.read("sketch/particle")
    assert relative_error(found[rows], run.store.read("sketch/coordinates")) < 1e-4


def test_the_bundled_model_too(adk_workdir, tmp_path):
    run = Run.create(adk_workdir, 14, tmp_path / "run")
    run.sketch(size=12, quality_groups=0).generate(box_size=16).mask().pca(components=5)
    particles = np.array([3, 777, 19_999])
    found, missed = run.embedder().exact_rows(particles, "")
    store, reference = run.store, Reference.load(adk_workdir, 14)
    every, inside = store.read("latents"), store.read("mask") > 0

    def voxels(rows):
        return np.stack([reference.volume(every[row], 16)[inside] for row in rows])

    fit = PCA(5, svd_solver="full").fit(voxels(store.read("sketch/particle")).astype(np.float64))
    signs = np.sign((fit.components_ * store.read("components/vectors")).sum(1))
    rows = voxels(particles).astype(np.float64)
    coordinates = fit.transform(rows)
    assert relative_error(found, coordinates * signs) < 1e-4
    beyond = np.square(rows - fit.inverse_transform(coordinates)).sum(1)
    assert relative_error(missed, beyond) < 1e-4


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_features_are_the_modules_own(tmp_path, case):
    """The field at points, and the last hidden layer: the output is affine in it."""
    workdir = write_random_model(tmp_path, box_size=BOX, width=24, layers=2, zdim=3, **case)
    from scapedist import open_model
    from scapedist.model.field import Field

    model = open_model(workdir, EPOCH)
    field = Field(model.decoder)
    points = np.ascontiguousarray(field.lattice().coordinates[5:40:3])
    n = len(points)
    found = field.features(model.latents[:7], points, n - 2)
    values = field.coefficients(model.latents[:7], points)
    n_outputs = values.shape[2]
    assert found.shape == (7, n * n_outputs + (n - 2) * 24)
    np.testing.assert_allclose(found[:, : n * n_outputs], values.flatten(1), atol=2e-5)
    hidden = found[:, n * n_outputs :].reshape(7, n - 2, 24)
    again = hidden @ field._layers.last.T + field._layers.last_bias
    np.testing.assert_allclose(again, values[:, : n - 2], atol=2e-5)
    alone = field.features(model.latents[3:4], points, n - 2)
    np.testing.assert_allclose(alone[0], found[3], atol=2e-5)


def test_a_low_pass_holds_what_a_smaller_box_has(adk):
    source = decoded_by(adk, GenerateSettings(), adk.latents[:0])
    low = next(iter(source.decode(adk.latents[:1], low_pass=24)))
    small = field_of(source).decode(adk.latents[:1], 24)[0].numpy()
    # but for the few points that lie on the smaller sphere itself
    assert relative_error(fourier_crop(low, 24), small) < 1e-2
    high = fourier_crop(next(iter(source.decode(adk.latents[:1]))), 24)
    assert relative_error(fourier_crop(low, 24), high) < 0.2


def test_the_mlp_learns_and_repeats_itself():
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(300, 3)).astype(np.float32)
    targets = np.column_stack([latents.sum(1), np.sin(latents[:, 0])])
    state = torch.get_rng_state()
    found, losses = fit_and_predict(latents, targets, latents, 30, 1e-3, seed=4)
    assert torch.equal(state, torch.get_rng_state())
    assert losses["training_mse"] < 0.02
    assert losses["validation_mse"] < 0.1
    again, _ = fit_and_predict(latents, targets, latents, 30, 1e-3, seed=4)
    np.testing.assert_array_equal(found, again)
    other, _ = fit_and_predict(latents, targets, latents, 30, 1e-3, seed=5)
    assert not np.array_equal(found, other)
