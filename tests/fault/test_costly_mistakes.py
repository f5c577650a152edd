"""Mistakes that could cost volumes, or a run: nothing is lost, and what is damaged is mended."""

import shutil

import numpy as np
import pytest
import zarr
from harm import SKETCH, SMALL, assert_same_arrays, content, fill, flip, stages, write_mask

from scapedist.store import RunStore

MASK = [(5, 11)] * 3


@pytest.fixture
def masked_run(scapedist, adk_workdir, tmp_path):
    """A sketch whose volumes are stored inside a user's mask."""
    weights = np.zeros((16, 16, 16))
    weights[tuple(slice(*span) for span in MASK)] = 1
    path = write_mask(tmp_path / "m.mrc", weights)
    output = tmp_path / "run"
    assert scapedist("sketch", adk_workdir, 14, "--output", output, *SKETCH).code == 0
    store = ["--box-size", 16, "--store", "masked", "--mask", path]
    assert scapedist("generate", output, "--workers", 1, *store).code == 0
    return output


def test_no_list_of_particles(refused, adk_workdir, tmp_path):
    bad = ["--exclude-particles", tmp_path / "none.pkl"]
    output = tmp_path / "run"
    refused("none.pkl cannot be read", "sketch", adk_workdir, 14, "--output", output, *SKETCH, *bad)


@pytest.mark.parametrize("command", ["info", "generate", "mask", "states", "report"])
def test_a_run_killed_while_it_was_made(refused, tmp_path, command):
    RunStore(tmp_path / "run", "w-")
    more = ["--workers", 1] if command == "generate" else []
    refused("scapedist sketch", command, tmp_path / "run", *more)


def test_a_box_of_nothing(refused, adk_workdir, tmp_path):
    np.savetxt(tmp_path / "z.txt", np.zeros((1, 8)))
    there = [adk_workdir, 14, "--output", tmp_path / "run"]
    refused("It is 0", "run", *there, *SMALL, "--box-size", 0)
    refused("It is 0", "decode", *there, "--latents", tmp_path / "z.txt", "--box-size", 0)


@pytest.mark.parametrize("size", [0, -1, "nan", "inf"])
def test_a_pixel_of_nothing(refused, adk_workdir, tmp_path, size):
    np.savetxt(tmp_path / "z.txt", np.zeros((1, 8)))
    there = [adk_workdir, 14, "--output", tmp_path / "maps", "--latents", tmp_path / "z.txt"]
    refused("pixel size", "decode", *there, "--box-size", 16, "--pixel-size", size)
    there = [adk_workdir, 14, "--output", tmp_path / "run", *SMALL]
    refused("pixel size", "run", *there, "--pixel-size", size)


@pytest.mark.parametrize("mask", [["--mask", "none.mrc"], []])
def test_volumes_of_a_masked_store_outlive_another_mask(scapedist, masked_run, mask):
    before = content(masked_run)
    done = scapedist("generate", masked_run, "--workers", 1, *mask)
    assert done.code == (2 if mask else 0)
    assert content(masked_run) == before


def test_a_masked_store_takes_the_mask_that_it_has(scapedist, masked_run):
    done = scapedist("mask", masked_run)
    assert done.code == 0, done.err
    assert "216 voxels" in done.out


def test_volumes_outlive_another_list_of_particles(refused, scapedist, adk_workdir, tmp_path):
    output, rows = tmp_path / "run", tmp_path / "rows.txt"
    rows.write_text("1\n2\n")
    there = ["run", adk_workdir, 14, "--output", output, *SMALL, "--exclude-particles", rows]
    assert scapedist(*there).code == 0
    before = content(output)
    rows.write_text("1\n2\n3\n")
    refused("Choose another --output", *there)
    assert content(output) == before


@pytest.mark.parametrize("harm", ["flip", "remove"])
@pytest.mark.parametrize(
    "name",
    [
        "latents", "sketch/assignment", "sketch/quality/particle", "volumes/percentile", "mask",
        "components/gram", "states/mean",
    ],
)  # fmt: skip
def test_damage_of_any_array_is_found_and_mended(scapedist, adk_workdir, run, finished, name, harm):
    path = min((run / "landscape.zarr" / name).glob("c*"))
    flip(path) if harm == "flip" else path.unlink()
    found = scapedist("verify", run)
    assert found.code == 1, found.out + found.err
    assert f"damaged array: {name}" in found.out
    assert scapedist("run", adk_workdir, 14, "--output", run, *SMALL).code == 0
    assert_same_arrays(run, finished)


def test_volumes_of_something_else_are_not_sound(scapedist, run):
    volumes = zarr.open_array(run / "landscape.zarr/volumes/0", mode="r+")
    volumes[...] = volumes[...][::-1]
    found = scapedist("verify", run, "--sample", 12)
    assert found.code == 1, found.out
    assert "not those of this model" in found.out


def test_a_sample_below_zero(scapedist, run):
    assert scapedist("verify", run, "--sample", -1).code == 2


@pytest.mark.parametrize(
    "option",
    [
        ["--workers", 0],
        ["--sketch-size", 20_001],
        ["--sketch-size", -5],
        ["--store", "zip"],
        ["--store-dtype", "int8"],
        ["--batch-size", 0],
        ["--min-fraction", 2],
        ["--mask", "none.mrc"],
        ["--clip-negative", "--error-bars"],
    ],
)
def test_a_plan_of_what_cannot_be(scapedist, adk_workdir, option):
    done = scapedist("plan", adk_workdir, 14, *option)
    assert done.code == 2
    assert "--memory-limit" not in done.err


@pytest.mark.parametrize("option", ["--dilate", "--cosine-edge"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_mask_without_end(refused, run, option, value):
    before = content(run)
    refused("Å", "mask", run, option, value)
    assert content(run) == before


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_disk_that_fills_at_any_moment_of_the_states(refused, run, small_disk):
    disk_run = shutil.copytree(run, small_disk / "run")
    for free_kib in range(0, 120, 24):
        fill(small_disk, free_kib * 2**10)
        refused("is full|No space left", "states", disk_run, "--states", 4)
        (small_disk / "ballast").unlink()
        shutil.rmtree(disk_run)
        shutil.copytree(run, disk_run)


def test_a_command_that_is_stopped(scapedist, adk_workdir, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("scapedist.landscape.run.Run.create", stop)
    done = scapedist("run", adk_workdir, 14, "--output", tmp_path / "run", *SMALL)
    assert done.code == 130
    assert "scapedist: stopped. The same command again resumes." in done.err


@pytest.mark.parametrize(
    "option",
    [
        ["--states", 13],
        ["--states", 0],
        ["--linkage", "centroid"],
        ["--components", 0],
        ["--mask", "none.mrc"],
        ["--min-fraction", 2],
    ],
)
def test_bad_options_of_later_stages_cost_nothing(refused, adk_workdir, tmp_path, option):
    there = [adk_workdir, 14, "--output", tmp_path / "run"]
    refused("", "run", *there, *SMALL, *option)
    assert "generate" not in stages(tmp_path / "run")


def test_a_memory_limit_too_small_for_local_workers(refused, adk_workdir, tmp_path):
    there = [adk_workdir, 14, "--output", tmp_path / "run", *SMALL]
    limit = ["--workers", 2, "--memory-limit", "100MB"]
    refused("may use 0.09 GiB.*Use --memory-limit", "run", *there, *limit)
