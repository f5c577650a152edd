"""Embeddings that cannot be had: one sentence, and nothing lost."""

import json
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from harm import SMALL, content, flip
from random_model import copy_with_particles, write_random_model

from scapedist.errors import InputError
from scapedist.files.mrc import write_map
from scapedist.landscape import Run


@pytest.fixture
def run(finished, tmp_path):
    """A finished run without an embedding, to be changed."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def withdraw(directory, stage):
    store = Run(directory).store
    store.begin_stage(stage, (store.last_settings(stage) or {"settings": {}})["settings"])


@pytest.mark.parametrize("command", ["embed", "crosscheck"])
@pytest.mark.parametrize("stage", ["generate", "mask", "pca"])
def test_before_the_components_exist(run, refused, command, stage):
    withdraw(run, stage)
    before = content(run / "landscape.zarr")
    refused("An embedding needs components.*scapedist pca", command, run, "--workers", 1)
    assert content(run / "landscape.zarr") == before


def test_components_of_another_mask(run, refused):
    store = Run(run).store
    mask = store.read("mask")
    mask[0, 0, :3] = 1 - mask[0, 0, :3]
    store.write("mask", mask, ("z", "y", "x"))
    refused("Components live on the mask's voxels", "embed", run, "--workers", 1)


def test_volumes_that_the_model_does_not_decode(run, refused):
    store = Run(run).store
    store.write("sketch/coordinates", -store.read("sketch/coordinates"), ("volume", "component"))
    refused("not what this model decodes", "embed", run, "--method", "exact", "--workers", 1)


@pytest.mark.parametrize("flip", [False, True])
def test_maps_that_the_model_does_not_decode_leave_a_report(run, scapedist, tmp_path, flip):
    """Maps of the other hand: all that does without the decoder is done, then it is told."""
    made = few_particles(run, 40)
    maps = tmp_path / "kmeans6"
    rows = np.arange(0, 36, 6)
    for number, volume in enumerate(made.model.decode(made.store.read("latents")[rows], 16)):
        write_map(maps / f"vol_{number:03d}.mrc", volume[::-1] if flip else volume, 7.5)
    np.savetxt(maps / "centers_ind.txt", rows, fmt="%d")
    (maps / "labels.pkl").write_bytes(pickle.dumps(np.arange(40) * 6 // 40))
    workdir, output = made.store.source["workdir"], tmp_path / "new"
    options = ["--maps", maps, "--states", 2, "--components", 3, "--workers", 1]
    done = scapedist("run", workdir, 14, "--output", output, *options)
    assert (output / "report.html").is_file()
    if flip:
        assert done.code == 2
        assert "not what this model decodes" in done.err
    else:
        assert done.code == 0, done.err
        assert "embedding/exact: 40 particles" in done.out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--method", "umap"], "method is one of reduced, exact, mlp"),
        (["--variant", "x"], "variant is one of paper, cryodrgn"),
        (["--components", 0], "a component or more"),
        (["--components", 40], r"at most as many components as were fitted, 4.*--components 40"),
        (["--tolerance", 0], "between 0 and 1"),
        (["--tolerance", "nan"], "between 0 and 1"),
        (["--seed", -1], "A seed is 0 or more"),
        (["--box-size", 8], "for --method exact"),
        (["--method", "exact", "--box-size", 16], "below that of the volumes, 16"),
        (["--method", "exact", "--box-size", 7], "even and below"),
        (["--method", "mlp", "--error-bars"], "for --method reduced"),
        (["--memory-limit", "1MiB"], "a worker may use"),
        (["--latents", "missing.npy"], "cannot be read as latents|embedded by the reduced map"),
    ],
)
def test_options_that_cannot_be(run, refused, option, message):
    before = content(run / "landscape.zarr")
    refused(message, "embed", run, "--workers", 1, *option)
    assert content(run / "landscape.zarr") == before


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--embed", "umap"], "method is one of reduced, exact, mlp"),
        (["--embed", "exact", "--error-bars"], "for --method reduced"),
        (["--embed", "none", "--error-bars"], "for --embed reduced. Nothing is embedded"),
        (["--error-bars", "--clip-negative"], "does not apply: components of densities clipped"),
        (
            ["--embed", "reduced", "--clip-negative"],
            "does not apply: components of densities clipped",
        ),
        (["--tolerance", 2], "between 0 and 1"),
    ],
)
def test_embeddings_that_a_run_refuses_before_any_work(
    adk_workdir, tmp_path, refused, option, message
):
    refused(message, "run", adk_workdir, 14, "--output", tmp_path / "run", *option)
    assert not (tmp_path / "run").exists()


def test_error_bars_are_refused_before_volumes_are_decoded(tmp_path, refused):
    workdir = write_random_model(tmp_path / "model", "train_dec", box_size=16, zdim=2)
    options = ["--output", tmp_path / "run", "--workers", 1, "--error-bars"]
    refused("none.*means alone", "run", workdir, 19, *options)
    assert "sketch" not in Run(tmp_path / "run").store.stages


def test_a_tolerance_that_cannot_be_met(run, refused):
    """The sketch is 12 volumes; the particles, cut to 400, teach no more than 97 others."""
    few_particles(run, 400)
    message = refused(
        r"did not reach the tolerance 1e-09.*relative error is .*--method exact",
        "embed", run, "--workers", 1, "--tolerance", 1e-9,
    )  # fmt: skip
    assert "0.000 " not in message
    store = Run(run).store
    assert "embedding/reduced" not in store.beside
    assert "embedding/map" in store.beside  # what was learnt is kept
    held = store.beside["embedding/map"]["results"]
    assert not held["reached"]


def few_particles(run, n):
    """A run whose model and latents have their first n particles alone."""
    store = Run(run).store
    model = copy_with_particles(store.source["workdir"], 14, slice(n), run.parent / "model")
    shutil.rmtree(run)
    made = Run.create(model, 14, run)
    made.sketch(size=12, quality_groups=0).generate(box_size=16).mask().pca(components=4)
    return made.states(states=3)


def test_clipped_densities_have_no_reduced_embedding(run, refused, scapedist, adk_workdir):
    there = ["run", adk_workdir, 14, "--output", run.parent / "new", *SMALL[:-2]]
    refused("does not apply: components of densities clipped", *there, "--clip-negative",
            "--embed", "reduced")  # fmt: skip
    assert not (run.parent / "new").exists()
    Run(run).pca(clip_negative=True).states()
    refused("does not apply", "embed", run, "--workers", 1)


def test_error_bars_need_a_posterior(run):
    made = few_particles(run, 100)
    made.model.latent_variance = None
    with pytest.raises(InputError, match="This model has none"):
        made.embed(error_bars=True)
    assert not made.store.beside


def test_new_latents_that_cannot_be(run, refused, scapedist, tmp_path):
    few_particles(run, 400)
    assert scapedist("embed", run, "--workers", 1, "--tolerance", 0.5).code == 0
    for rows, message in (
        (np.zeros((2, 3)), "latent dimension, 8"),
        (np.full((2, 8), np.nan), "2 rows are not, row 0 first"),
    ):
        np.save(tmp_path / "z.npy", rows)
        refused(message, "embed", run, "--latents", tmp_path / "z.npy")
    np.save(tmp_path / "z.npy", np.zeros((3, 8)))
    done = scapedist("embed", run, "--latents", tmp_path / "z.npy")
    assert "3 latents embedded" in done.out
    found = np.load(tmp_path / "z.embedded.npz")
    assert found["coordinates"].shape == (3, 4)


def test_a_crosscheck_needs_something_to_check(run, refused, scapedist):
    refused("needs an embedding to check", "crosscheck", run, "--workers", 1)
    few_particles(run, 60)
    assert scapedist("embed", run, "--workers", 1, "--method", "mlp").code == 0
    refused("needs all of them embedded exactly", "crosscheck", run, "--workers", 1, "--sample", 0)


def test_a_killed_embedding_resumes(run):
    """SIGKILL while particles are decoded: the next call goes on, with the same result."""
    few_particles(run, 300)
    shutil.copytree(run, run.parent / "whole")
    program = [sys.executable, "-m", "scapedist.cli", "embed", str(run), "--method", "exact"]
    process = subprocess.Popen([*program, "--workers", "1"], stderr=subprocess.DEVNULL)
    rows = run / "embedding.exact.rows"
    for _ in range(2000):
        if rows.exists() and rows.stat().st_size > 1500:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert "embedding/exact" not in Run(run).store.beside
    size = rows.stat().st_size
    with rows.open("r+b") as stream:  # and the last row was half written
        stream.truncate(size - 3)
    Run(run).embed(method="exact")
    other = Run(run.parent / "whole").embed(method="exact")
    for name in ("coordinates", "residual"):
        ours = Run(run).store.read(f"embedding/exact/{name}")
        np.testing.assert_array_equal(ours, other.store.read(f"embedding/exact/{name}"))


def test_a_damaged_embedding_is_found_and_made_again(run, scapedist):
    few_particles(run, 60).embed(method="exact")
    before = Run(run).store.read("embedding/exact/coordinates")
    chunk = next((run / "landscape.zarr/embedding/exact/coordinates").rglob("c.0.0"))
    flip(chunk)
    done = scapedist("verify", run, "--sample", 0)
    assert done.code == 1
    assert "embedding/exact/coordinates" in done.out
    assert "embedding/exact" not in Run(run).store.beside
    Run(run).embed(method="exact")
    np.testing.assert_array_equal(Run(run).store.read("embedding/exact/coordinates"), before)


def test_info_lists_what_is_beside_the_stages(run, scapedist):
    few_particles(run, 60).embed(method="exact")
    out = scapedist("info", run).out
    for name in ("embedding/exact", "missed", "particles"):
        assert f"  {name} " in out
    json.dumps(Run(run).store.beside)
