"""Volumes against cryoDRGN's own, which is run live: every architecture, every kind of lattice.

The bound is a relative L2 error of 1e-5 in float32. What is found is float32's own rounding, 2e-7
to 8e-7, and up to 3e-6 without an encoding, where cryoDRGN's volume too is off by 2e-6 from the
exact one. A lattice with one point in the wrong place is off by 1e-3 or more.
"""

from itertools import count, product

import mrcfile
import numpy as np
import pytest
import torch
from models import EPOCH, Reference, relative_error
from random_model import ACTIVATIONS, DOMAINS, ENCODINGS, write_random_model

from scapedist import open_model
from scapedist.model.field import Field

pytestmark = pytest.mark.oracle
BOUND = 1e-5
TRAPS = ((24, 20), (28, 20), (28, 26), (48, 10), (48, 20), (48, 40), (48, 46))
"""Full and reduced boxes whose lattice has no point at exactly 0 along z."""


@pytest.fixture
def pair(tmp_path):
    """A function that writes a random model and returns it as both programs read it."""
    numbers = count()

    def write(command="train_vae", **settings):
        defaults = {"layers": 2, "width": 24, "zdim": 3, "n_particles": 6, "norm": (0.3, 12.0)}
        workdir = tmp_path / str(next(numbers))
        write_random_model(workdir, command, **{**defaults, **settings})
        return open_model(workdir, EPOCH), Reference.load(workdir)

    return write


def assert_agree(model, reference, box_sizes, n_latents=2):
    """Hold a model to the bound at some boxes (None: the full box)."""
    latents = model.latents[:n_latents]
    for box_size in box_sizes:
        volumes = model.decode(latents, box_size)
        for latent, volume in zip(latents, volumes, strict=True):
            error = relative_error(volume, reference.volume(latent, box_size))
            assert error <= BOUND, f"box {box_size}: {error:.2e}"


# Every architecture


@pytest.mark.parametrize("command", ["train_vae", "train_dec"])
@pytest.mark.parametrize(
    ("encoding", "domain", "activation"), list(product(ENCODINGS, DOMAINS, ACTIVATIONS))
)
def test_every_architecture(pair, command, encoding, domain, activation):
    model, reference = pair(
        command, box_size=16, encoding=encoding, domain=domain, activation=activation
    )
    assert_agree(model, reference, (None, 12, 6))


@pytest.mark.parametrize("latent_encoding", [None, "geom"])
@pytest.mark.parametrize("box_size", [16, 24, 30])
@pytest.mark.parametrize("inside", [0, 1, 4])
def test_abinit(pair, box_size, latent_encoding, inside):
    model, reference = pair(
        "abinit",
        box_size=box_size,
        latent_encoding=latent_encoding,
        mask_radius=box_size // 2 - inside,
    )
    assert_agree(model, reference, (None, box_size - 2, box_size - 8, 6))


@pytest.mark.parametrize("box_size", [32, 36, 64])
def test_abinit_where_the_masks_radius_is_rounded(pair, box_size):
    """CryoDRGN truncates a radius computed in float32: at some boxes one point less than meant."""
    for mask_radius in (box_size // 2, box_size // 2 - 1):
        model, reference = pair("abinit", box_size=box_size, width=8, mask_radius=mask_radius)
        assert_agree(model, reference, (None, box_size // 2), n_latents=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": 1},
        {"layers": 5},
        {"width": 7},
        {"zdim": 1},
        {"zdim": 10},
        {"pe_dim": 3, "encoding": "gaussian"},
        {"pe_dim": 30, "encoding": "gaussian"},
        {"pe_dim": 3, "encoding": "geom_ft"},
        {"pe_dim": 20, "encoding": "geom_lowf", "domain": "hartley"},
        {"width": 2, "encoding": "none"},
    ],
    ids=lambda settings: "-".join(f"{k}={v}" for k, v in settings.items()),
)
def test_unusual_sizes(pair, settings):
    model, reference = pair(box_size=16, **settings)
    assert_agree(model, reference, (None, 10))


@pytest.mark.parametrize(
    ("settings", "n_inputs"),
    [
        ({"encoding": "gaussian"}, 6 * 8 + 3),
        ({"encoding": "geom_full", "domain": "hartley"}, 6 * 8 + 3),
        ({"encoding": "none"}, 3 + 3),
        ({"command": "abinit"}, 6 * 8 + 3),
        ({"command": "abinit", "latent_encoding": "geom"}, 6 * 8 + 3 * 8),
    ],
    ids=["gaussian", "hartley", "none", "abinit", "abinit-geom"],
)
def test_a_first_layer_with_a_skip_connection(pair, settings, n_inputs):
    """Where inputs are as many as the width, cryoDRGN's first layer is a residual one."""
    model, reference = pair(box_size=16, width=n_inputs, **settings)
    assert model.decoder.weights[0].shape == (n_inputs, n_inputs)
    assert_agree(model, reference, (None, 10))


def test_a_last_layer_with_a_skip_connection(pair):
    """A width of 2 makes the last layer of a Fourier decoder a residual one."""
    model, reference = pair(box_size=12, width=2)
    assert_agree(model, reference, (None, 6))


# Every kind of lattice


@pytest.mark.parametrize(("full", "reduced"), TRAPS)
@pytest.mark.parametrize("encoding", ["gaussian", "none"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_reduced_boxes_without_a_point_at_zero(pair, full, reduced, encoding, domain):
    """Fourier decoders then take the plane through the origin as any other."""
    middle = np.linspace(-0.5 * (reduced / full), 0.5 * (reduced / full), reduced + 1)
    assert middle[reduced // 2] != 0
    model, reference = pair(box_size=full, width=8, encoding=encoding, domain=domain)
    assert_agree(model, reference, (reduced,), n_latents=1)


@pytest.mark.parametrize("encoding", ["gaussian", "none"])
def test_a_full_box_without_a_point_at_zero(pair, encoding):
    assert np.linspace(-0.5, 0.5, 99)[49] != 0
    model, reference = pair(
        box_size=98, layers=1, width=4, encoding=encoding, pe_dim=2, n_particles=1
    )
    assert_agree(model, reference, (None,), n_latents=1)


@pytest.mark.parametrize("box_size", [8, 10, 18, 20, 22, 24, 26, 28, 36, 44, 50])
@pytest.mark.parametrize("encoding", ["gaussian", "none"])
def test_points_on_the_sphere_itself(pair, box_size, encoding):
    """Which of them are kept depends on float32's rounding (at D = 24, 22 of 30)."""
    model, reference = pair(
        box_size=box_size, layers=1, width=8, encoding=encoding, pe_dim=4, n_particles=1
    )
    assert_agree(model, reference, (None, box_size - 2, box_size // 4 * 2), n_latents=1)


@pytest.mark.parametrize("extent", [0.1, 0.25, 0.3, 0.45])
@pytest.mark.parametrize(
    ("encoding", "domain"), [("gaussian", "fourier"), ("none", "fourier"), ("geom_ft", "hartley")]
)
def test_other_extents(pair, extent, encoding, domain):
    model, reference = pair(box_size=24, width=8, extent=extent, encoding=encoding, domain=domain)
    assert_agree(model, reference, (None, 20, 12))


@pytest.mark.parametrize("norm", [(0.0, 1.0), (5.0, 1.0), (-300.0, 40.0)])
@pytest.mark.parametrize("architecture", ["fourier", "slice", "hartley", "abinit"])
def test_a_mean_that_is_not_zero(pair, architecture, norm):
    """It is added outside of the sphere too, but not by the slice decoder."""
    settings = {
        "fourier": {},
        "slice": {"encoding": "none"},
        "hartley": {"domain": "hartley"},
        "abinit": {"command": "abinit", "mask_radius": 6},
    }[architecture]
    model, reference = pair(box_size=16, norm=norm, **settings)
    assert_agree(model, reference, (None, 10))


# The bundled model


def test_the_bundled_model_at_every_kind_of_box(adk, adk_workdir):
    assert_agree(adk, Reference.load(adk_workdir, 14), (None, 32, 40), n_latents=2)


def test_the_bundled_models_reference_maps(adk, adk_workdir):
    """Maps that cryoDRGN's eval_vol wrote after the training."""
    latents = np.loadtxt(adk_workdir / "reference" / "z.txt")
    paths = sorted((adk_workdir / "reference").glob("vol_*.mrc"))
    assert len(paths) == len(latents) == 3
    for volume, path in zip(adk.decode(latents), paths, strict=True):
        assert relative_error(volume, mrcfile.read(path)) <= BOUND


# Precisions


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("domain", DOMAINS)
def test_float64_is_exact(pair, encoding, domain):
    """Against float64 evaluation of cryoDRGN's module, on the same float32 points."""
    model, reference = pair(box_size=16, encoding=encoding, domain=domain)
    latent = model.latents[:1]
    for box_size in (16, 10):
        wanted = reference.volume_by_hand(latent[0], box_size)
        assert relative_error(reference.volume(latent[0], box_size), wanted) < 1e-6
        single = relative_error(Field(model.decoder).decode(latent, box_size)[0], wanted)
        double = relative_error(
            Field(model.decoder, dtype="float64").decode(latent, box_size)[0], wanted
        )
        assert double < 1e-12
        assert 1e-8 < single < 1e-6


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("bfloat16", 1e-3, 2e-2), ("float16", 1e-4, 3e-3)]
)
@pytest.mark.parametrize("which", ["random", "bundled"])
def test_lower_precisions_err_by_their_rounding(pair, adk, dtype, low, high, which):
    model = adk if which == "bundled" else pair(box_size=16)[0]
    latents = model.latents[:1]
    error = relative_error(model.decode(latents, dtype=dtype), model.decode(latents))
    assert low < error < high


# The field itself


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_coefficients_of_a_fourier_decoder_at_any_frequencies(pair, encoding):
    model, reference = pair(box_size=16, encoding=encoding)
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (200, 3)).astype(np.float32)
    points[:, 2] = -np.abs(points[:, 2])  # the half in which cryoDRGN evaluates
    found = Field(model.decoder).coefficients(model.latents[:3], points)
    assert found.shape == (3, 200, 2)
    for latent, values in zip(model.latents[:3], found, strict=True):
        inputs = np.column_stack([points, np.tile(latent, (200, 1))])
        with torch.no_grad():
            real, imaginary = reference.module.decode(torch.from_numpy(inputs)).T
            opposite = torch.from_numpy(inputs * np.array([-1, -1, -1, 1, 1, 1], np.float32))
            there = reference.module.decode(opposite)
        assert relative_error(values[:, 0], real - imaginary) < 1e-6
        assert relative_error(values[:, 1], real + imaginary) < 1e-6
        assert relative_error(values[:, 1], there[:, 0] - there[:, 1]) < 1e-6


@pytest.mark.parametrize(
    "settings",
    [
        {"domain": "hartley"},
        {"domain": "hartley", "encoding": "geom_full"},
        {"domain": "hartley", "encoding": "none"},
        {"command": "abinit", "latent_encoding": "geom"},
    ],
    ids=["gaussian", "geom_full", "none", "abinit"],
)
def test_coefficients_of_a_hartley_decoder_at_any_frequencies(pair, settings):
    model, reference = pair(box_size=16, **settings)
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (200, 3)).astype(np.float32)
    latent = model.latents[:1]
    found = Field(model.decoder).coefficients(latent, points)
    assert found.shape == (1, 200, 1)
    with torch.no_grad():
        if settings.get("command") == "abinit":
            wanted = reference.module(torch.from_numpy(points)[None], torch.from_numpy(latent))
        else:
            inputs = np.column_stack([points, np.tile(latent, (200, 1))])
            wanted = reference.module(torch.from_numpy(inputs))
    assert relative_error(found.ravel(), wanted.ravel()) < 1e-6


def test_coefficients_on_the_lattice_are_the_decodes(pair):
    """At a lattice's own points, normalised, they are what volumes are made of."""
    model, _ = pair(box_size=16)
    field = Field(model.decoder)
    lattice = field.lattice(12)
    values = field.values(model.latents[:2], lattice)
    raw = field.coefficients(model.latents[:2], lattice.coordinates)
    mean, deviation = model.decoder.norm
    torch.testing.assert_close(values[:, :-1], raw.flatten(1) * deviation + mean)
    assert (values[:, -1] == mean).all()


# Batches and devices


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_volume_does_not_depend_on_its_batch(pair, dtype):
    model, _ = pair(box_size=16)
    together = model.decode(model.latents, dtype=dtype)
    for latent, volume in zip(model.latents, together, strict=True):
        np.testing.assert_array_equal(model.decode(latent, dtype=dtype)[0], volume)
    backwards = model.decode(model.latents[::-1].copy(), dtype=dtype)
    np.testing.assert_array_equal(backwards[::-1], together)


def test_the_device_gives_the_same_volumes(pair, device):
    for settings in (
        {},
        {"encoding": "none", "activation": "leaky_relu"},
        {"domain": "hartley"},
        {"command": "abinit", "latent_encoding": "geom"},
    ):
        model, reference = pair(box_size=16, **settings)
        field = Field(model.decoder, device=device)
        volumes = field.decode(model.latents[:2]).cpu().numpy()
        for latent, volume in zip(model.latents[:2], volumes, strict=True):
            assert relative_error(volume, reference.volume(latent)) <= BOUND
