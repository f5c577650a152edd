"""A masked store: its pilot is spread out, and what its mask leaves out is told."""

import pickle

import numpy as np
import pytest

from scapedist.files.mrc import read_map, write_map
from scapedist.landscape import Run
from scapedist.stages.masked_store import NOTABLE, pilot_rows

BOX = 16


def test_a_pilot_reaches_the_extremes():
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(500, 3)) * 0.1
    far = np.array([7, 90, 300, 411])
    latents[far] = 10 * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, 0, 1]])
    rows = pilot_rows(latents, 8)
    assert np.isin(far, rows).all()
    assert len(np.unique(rows)) == 8
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(pilot_rows(latents[:5], 8), np.arange(5))


@pytest.fixture(scope="module")
def made(adk_workdir, tmp_path_factory):
    """A run whose mask is made from too few volumes and not dilated."""
    run = Run.create(adk_workdir, 14, tmp_path_factory.mktemp("pilot") / "run")
    run.sketch(size=40, quality_groups=0)
    run.generate(box_size=BOX, store="masked", pilot_volumes=2, dilate=0.0)
    return run.mask().pca(components=3).states(states=3)


def test_what_escapes_is_counted(made):
    store, results = made.store, made.store.stages["generate"]["results"]
    mask, threshold = store.read("mask"), store.array("mask").attrs["threshold"]
    volumes = made.model.decode(store.read("latents")[store.read("sketch/particle")], BOX)
    claimed = volumes >= threshold
    outside = claimed & (mask == 0)
    np.testing.assert_array_equal(store.read("volumes/outside"), outside.sum((1, 2, 3)))
    density = (volumes * claimed).sum((1, 2, 3))
    escaped = (volumes * outside).sum((1, 2, 3)) / density
    np.testing.assert_allclose(store.read("volumes/escaped"), escaped, atol=1e-5)
    assert results["volumes_that_escape"] == (escaped > NOTABLE).sum() > 0
    assert results["escaped_fraction_max"] == pytest.approx(escaped.max(), abs=1e-5)
    worst = results["worst_volumes"]
    assert escaped[worst[0]] == pytest.approx(escaped.max(), abs=1e-5)
    path = made.directory / "maps" / "escaped" / f"volume_{worst[0]:05d}.mrc"
    np.testing.assert_allclose(read_map(path)[0], (volumes * outside)[worst[0]], atol=1e-5)


def test_the_report_tells_it(made):
    made.report()
    page = (made.directory / "report.html").read_text()
    assert "What escaped" in page
    assert f"volume {made.store.stages['generate']['results']['worst_volumes'][0]}" in page


def test_nothing_much_escapes_a_usual_pilot(adk_workdir, tmp_path):
    run = Run.create(adk_workdir, 14, tmp_path / "run").sketch(size=40, quality_groups=0)
    run.generate(box_size=BOX, store="masked")
    results = run.store.stages["generate"]["results"]
    assert results["escaped_fraction_max"] < NOTABLE
    assert results["worst_volumes"] == []
    assert not list((run.directory / "maps").glob("escaped/*"))


def test_a_pilot_of_maps_is_of_the_chosen_ones(adk, adk_workdir, tmp_path):
    """Each map has density in a cube of its own, so that the mask shows which were taken."""
    particles = np.linspace(0, len(adk.latents) - 1, 6).astype(int)
    chosen = pilot_rows(adk.latents[particles], 2)
    assert chosen.tolist() != [0, 1]
    maps = tmp_path / "kmeans6"
    for row in range(6):
        volume = np.zeros((12, 12, 12), np.float32)
        volume[2 * row : 2 * row + 2] = 1
        write_map(maps / f"vol_{row:03d}.mrc", volume, 10.0)
    np.savetxt(maps / "centers_ind.txt", particles, fmt="%d")
    labels = np.arange(len(adk.latents)) * 6 // len(adk.latents)
    (maps / "labels.pkl").write_bytes(pickle.dumps(labels))
    run = Run.create(adk_workdir, 14, tmp_path / "run").sketch(maps=maps)
    run.generate(store="masked", pilot_volumes=2, dilate=0.0)
    layers = np.flatnonzero(run.store.read("mask").any((1, 2)))
    assert layers.tolist() == [layer for row in chosen for layer in (2 * row, 2 * row + 1)]
