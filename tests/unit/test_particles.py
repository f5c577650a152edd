"""Where particles lie among the sketch volumes, by brute force."""

import numpy as np
import pytest

from scapedist.analysis import placing as maths
from scapedist.analysis.sketch import Sketch, grow_sketch


def by_brute_force(points, sketch, labels):
    """Nearest volume, distance, state, margin and room from whole volumes, one by one."""
    distance = np.sqrt(np.square(points[:, None] - sketch[None]).sum(-1))
    states = np.unique(labels[labels >= 0])
    each = np.stack([distance[:, labels == state].min(1) for state in states], 1)
    ordered = np.sort(np.column_stack([each, np.full(len(each), np.inf)]), 1)
    inner, outer = ordered[:, 0], ordered[:, 1]
    return distance.argmin(1), distance.min(1), states[each.argmin(1)], inner, outer


@pytest.mark.parametrize("n_states", [0, 1, 7, 40])
@pytest.mark.parametrize("without", [0, 30])
def test_particles_are_placed_as_by_brute_force(device, monkeypatch, n_states, without):
    monkeypatch.setattr(maths, "COLUMNS", 50)
    monkeypatch.setattr(maths, "BLOCK_ROWS", {"cpu": 32, "cuda": 32})
    rng = np.random.default_rng(0)
    sketch, some = rng.normal(size=(230, 6)) + 40, rng.normal(size=(101, 6)) + 40
    some[:9] = sketch[60:69]
    missed, theirs = np.abs(rng.normal(size=101)), np.abs(rng.normal(size=230))
    labels = None
    if n_states:
        labels = rng.integers(0, n_states, 230).astype(np.int32)
        labels[rng.permutation(230)[:without]] = -1
    volumes = maths.Volumes.of(sketch, theirs**2, labels, device)
    found = volumes.place(some, missed**2)
    points = (np.column_stack([some, missed]), np.column_stack([sketch, theirs]))
    wanted = by_brute_force(*points, np.zeros(230, int) if labels is None else labels)
    np.testing.assert_array_equal(found.nearest, wanted[0])
    np.testing.assert_allclose(found.distance, wanted[1], atol=1e-6)
    if labels is None:
        assert (found.state == -1).all()
    else:
        np.testing.assert_array_equal(found.state, wanted[2])
        np.testing.assert_allclose(found.margin, 1 - wanted[3] / wanted[4], atol=1e-6)
        np.testing.assert_allclose(found.room, (wanted[4] - wanted[3]) / 2, atol=1e-6)
    number = rng.integers(0, 230, 101)
    apart = volumes.distances_to(number, some, missed**2)
    np.testing.assert_allclose(apart, np.linalg.norm(points[0] - points[1][number], axis=1))


def test_distances_are_exact_within_the_components_and_never_too_large():
    rng = np.random.default_rng(0)
    whole, sketch = rng.normal(size=(9, 30)) + 50, rng.normal(size=(1, 30)) + 50
    r = 12

    def split(volumes):
        return volumes[:, :r], np.square(volumes[:, r:]).sum(1)

    true = np.linalg.norm(whole - sketch, axis=1)
    found = maths.Volumes.of(*split(sketch)).place(*split(whole)).distance
    assert (found <= true + 1e-6).all()
    assert (found >= np.linalg.norm((whole - sketch)[:, :r], axis=1) - 1e-6).all()
    full = maths.Volumes.of(sketch, np.zeros(1)).place(whole, np.zeros(9)).distance
    np.testing.assert_allclose(full, true, rtol=1e-9)


def test_a_particle_has_the_state_of_the_nearest_volume_and_a_margin():
    sketch, some = np.array([[0.0], [2.0], [5.0]]), np.array([[0.0], [4.0], [2.5], [0.25]])
    found = maths.Volumes.of(sketch, np.zeros(3), np.array([0, 0, 1])).place(some, np.zeros(4))
    assert found.nearest.tolist() == [0, 2, 1, 0]
    assert found.state.tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(found.room, [2.5, 0.5, 1, 2.25], atol=1e-7)
    np.testing.assert_allclose(found.margin, [1, 0.5, 0.8, 1 - 0.25 / 4.75], atol=1e-7)
    found = maths.Volumes.of(sketch, np.zeros(3), np.array([-1, 2, 2])).place(some, np.zeros(4))
    assert found.nearest.tolist() == [0, 2, 1, 0]
    assert np.isinf(found.room).all()
    assert found.state.tolist() == [2] * 4
    assert found.margin.tolist() == [1] * 4  # there is no other state


def test_of_equal_volumes_the_first_is_the_nearest():
    sketch, labels = np.ones((6, 3)), np.array([2, 1, 0, 0, -1, 1])
    found = maths.Volumes.of(sketch, np.zeros(6), labels).place(np.eye(3), np.zeros(3))
    assert found.nearest.tolist() == [0, 0, 0]
    assert found.state.tolist() == [0, 0, 0]
    assert not found.margin.any()


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
