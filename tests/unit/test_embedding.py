"""The mathematics of the reduced embedding, against scikit-learn and by brute force."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from scapedist.analysis import reduced as maths
from scapedist.particles.fit_reduced import further_volumes


def test_candidates_are_as_many_at_any_radius():
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.5, 0.5, (200_000, 3))
    drawn = maths.draw_candidates(points, 4000, seed=1)
    assert len(np.unique(drawn)) == 4000
    radius = np.linalg.norm(points[drawn], axis=1)
    counts = np.histogram(radius, np.linspace(0.1, 0.5, 5))[0]
    assert counts.max() < 1.3 * counts.min()
    assert (drawn == maths.draw_candidates(points, 4000, seed=1)).all()
    assert (maths.draw_candidates(points[:10], 4000, seed=1) == np.arange(10)).all()


def test_points_follow_the_energy_and_are_nested():
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (5000, 3))
    energy = np.where(points[:, 0] > 0, 9.0, 1.0)
    chosen = maths.choose_points(points, energy, 500)
    assert len(np.unique(chosen)) == 500
    assert np.mean(points[chosen, 0] > 0) == pytest.approx(0.9, abs=0.03)
    assert (maths.choose_points(points, energy, 100) == chosen[:100]).all()
    # better spread than random draws: every octant of the rich half gets its share
    octant = (points[chosen] > 0) @ [4, 2, 1]
    assert np.bincount(octant, minlength=8)[4:].min() > 95
    assert set(maths.choose_points(points, np.eye(1, 5000)[0], 5)) == {0}


def test_further_rows_are_spread_and_new():
    rng = np.random.default_rng(0)
    latents = np.concatenate([rng.normal(0, 0.1, (1000, 2)), rng.normal(5, 0.1, (20, 2))])
    chosen = np.arange(30)
    rows = maths.spread_rows(latents, chosen, 50, seed=3)
    assert len(np.unique(rows)) == 50
    assert not np.isin(rows, chosen).any()
    assert rows[0] >= 1000  # the far group is seen at once
    assert (maths.spread_rows(latents, chosen, 20, seed=3) == rows[:20]).all()
    everything = maths.spread_rows(np.zeros((40, 2), np.float32), chosen, 50, seed=3)
    assert sorted(everything) == list(range(30, 40))


def test_ridge_is_scikit_learns_and_its_left_out_errors_are_true():
    rng = np.random.default_rng(0)
    x, new = rng.normal(size=(30, 50)), rng.normal(size=(7, 50))
    y = x @ rng.normal(size=(50, 3)) + 0.1 * rng.normal(size=(30, 3))
    mean = x.mean(0)
    kernel, rows = (x - mean) @ (x - mean).T, (new - mean) @ (x - mean).T
    ours = maths.fit_ridge(kernel, y)
    reference = Ridge(alpha=ours.ridge).fit(x, y)
    np.testing.assert_allclose(ours.predict(rows), reference.predict(new), atol=1e-8)
    for left in (0, 11, 29):
        others = np.delete(np.arange(30), left)
        alone = Ridge(alpha=ours.ridge).fit(x[others], y[others]).predict(x[[left]])[0]
        np.testing.assert_allclose(ours.left_out[left], y[left] - alone, rtol=1e-6, atol=1e-9)


def test_the_ridge_chosen_leaves_the_least_median_error():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(25, 40)) * np.logspace(0, -4, 40)
    y = x @ rng.normal(size=(40, 2)) + 1e-3 * rng.normal(size=(25, 2))
    kernel = (x - x.mean(0)) @ (x - x.mean(0)).T
    medians = []
    for ridge in maths.RIDGES * np.trace(kernel):
        alone = [
            Ridge(alpha=ridge, solver="svd").fit(np.delete(x, i, 0), np.delete(y, i, 0))
            for i in range(25)
        ]
        errors = [y[i] - model.predict(x[[i]])[0] for i, model in enumerate(alone)]
        medians.append(np.median(np.square(errors).sum(1)))
    best = maths.RIDGES[int(np.argmin(medians))] * np.trace(kernel)
    assert maths.fit_ridge(kernel, y).ridge == pytest.approx(best)
    assert 0 < np.argmin(medians) < len(medians) - 1


def test_a_field_that_is_affine_has_no_misfit():
    rng = np.random.default_rng(0)
    coordinates = rng.normal(size=(40, 4)) + 3
    values = coordinates @ rng.normal(size=(4, 25)) + 7
    model = maths.FieldModel.fit(coordinates, values)
    assert model.misfit(coordinates, values).max() < 1e-6
    off = values.copy()
    off[0] += model.basis[0]  # as if the first coordinate were one larger
    misfit = model.misfit(coordinates, off)
    expected = np.linalg.norm(model.basis[0] * model.weight)
    assert misfit[0] == pytest.approx(expected, rel=1e-6)
    stored = model.arrays()
    assert {name: data.shape for name, (data, _) in stored.items()} == {
        "basis": (4, 25),
        "mean": (25,),
        "center": (4,),
        "weight": (25,),
    }


def test_calibration_finds_the_power_law():
    rng = np.random.default_rng(0)
    q, m = rng.lognormal(size=4000), rng.lognormal(size=4000)
    found = maths.calibrate(q, m, 3 * q**2, 0.2 * m**1.5 * rng.lognormal(sigma=0.1, size=4000))
    assert found.residual_scale == pytest.approx(3)
    assert found.exponent == pytest.approx(1.5, abs=0.01)
    assert found.error(np.ones(1))[0] == pytest.approx(0.2, rel=0.03)
    np.testing.assert_allclose(found.residual(q), 3 * q**2)
    flat = maths.calibrate(np.ones(5), np.ones(5), np.ones(5), np.full(5, 0.5))
    assert np.isfinite(flat.error(np.array([0.0, 1.0]))).all()


@pytest.mark.parametrize(
    ("n_particles", "numbers"),
    [(40, [40]), (2900, [116]), (19_400, [400, 776]), (60_000, [400, 800, 1600, 2400]),
     (1_000_000, [400, 800, 1600, 3200])],
)  # fmt: skip
def test_more_particles_may_train_a_map_with_more_volumes(n_particles, numbers):
    assert further_volumes(n_particles) == numbers
