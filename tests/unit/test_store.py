"""A run's Zarr group: what is missing or damaged is told, and nothing half-written is trusted."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

import scapedist
from scapedist.errors import ResourceError, RunError
from scapedist.files.aside import disk_errors, write_text
from scapedist.settings import STAGES
from scapedist.store import GROUP, RunStore, read_rows, write_row


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "run", "w-")


def chunk(store: RunStore, name: str, number: str = "0") -> Path:
    """The file of one chunk of an array."""
    array = store.array(name)
    return store.directory / GROUP / name / ".".join(["c", number, *["0"] * (array.ndim - 1)])


def full_disk(directory: Path, free_bytes: int = 0):
    """Mount a small file system of its own there, nearly full; skip where that is not allowed."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(directory)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount).returncode:
        pytest.skip("mounting a small file system needs root")
    with (directory / "ballast").open("wb") as stream:
        stream.write(bytes(4 * 2**20 - free_bytes))


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    yield place
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


# -- arrays


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i8", "i4", "bool"])
def test_what_is_written_is_read(store, dtype):
    data = (np.random.default_rng(0).random((7, 3)) * 9).astype(dtype)
    store.write("a/b", data, ("volume", "component"))
    again = RunStore(store.directory)
    assert "a/b" in again
    found = again.read("a/b")
    np.testing.assert_array_equal(found, data)
    assert found.dtype == data.dtype
    assert again.array("a/b").metadata.to_dict()["dimension_names"] == ("volume", "component")
    shorter = data[:2]
    store.write("a/b", shorter, ("volume", "component"))
    np.testing.assert_array_equal(again.read("a/b"), shorter)


def test_zarr_reads_it_without_us(store):
    data = np.arange(24.0).reshape(2, 3, 4)
    store.write("mask", data, ("z", "y", "x"))
    array = zarr.open_array(store.directory / GROUP / "mask", mode="r")
    np.testing.assert_array_equal(array[...], data)
    metadata = json.loads((store.directory / GROUP / "mask" / "zarr.json").read_text())
    assert [codec["name"] for codec in metadata["codecs"]] == ["bytes", "zstd", "crc32c"]
    assert metadata["dimension_names"] == ["z", "y", "x"]


def test_an_array_of_nothing(store):
    store.write("sketch/quality/group", np.zeros(0, np.int32), ("sample",))
    assert store.read("sketch/quality/group").shape == (0,)


def test_maps_have_a_chunk_each(store):
    store.write("states/mean", np.ones((3, 4, 4, 4), np.float32), ("state", "z", "y", "x"))
    assert store.array("states/mean").chunks == (1, 4, 4, 4)


def test_a_missing_chunk_is_nan_and_a_zero_chunk_is_zero(store):
    array = store.create("volumes/0", (4, 2, 2, 2), "f4", ("t", "z", "y", "x"), (1, 2, 2, 2))
    array[1] = 0.0
    array[2] = 5.0
    assert chunk(store, "volumes/0", "1").exists()
    found = read_rows(store.array("volumes/0"))
    assert np.isnan(found[[0, 3]]).all()
    assert (found[1] == 0).all()
    assert (found[2] == 5).all()


def test_half_precision_is_nan_too(store):
    store.create("volumes/0", (2, 3), "float16", ("t", "voxel"), (1, 3))
    assert np.isnan(store.read("volumes/0")).all()


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("harm", ["flip", "flip the checksum", "cut", "empty", "longer"])
def test_a_damaged_chunk_is_an_error(store, compress, harm):
    data = np.random.default_rng(1).normal(size=(3, 500)).astype(np.float32)
    array = store.create("v", data.shape, "f4", ("t", "voxel"), (1, 500), compress)
    array[...] = data
    path = chunk(store, "v", "1")
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 1
    elif harm == "flip the checksum":
        content[-1] ^= 128
    elif harm == "cut":
        del content[-10:]
    elif harm == "empty":
        content.clear()
    else:
        content += b"x"
    path.write_bytes(content)
    np.testing.assert_array_equal(read_rows(store.array("v"), slice(0, 1)), data[:1])
    for rows in (slice(None), slice(1, 2), np.array([0, 1])):
        with pytest.raises(RunError, match=r"v is damaged .* verify"):
            read_rows(store.array("v"), rows)
    np.testing.assert_array_equal(read_rows(store.array("v"), np.array([2, 0])), data[[2, 0]])


@pytest.mark.parametrize("dtype", ["f4", "f2", "f8", ">f4", "i4"])
@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 4, 5)])
@pytest.mark.parametrize("compress", [False, True])
def test_rows_are_those_that_zarr_reads(store, dtype, shape, compress):
    """Whichever way they are read: volumes straight from their chunks, all else by Zarr."""
    names = ("t", "z", "y", "x")[: len(shape)]
    array = store.create("v", shape, dtype, names, (1, *shape[1:]), compress)
    array[:4] = np.random.default_rng(0).normal(size=(4, *shape[1:])) * 9
    (chunk(store, "v", "4").parent).mkdir(parents=True, exist_ok=True)
    chunk(store, "v", "4").with_suffix(".partial").write_bytes(b"a killed worker's")
    for rows in (slice(None), slice(2, 5), slice(3, 3), np.array([4, 1, 1]), np.array([], int)):
        exact = array[rows] if isinstance(rows, slice) else array.oindex[rows]
        found = read_rows(store.array("v"), rows)
        np.testing.assert_array_equal(found, exact)
        assert found.dtype == np.dtype(dtype).newbyteorder("=")


def test_an_array_that_is_not_there(store):
    with pytest.raises(RunError, match=r"has no components/mean\. `scapedist info"):
        store.read("components/mean")
    assert "components/mean" not in store


def test_damaged_metadata_of_an_array(store):
    store.write("a", np.ones(3), ("volume",))
    (store.directory / GROUP / "a" / "zarr.json").write_text('{"zarr_fo')
    with pytest.raises(RunError, match="metadata of a in .* is damaged"):
        RunStore(store.directory).read("a")


def test_delete(store):
    store.write("states/label", np.zeros(3, np.int32), ("volume",))
    store.delete("states/label")
    store.delete("states/label")
    assert "states/label" not in store


# -- opening


def test_no_run(tmp_path):
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(RunError, match=f"is no run: it holds no {GROUP}"):
            RunStore(place)


def test_an_old_format(store):
    store.group.attrs["scapedist"] = {"format": 0, "stages": {}}
    with pytest.raises(RunError, match=r"format 1\. .* has 0\. Use the scapedist that wrote it"):
        RunStore(store.directory)


def test_somebody_elses_group(tmp_path):
    zarr.create_group(tmp_path / GROUP, attributes={"title": "mine"})
    with pytest.raises(RunError, match="has None"):
        RunStore(tmp_path)


@pytest.mark.parametrize("text", ["", "{", '{"zarr_format": 3, "node_type": "group", "attr'])
def test_half_written_metadata(store, text):
    (store.directory / GROUP / "zarr.json").write_text(text)
    with pytest.raises(RunError, match="cannot be read"):
        RunStore(store.directory)


def test_a_group_appears_whole_or_not_at_all(tmp_path):
    """Killed while it is made, it has not got its name yet; and is made again."""
    aside = tmp_path / f".{GROUP}"
    aside.mkdir()
    (aside / "zarr.json.partial").write_text("{")
    with pytest.raises(RunError, match="is no run"):
        RunStore(tmp_path)
    RunStore(tmp_path, "w-")
    assert not aside.exists()
    assert RunStore(tmp_path).stages == {}


def test_a_run_is_not_made_over_another(store):
    store.write("latents", np.ones((2, 2)), ("particle", "latent"))
    with pytest.raises(ResourceError, match="cannot be written to"):
        RunStore(store.directory, "w-")
    assert "latents" in RunStore(store.directory)


def test_a_run_in_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ResourceError, match="cannot be written to"):
        RunStore(tmp_path / "file" / "run", "w-")


# -- stages


def test_stages_are_recorded_in_order(store):
    for name in ("mask", "sketch", "generate"):
        store.finish_stage(name, {"fingerprint": name})
    assert list(RunStore(store.directory).stages) == ["sketch", "generate", "mask"]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_begun_withdraws_what_follows_and_keeps_data(store, name):
    store.write("mask", np.ones((2, 2, 2)), ("z", "y", "x"))
    for stage in STAGES:
        store.finish_stage(stage, {"fingerprint": stage})
    store.write_source({"epoch": 14})
    store.begin_stage(name, {"size": 12})
    again = RunStore(store.directory)
    assert tuple(again.stages) == tuple(STAGES)[: list(STAGES).index(name)]
    assert again.last_settings(name) == {"settings": {"size": 12}}
    assert again.source == {"epoch": 14}
    np.testing.assert_array_equal(again.read("mask"), 1)


def test_a_run_stopped_while_it_was_made(store):
    assert not store.has_source
    with pytest.raises(RunError, match="stopped while it was made.*Give `scapedist sketch"):
        _ = store.source


def test_settings_that_were_never_tried(store):
    assert store.last_settings("pca") is None


# -- the journal

ENTRIES = [{"array": "volumes/0", "start": i, "stop": i + 2, "percentile": [1.5]} for i in (0, 2)]


def test_no_journal(store):
    assert store.journal_read("f") is None


def test_a_journal_grows(store):
    store.journal_write("f", [])
    assert store.journal_read("f") == []
    for entry in ENTRIES:
        store.journal_append(entry)
    assert store.journal_read("f") == ENTRIES
    assert [path.name for path in store.directory.glob(".volumes*")] == []


def test_a_journal_of_other_settings_is_not_taken(store):
    store.journal_write("f", ENTRIES)
    assert store.journal_read("g") is None
    assert store.journal_read("f") == ENTRIES


@pytest.mark.parametrize("n_cut", range(1, 50, 6))
def test_a_cut_line_drops_its_batch_alone(store, n_cut):
    store.journal_write("f", ENTRIES)
    text = store.journal.read_text()
    store.journal.write_text(text[:-n_cut])
    kept = store.journal_read("f")
    assert kept == (ENTRIES if n_cut == 1 else ENTRIES[:1])  # the line's end alone is no loss
    store.journal_append({"array": "volumes/0", "start": 4, "stop": 6})  # and costs no other one
    assert store.journal_read("f") == [*kept, {"array": "volumes/0", "start": 4, "stop": 6}]


def test_a_cut_first_line_is_no_journal(store):
    store.journal_write("f", [])
    store.journal.write_text(store.journal.read_text()[:-4])
    assert store.journal_read("f") is None
    store.journal.write_text("")
    assert store.journal_read("f") is None


# -- one command at a time

HOLDER = """
import sys
from scapedist.store import RunStore
with RunStore(sys.argv[1], "r+").lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_holds_the_run(store):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store.directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(scapedist.__file__).parents[1],
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match="Another one is working on"), store.lock():
            pass
        process.kill()  # a killed holder leaves no lock behind
        process.wait()
        with store.lock():
            pass
    finally:
        process.kill()
        process.communicate()
    with store.lock():
        pass


def test_a_lock_sees_what_another_command_recorded(store):
    other = RunStore(store.directory, "r+")
    with other.lock():
        other.finish_stage("sketch", {"fingerprint": "s"})
    assert store.stages == {}  # read when it was opened
    with store.lock():
        store.finish_stage("generate", {"fingerprint": "g"})
    assert list(RunStore(store.directory).stages) == ["sketch", "generate"]


# -- files and disks


def test_text_is_written_whole(tmp_path):
    write_text(tmp_path / "a.txt", "one")
    write_text(tmp_path / "a.txt", "two")
    assert (tmp_path / "a.txt").read_text() == "two"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_a_sentence(small_disk):
    full_disk(small_disk, free_bytes=200 * 2**10)
    store = RunStore(small_disk / "run", "w-")
    store.write("small", np.arange(10.0), ("volume",))
    with pytest.raises(ResourceError, match="disk of .* is full.* Make room"):
        store.write("large", np.random.default_rng(0).random(10**5), ("volume",))
    store.journal_write("f", ENTRIES)
    with (small_disk / "more").open("wb", buffering=0) as stream:
        while True:  # to the last byte
            try:
                stream.write(bytes(4096))
            except OSError:
                break
    entry = {"array": "volumes/0", "start": 4, "percentile": [1.0] * 4000}
    with pytest.raises(ResourceError, match="is full"):
        store.journal_append(entry)
    with pytest.raises(ResourceError, match="is full"):
        store.begin_stage("sketch", {"size": 1})
    with pytest.raises(ResourceError, match="is full"):
        store.write_source({"epoch": 3})
    with pytest.raises(ResourceError, match="is full"):
        RunStore(small_disk / "other", "w-")
    # the rest is as it was, and with room all goes on
    again = RunStore(small_disk / "run", "r+")
    np.testing.assert_array_equal(again.read("small"), np.arange(10.0))
    assert again.journal_read("f") == ENTRIES
    assert not again.has_source
    (small_disk / "ballast").unlink()
    again.journal_append(entry)
    assert again.journal_read("f") == [*ENTRIES, entry]
    RunStore(small_disk / "other", "w-").write_source({"epoch": 3})


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("ENOSPC", "is full"),
        ("EDQUOT", "is full"),
        ("EACCES", "cannot be written to"),
        ("EROFS", "cannot be written to"),
        ("ENOTDIR", "cannot be written to"),
    ],
)
def test_what_a_disk_says(tmp_path, code, message):
    import errno

    number = getattr(errno, code)
    with pytest.raises(ResourceError, match=message), disk_errors(tmp_path):
        raise OSError(number, os.strerror(number))


def test_other_errors_pass(tmp_path):
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        (tmp_path / "none").read_bytes()


def test_records_are_plain_json(store):
    store.finish_stage("sketch", {"settings": {"size": 3, "seed": 0}, "seconds": 0.1})
    text = (store.directory / GROUP / "zarr.json").read_text()
    assert re.search(r'"format":\s*1', text)
    attributes = json.loads(text)["attributes"]["scapedist"]
    assert attributes["stages"]["sketch"]["settings"] == {"size": 3, "seed": 0}


@pytest.mark.parametrize("dtype", ["f4", "f2", "f8", ">f4", "i4"])
@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 5, 6)])
@pytest.mark.parametrize("compress", [False, True])
def test_zarr_reads_the_rows_written(store, dtype, shape, compress):
    """Plain chunks are written without Zarr; what it writes itself has the same bytes."""
    names = ("t", "z", "y", "x")[: len(shape)]
    data = (np.random.default_rng(2).normal(size=shape) * 9).astype(np.float32)
    ours, its = (
        store.create(name, shape, dtype, names, (1, *shape[1:]), compress) for name in ("v", "w")
    )
    for row, values in enumerate(data):
        write_row(ours, row, values)
        its[row] = values.astype(its.dtype)
    write_row(ours, 1, data[1][::-1])  # a chunk that is there is replaced
    np.testing.assert_array_equal(ours[...][[0, 2]], its[...][[0, 2]])
    np.testing.assert_array_equal(ours[1], data[1][::-1].astype(its.dtype))
    for row in "02":
        assert chunk(store, "v", row).read_bytes() == chunk(store, "w", row).read_bytes()


def test_a_row_that_one_call_does_not_take_whole(store, monkeypatch):
    array = store.create("v", (2, 5), "float32", ("volume", "voxel"), (1, 5))
    row, at_once = np.arange(5, dtype=np.float32), os.writev
    for most in (1, 19, 20, 22, 23):
        monkeypatch.setattr(os, "writev", lambda to, parts: os.write(to, b"".join(parts)[:most]))  # noqa: B023
        write_row(array, 0, row)
        monkeypatch.setattr(os, "writev", at_once)
        write_row(array, 1, row)
        assert chunk(store, "v", "0").read_bytes() == chunk(store, "v", "1").read_bytes()
        np.testing.assert_array_equal(read_rows(array), [row, row])


def test_a_record_beside_goes_by_its_whole_name(store):
    """The exact embedding done anew leaves the one in a smaller box."""
    for name in ("embedding/exact", "embedding/exact_24"):
        store.finish_beside(name, {"settings": {}})
    store.withdraw("embedding/exact")
    assert list(store.beside) == ["embedding/exact_24"]
    store.withdraw("embedding/exact")
    assert list(store.beside) == ["embedding/exact_24"]


def test_what_a_killed_command_left_is_cleared(store):
    """Zarr would warn of it whenever the run is listed."""
    store.write("sketch/particle", np.arange(3), ("volume",))
    root = store.directory / GROUP
    left = [root / name / "zarr.0123.partial" for name in ("", "sketch", "sketch/particle")]
    for path in left:
        path.write_text("{")
    with store.lock():
        pass
    assert not any(path.exists() for path in left)
    names = [name for name, _ in zarr.open_group(root).members(max_depth=None)]
    assert sorted(names) == ["sketch", "sketch/particle"]
