"""The whole analysis against cryoDRGN's own ``analyze_landscape``, run live, and against truth."""

import pickle
import shutil
import subprocess
import sys

import mrcfile
import numpy as np
import pytest

from scapedist.files.safe_pickle import load_pickle
from scapedist.landscape import Run, analyze

SIZE, BOX, STATES = 60, 24, 6
PIXEL = 2.5 * 48 / BOX
# cryoDRGN's PCA is randomized and unseeded; the same solver made deterministic is the full one
LANDSCAPE = """
import functools, argparse
from cryodrgn.commands import analyze_landscape as command
command.PCA = functools.partial(command.PCA, svd_solver="full")
parser = argparse.ArgumentParser()
command.add_args(parser)
command.main(parser.parse_args())
"""


@pytest.fixture(scope="module")
def cryodrgn_landscape(adk_workdir, tmp_path_factory):
    """Output of analyze_landscape on the bundled model, sketch of 60, box 24."""
    workdir = tmp_path_factory.mktemp("cryodrgn") / "adk"
    shutil.copytree(adk_workdir, workdir)
    (workdir / "analyze.14").mkdir()
    umap = np.random.default_rng(0).standard_normal((20000, 2)).astype(np.float32)
    (workdir / "analyze.14" / "umap.pkl").write_bytes(pickle.dumps(umap))
    output = workdir.parent / "landscape"
    options = ["-N", str(SIZE), "-d", str(BOX), "-M", str(STATES), "--Apix", str(PIXEL)]
    subprocess.run(
        [sys.executable, "-c", LANDSCAPE, str(workdir), "14", "-o", str(output), *options],
        check=True,
        capture_output=True,
    )
    return output


@pytest.fixture(scope="module")
def ours(adk_workdir, cryodrgn_landscape, tmp_path_factory):
    """Our run on cryoDRGN's own sketch and maps, with its habits."""
    output = tmp_path_factory.mktemp("ours") / "run"
    maps = cryodrgn_landscape / f"kmeans{SIZE}"
    options = {"clip_negative": True, "soft_mask": True, "states": STATES}
    analyze(adk_workdir, 14, output, n_workers=1, maps=maps, embedding="none", **options)
    return Run(output).store


def test_sketch_is_cryodrgns(cryodrgn_landscape, ours):
    kmeans = cryodrgn_landscape / f"kmeans{SIZE}"
    centers = np.loadtxt(kmeans / "centers_ind.txt").astype(int)
    np.testing.assert_array_equal(ours.read("sketch/particle"), centers)
    labels = load_pickle(kmeans / "labels.pkl")
    np.testing.assert_array_equal(ours.read("sketch/assignment"), labels - 1)
    np.testing.assert_array_equal(
        ours.read("sketch/occupancy"), np.bincount(labels - 1, minlength=SIZE)
    )
    assert ours.source["pixel_size_angstroms"] == pytest.approx(PIXEL)


def test_mask_is_cryodrgns(cryodrgn_landscape, ours):
    with mrcfile.open(cryodrgn_landscape / "mask.mrc") as mrc:
        np.testing.assert_array_equal(ours.read("mask"), mrc.data)


def test_components_are_cryodrgns(cryodrgn_landscape, ours):
    with (cryodrgn_landscape / "vol_pca_obj.pkl").open("rb") as stream:
        pca = pickle.load(stream)  # made by this test
    coordinates = pickle.loads((cryodrgn_landscape / f"vol_pca_{SIZE}.pkl").read_bytes())
    vectors = ours.read("components/vectors")
    cosines = np.sum(vectors * pca.components_, axis=1)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-6)
    signs = np.sign(cosines)[:, None]
    scale = np.linalg.norm(vectors, axis=1).max()
    assert np.linalg.norm(vectors - signs * pca.components_, axis=1).max() < 1e-4 * scale
    np.testing.assert_allclose(ours.read("components/mean"), pca.mean_, atol=1e-5)
    np.testing.assert_allclose(
        ours.read("components/variance_ratio"), pca.explained_variance_ratio_, rtol=1e-4
    )
    np.testing.assert_allclose(
        ours.read("sketch/coordinates"),
        coordinates * signs.T,
        atol=1e-4 * np.abs(coordinates).max(),
    )


def test_states_are_cryodrgns(cryodrgn_landscape, ours):
    labels = load_pickle(
        cryodrgn_landscape / f"sketch_clustering_average_{STATES}" / "state_labels.pkl"
    )
    pairs = {tuple(pair) for pair in zip(labels, ours.read("states/label"), strict=True)}
    assert len(pairs) == STATES  # one of ours for each of theirs
    for theirs, mine in pairs:
        stem = cryodrgn_landscape / f"sketch_clustering_average_{STATES}" / f"state_{theirs:03d}"
        for kind in ("mean", "std"):
            with mrcfile.open(f"{stem}_{kind}.mrc") as mrc:
                np.testing.assert_allclose(
                    ours.array(f"states/{kind}")[int(mine)],
                    mrc.data,
                    atol=2e-4 * np.abs(mrc.data).max(),
                )
        rows = load_pickle(ours.directory / "states" / f"state_{mine:03d}_rows.pkl")
        np.testing.assert_array_equal(rows, load_pickle(f"{stem}_particle_ind.pkl"))


def test_lidless_particles_are_states_of_their_own(adk_workdir, tmp_path):
    """4 % of the particles lack the LID domain; average linkage keeps them apart from the rest.

    At some sketches they are one state, at others a closed and an open one.
    """
    analyze(adk_workdir, 14, tmp_path / "run", n_workers=1, size=200, box_size=24, embedding="none")
    store = Run(tmp_path / "run").store
    lidless = np.load(adk_workdir / "truth.npz")["state"] == 1
    labels = store.read("states/label")[store.read("sketch/assignment")]
    n_states = labels.max() + 1
    purity = np.bincount(labels, lidless, n_states) / np.bincount(labels, minlength=n_states)
    chosen = np.isin(labels, np.flatnonzero(purity > 0.5))
    assert (lidless & chosen).sum() / chosen.sum() > 0.9
    assert (lidless & chosen).sum() / lidless.sum() > 0.9
