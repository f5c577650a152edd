"""A run's stages, files and settings, on the bundled model at a small box."""

import json
import shutil

import mrcfile
import numpy as np
import pytest
import xarray

from scapedist import open_model
from scapedist.errors import InputError, RunError
from scapedist.files.safe_pickle import load_pickle
from scapedist.landscape import Run, analyze
from scapedist.landscape.cost import cost_of_run
from scapedist.landscape.decode import decode_to_maps
from scapedist.landscape.verify import describe, verify
from scapedist.workers import one_thread, open_workers

N, BOX, STATES = 24, 16, 5
OPTIONS = {
    "size": N,
    "box_size": BOX,
    "states": STATES,
    "components": 6,
    "embedding": "none",
}


def new_run(workdir, output, **options) -> Run:
    analyze(workdir, 14, output, n_workers=1, **OPTIONS | options)
    return Run(output)


@pytest.fixture(scope="module")
def finished(adk_workdir, tmp_path_factory):
    """A finished run; for reading."""
    return new_run(adk_workdir, tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run; for changing."""
    shutil.copytree(finished.directory, tmp_path / "run")
    return Run(tmp_path / "run")


def stamps(run, part):
    root = run.directory / "landscape.zarr" / part
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_layout(finished):
    dimensions = {
        "latents": ("particle", "latent"),
        "sketch/particle": ("volume",),
        "sketch/assignment": ("particle",),
        "sketch/occupancy": ("volume",),
        "sketch/coordinates": ("volume", "component"),
        "volumes/0": ("t", "z", "y", "x"),
        "mask": ("z", "y", "x"),
        "components/mean": ("voxel",),
        "components/vectors": ("component", "voxel"),
        "components/variance": ("component",),
        "components/variance_ratio": ("component",),
        "states/label": ("volume",),
        "states/linkage": ("merge", "column"),
    }
    store = finished.store
    for name, expected in dimensions.items():
        assert store.array(name).metadata.dimension_names == expected, name
    n_voxels = int((store.read("mask") > 0).sum())
    assert store.array("volumes/0").shape == (N, BOX, BOX, BOX)
    assert store.array("volumes/0").chunks == (1, BOX, BOX, BOX)
    assert store.array("components/vectors").shape == (6, n_voxels)
    assert store.read("sketch/occupancy").sum() == 20000
    assert sorted(np.unique(store.read("states/label"))) == list(range(STATES))


def test_xarray_shows_named_dimensions(finished):
    path = finished.directory / "landscape.zarr"
    sketch = xarray.open_zarr(path, group="sketch", consolidated=False)
    assert sketch.coordinates.sizes == {"volume": N, "component": 6}
    volumes = xarray.open_zarr(path, group="volumes", consolidated=False)
    assert volumes["0"].sizes == {"t": N, "z": BOX, "y": BOX, "x": BOX}
    root = xarray.open_zarr(path, consolidated=False)
    assert root.latents.sizes == {"particle": 20000, "latent": 8}


def test_volumes_are_an_ome_zarr_image(finished):
    from ome_zarr_models.v05.image import Image

    image = Image.from_zarr(finished.store.group["volumes"])
    scale = image.ome_attributes.multiscales[0].datasets[0].coordinateTransformations[0]
    pixel = 2.5 * 48 / BOX
    assert list(scale.scale) == [1, pixel, pixel, pixel]
    axes = image.ome_attributes.multiscales[0].axes
    assert [axis.name for axis in axes] == ["t", "z", "y", "x"]
    assert axes[1].unit == "angstrom"


def test_volumes_are_the_decoded_latents(finished, adk):
    rows = finished.store.read("sketch/particle")
    with one_thread():  # as the workers
        volumes = adk.decode(adk.latents[rows[:3]], BOX)
    np.testing.assert_array_equal(finished.store.array("volumes/0")[:3], volumes)


def test_coordinates_are_projections_of_the_volumes(finished):
    store = finished.store
    voxels = store.read("volumes/0")[:, store.read("mask") > 0].astype(np.float64)
    centered = voxels - store.read("components/mean")
    projected = centered @ store.read("components/vectors").T.astype(np.float64)
    coordinates = store.read("sketch/coordinates")
    np.testing.assert_allclose(projected, coordinates, atol=1e-5 * np.abs(coordinates).max())


def test_state_maps_counts_and_lists(finished):
    store = finished.store
    labels, occupancy = store.read("states/label"), store.read("sketch/occupancy")
    volumes = store.read("volumes/0").astype(np.float64)
    of_particles = labels[store.read("sketch/assignment")]
    for state in range(STATES):
        members = labels == state
        mean = np.average(volumes[members], axis=0, weights=occupancy[members])
        assert store.read("states/n_volumes")[state] == members.sum()
        assert store.read("states/n_particles")[state] == occupancy[members].sum()
        with mrcfile.open(finished.directory / f"maps/states/state_{state:03d}_mean.mrc") as mrc:
            np.testing.assert_allclose(mrc.data, mean, atol=1e-6 * np.abs(mean).max() + 1e-7)
            assert mrc.voxel_size.x == pytest.approx(2.5 * 48 / BOX)
        rows = load_pickle(finished.directory / f"states/state_{state:03d}_rows.pkl")
        np.testing.assert_array_equal(rows, np.flatnonzero(of_particles == state))
        assert labels[store.read("states/medoid")[state]] == state


def test_traversals(finished):
    store = finished.store
    positions = store.read("components/traversal_position")
    coordinates = store.read("sketch/coordinates")
    np.testing.assert_allclose(
        positions[0, [0, -1]], [coordinates[:, 0].min(), coordinates[:, 0].max()]
    )
    np.testing.assert_allclose(np.diff(positions[0]), np.diff(positions[0])[0])
    inside = store.read("mask") > 0
    with mrcfile.open(finished.directory / "maps/components/component_01/along_10.mrc") as mrc:
        expected = (
            store.read("components/mean") + positions[0, 9] * store.read("components/vectors")[0]
        )
        np.testing.assert_allclose(mrc.data[inside], expected, atol=1e-5)
    nearest = store.read("components/traversal_volume")[0, 9]
    with mrcfile.open(finished.directory / "maps/components/component_01/volume_10.mrc") as mrc:
        np.testing.assert_array_equal(mrc.data, store.array("volumes/0")[int(nearest)])


def test_masking_again_decodes_nothing(run):
    before, mask = stamps(run, "volumes"), run.store.read("mask")
    run.mask(dilate=10.0)
    assert stamps(run, "volumes") == before
    assert run.store.read("mask").sum() > mask.sum()
    assert list(run.store.stages) == ["sketch", "generate", "mask"]
    run.pca().states()
    run.report()
    assert list(run.store.stages)[-1] == "report"
    assert run.store.last_settings("pca")["settings"]["components"] == 6  # kept


def test_a_users_mask(run, tmp_path):
    sphere = np.zeros((BOX,) * 3, np.float32)
    sphere[4:12, 4:12, 4:12] = 1
    with mrcfile.new(tmp_path / "mask.mrc", sphere) as mrc:
        mrc.voxel_size = 7.5
    run.mask(mask=tmp_path / "mask.mrc").pca().states()
    assert run.store.array("components/mean").shape == (512,)
    run.report()


def test_a_done_stage_is_skipped(run):
    before = stamps(run, ".")
    analyze(run.store.source["workdir"], 14, run.directory, n_workers=1, **OPTIONS)
    assert stamps(run, ".") == before


def test_states_left_out(run):
    all_labels = run.store.read("states/label")
    run.pca(exclude_states=(0,)).states(states=3)
    run.report()
    labels = run.store.read("states/label")
    np.testing.assert_array_equal(labels < 0, all_labels == 0)
    assert sorted(np.unique(labels)) == [-1, 0, 1, 2]
    coordinates = run.store.read("sketch/coordinates")
    np.testing.assert_allclose(coordinates[labels >= 0].mean(0), 0, atol=1e-8)
    assert np.isfinite(coordinates).all()
    assert not (run.directory / "states" / "state_003_rows.pkl").exists()
    before = stamps(run, ".")
    run.pca(exclude_states=(0,)).states()  # the same command means the same
    assert stamps(run, ".") == before
    with pytest.raises(InputError, match="no state 77"):
        run.pca(exclude_states=(77,))
    run.pca().states(states=STATES)
    np.testing.assert_array_equal(run.store.read("states/label"), all_labels)


def test_kmeans_states(run):
    run.states(linkage="kmeans", states=4)
    assert "states/linkage" not in run.store
    labels = run.store.read("states/label")
    voxels = run.store.read("volumes/0")[:, run.store.read("mask") > 0].astype(np.float64)
    centers = np.stack([voxels[labels == state].mean(0) for state in range(4)])
    nearest = ((voxels[:, None] - centers) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(nearest, labels)  # converged on the volumes themselves
    run.report()


def test_a_masked_store_gives_the_same_components(adk_workdir, finished, tmp_path):
    masked = new_run(adk_workdir, tmp_path / "masked", store="masked")
    np.testing.assert_array_equal(masked.store.read("mask"), finished.store.read("mask"))
    for name in (
        "components/vectors",
        "sketch/coordinates",
        "states/label",
        "sketch/quality/distance",
    ):
        np.testing.assert_array_equal(masked.store.read(name), finished.store.read(name))
    inside = masked.store.read("mask") > 0
    means = masked.store.read("states/mean")
    np.testing.assert_allclose(
        means[:, inside], finished.store.read("states/mean")[:, inside], atol=1e-6
    )
    assert not means[:, ~inside].any()
    with pytest.raises(RunError, match="one mask only"):
        masked.mask(dilate=20.0)
    assert "mask" in masked.store.stages
    assert verify(masked, 1).sound
    record = masked.store.stages["generate"]
    record["results"]["mask"]["of_a_newer_version"] = 1
    masked.store.finish_stage("generate", record)
    with pytest.raises(RunError, match="one mask only"):
        masked.mask(dilate=20.0)


def test_lower_precision_is_recorded_with_its_error(adk_workdir, tmp_path):
    half = new_run(adk_workdir, tmp_path / "half", store_dtype="float16")
    error = half.store.stages["generate"]["results"]["relative_error_against_float32"]
    assert 1e-5 < error < 1e-3
    assert half.store.array("volumes/0").dtype == np.float16
    brain = new_run(adk_workdir, tmp_path / "brain", dtype="bfloat16")
    error = brain.store.stages["generate"]["results"]["relative_error_against_float32"]
    assert 1e-3 < error < 0.1


def test_flip_and_invert(adk_workdir, finished, tmp_path):
    turned = new_run(adk_workdir, tmp_path / "turned", flip=True, invert=True, threshold=-1e9)
    volumes = finished.store.read("volumes/0")
    np.testing.assert_array_equal(turned.store.read("volumes/0"), -volumes[:, ::-1])


def test_quality_of_the_sketch(finished, adk):
    store = finished.store
    group, particle = store.read("sketch/quality/group"), store.read("sketch/quality/particle")
    np.testing.assert_array_equal(store.read("sketch/assignment")[particle], group)
    inside = store.read("mask") > 0
    member = adk.decode(adk.latents[particle[:1]], BOX)[0][inside]
    center = store.array("volumes/0")[int(group[0])][inside]
    expected = np.sqrt(np.mean((member - center) ** 2))
    assert store.read("sketch/quality/distance")[0] == pytest.approx(expected, rel=1e-5)


def test_verify_agrees_with_cryodrgn(finished):
    verdict = verify(finished, 2)
    assert verdict.sound
    assert verdict.error_again == 0
    assert verdict.error_cryodrgn < 1e-5


def test_info_and_plan(finished, adk_workdir, tmp_path):
    found = describe(finished.directory)
    assert found["next"] is None
    assert found["volumes_done"] == N
    cost = cost_of_run(adk_workdir, 14, tmp_path, n_workers=2)
    assert cost.box_size == 48
    assert cost.frequencies == pytest.approx(2 / 3 * np.pi * 24**3, rel=0.01)
    volumes = 532 * 48**3 * 4
    assert cost.stages["generate"].disk_bytes == pytest.approx(volumes, rel=1e-3)
    assert 0 < cost.seconds_a_volume < 60


def test_decode_reproduces_the_reference_maps(adk_workdir, tmp_path):
    paths = decode_to_maps(adk_workdir, 14, adk_workdir / "reference" / "z.txt", tmp_path / "maps")
    assert [path.name for path in paths] == ["vol_001.mrc", "vol_002.mrc", "vol_003.mrc"]
    for path in paths:
        with (
            mrcfile.open(path) as ours,
            mrcfile.open(adk_workdir / "reference" / path.name) as theirs,
        ):
            error = np.linalg.norm(ours.data - theirs.data) / np.linalg.norm(theirs.data)
            assert error < 1e-5
            assert ours.voxel_size.x == pytest.approx(2.5)


def test_the_record_holds_what_made_the_run(finished):
    record = json.loads(json.dumps(dict(finished.store.group.attrs["scapedist"])))
    assert set(record["stages"]) == {"sketch", "generate", "mask", "pca", "states", "report"}
    for stage in record["stages"].values():
        assert stage["fingerprint"]
        assert stage["versions"]["torch"]
        assert stage["seconds"] >= 0
    model = open_model(record["source"]["workdir"], 14)
    assert record["source"]["hashes"] == model.file_hashes()


def test_a_second_s_work_starts_no_workers(adk_workdir, tmp_path):
    """Components and states of few volumes are found sooner than workers start."""
    run = Run.create(adk_workdir, 14, tmp_path / "run")
    run.sketch(size=12, quality_groups=0).generate(box_size=8).mask()
    with open_workers(2) as workers:
        run.pca(workers, components=2).states(workers, states=2)
        assert workers._starting is None
