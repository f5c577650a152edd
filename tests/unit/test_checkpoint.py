"""Loading a work directory: what is read, and a sentence for everything that cannot be."""

import pickle
import shutil

import numpy as np
import pytest
import torch
import yaml
from random_model import COMMANDS, write_random_model

from scapedist import open_model
from scapedist.errors import InputError

EPOCH = 19


@pytest.fixture
def workdir(small_workdir, tmp_path):
    """A copy of the small train_vae work directory that a test may break."""
    copy = tmp_path / "train"
    shutil.copytree(small_workdir, copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    for name in ("ctf", "ind"):
        config["dataset_args"][name] = str(copy / f"{name}.pkl")
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    return copy


def edit_config(workdir, **sections):
    """Change values of the configuration's sections."""
    path = workdir / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for section, values in sections.items():
        config[section].update(values)
    path.write_text(yaml.safe_dump(config))


def edit_weights(workdir, change):
    """Let change work on the checkpoint, or return another one."""
    path = workdir / f"weights.{EPOCH}.pkl"
    checkpoint = torch.load(path, weights_only=True)
    changed = change(checkpoint)
    torch.save(changed if isinstance(changed, dict) else checkpoint, path)


def write_pickles(path, *objects):
    with path.open("wb") as stream:
        for item in objects:
            pickle.dump(item, stream)


class Payload:
    """Unpickled by pickle itself, this makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return exec, (f"open({self.path!r}, 'w').close()",)


# What is read


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_gives_a_model(tmp_path, command):
    domain = "hartley" if command == "abinit" else "fourier"
    write_random_model(
        tmp_path, command, box_size=16, layers=2, width=8, zdim=3, n_particles=7, domain=domain
    )
    model = open_model(tmp_path, EPOCH)
    assert model.latents.shape == (7, 3)
    assert model.latents.dtype == np.float32
    assert np.isfinite(model.latents).all()
    assert model.box_size == 16
    assert model.pixel_size_angstroms == 1.5
    assert model.notes == []
    assert model.architecture == {
        "command": command,
        "encoding": "gaussian",
        "domain": domain,
        "activation": "relu",
        "hidden_layers": 2,
        "hidden_size": 8,
        "zdim": 3,
        "box_size": 16,
    }
    assert set(model.file_hashes()) == {"config", "weights", "latents", "ctf"}
    volumes = model.decode(model.latents[:2], box_size=10)
    assert volumes.shape == (2, 10, 10, 10)
    assert volumes.dtype == np.float32
    if command == "train_vae":
        assert model.latent_variance.shape == (7, 3)
        assert model.latent_variance.dtype == np.float32
        assert (model.latent_variance > 0).all()
    else:
        assert model.latent_variance is None


def test_latents_and_their_variance_are_those_of_the_file(workdir):
    with (workdir / f"z.{EPOCH}.pkl").open("rb") as stream:
        means, log_variances = pickle.load(stream), pickle.load(stream)
    model = open_model(workdir, EPOCH)
    np.testing.assert_array_equal(model.latents, means)
    np.testing.assert_array_equal(model.latent_variance, np.exp(log_variances))


def test_the_bundled_model_is_read(adk):
    assert adk.latents.shape == adk.latent_variance.shape == (20000, 8)
    assert (adk.box_size, adk.architecture["encoding"]) == (48, "gaussian")
    assert adk.pixel_size_angstroms > 0
    np.testing.assert_array_equal(adk.stack_indices, np.arange(20000))


def test_prefixes_of_data_parallel_training_are_read(workdir):
    want = open_model(workdir, EPOCH).decode(np.zeros((1, 3)))

    def parallel(name):
        return f"module.{name}"

    edit_weights(workdir, lambda c: {**c, "model_state_dict": renamed(c, parallel)})
    np.testing.assert_array_equal(open_model(workdir, EPOCH).decode(np.zeros((1, 3))), want)


@pytest.mark.parametrize("prefix", ["dp.module.", "module."])
def test_prefixes_of_a_parallel_decoder_are_read(tmp_path, prefix):
    write_random_model(tmp_path, "train_dec", box_size=8, layers=1, width=8, zdim=2)
    want = open_model(tmp_path, EPOCH).decode(np.zeros((1, 2)))
    edit_weights(tmp_path, lambda c: {**c, "model_state_dict": renamed(c, lambda n: prefix + n)})
    np.testing.assert_array_equal(open_model(tmp_path, EPOCH).decode(np.zeros((1, 2))), want)


def renamed(checkpoint, rename):
    return {rename(name): value for name, value in checkpoint["model_state_dict"].items()}


def test_an_old_config_pkl_is_read(workdir):
    """As cryoDRGN before 2.0 wrote it: two pickles, without the settings added later."""
    want = open_model(workdir, EPOCH)
    config = yaml.safe_load((workdir / "config.yaml").read_text())
    for name in ("activation", "tilt_params", "feat_sigma"):
        del config["model_args"][name]
    config["dataset_args"]["norm"] = [np.float32(x) for x in config["dataset_args"]["norm"]]
    meta = {name: config.pop(name) for name in ("time", "cmd", "version")}
    write_pickles(workdir / "config.pkl", config, meta)
    (workdir / "config.yaml").unlink()
    model = open_model(workdir, EPOCH)
    assert model.architecture == want.architecture
    z = want.latents[:1]
    np.testing.assert_array_equal(model.decode(z), want.decode(z))


def test_tuples_in_an_older_config_are_read(workdir):
    text = (workdir / "config.yaml").read_text()
    old = text.replace("norm:\n", "norm: !!python/tuple\n")
    assert old != text
    (workdir / "config.yaml").write_text(old)
    assert open_model(workdir, EPOCH).decoder.norm == (0.0, 10.0)


def test_old_and_numpy_laden_checkpoints_are_read(workdir):
    """Torch before 1.6 wrote no zip files; ab-initio training kept poses beside the weights."""
    want = open_model(workdir, EPOCH)
    path = workdir / f"weights.{EPOCH}.pkl"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["search_pose"] = (np.eye(3), np.zeros((4, 2), np.float32))
    checkpoint["norm"] = [np.float32(0), np.float64(1)]
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    z = want.latents[:1]
    np.testing.assert_array_equal(open_model(workdir, EPOCH).decode(z), want.decode(z))


def test_the_last_epochs_own_names_are_epoch_minus_one(workdir):
    for name in ("weights", "z"):
        (workdir / f"{name}.{EPOCH}.pkl").rename(workdir / f"{name}.pkl")
    assert open_model(workdir, -1).latents.shape == (20, 3)


# The pixel size


def ctf_table(box_size, pixel_sizes):
    table = np.zeros((len(pixel_sizes), 9), np.float32)
    table[:, 0], table[:, 1] = box_size, pixel_sizes
    return table


def test_pixel_size_of_a_ctf_of_the_images_before_downsampling(workdir):
    write_pickles(workdir / "ctf.pkl", ctf_table(64, [1.0] * 40))
    assert open_model(workdir, EPOCH).pixel_size_angstroms == 4.0


def test_a_ctf_file_beside_the_configuration_is_found(workdir):
    edit_config(workdir, dataset_args={"ctf": "elsewhere/ctf.pkl"})
    model = open_model(workdir, EPOCH)
    assert model.pixel_size_angstroms == 1.5
    assert model.files["ctf"] == workdir / "ctf.pkl"


@pytest.mark.parametrize(
    ("break_it", "note"),
    [
        (lambda w: (w / "ctf.pkl").unlink(), "is not found"),
        (lambda w: edit_config(w, dataset_args={"ctf": None}), "the training had no CTF file"),
        (lambda w: write_pickles(w / "ctf.pkl", ctf_table(16, [1.5, 1.6])), "no single one"),
        (lambda w: write_pickles(w / "ctf.pkl", ctf_table(16, [np.nan])), "no single one"),
        (lambda w: write_pickles(w / "ctf.pkl", ctf_table(16, [])), "no single one"),
    ],
    ids=["missing", "none", "several", "nan", "empty"],
)
def test_an_unknown_pixel_size_is_said_to_be_unknown(workdir, break_it, note):
    break_it(workdir)
    model = open_model(workdir, EPOCH)
    assert model.pixel_size_angstroms is None
    assert len(model.notes) == 1
    assert model.notes[0].startswith("Pixel size unknown")
    assert note in model.notes[0]
    assert "--pixel-size" in model.notes[0]


@pytest.mark.parametrize("table", [np.zeros((4, 8), np.float32), np.zeros(9), {"a": 1}])
def test_a_file_that_is_no_ctf_table_is_refused(workdir, table):
    write_pickles(workdir / "ctf.pkl", table)
    with pytest.raises(InputError, match=r"CTF table of nine columns.*--pixel-size"):
        open_model(workdir, EPOCH)


# --ind


def test_indices_map_particles_to_the_original_stack(workdir):
    np.testing.assert_array_equal(open_model(workdir, EPOCH).stack_indices, np.arange(1, 40, 2))


def test_indices_as_a_mask_of_the_stack(workdir):
    mask = np.zeros(50, bool)
    mask[10:30] = True
    write_pickles(workdir / "ind.pkl", mask)
    np.testing.assert_array_equal(open_model(workdir, EPOCH).stack_indices, np.arange(10, 30))


def test_indices_as_a_list_or_a_number(workdir):
    write_pickles(workdir / "ind.pkl", list(range(20)))
    np.testing.assert_array_equal(open_model(workdir, EPOCH).stack_indices, np.arange(20))
    edit_config(workdir, dataset_args={"ind": 20})  # abinit takes the first so many
    np.testing.assert_array_equal(open_model(workdir, EPOCH).stack_indices, np.arange(20))


def test_without_indices_rows_are_those_of_the_stack(workdir):
    edit_config(workdir, dataset_args={"ind": None})
    np.testing.assert_array_equal(open_model(workdir, EPOCH).stack_indices, np.arange(20))


def test_missing_indices_are_a_note(workdir):
    (workdir / "ind.pkl").unlink()
    model = open_model(workdir, EPOCH)
    assert model.stack_indices is None
    assert any("cannot be mapped to the original stack" in note for note in model.notes)
    assert "ind" not in model.files


@pytest.mark.parametrize("indices", [np.arange(19), np.zeros(20), np.zeros((20, 2), int), "abc"])
def test_indices_of_something_else_are_refused(workdir, indices):
    write_pickles(workdir / "ind.pkl", indices)
    with pytest.raises(InputError, match=r"one index a particle, 20.*that the training used"):
        open_model(workdir, EPOCH)


# The directory and the epoch


def test_what_is_no_directory_is_refused(workdir, tmp_path):
    for path in (tmp_path / "missing", workdir / "config.yaml"):
        with pytest.raises(InputError, match="is not a directory. Give the output directory"):
            open_model(path, EPOCH)


def test_a_directory_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no cryoDRGN work directory.*Give the output directory"):
        open_model(tmp_path, EPOCH)


def test_an_epoch_that_does_not_exist_names_those_that_do(workdir):
    for epoch in (4, 9):
        shutil.copy(workdir / f"weights.{EPOCH}.pkl", workdir / f"weights.{epoch}.pkl")
    with pytest.raises(InputError, match=r"weights\.20\.pkl does not exist.*epochs 4, 9, 19\."):
        open_model(workdir, 20)


def test_no_weights_at_all(workdir):
    (workdir / f"weights.{EPOCH}.pkl").unlink()
    with pytest.raises(InputError, match="weights of no epoch"):
        open_model(workdir, EPOCH)


def test_weights_without_latents(workdir):
    """Lost in copying, or a homogeneous training (train_nn), which has none."""
    (workdir / f"z.{EPOCH}.pkl").unlink()
    with pytest.raises(InputError, match=r"z\.19\.pkl does not exist\. Copy it too.*homogeneous"):
        open_model(workdir, EPOCH)


@pytest.mark.parametrize("zdim", [0, None])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_homogeneous_model_has_no_landscape(tmp_path, command, zdim):
    domain = "hartley" if command == "abinit" else "fourier"
    write_random_model(tmp_path, command, box_size=8, layers=1, width=8, domain=domain)
    if command == "abinit":
        edit_weights(tmp_path, lambda c: c["hypervolume_params"].update(z_dim=zdim))
    edit_config(tmp_path, model_args={"zdim": zdim})
    with pytest.raises(InputError, match="homogeneous reconstruction: it has no latents"):
        open_model(tmp_path, EPOCH)


# The configuration


def test_a_configuration_cut_anywhere_is_refused_or_complete(workdir):
    """What is left either lacks something, or only what decoding does not need."""
    path = workdir / "config.yaml"
    text = path.read_text()
    want = open_model(workdir, EPOCH).decoder
    n_refused = 0
    for size in range(0, len(text), 7):
        path.write_text(text[:size])
        try:
            found = open_model(workdir, EPOCH).decoder
        except InputError:
            n_refused += 1
            continue
        assert (found.zdim, found.box_size, found.norm) == (want.zdim, want.box_size, want.norm)
        np.testing.assert_array_equal(found.weights[0], want.weights[0])
    assert n_refused > 0.8 * len(text) / 7


@pytest.mark.parametrize("text", ["", "just text", "- a\n- b\n", "model_args: null\n", "\x00"])
def test_a_configuration_of_something_else_is_refused(workdir, text):
    (workdir / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"config\.yaml is not.*Give the file as cryoDRGN wrote"):
        open_model(workdir, EPOCH)


def test_a_binary_configuration_is_refused(workdir):
    (workdir / "config.yaml").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(InputError, match="is not YAML"):
        open_model(workdir, EPOCH)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:builtins.open ['{path}', 'w']",
        "!!python/object/new:pathlib.Path ['{path}']",
        "!!python/name:os.system ''",
        "!!python/module:antigravity ''",
    ],
)
def test_a_configuration_that_names_code_is_refused_and_does_not_run(workdir, tmp_path, tag):
    ran = tmp_path / "ran"
    with (workdir / "config.yaml").open("a") as stream:
        stream.write("extra: " + tag.format(path=ran) + "\n")
    with pytest.raises(InputError, match="is not YAML that holds plain values"):
        open_model(workdir, EPOCH)
    assert not ran.exists()


def test_a_config_pkl_that_names_code_is_refused_and_does_not_run(workdir, tmp_path):
    ran = tmp_path / "ran"
    (workdir / "config.yaml").unlink()
    write_pickles(workdir / "config.pkl", {"model_args": Payload(ran)})
    with pytest.raises(InputError, match="not a pickle of numpy arrays and plain containers"):
        open_model(workdir, EPOCH)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("model_args", "zdim"),
        ("model_args", "pe_type"),
        ("model_args", "domain"),
        ("lattice_args", "D"),
        ("dataset_args", "norm"),
    ],
)
def test_a_configuration_that_lacks_a_setting_names_it(workdir, section, name):
    path = workdir / "config.yaml"
    config = yaml.safe_load(path.read_text())
    del config[section][name]
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match=f"'{name}'.*Give both as one training wrote them"):
        open_model(workdir, EPOCH)


# The weights


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_weights_cut_short_are_refused(workdir, fraction, zipped):
    path = workdir / f"weights.{EPOCH}.pkl"
    checkpoint = torch.load(path, weights_only=True)
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(InputError, match=r"is cut short.*Give the file as cryoDRGN wrote it"):
        open_model(workdir, EPOCH)


def test_weights_that_name_code_are_refused_and_do_not_run(workdir, tmp_path):
    ran = tmp_path / "ran"
    path = workdir / f"weights.{EPOCH}.pkl"
    torch.save({"model_state_dict": {}, "extra": Payload(ran)}, path)
    with pytest.raises(InputError, match="not a checkpoint of plain tensors"):
        open_model(workdir, EPOCH)
    assert not ran.exists()
    torch.load(path, weights_only=False)  # torch itself would have run it
    assert ran.exists()


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2], torch.zeros(3)])
def test_a_torch_file_of_something_else_is_refused(workdir, content):
    torch.save(content, workdir / f"weights.{EPOCH}.pkl")
    with pytest.raises(InputError, match=r"is not a cryoDRGN checkpoint.*train_vae, train_dec or"):
        open_model(workdir, EPOCH)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["main.0.weight", "main.2.linear.weight", "main.6.bias"])
def test_weights_that_are_not_numbers_are_refused(workdir, name, value):
    def spoil(checkpoint):
        checkpoint["model_state_dict"][f"decoder.decoder.{name}"].view(-1)[3 % 2] = value

    edit_weights(workdir, spoil)
    with pytest.raises(InputError, match=r"training diverged\. Choose an earlier epoch"):
        open_model(workdir, EPOCH)


def test_random_frequencies_that_are_not_numbers_are_refused(workdir):
    edit_weights(workdir, lambda c: c["model_state_dict"]["decoder.rand_freqs"].fill_(np.nan))
    with pytest.raises(InputError, match="finite"):
        open_model(workdir, EPOCH)


@pytest.mark.parametrize(
    "other",
    [
        {"zdim": 4},
        {"width": 24},
        {"layers": 3},
        {"box_size": 18},
        {"pe_dim": 5},
        {"domain": "hartley"},
        {"encoding": "geom_lowf"},
        {"encoding": "none"},
        {"command": "train_dec"},
        {"command": "abinit"},
    ],
    ids=lambda other: "-".join(map(str, next(iter(other.items())))),
)
def test_weights_of_another_training_are_refused(workdir, tmp_path, other):
    settings = {"box_size": 16, "layers": 2, "width": 16, "zdim": 3, **other}
    write_random_model(tmp_path / "other", **settings)
    for here, there in ((workdir, tmp_path / "other"), (tmp_path / "other", workdir)):
        kept = (here / f"weights.{EPOCH}.pkl").read_bytes()
        shutil.copy(there / f"weights.{EPOCH}.pkl", here / f"weights.{EPOCH}.pkl")
        with pytest.raises(InputError, match=r"Give both as one training wrote them"):
            open_model(here, EPOCH)
        (here / f"weights.{EPOCH}.pkl").write_bytes(kept)


@pytest.mark.parametrize("change", [{"zdim": 5}, {"resolution": 17}])
def test_abinit_weights_of_another_configuration_are_refused(tmp_path, change):
    write_random_model(tmp_path, "abinit", box_size=8, layers=1, width=8, zdim=3)
    if "zdim" in change:
        edit_config(tmp_path, model_args=change)
    else:
        edit_weights(tmp_path, lambda c: c["hypervolume_params"].update(change))
    with pytest.raises(InputError, match="Give both as one training wrote them|dimension, 5"):
        open_model(tmp_path, EPOCH)


def test_an_abinit_checkpoint_without_a_mask_is_refused_when_decoding(tmp_path):
    write_random_model(tmp_path, "abinit", box_size=8, layers=1, width=8, zdim=3)
    edit_weights(tmp_path, lambda c: c.pop("output_mask_radius"))
    with pytest.raises(InputError, match=r"output_mask_radius.*later epoch"):
        open_model(tmp_path, EPOCH).decode(np.zeros((1, 3)))


@pytest.mark.parametrize(
    "settings",
    [{"encoding": "fourier"}, {"encoding": "linear_lowf", "pe_dim": 5}],
    ids=["unknown", "linear_lowf"],
)
def test_encodings_that_cryodrgn_cannot_evaluate_are_refused(workdir, settings):
    edit_weights(workdir, lambda c: c["model_state_dict"].pop("decoder.rand_freqs"))
    edit_config(
        workdir,
        model_args={"pe_type": settings["encoding"], "pe_dim": settings.get("pe_dim")},
    )
    with pytest.raises(InputError, match=r"not one of gaussian|D/2 frequencies"):
        open_model(workdir, EPOCH)


# The latents


def test_latents_of_train_vae_cut_to_one_array_are_refused(workdir):
    """Cut at half, the file holds one whole array: means without log-variances."""
    path = workdir / f"z.{EPOCH}.pkl"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"should hold two arrays.*cut short\. Copy it again"):
        open_model(workdir, EPOCH)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.4, 0.7, 0.99])
def test_latents_cut_within_an_array_are_refused(tmp_path, command, fraction):
    write_random_model(tmp_path, command, box_size=8, layers=1, width=8)
    path = tmp_path / f"z.{EPOCH}.pkl"
    data = path.read_bytes()
    path.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(InputError, match=r"cut short|is empty"):
        open_model(tmp_path, EPOCH)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([np.zeros((20, 4), np.float32)] * 2, r"latent dimension, 3.*\(20, 4\)"),
        ([np.zeros(20, np.float32)] * 2, r"latent dimension, 3.*\(20,\)"),
        ([np.zeros((20, 3), np.float32), np.zeros((19, 3), np.float32)], "of one shape"),
        ([np.full((20, 3), np.nan, np.float32)] * 2, "20 rows are not, row 0 first"),
        ([np.zeros((20, 3)), np.full((20, 3), np.nan)], "60 log-variances are not a number"),
        ([[1, 2], [3, 4]], "holds a list"),
        ([np.zeros((20, 3), int)] * 2, "should hold arrays of latents"),
    ],
    ids=["zdim", "1-D", "lengths", "nan", "nan-variance", "list", "integers"],
)
def test_latents_that_do_not_fit_are_refused(workdir, objects, message):
    write_pickles(workdir / f"z.{EPOCH}.pkl", *objects)
    with pytest.raises(InputError, match=message) as caught:
        open_model(workdir, EPOCH)
    assert f"z.{EPOCH}.pkl" in str(caught.value)


def test_latents_that_name_code_are_refused_and_do_not_run(workdir, tmp_path):
    ran = tmp_path / "ran"
    write_pickles(workdir / f"z.{EPOCH}.pkl", np.zeros((20, 3), np.float32), Payload(ran))
    with pytest.raises(InputError, match="not a pickle of numpy arrays and plain containers"):
        open_model(workdir, EPOCH)
    assert not ran.exists()
