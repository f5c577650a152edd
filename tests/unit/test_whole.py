"""Components of all particles, and all particles looked at together, on a run of the real model."""

import json
import shutil

import numpy as np
import pytest
from random_model import copy_with_particles
from scipy.linalg import subspace_angles

from scapedist.errors import ResourceError, RunError
from scapedist.files.mrc import read_map
from scapedist.landscape import Run
from scapedist.settings import PcaSettings
from scapedist.stages import components_of_all as whole
from scapedist.stages.components import included_volumes
from scapedist.stages.decoded_rows import masked_batch
from scapedist.workers import Serial, open_workers

N = 120


@pytest.fixture(scope="module")
def base(adk_workdir, tmp_path_factory):
    """A run of 120 particles with a sketch of 30 and its components; for copying."""
    place = tmp_path_factory.mktemp("base")
    workdir = copy_with_particles(adk_workdir, 14, slice(0, 20_000, 167), place / "model")
    run = Run.create(workdir, 14, place / "run")
    run.sketch(size=30, quality_groups=0).generate(box_size=16).mask().pca(components=4)
    return run.states(states=4).directory


@pytest.fixture
def run(base, tmp_path):
    shutil.copytree(base, tmp_path / "run")
    return Run(tmp_path / "run")


def every_volume(run):
    """Masked voxels (n, p) float64 of all particles."""
    return masked_batch(run.embedder().projection, run.store.read("latents")).astype(np.float64)


def test_components_are_those_of_all_decoded_volumes(run):
    of_sketch = run.store.read("components/vectors")
    labels = run.store.read("states/label")
    run.pca(all_particles=True)
    voxels = every_volume(run)
    mean = voxels.mean(0)
    _, singular, right = np.linalg.svd(voxels - mean, full_matrices=False)
    store, results = run.store, run.store.stages["pca"]["results"]
    vectors = store.read("components/vectors").astype(np.float64)
    assert results["settled"]
    assert subspace_angles(vectors.T, right[:4].T).max() < 1e-6
    assert subspace_angles(of_sketch.T.astype(float), right[:4].T).max() > 1e-3
    np.testing.assert_allclose(store.read("components/mean"), mean, atol=1e-7)
    variance = singular**2 / (N - 1)
    np.testing.assert_allclose(store.read("components/variance"), variance[:4], rtol=1e-6)
    ratio = variance[:4] / variance.sum()
    np.testing.assert_allclose(store.read("components/variance_ratio"), ratio, rtol=1e-6)
    particles = store.read("sketch/particle")
    centered = voxels[particles] - mean
    coordinates = store.read("sketch/coordinates")
    np.testing.assert_allclose(coordinates, centered @ vectors.T, atol=1e-4)
    missed = np.square(centered).sum(1) - np.square(coordinates).sum(1)
    np.testing.assert_allclose(store.read("sketch/residual"), missed, rtol=1e-3)
    assert not (run.directory / whole.KEPT).exists()
    run.states()  # distances between the sketch's volumes are what they were
    np.testing.assert_array_equal(store.read("states/label"), labels)
    run.embed(method="exact")
    found = store.read("embedding/exact/coordinates").astype(np.float64)
    np.testing.assert_allclose(np.cov(found.T), np.diag(variance[:4]), atol=1e-5 * variance[0])


def test_groups_left_out_do_not_count(run):
    run.pca(all_particles=True, exclude_states=(3,))
    store = run.store
    assignment, labels = store.read("sketch/assignment"), store.read("states/base_label")
    kept = labels[assignment] != 3
    assert store.stages["pca"]["results"]["particles"] == kept.sum() < N
    np.testing.assert_allclose(
        store.read("components/mean"), every_volume(run)[kept].mean(0), atol=1e-7
    )


def test_the_same_from_two_workers(run, base, tmp_path):
    run.pca(all_particles=True)
    shutil.copytree(base, tmp_path / "other")
    other = Run(tmp_path / "other")
    with open_workers(2) as workers:
        assert f"{N} particles are decoded in each pass" in other.cost_of_all_particles(workers)
        other.pca(workers, all_particles=True)
    for name in ("mean", "vectors", "variance"):
        np.testing.assert_array_equal(
            other.store.read(f"components/{name}"), run.store.read(f"components/{name}")
        )


class Stopping(Serial):
    """A worker that is stopped after a number of tasks, and counts them."""

    def __init__(self, most=10**6):
        super().__init__()
        self.most, self.done = most, 0

    def run(self, work, shared, tasks):
        for number, result in super().run(work, shared, tasks):
            if work.__name__ == "_scatter":
                if self.done == self.most:
                    raise RunError("stopped")
                self.done += 1
            yield number, result


def test_a_stopped_command_goes_on_within_its_pass(run, base, tmp_path):
    counted = Stopping()
    run.pca(counted, all_particles=True)
    each = counted.done // run.store.stages["pca"]["results"]["passes"]
    shutil.copytree(base, tmp_path / "other")
    other, again = Run(tmp_path / "other"), Stopping()
    for most in (0, 2, each):  # the last gets to the second pass
        with pytest.raises(RunError, match="stopped"):
            other.pca(Stopping(most), all_particles=True)
    kept = sorted((other.directory / whole.KEPT).rglob("*.npz"))
    kept[-1].write_bytes(kept[-1].read_bytes()[:-50])  # and one file is cut short
    other.pca(again, all_particles=True)
    assert again.done == counted.done - (2 + each) + 1
    for name in ("mean", "vectors", "variance"):
        np.testing.assert_array_equal(
            other.store.read(f"components/{name}"), run.store.read(f"components/{name}")
        )


def test_what_was_kept_of_other_settings_is_not_used(run):
    with pytest.raises(RunError, match="stopped"):
        run.pca(Stopping(3), all_particles=True, components=3)
    counted = Stopping()
    run.pca(counted, all_particles=True, components=4)
    passes = run.store.stages["pca"]["results"]["passes"]
    assert counted.done % passes == 0
    assert not (run.directory / whole.KEPT).exists()


def test_a_plan_that_does_not_fit_is_refused(run):
    with pytest.raises(ResourceError, match="--memory-limit"):
        run.pca(Serial(memory_limit=2**20), all_particles=True)
    source, included = run.embedder().projection.source, included_volumes(run.store, ())
    plan = whole.plan_whole(run.store, PcaSettings(components=4), source, Serial(), included)
    assert len(plan.particles) == N
    assert plan.disk_bytes > 0


# -- all particles together


def test_population(run):
    with pytest.raises(RunError, match="Give `scapedist embed"):
        run.population()
    run.embed(method="exact").population(groups=5)
    store, results = run.store, run.store.beside["population"]["results"]
    labels = store.read("population/group")
    assert np.bincount(labels).tolist() == results["n_particles"]
    coordinates = store.read("embedding/exact/coordinates")
    center = store.read("population/center")
    squared = np.square(coordinates[:, None] - center[None]).sum(-1)
    np.testing.assert_array_equal(squared.argmin(1), labels)
    np.testing.assert_array_equal(squared.argmin(0), store.read("population/medoid"))
    path = run.directory / "maps" / "population" / "group_00.mrc"
    decoded = run.model.decode(store.read("latents")[store.read("population/medoid")[:1]], 16)
    np.testing.assert_allclose(read_map(path)[0], decoded[0], atol=1e-5)
    run.report()
    assert "Density of all particles" in (run.directory / "report.html").read_text()
    assert (run.directory / "plots" / "density.png").stat().st_size > 10_000
    before = json.dumps(store.beside["population"])
    run.population(groups=5)  # up to date
    assert json.dumps(Run(run.directory).store.beside["population"]) == before
    run.pca(components=3)
    assert "population" not in Run(run.directory).store.beside
