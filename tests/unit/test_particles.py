"""Where particles lie among the sketch volumes, by brute force."""

import numpy as np
import pytest

from scapedist.analysis import placing as maths
from scapedist.analysis.sketch import Sketch, grow_sketch


def test_distances_are_exact_within_the_components_and_never_too_large():
    rng = np.random.default_rng(0)
    whole, sketch = rng.normal(size=(9, 30)) + 50, rng.normal(size=(5, 30)) + 50
    r = 12
    for volumes in (whole, sketch):
        assert volumes.shape[1] == 30

    def split(volumes):
        return volumes[:, :r], np.square(volumes[:, r:]).sum(1)

    true = np.square(whole[:, None] - sketch[None]).sum(-1)
    found = maths.squared_distances(*split(whole), *split(sketch))
    assert (found <= true + 1e-6).all()
    inside = np.square(whole[:, None, :r] - sketch[None, :, :r]).sum(-1)
    assert (found >= inside - 1e-6).all()
    full = maths.squared_distances(whole, np.zeros(9), sketch, np.zeros(5))
    np.testing.assert_allclose(full, true, rtol=1e-9)


def test_a_particle_has_the_state_of_the_nearest_volume_and_a_margin():
    squared = np.array([[0.0, 4.0, 9.0], [16.0, 4.0, 1.0], [1.0, 9.0, 1.0], [0.04, 9.0, 9.0]])
    state, margin, room = maths.place(squared, np.array([0, 0, 1]))
    np.testing.assert_allclose(room, [1.5, 0.5, 0, 1.4])
    assert state.tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(margin, [1, 0.5, 0, 1 - 0.2 / 3])
    state, margin, room = maths.place(squared, np.array([-1, 2, 2]))
    assert np.isinf(room).all()
    assert state.tolist() == [2] * 4
    assert margin.tolist() == [1] * 4  # there is no other state


def test_only_what_is_far_for_most_is_missed():
    rng = np.random.default_rng(0)
    distance = np.concatenate([rng.lognormal(sigma=0.3, size=5000), [20, 30]])
    found = np.flatnonzero(distance > maths.missed_threshold(distance))
    assert {5000, 5001} <= set(found.tolist())
    assert len(found) < 10
    assert maths.missed_threshold(np.zeros(4)) == np.inf


def test_spread_points_come_farthest_first():
    points = np.array([[0.0], [1.0], [10.0], [10.1], [5.0]])
    chosen = maths.farthest_first(points, 3)
    assert {0, 3} == set(chosen[:2].tolist())
    assert chosen[2] == 4
    assert len(maths.farthest_first(np.zeros((6, 2)), 4)) == 1


def test_axes_of_all_particles_are_numpys():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(500, 4)) * [5, 3, 1, 0.5] @ np.linalg.qr(rng.normal(size=(4, 4)))[0]
    points += 7
    axes = maths.axes_from_sums(len(points), points.sum(0), points.T @ points)
    np.testing.assert_allclose(axes.mean, points.mean(0))
    values = np.linalg.svd(points - points.mean(0), compute_uv=False)
    np.testing.assert_allclose(axes.variance, values**2 / 499, rtol=1e-9)
    np.testing.assert_allclose(axes.vectors @ axes.vectors.T, np.eye(4), atol=1e-12)
    assert axes.angle_degrees[-1] == pytest.approx(0, abs=1e-5)
    first = np.degrees(np.arccos(abs(axes.vectors[0, 0])))
    assert axes.angle_degrees[0] == pytest.approx(first)


def test_a_grown_sketch_takes_what_is_nearer_to_the_new_ones():
    latents = np.array([[0.0], [0.2], [4.0], [4.1], [9.0], [1.0]])
    before = Sketch(np.array([0, 4]), np.array([0, 0, 1, 1, 1, -1], np.int32))
    grown = grow_sketch(before, latents, np.array([2, 4]))
    assert grown.particle.tolist() == [0, 4, 2]
    assert grown.assignment.tolist() == [0, 0, 2, 2, 1, -1]
    assert grown.occupancy.tolist() == [2, 1, 2]
    assert grow_sketch(before, latents, np.array([4])) is before
