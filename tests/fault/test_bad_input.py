"""What a person can get wrong, as typed: one sentence, exit code 2, and no harm done."""

import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from harm import SKETCH, SMALL, arrays, assert_same_arrays, content, fill, flip, stages, write_mask

from scapedist.settings import STAGES
from scapedist.store import RunStore

# -- the work directory


@pytest.mark.parametrize("command", ["run", "sketch", "plan", "decode"])
def test_not_a_work_directory(refused, tmp_path, command):
    output = tmp_path / "run"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    more = {"decode": ["--latents", tmp_path / "z.txt"], "run": SMALL}.get(command, [])
    for place, message in [
        ("empty", "is no cryoDRGN work directory: it has neither config.yaml nor config.pkl"),
        ("none", "none is not a directory"),
        ("file", "file is not a directory"),
    ]:
        refused(message, command, tmp_path / place, 14, "--output", output, *more)
        assert not output.exists()


def test_an_epoch_that_does_not_exist(refused, workdir, tmp_path):
    (workdir / "weights.3.pkl").write_bytes(b"")
    output = tmp_path / "run"
    for command, more in {"run": SMALL, "sketch": SKETCH, "plan": []}.items():
        there = [command, workdir, 15, "--output", output, *more]
        assert "epochs 3, 14." in refused("weights.15.pkl does not exist", *there)
    (workdir / "z.14.pkl").unlink()
    refused("z.14.pkl does not exist. Copy it too", "run", workdir, 14, "--output", output, *SMALL)
    assert not output.exists()


HARM = {
    "z cut in half": ("z.14.pkl", lambda data: data[: len(data) // 2], "cut short"),
    "z cut inside": ("z.14.pkl", lambda data: data[: len(data) // 3], "cut short"),
    "z empty": ("z.14.pkl", lambda data: b"", "is empty"),
    "weights cut": ("weights.14.pkl", lambda data: data[: len(data) // 2], "cut short"),
    "weights empty": ("weights.14.pkl", lambda data: b"", "not a checkpoint of plain tensors"),
    "configuration cut": ("config.yaml", lambda data: data[:300], "cut short|is not YAML"),
    "configuration empty": ("config.yaml", lambda data: b"", "not a configuration"),
    "another configuration": (
        "config.yaml",
        lambda data: data.replace(b"pdim: 128", b"pdim: 64"),
        "The weights fit the configuration",
    ),
    "CTF cut": ("ctf.pkl", lambda data: data[:1000], "cut short"),
}


@pytest.mark.parametrize("harm", HARM)
def test_half_written_files(refused, workdir, tmp_path, harm):
    name, change, message = HARM[harm]
    (workdir / name).write_bytes(change((workdir / name).read_bytes()))
    output = tmp_path / "run"
    told = refused(message, "run", workdir, 14, "--output", output, *SMALL)
    assert name in told or "configuration" in told
    assert not output.exists()


def test_what_a_worker_finds_wrong_with_the_weights_is_told(refused, workdir, tmp_path):
    """Local workers read the weights; what they refuse ends as what this process refuses."""
    text = (workdir / "config.yaml").read_text().replace("pdim: 128", "pdim: 64")
    (workdir / "config.yaml").write_text(text)
    output = tmp_path / "run"
    there = [workdir, 14, "--output", output, *SMALL, "--workers", 2]
    refused("The weights fit the configuration", "run", *there)
    assert "generate" not in stages(output)


def write_latents(workdir: Path, latents: object) -> None:
    with (workdir / "z.14.pkl").open("wb") as stream:
        pickle.dump(latents, stream)
        pickle.dump(np.zeros_like(latents), stream)


def test_latents_that_are_not_finite(refused, workdir, adk, tmp_path):
    latents = adk.latents.copy()
    latents[[7, 90], 2] = np.nan, np.inf
    write_latents(workdir, latents)
    message = "z.14.pkl: Latents are finite numbers. 2 rows are not, row 7 first"
    refused(message, "run", workdir, 14, "--output", tmp_path / "run", *SMALL)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shape", [(20_000, 3), (20_000,), (20, 20, 8)])
def test_latents_that_do_not_fit_the_weights(refused, workdir, tmp_path, shape):
    write_latents(workdir, np.zeros(shape, np.float32))
    message = rf"model's latent dimension, 8.*{re.escape(str(shape))}"
    refused(message, "run", workdir, 14, "--output", tmp_path / "run", *SMALL)
    assert not (tmp_path / "run").exists()


def test_latents_that_are_no_numbers(refused, workdir, tmp_path):
    write_latents(workdir, np.array(["a", "b"]))
    there = [workdir, 14, "--output", tmp_path / "run", *SMALL]
    refused("should hold arrays of latents", "run", *there)
    assert not (tmp_path / "run").exists()


class Payload:
    """Unpickled by pickle itself, this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["z.14.pkl", "weights.14.pkl", "ctf.pkl"])
def test_a_file_of_the_training_that_would_execute_code(refused, workdir, tmp_path, name):
    (workdir / name).write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    refused(f"{name} is not a", "run", workdir, 14, "--output", tmp_path / "run", *SMALL)
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "run").exists()


def test_a_training_that_changed_under_its_run(refused, scapedist, workdir, tmp_path):
    output = tmp_path / "run"
    assert scapedist("sketch", workdir, 14, "--output", output, *SKETCH).code == 0
    before = content(output)
    write_latents(workdir, np.random.default_rng(0).normal(size=(20_000, 8)).astype(np.float32))
    message = r"A run stays with its model\. .*z\.14\.pkl changed"
    refused(message, "generate", output, "--workers", 1, "--box-size", 16)
    shutil.rmtree(workdir)
    refused("adk is not a directory", "generate", output, "--workers", 1, "--box-size", 16)
    assert content(output) == before


# -- the particles


@pytest.mark.parametrize("size", [-1, 0, 1, 20_001, 10**9])
@pytest.mark.parametrize("method", ["kmeans", "uniform", "geometric"])
def test_more_volumes_than_particles(refused, scapedist, adk_workdir, tmp_path, size, method):
    output = tmp_path / "run"
    bad = ["--sketch-size", size, "--sketch-method", method]
    message = rf"should have {size}, there are 20000 particles. Use --sketch-size 20000 or less"
    if size < 2:
        message = f"A sketch has 2 volumes or more. --sketch-size is {size}"
    if size < 2:
        message = f"2 volumes or more. --sketch-size is {size}"
    refused(message, "sketch", adk_workdir, 14, "--output", output, *bad)
    assert stages(output) == []
    refused("sketch, which is not complete|is no run", "generate", output, "--workers", 1)
    assert scapedist("sketch", adk_workdir, 14, "--output", output, *SKETCH).code == 0


def test_a_list_of_particles_that_would_execute_code(refused, adk_workdir, tmp_path):
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    output = tmp_path / "run"
    bad = ["--exclude-particles", tmp_path / "bad.pkl"]
    for command in ("sketch", "run"):
        message = r"bad\.pkl is not a pickle of numpy arrays.*it refers to (io|_io|builtins)\.open"
        refused(message, command, adk_workdir, 14, "--output", output, *SKETCH, *bad)
    assert not (tmp_path / "executed").exists()
    assert stages(output) == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.array([5, 20_000]), "Particles are 0 to 19999.*1 outside: 20000"),
        (np.array([-1, 5]), "1 outside: -1"),
        (np.array([0.5]), "float64 values"),
        (np.zeros(7, bool), "one value a particle"),
        (np.zeros((2, 2), int), "is 1-D"),
        (np.zeros(0, int), "at least one particle"),
        (np.arange(19_999), "there are 1 particles"),
        ({"a": 1}, "holds a dict"),
    ],
)
def test_lists_of_particles_that_are_none(refused, adk_workdir, tmp_path, rows, message):
    (tmp_path / "rows.pkl").write_bytes(pickle.dumps(rows))
    bad = ["--exclude-particles", tmp_path / "rows.pkl"]
    refused(message, "sketch", adk_workdir, 14, "--output", tmp_path / "run", *SKETCH, *bad)
    assert stages(tmp_path / "run") == []


def test_no_sketch_of_cryodrgn(refused, adk_workdir, tmp_path):
    bad = ["--maps", tmp_path]
    message = "is no sketch of cryoDRGN: it needs"
    refused(message, "sketch", adk_workdir, 14, "--output", tmp_path / "run", *bad)
    assert stages(tmp_path / "run") == []


# -- options of the decoding


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--box-size", 15], "box size is even.*It is 15, the model's is 48"),
        (["--box-size", 50], "at most the model's. It is 50"),
        (["--box-size", -16], "It is -16"),
        (["--dtype", "float8"], "A precision is one of .*'float8'"),
        (["--dtype", "tf32"], "tf32 needs a GPU"),
        (["--store", "zip"], "one of volumes, masked. It is 'zip'"),
        (["--store-dtype", "int8"], "one of float32, float16. It is 'int8'"),
        (["--batch-size", 0], "--batch-size is 0"),
        (["--pixel-size", 0], "above 0 Å"),
        (["--pixel-size", "nan"], "above 0 Å"),
    ],
)
def test_a_decoding_that_cannot_be(refused, scapedist, adk_workdir, tmp_path, option, message):
    output = tmp_path / "run"
    there = [adk_workdir, 14, "--output", output, *SKETCH]
    refused(message, "run", *there, *SMALL, *option)
    assert scapedist("sketch", *there).code == 0
    assert stages(output) == ["sketch"]
    assert not (output / "volumes.journal").exists()
    assert not (output / "landscape.zarr" / "volumes").exists()
    before = content(output)
    refused(message, "generate", output, "--workers", 1, *option)
    assert content(output) == before


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--sketch-method", "kmeens"], "one of kmeans, uniform, geometric. It is 'kmeens'"),
        (["--sketch-method", ""], "one of kmeans, uniform, geometric. It is ''"),
        (["--seed", -1], "A seed is 0 or more. --seed is -1"),
    ],
)
def test_a_sketch_that_cannot_be(refused, adk_workdir, tmp_path, option, message):
    refused(message, "run", adk_workdir, 14, "--output", tmp_path / "run", *SMALL, *option)
    assert stages(tmp_path / "run") == []


def test_after_a_refusal_the_right_command_gives_the_right_arrays(
    refused, scapedist, adk_workdir, finished, tmp_path
):
    """Every refusal on the way, in one output directory: none leaves anything behind."""
    output = tmp_path / "run"
    there = [adk_workdir, 14, "--output", output]
    (tmp_path / "rows.txt").write_text("99999")
    refused("A sketch method", "run", *there, *SMALL, "--sketch-method", "x")
    refused("outside", "run", *there, *SMALL, "--exclude-particles", tmp_path / "rows.txt")
    for option in (["--box-size", 15], ["--dtype", "x"], ["--memory-limit", "9MB"]):
        refused("", "run", *there, *SMALL, *option)
    for option in (
        ["--mask", "none.mrc"],
        ["--components", 0],
        ["--states", 99],
        ["--linkage", "x"],
    ):
        refused("", "run", *there, *SMALL, *option)
    assert scapedist("run", *there, *SMALL).code == 0
    assert_same_arrays(output, finished)


# -- memory and workers


def test_a_memory_limit_that_is_too_small(refused, scapedist, adk_workdir, tmp_path):
    output = tmp_path / "run"
    there = [adk_workdir, 14, "--output", output]
    limit = ["--memory-limit", "100MB"]
    message = r"Decoding 1 volume\(s\) of 16\^3 at a time needs .* may use 0\.09 GiB"
    told = refused(message, "run", *there, *SMALL, *limit)
    refused(message, "plan", adk_workdir, 14, "--box-size", 16, *limit)
    assert scapedist("sketch", *there, *SKETCH).code == 0
    assert stages(output) == ["sketch"]
    named = re.findall(r"Use --memory-limit (\S+) or more", told)[0]
    decode = ["generate", output, "--workers", 1, "--box-size", 16, "--memory-limit"]
    assert scapedist(*decode, named).code == 0


def test_a_batch_that_is_too_large(refused, scapedist, adk_workdir, tmp_path):
    output = tmp_path / "run"
    assert scapedist("sketch", adk_workdir, 14, "--output", output, *SKETCH).code == 0
    limit = ["--workers", 1, "--memory-limit", "475MiB"]
    message = refused("Decoding 5000 volume", "generate", output, *limit, "--batch-size", 5000)
    named = re.findall(r"Use --batch-size (\d+) or less", message)[0]
    assert 1 < int(named) < 5000
    assert scapedist("generate", output, "--box-size", 16, *limit, "--batch-size", named).code == 0


@pytest.mark.parametrize("size", ["lots", "-4GB", "0", "16 GiBi", "inf", "nan", ""])
def test_a_memory_limit_that_is_none(refused, adk_workdir, run, tmp_path, size):
    before = content(run)
    limit = ["--memory-limit", size]
    message = "a number with a unit, as 16GiB"
    refused(message, "run", adk_workdir, 14, "--output", tmp_path / "run", *SMALL, *limit)
    assert not (tmp_path / "run").exists()
    refused(message, "generate", run, "--workers", 1, *limit)
    refused(message, "pca", run, *limit)
    refused(message, "plan", adk_workdir, 14, *limit)
    assert content(run) == before


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--workers", 0], "at least one worker. --workers is 0"),
        (["--workers", -2], "--workers is -2"),
        (["--scheduler", "none.json"], "none.json is neither. Start one with"),
        (["--workers", 2, "--scheduler", "tcp://127.0.0.1:1"], "Give --workers or --scheduler"),
    ],
)
def test_workers_that_cannot_be(refused, adk_workdir, run, tmp_path, option, message):
    refused(message, "run", adk_workdir, 14, "--output", tmp_path / "run", *SKETCH, *option)
    assert not (tmp_path / "run").exists()
    before = content(run)
    refused(message, "generate", run, *option)
    assert content(run) == before


# -- the run directory


@pytest.mark.parametrize(
    "command", ["generate", "mask", "pca", "states", "report", "info", "verify"]
)
def test_no_run(refused, tmp_path, command):
    more = ["--workers", 1] if command == "generate" else []
    for place in (tmp_path, tmp_path / "none"):
        refused("is no run: it holds no landscape.zarr", command, place, *more)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["info", "mask", "verify", "report"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"zarr_format": 3, "node_ty', "cannot be read"),
        ("", "cannot be read"),
        ('{"zarr_format": 3, "node_type": "group", "attributes": {}}', "A run has the format 1"),
    ],
)
def test_a_damaged_run(refused, run, command, text, message):
    (run / "landscape.zarr" / "zarr.json").write_text(text)
    refused(message, command, run)


def test_an_output_that_is_a_file(refused, adk_workdir, tmp_path):
    (tmp_path / "file").write_text("mine")
    for command in ("run", "sketch"):
        more = SMALL if command == "run" else SKETCH
        refused("file is a file", command, adk_workdir, 14, "--output", tmp_path / "file", *more)
        deeper = tmp_path / "file" / "run"
        refused("cannot be written to", command, adk_workdir, 14, "--output", deeper, *more)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_that_holds_another_run(refused, run, workdir, small_workdir):
    """Another model, and another epoch of the same training."""
    before = content(run)
    for command in ("sketch", "run"):
        message = "holds another run: epoch 14 of .*Choose another --output, or --overwrite"
        refused(message, command, small_workdir, 19, "--output", run)
        shutil.copy(workdir / "weights.14.pkl", workdir / "weights.13.pkl")
        latents = np.random.default_rng(0).normal(size=(20_000, 8)).astype(np.float32)
        write_latents(workdir, latents)
        (workdir / "z.14.pkl").rename(workdir / "z.13.pkl")
        refused(message, command, workdir, 13, "--output", run)
        shutil.copy(workdir / "z.13.pkl", workdir / "z.14.pkl")
    assert content(run) == before


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--sketch-size", 13], "size 12, asked 13"),
        (["--seed", 1], "seed 0, asked 1"),
        (["--sketch-method", "uniform"], "method 'kmeans', asked 'uniform'"),
        (["--box-size", 18], "box_size 16, asked 18"),
        (["--dtype", "float64"], "dtype 'float32', asked 'float64'"),
        (["--store", "masked"], "store 'volumes', asked 'masked'"),
        (["--flip"], "flip False, asked True"),
    ],
)
def test_other_settings_of_volumes_that_are_there(refused, adk_workdir, run, option, message):
    before = content(run)
    message = f"holds volumes of other settings: {message}. Choose another --output"
    refused(message, "run", adk_workdir, 14, "--output", run, "--workers", 1, *option)
    assert content(run) == before


def test_overwrite_takes_nothing_that_is_not_ours(refused, adk_workdir, tmp_path):
    zarr.create_group(tmp_path / "landscape.zarr", attributes={"title": "mine"})
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "mine.mrc").write_text("mine")
    before = content(tmp_path)
    there = [adk_workdir, 14, "--output", tmp_path, *SKETCH]
    refused("A run has the format 1", "sketch", *there)
    refused("A run has the format 1", "sketch", *there, "--overwrite")
    assert content(tmp_path) == before


def test_overwrite_checks_the_model_first(refused, run, small_workdir):
    before = content(run)
    refused("does not exist", "sketch", small_workdir, 99, "--output", run, "--overwrite")
    assert content(run) == before


def test_a_run_that_another_command_changes(refused, run):
    before = content(run)
    with RunStore(run, "r+").lock():
        for command in ("mask", "pca", "states", "report"):
            refused("One command at a time changes a run", command, run)
    assert content(run) == before


# -- stages


@pytest.mark.parametrize(
    ("n_done", "command", "named"),
    [
        (0, "generate", "scapedist sketch WORKDIR EPOCH --output {run}"),
        (0, "mask", "scapedist generate {run}"),
        (1, "mask", "scapedist generate {run}"),
        (1, "pca", "scapedist mask {run}"),
        (1, "verify", "scapedist generate {run}"),
        (2, "pca", "scapedist mask {run}"),
        (2, "states", "scapedist pca {run}"),
        (3, "states", "scapedist pca {run}"),
        (3, "report", "scapedist states {run}"),
        (4, "report", "scapedist states {run}"),
    ],
)
def test_a_stage_that_is_missing_names_its_command(refused, run, n_done, command, named):
    RunStore(run, "r+").begin_stage(list(STAGES)[n_done], {})
    before = content(run)
    more = ["--workers", 1] if command == "generate" else []
    message = refused("is not complete|are not", command, run, *more)
    assert f"Give `{named.format(run=run)}` first." in message
    assert content(run) == before


def test_what_info_names_leads_to_the_end(scapedist, adk_workdir, finished, tmp_path):
    output = tmp_path / "run"
    options = {
        "generate": ["--box-size", "16", "--workers", "1"],
        "pca": ["--components", "4"],
        "states": ["--states", "3"],
    }
    assert scapedist("sketch", adk_workdir, 14, "--output", output, *SKETCH).code == 0
    followed = []
    while (told := scapedist("info", output)).out.splitlines()[-1] != "complete":
        program, *arguments = told.out.splitlines()[-1].removeprefix("next: ").split()
        assert program == "scapedist"
        assert scapedist(*arguments, *options.get(arguments[0], [])).code == 0
        followed.append(arguments[0])
    assert tuple(followed) == tuple(STAGES)[1:]
    assert_same_arrays(output, finished)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((12, 12, 12)), r"box of the volumes, 16.*\(12, 12, 12\)"),
        (-np.ones((16, 16, 16)), "goes down to -1"),
        (np.zeros((16, 16, 16)), "needs voxels above 0"),
        (np.full((16, 16, 16), 40.0), "goes up to 40"),
        (np.ones((16, 16, 8)), "A map is a cube"),
    ],
)
def test_masks_that_are_none(refused, run, tmp_path, mask, message):
    before = content(run)
    path = write_mask(tmp_path / "m.mrc", mask)
    refused(message, "mask", run, "--mask", path)
    path.write_bytes(path.read_bytes()[:1500])
    refused("not a whole MRC map", "mask", run, "--mask", path)
    refused("none.mrc cannot be read", "mask", run, "--mask", tmp_path / "none.mrc")
    assert content(run) == before


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--threshold", 1e9], "Not one is claimed by 0 of 12 volumes"),
        (["--threshold", "nan"], "A threshold is a density. It is nan"),
        (["--dilate", -1], "0 Å or more"),
        (["--cosine-edge", -1], "0 Å or more"),
        (["--min-fraction", 1.5], "from 0 to 1.* 1.5"),
        (["--min-fraction", "nan"], "from 0 to 1"),
    ],
)
def test_a_masks_rule_that_cannot_be(refused, run, option, message):
    before = content(run)
    refused(message, "mask", run, *option)
    assert content(run) == before


@pytest.mark.parametrize(
    ("command", "option", "message"),
    [
        ("pca", ["--components", 0], "--components is 0"),
        ("pca", ["--components", -3], "--components is -3"),
        ("pca", ["--exclude-states", "3"], "no state 3 to leave out: they run from 0 to 2"),
        ("pca", ["--exclude-states", "0,1,2"], "needs three volumes"),
        ("states", ["--states", 13], "13 states were requested, but there are only 12 volumes"),
        ("states", ["--states", 13, "--linkage", "kmeans"], "--states 12 or less"),
        ("states", ["--states", 0], "--states is 0"),
        ("states", ["--states", -2, "--linkage", "kmeans"], "--states is -2"),
        ("states", ["--linkage", "centroid"], "average, ward, complete, single"),
        ("states", ["--linkage", "kmeans", "--seed", -1], "--seed is -1"),
        ("states", ["--linkage", "kmeans", "--seed", 2**40], "from 0 to 4294967295"),
    ],
)
def test_an_analysis_that_cannot_be_leaves_the_old_one(refused, run, command, option, message):
    before = content(run)
    refused(message, command, run, *option)
    assert content(run) == before
    assert stages(run) == list(STAGES)


def test_states_left_out_before_there_are_any(refused, adk_workdir, scapedist, tmp_path):
    output = tmp_path / "run"
    there = [adk_workdir, 14, "--output", output, *SKETCH]
    assert scapedist("sketch", *there).code == 0
    message = "States can be left out once there are some"
    refused(message, "pca", output, "--exclude-states", "1")


def test_states_that_are_no_numbers(scapedist, run):
    before = content(run)
    done = scapedist("pca", run, "--exclude-states", "one")
    assert done.code == 2
    assert "states are numbers with commas, as 3,7; it is 'one'" in done.err
    assert content(run) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "Missing argument"),
        (["run", "adk", "14"], "Missing option '--output'"),
        (["run", "adk", "fourteen", "--output", "run"], "Invalid value for 'epoch'"),
        (["mask", "run", "--treshold", "1"], "No such option"),
        (["analyse"], "No such command 'analyse'"),
    ],
)
def test_a_command_that_is_none(scapedist, arguments, message):
    done = scapedist(*arguments)
    assert done.code == 2
    assert message in done.err


# -- latents to decode


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("z.txt", b"1 2 3\n", r"latent dimension, 8.*\(1, 3\)"),
        ("z.txt", b"a b c\n", "cannot be read as latents"),
        ("z.txt", b"1 2 3 4 5 6 7 nan\n", "finite numbers. 1 rows are not"),
        ("z.npy", b"\x93NUMPY", "cannot be read as latents"),
        ("z.npy", pickle.dumps([1]), "cannot be read as latents"),
        ("z.pkl", b"", "is empty"),
        ("z.pkl", pickle.dumps({"z": 1}), "should hold numbers"),
    ],
)
def test_latents_that_cannot_be_decoded(refused, adk_workdir, tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    there = [adk_workdir, 14, "--output", tmp_path / "maps"]
    refused(message, "decode", *there, "--latents", tmp_path / name)
    refused("cannot be read", "decode", *there, "--latents", tmp_path / f"none_{name}")
    assert not (tmp_path / "maps").exists()


def test_maps_that_cannot_be_written(refused, adk_workdir, tmp_path):
    np.savetxt(tmp_path / "z.txt", np.zeros((1, 8)))
    (tmp_path / "file").write_text("mine")
    common = ["decode", adk_workdir, 14, "--latents", tmp_path / "z.txt", "--output"]
    refused("could not be written", *common, tmp_path / "file", "--box-size", 16)
    refused("It is 15", *common, tmp_path / "maps", "--box-size", 15)
    refused("A precision is one of", *common, tmp_path / "maps", "--dtype", "int8")
    assert not (tmp_path / "maps").exists()
    assert (tmp_path / "file").read_text() == "mine"


# -- disks and damage


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # mrcfile's, of the map that did not fit
@pytest.mark.parametrize("free_kib", [0, 300, 700, 1100, 1560, 2600])
def test_a_full_disk(refused, scapedist, adk_workdir, finished, small_disk, free_kib):
    """Full before the run is made, in it, before and in the decoding, in the mask, and in maps."""
    output = small_disk / "run"
    there = ["run", adk_workdir, 14, "--output", output, *SMALL]
    fill(small_disk, free_kib * 2**10)
    message = "is full|must fit on the disk|No space left on device"
    refused(message, *there)
    assert "report" not in stages(output)
    (small_disk / "ballast").unlink()
    assert scapedist(*there).code == 0
    assert_same_arrays(output, finished)


def test_a_disk_that_fills_while_decoding_keeps_what_is_complete(
    refused, scapedist, adk_workdir, finished, small_disk
):
    output = small_disk / "run"
    assert scapedist("sketch", adk_workdir, 14, "--output", output, *SKETCH).code == 0
    fill(small_disk, 760 * 2**10)  # enough for the volumes, not for their files
    there = ["generate", output, "--box-size", 16, "--workers", 1, "--batch-size", 2]
    refused("disk of .* is full. What was complete is kept", *there)
    journal = (output / "volumes.journal").read_text().splitlines()
    assert 1 < len(journal) - 1 < 22  # batches of two of 12 + 32 volumes
    assert stages(output) == ["sketch"]
    there_already = chunks(output) + chunks(output, "quality")
    stamps = {path: path.stat().st_mtime_ns for path in there_already}
    (small_disk / "ballast").unlink()
    assert scapedist(*there).code == 0
    kept = [path for path, stamp in stamps.items() if path.stat().st_mtime_ns == stamp]
    assert len(kept) == 2 * (len(journal) - 1)
    found, wanted = arrays(output), arrays(finished)
    for name in ("volumes/0", "volumes/quality", "volumes/percentile"):
        assert found[name].tobytes() == wanted[name].tobytes()


def chunks(run: Path, name: str = "0") -> list[Path]:
    return sorted((run / f"landscape.zarr/volumes/{name}").glob("c.*"))


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "not finite"])
def test_damaged_volumes_are_found_and_made_again(scapedist, run, finished, harm):
    paths = {row: run / f"landscape.zarr/volumes/0/c.{row}.0.0.0" for row in range(12)}
    harmed = {3, 7, 8}
    for row in harmed:
        if harm == "flip":
            flip(paths[row])
        elif harm == "cut":
            paths[row].write_bytes(paths[row].read_bytes()[:-100])
        elif harm == "remove":
            paths[row].unlink()
        else:
            zarr.open_array(run / "landscape.zarr/volumes/0", mode="r+")[row, 1, 2, 3] = np.inf
    stamps = {row: path.stat().st_mtime_ns for row, path in paths.items() if path.exists()}
    found = scapedist("verify", run)
    assert found.code == 1
    assert "9 of 12 volumes sound" in found.out
    assert "damaged volumes: 3, 7, 8" in found.out
    assert "the same `scapedist run` command again" in found.out
    assert stages(run) == ["sketch"]
    assert scapedist("generate", run, "--workers", 1).code == 0
    again = {row: path.stat().st_mtime_ns for row, path in paths.items()}
    assert {row for row in range(12) if again[row] != stamps.get(row)} == harmed
    assert scapedist("verify", run).code == 0
    for command in ("mask", "pca", "states"):
        assert scapedist(command, run).code == 0
    assert_same_arrays(run, finished)


def test_damage_is_told_by_a_stage_that_reads_it(refused, scapedist, run):
    flip(run / "landscape.zarr/volumes/0/c.5.0.0.0")
    before = content(run)
    message = r"volumes/0 is damaged.*scapedist verify"
    refused(message, "mask", run, "--dilate", 2)
    assert content(run) == before
    assert scapedist("verify", run).code == 1


def test_damage_of_the_quality_volumes(scapedist, run, finished):
    flip(chunks(run, "quality")[9])
    found = scapedist("verify", run)
    assert found.code == 1
    assert "damaged array: volumes/quality" in found.out
    for command in (
        ["generate", run, "--workers", 1],
        ["mask", run],
        ["pca", run],
        ["states", run],
    ):
        assert scapedist(*command).code == 0
    assert scapedist("verify", run).code == 0
    assert_same_arrays(run, finished)


def test_damage_of_a_masked_store(scapedist, adk_workdir, tmp_path):
    output = tmp_path / "run"
    there = ["run", adk_workdir, 14, "--output", output, *SMALL, "--store", "masked"]
    assert scapedist(*there).code == 0
    before = arrays(output)
    flip(output / "landscape.zarr/volumes/masked/c.4.0")
    found = scapedist("verify", output)
    assert found.code == 1
    assert "damaged volumes: 4" in found.out
    assert scapedist(*there).code == 0
    assert scapedist("verify", output).code == 0
    after = arrays(output)
    assert before.keys() == after.keys()
    for name, values in before.items():
        assert values.tobytes() == after[name].tobytes(), name
