"""Embeddings of a run: the same from any workers, resumed, checked, applied to new latents."""

import json
import shutil
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from random_model import copy_with_particles
from scipy.spatial.distance import cdist

from scapedist.analysis.agreement import agreement
from scapedist.errors import InputError, RunError
from scapedist.landscape import Run
from scapedist.landscape.verify import describe
from scapedist.particles import embed, place
from scapedist.particles.exact import exact_batch
from scapedist.report.all_particles import landscape_maps
from scapedist.store import RowFile, row_file
from scapedist.workers import Serial, open_workers

N, TOLERANCE = 3000, 1e-2


@pytest.fixture(scope="module")
def base(adk_workdir, tmp_path_factory):
    """A run of 3,000 particles with components and states, not embedded; for copying."""
    place = tmp_path_factory.mktemp("base")
    workdir = copy_with_particles(adk_workdir, 14, slice(N), place / "model")
    run = Run.create(workdir, 14, place / "run")
    run.sketch(size=120, quality_groups=0).generate(box_size=16).mask().pca(components=8)
    return run.states(states=4).directory


@pytest.fixture(scope="module")
def embedded(base, tmp_path_factory):
    """The same, embedded by all methods that are fast, with error bars; for reading."""
    output = tmp_path_factory.mktemp("embedded") / "run"
    shutil.copytree(base, output)
    run = Run(output)
    run.embed(tolerance=TOLERANCE, error_bars=True).embed(method="mlp")
    run.crosscheck(sample=150)
    run.report()
    return run


@pytest.fixture
def few(adk_workdir, tmp_path):
    """A run of 60 particles."""
    run = Run.create(
        copy_with_particles(adk_workdir, 14, slice(60), tmp_path / "few"), 14, tmp_path / "run"
    )
    run.sketch(size=12, quality_groups=0).generate(box_size=16).mask().pca(components=5)
    return run.states(states=3)


def exact_of(run, particles):
    return run.embedder().exact_rows(particles, "")


def test_reduced_is_as_near_to_exact_as_it_says(embedded):
    store = embedded.store
    results = store.beside["embedding/reduced"]["results"]
    assert results["reached"]
    assert results["relative_error"] <= TOLERANCE
    used = store.read("embedding/map/training_particle")
    held = store.read("embedding/map/held_out_particle")
    unseen = np.setdiff1d(np.arange(N), np.concatenate([used, held]))
    particles = np.sort(np.random.default_rng(5).choice(unseen, 300, replace=False))
    exact, missed = exact_of(embedded, particles)
    found = store.read("embedding/reduced/coordinates")[particles]
    assert found.shape == (300, 8)
    true = agreement(found, exact)["relative_error"]
    assert results["relative_error"] / 2 < true < 2 * results["relative_error"]
    kept = ~store.read("embedding/reduced/exact")[particles]
    error = np.linalg.norm(found - exact, axis=1)[kept]
    stated = store.read("embedding/reduced/error")[particles][kept]
    assert np.corrcoef(np.log(error), np.log(stated))[0, 1] > 0.4
    residual = store.read("embedding/reduced/residual")[particles]
    assert np.corrcoef(np.log(residual), np.log(missed))[0, 1] > 0.8
    assert 0.7 < np.median(residual / missed) < 1.4


def test_uncertain_particles_are_decoded_and_marked(embedded):
    store = embedded.store
    marked = np.flatnonzero(store.read("embedding/reduced/exact"))
    assert len(marked) == store.beside["embedding/reduced"]["results"]["decoded_exactly"]
    some = marked[:5]
    exact, missed = exact_of(embedded, some)
    found = store.read("embedding/reduced/coordinates")[some]
    np.testing.assert_array_equal(found, exact.astype(np.float32))
    np.testing.assert_array_equal(store.read("embedding/reduced/residual")[some], missed)
    assert (store.read("embedding/reduced/error")[some] == 0).all()
    threshold = store.beside["embedding/map"]["results"]["threshold"]
    assert store.read("embedding/reduced/error").max() <= threshold * (1 + 1e-6)


def test_reduced_is_the_same_from_any_number_of_workers(embedded, base, tmp_path):
    shutil.copytree(base, tmp_path / "run")
    run = Run(tmp_path / "run")
    with open_workers(2) as workers:
        run.embed(workers, tolerance=TOLERANCE)
    for name in ("coordinates", "residual", "error", "exact"):
        ours, theirs = (r.store.read(f"embedding/reduced/{name}") for r in (run, embedded))
        np.testing.assert_array_equal(ours, theirs)


def test_the_sketchs_residual_is_that_of_its_volumes(few):
    """Also of volumes left out of the components."""
    few.pca(components=3, exclude_states=(1,)).states(states=2).embed(method="exact")
    store = few.store
    included, rows = store.read("components/included"), store.read("sketch/particle")
    assert 0 < included.sum() < len(included)
    found = store.read("sketch/residual")
    np.testing.assert_allclose(found, store.read("embedding/exact/residual")[rows], rtol=1e-4)
    gram = store.read("components/gram")
    coordinates = store.read("sketch/coordinates")[included]
    np.testing.assert_allclose(
        found[included], np.diag(gram) - np.square(coordinates).sum(1), rtol=1e-12
    )


def test_exact_is_the_same_from_any_number_of_workers_and_resumes(few, tmp_path, monkeypatch):
    shutil.copytree(few.directory, tmp_path / "other")
    few.embed(method="exact")
    other = Run(tmp_path / "other")
    calls = []

    def failing(shared, task):
        calls.append(len(task))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return exact_batch(shared, task)

    monkeypatch.setattr(embed, "exact_batch", failing)
    with pytest.raises(KeyboardInterrupt):
        other.embed(method="exact")
    assert "embedding/exact" not in other.store.beside
    monkeypatch.undo()
    done = 60 - len(other.embedder().exact_file().missing(np.arange(60)))
    assert done == 1 + 8 + 8  # the check of the decoder, two whole batches
    with open_workers(2) as workers:
        other.embed(workers, method="exact")
    for name in ("coordinates", "residual"):
        ours, theirs = (r.store.read(f"embedding/exact/{name}") for r in (few, other))
        np.testing.assert_array_equal(ours, theirs)
    assert not list(other.directory.glob("*.rows"))


def test_fewer_components_put_the_rest_into_the_residual(few):
    few.embed(method="exact")
    whole = few.store.read("embedding/exact/coordinates")
    missed = few.store.read("embedding/exact/residual")
    few.embed(method="exact", components=2)
    np.testing.assert_array_equal(few.store.read("embedding/exact/coordinates"), whole[:, :2])
    expected = missed + np.square(whole[:, 2:].astype(float)).sum(1)
    np.testing.assert_allclose(few.store.read("embedding/exact/residual"), expected, rtol=1e-5)


def test_a_second_call_does_nothing(embedded):
    before = (embedded.directory / "landscape.zarr" / "zarr.json").read_bytes()
    embedded.embed(tolerance=TOLERANCE, error_bars=True)
    embedded.crosscheck(sample=150)
    assert (embedded.directory / "landscape.zarr" / "zarr.json").read_bytes() == before


def test_a_smaller_box_says_how_wrong_it_is(few):
    few.embed(method="exact").embed(method="exact", box_size=10)
    exact = few.store.read("embedding/exact/coordinates")
    found = few.store.read("embedding/exact_10/coordinates")
    stated = few.store.beside["embedding/exact_10"]["results"]["relative_error"]
    assert agreement(found, exact)["relative_error"] == pytest.approx(stated, rel=1e-3)
    assert 1e-3 < stated < 0.7
    with pytest.raises(InputError, match="even and below that of the volumes, 16"):
        few.embed(method="exact", box_size=16)
    few.crosscheck(sample=None)
    assert list(few.store.beside["crosscheck"]["results"]["methods"]) == ["exact_10"]


def test_runs_in_one_process_keep_apart(few, tmp_path):
    """Workers remember components and maps: those of another run must not be taken for ours."""
    shutil.copytree(few.directory, tmp_path / "other")
    few.embed(method="exact", box_size=14)
    other = Run(tmp_path / "other").pca(components=3).embed(method="exact", box_size=14)
    ours = few.store.read("embedding/exact_14/coordinates")
    theirs = other.store.read("embedding/exact_14/coordinates")
    np.testing.assert_allclose(theirs, ours[:, :3], rtol=1e-4, atol=1e-4)


def test_new_latents_are_embedded_by_the_map_alone(embedded, tmp_path):
    latents = embedded.store.read("latents")[100:140]
    found = embedded.embed_latents(latents)
    marked = embedded.store.read("embedding/reduced/exact")[100:140]
    held = embedded.store.read("embedding/reduced/coordinates")[100:140]
    np.testing.assert_allclose(found["coordinates"][~marked], held[~marked], atol=1e-4)
    states = embedded.store.read("particles/state")[100:140]
    np.testing.assert_array_equal(found["state"][~marked], states[~marked])
    assert set(found) == {
        "coordinates", "residual", "error", "nearest_volume", "distance", "state", "margin",
    }  # fmt: skip
    with pytest.raises(InputError, match="latent dimension, 8"):
        embedded.embed_latents(latents[:, :3])
    latents[3, 1] = np.nan
    with pytest.raises(InputError, match="1 rows are not, row 3 first"):
        embedded.embed_latents(latents)


def test_new_latents_need_a_map(few):
    with pytest.raises(RunError, match=r"embedded by the reduced map.*--method reduced"):
        few.embed_latents(np.zeros((1, 8), np.float32))


def test_the_mlp_learns_from_the_same_volumes(embedded):
    results = embedded.store.beside["embedding/mlp"]["results"]
    map_results = embedded.store.beside["embedding/map"]["results"]
    assert results["training_volumes"] == map_results["training_volumes"]
    assert results["epochs"] == 50
    check = embedded.store.beside["crosscheck"]["results"]["methods"]
    assert check["mlp"]["r2"][0] > 0.9
    assert check["mlp"]["relative_error"] > 3 * check["reduced"]["relative_error"]


def test_the_crosscheck_is_what_exact_decoding_says(embedded):
    store = embedded.store
    written = json.loads((embedded.directory / "crosscheck.json").read_text())
    assert written == store.beside["crosscheck"]["results"]
    particles = store.read("crosscheck/particle")
    assert len(particles) == written["sample"] == 150
    seen = store.read("embedding/map/training_particle")
    assert not np.isin(particles, seen).any()
    exact, _ = exact_of(embedded, particles)
    for method in ("reduced", "mlp"):
        found = store.read(f"embedding/{method}/coordinates")[particles]
        figures = written["methods"][method]
        assert figures["r2"] == pytest.approx(agreement(found, exact)["r2"])
        worst = figures["worst"][0]["particle"]
        error = np.linalg.norm(found - exact, axis=1)
        assert particles[error.argmax()] == worst
        assert 0 <= figures["states_changed"] <= 1
    for name in ("sample", "methods", "exact_seconds_a_particle"):
        assert name in written


def test_error_bars_are_those_of_exact_decoding(embedded):
    covariance = embedded.store.read("embedding/reduced/covariance")
    assert covariance.shape == (N, 8, 8)
    results = embedded.store.beside["embedding/reduced"]["results"]
    assert results["covariance_relative_error"] < 0.1
    # random draws from the posterior, decoded exactly, one particle
    row = 1234
    variance = embedded.model.latent_variance[row]
    latent = embedded.store.read("latents")[row]
    rng = np.random.default_rng(0)
    draws = latent + rng.normal(size=(400, 8)) * np.sqrt(variance)
    embedder = embedded.embedder()
    exact = exact_batch(embedder.projection, draws.astype(np.float32))[:, :8]
    sampled = np.sqrt(np.diag(np.cov(exact.T.astype(float))))
    ours = np.sqrt(np.diag(covariance[row]))
    np.testing.assert_allclose(ours[:3], sampled[:3], rtol=0.25)


def test_particles_near_a_border_are_told_by_their_posterior(embedded):
    store = embedded.store
    within = store.read("particles/within_posterior")
    assert store.beside["particles"]["results"]["within_posterior"] == within.sum()
    assert 0 < within.sum() < N / 2
    margin = store.read("particles/margin")
    assert np.median(margin[within]) < np.median(margin[~within])


def test_states_by_own_volume(embedded):
    store = embedded.store
    state, labels = store.read("particles/state"), store.read("states/label")
    sketch = store.read("sketch/particle")
    same = state[sketch] == labels
    assert same.mean() > 0.95
    results = store.beside["particles"]["results"]
    by_group = labels[store.read("sketch/assignment")]
    assert results["differ"] == (state != by_group).sum()
    assert results["n_particles"] == np.bincount(state, minlength=4).tolist()
    assert results["n_particles_by_group"] == np.bincount(by_group, minlength=4).tolist()
    margin = store.read("particles/margin")
    assert margin.min() >= 0
    assert margin.max() <= 1
    lists = sorted((embedded.directory / "states" / "by_volume").glob("*_rows.pkl"))
    assert len(lists) == len(set(state.tolist()))


def test_two_workers_place_particles_as_this_process_does(embedded, monkeypatch):
    monkeypatch.setattr(place, "WRITE_ROWS", 700)
    store, told = embedded.store, []
    here = place.Placing(store, Serial(), lambda *done: told.append(done)).everyone
    assert told[-1] == ("placing particles", N, N)
    np.testing.assert_array_equal(here.placed.state, store.read("particles/state"))
    np.testing.assert_array_equal(here.placed.nearest, store.read("missed/nearest_volume"))
    monkeypatch.setattr(place, "FEW_PAIRS", 0)
    with open_workers(2) as workers:
        there = place.Placing(store, workers, embedded.progress).everyone
    for name in ("group_distance", "total", "products"):
        np.testing.assert_array_equal(getattr(there, name), getattr(here, name))
    for name in ("nearest", "distance", "state", "margin", "room"):
        np.testing.assert_array_equal(getattr(there.placed, name), getattr(here.placed, name))


def test_few_particles_are_placed_without_workers(embedded):
    class Idle(Serial):
        def run(self, work, shared, tasks):
            raise AssertionError("workers were started")

    placing = place.Placing(embedded.store, Idle(), embedded.progress)
    assert len(placing.everyone.placed.state) == N
    assert placing.everyone is placing.everyone  # of one pass


def test_what_was_found_missed_is_by_brute_force(embedded):
    store = embedded.store
    coordinates = store.read("embedding/reduced/coordinates").astype(np.float64)
    length = np.sqrt(store.read("embedding/reduced/residual").astype(np.float64))
    theirs = np.column_stack([store.read("sketch/coordinates"),
                              np.sqrt(store.read("sketch/residual"))])  # fmt: skip
    distance = cdist(np.column_stack([coordinates, length]), theirs)
    np.testing.assert_array_equal(store.read("missed/nearest_volume"), distance.argmin(1))
    np.testing.assert_allclose(store.read("missed/distance"), distance.min(1), atol=1e-4)
    own = distance[np.arange(N), store.read("sketch/assignment")]
    np.testing.assert_allclose(store.read("missed/group_distance"), own, rtol=1e-5, atol=1e-6)
    assert (store.read("missed/group_distance") >= store.read("missed/distance")).all()
    axes = np.linalg.svd(coordinates - coordinates.mean(0), compute_uv=False)
    np.testing.assert_allclose(store.read("axes/variance"), axes**2 / (N - 1), rtol=1e-9)


def test_other_states_place_the_particles_anew(embedded, tmp_path):
    shutil.copytree(embedded.directory, tmp_path / "run")
    run = Run(tmp_path / "run")
    run.states(states=2)
    assert "particles" in run.store.beside
    assert "crosscheck" not in run.store.beside
    assert run.store.read("particles/state").max() == 1
    run.pca(components=4)
    assert not run.store.beside
    assert "embedding" not in run.store


def test_what_was_left_out_is_missed_and_the_sketch_grows(adk_workdir, tmp_path):
    truth = np.load(adk_workdir / "truth.npz")["state"]
    lidless = np.flatnonzero(truth == 1)
    np.save(tmp_path / "lidless.npy", lidless)
    run = Run.create(adk_workdir, 14, tmp_path / "run")
    run.sketch(size=80, quality_groups=0, exclude_particles=tmp_path / "lidless.npy")
    run.generate(box_size=16).mask().pca(components=8).states(states=4)
    run.embed(tolerance=TOLERANCE)
    missed = run.store.read("missed/missed_particle")
    assert len(missed) > 100
    assert np.mean(truth[missed] == 1) > 0.8
    highest = np.argsort(-run.store.read("embedding/reduced/residual"))[:800]
    assert np.mean(truth[highest] == 1) > 0.6
    volumes = run.store.read("volumes/0")
    groups = run.store.beside["missed"]["results"]["groups"]
    assert sum(groups) == len(missed)
    assert len(list((run.directory / "maps" / "missed").glob("*.mrc"))) == len(groups)
    np.save(tmp_path / "lidless.npy", lidless[:3])
    with pytest.raises(RunError, match="file of excluded particles"):
        run.grow()
    np.save(tmp_path / "lidless.npy", lidless)
    added = run.grow()
    assert 0 < added <= 24
    np.testing.assert_array_equal(run.store.read("volumes/0")[:80], volumes)
    assert run.store.array("volumes/0").shape[0] == 80 + added
    assert (truth[run.store.read("sketch/particle")[80:]] > 0).sum() > added / 2  # the rare, too
    assert not run.store.beside  # other components
    run.embed(tolerance=TOLERANCE)
    again = run.store.read("missed/missed_particle")
    assert np.isin(lidless, again).sum() < np.isin(lidless, missed).sum() / 2
    assert run.sketch(size=80).store.array("sketch/particle").shape[0] == 80 + added


def test_only_whole_volumes_of_the_model_can_grow(adk_workdir, tmp_path):
    workdir = copy_with_particles(adk_workdir, 14, slice(60), tmp_path / "model")
    run = Run.create(workdir, 14, tmp_path / "run")
    run.sketch(size=12, quality_groups=0).generate(box_size=12, store="masked").mask()
    run.pca(components=3)
    with pytest.raises(RunError, match="by what an embedding finds missed"):
        run.grow()
    run.embed(method="exact")
    with pytest.raises(RunError, match="whole volumes are stored"):
        run.grow()


def test_an_embedding_outdates_the_report(embedded, tmp_path):
    shutil.copytree(embedded.directory, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert describe(run.directory)["next"] is None
    run.embed(method="mlp", variant="cryodrgn", seed=1)
    assert describe(run.directory)["next"] == f"scapedist report {run.directory}"
    run.report()
    assert describe(run.directory)["next"] is None


def test_maps_of_the_landscape_count_every_particle_once():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(3000, 3))
    state = (points[:, 0] > 0).astype(np.int32)
    maps = landscape_maps(points, {"state": state, "value": points[:, 1]}, 2)
    assert set(maps) == {(0, 1), (0, 2), (1, 2)}
    drawn = maps[0, 1]
    counts = drawn["layers"]["particles"]
    assert 2980 < np.nansum(counts) <= 3000
    x = drawn["x"][0] + drawn["x"][1] * np.arange(counts.shape[1])
    there = np.isfinite(drawn["layers"]["state"])
    right = np.broadcast_to(x > drawn["x"][1], counts.shape) & there
    assert (drawn["layers"]["state"][right] == 1).all()
    y = drawn["y"][0] + drawn["y"][1] * np.arange(len(counts))
    value = drawn["layers"]["value"]
    assert np.nanmax(np.abs(value - y[:, None])) <= drawn["y"][1]


def test_the_report_shows_all_particles(embedded):
    page = (embedded.directory / "report.html").read_text()
    assert "3,000 particles, embedded by evaluating" in page
    for word in ("States by own volume", "What the sketch missed", "Cross-check", "posterior"):
        assert word in page
    for name in ("all_particles.png", "crosscheck.png"):
        assert (embedded.directory / "plots" / name).stat().st_size > 5000


def test_rows_survive_a_cut_and_a_flipped_bit(tmp_path):
    path = tmp_path / "some.rows"
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    file = RowFile(path, "f", 3)
    file.append(np.array([7, 2]), rows[:2])
    file.append(np.array([9, 4]), rows[2:])
    np.testing.assert_array_equal(file.read(np.array([4, 7])), rows[[3, 0]])
    again = RowFile(path, "f", 3)
    assert again.missing(np.array([2, 3, 4])).tolist() == [3]
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - 5)
    cut = RowFile(path, "f", 3)
    assert cut.missing(np.array([7, 2, 9, 4])).tolist() == [4]
    cut.append(np.array([4]), rows[3:])
    np.testing.assert_array_equal(RowFile(path, "f", 3).read(np.array([4])), rows[3:])
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    assert RowFile(path, "f", 3).missing(np.array([7, 2, 9, 4])).tolist() == [4]
    assert RowFile(path, "other", 3).missing(np.array([7])).tolist() == [7]


@pytest.mark.parametrize("block_bytes", [1, 50, 2**22])
def test_rows_are_checked_block_by_block(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(row_file, "BLOCK_BYTES", block_bytes)
    path, rng = tmp_path / "some.rows", np.random.default_rng(0)
    keys, rows = rng.permutation(1000)[:60], rng.normal(size=(60, 3)).astype(np.float32)
    file = RowFile(path, "f", 3)
    for start in range(0, 60, 7):
        file.append(keys[start : start + 7], rows[start : start + 7])
    file = RowFile(path, "f", 3)
    np.testing.assert_array_equal(file.read(keys[::-1]), rows[::-1])
    every = np.arange(1100)
    np.testing.assert_array_equal(file.missing(every), np.setdiff1d(every, keys))
    with pytest.raises(KeyError, match="1050"):
        file.read(np.array([keys[0], 1050]))
    with path.open("r+b") as stream:  # a byte of row 31
        stream.seek(len(b"f 3\n") + 31 * 24 + 9)
        stream.write(b"\xff")
    cut = RowFile(path, "f", 3)
    np.testing.assert_array_equal(cut.read(keys[:31]), rows[:31])
    np.testing.assert_array_equal(cut.missing(keys), keys[31:])
    assert path.stat().st_size == len(b"f 3\n") + 31 * 24


def test_rows_are_laid_out_as_they_were(tmp_path):
    """Files that people have are read: key, values, CRC-32, after a line of text."""
    path, data = tmp_path / "some.rows", b""
    for key, value in ((5, 0.5), (2, -1.25)):
        row = struct.pack("<qff", key, value, 2 * value)
        data += row + struct.pack("<I", zlib.crc32(row))
    path.write_bytes(b"abc 2\n" + data + b"torn")
    file = RowFile(path, "abc", 2)
    assert file.read(np.array([2, 5])).tolist() == [[-1.25, -2.5], [0.5, 1.0]]
    RowFile(tmp_path / "other.rows", "abc", 2).append(np.array([5, 2]), file.read(np.array([5, 2])))
    assert (tmp_path / "other.rows").read_bytes() == b"abc 2\n" + data


def test_many_rows_take_little_memory(tmp_path):
    n = 200_000
    path = tmp_path / "some.rows"
    RowFile(path, "f", 3).append(np.arange(n), np.zeros((n, 3), np.float32))
    assert path.stat().st_size > 4.5 * 2**20
    tracemalloc.start()
    file = RowFile(path, "f", 3)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not len(file.missing(np.arange(n)))
    assert held < 8 * n  # a dictionary takes 100 bytes a row
    assert peak < 32 * 2**20


def test_a_row_that_is_there_twice_counts_as_it_was_last(tmp_path):
    path, rows = tmp_path / "some.rows", np.arange(12, dtype=np.float32).reshape(4, 3)
    RowFile(path, "f", 3).append(np.array([7, 2, 7]), rows[:3])
    file = RowFile(path, "f", 3)
    file.append(np.array([4]), rows[3:])
    for again in (file, RowFile(path, "f", 3)):
        np.testing.assert_array_equal(again.read(np.array([7, 2, 4])), rows[[2, 1, 3]])
