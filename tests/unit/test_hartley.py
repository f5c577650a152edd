"""The lattice: which points, each once, in their places; and the transform to volumes.

cryoDRGN's ``eval_volume`` runs here with a formula in the network's place, so that every box,
every reduced box and every extent can be held to it at little cost.
"""

import numpy as np
import pytest
import torch
from cryodrgn import fft
from cryodrgn.lattice import Lattice as CryodrgnLattice
from cryodrgn.models import FTPositionalDecoder, FTSliceDecoder, PositionalDecoder
from cryodrgn.models_ai import eval_volume_method
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import fourier_crop, relative_error

from scapedist.errors import InputError
from scapedist.model.hartley import volumes_from_values
from scapedist.model.lattice import check_box_size, make_lattice

KINDS = ("fourier_sphere", "fourier_slice", "hartley_cube", "hypervolume")
FOURIER = KINDS[:2]
MEAN, DEVIATION = 0.7, 3.0
boxes = st.integers(2, 17).map(lambda half: 2 * half)


class Formula(torch.nn.Module):
    """In the place of a network: n_outputs smooth functions of a point (..., 3), not symmetric."""

    def __init__(self, n_outputs):
        super().__init__()
        self.n_outputs = n_outputs

    def forward(self, points):
        x, y, z = points.unbind(-1)
        values = (
            torch.cos(3 * x + 5 * y - 4 * z + 0.4) + 2 * x * y,
            torch.sin(6 * x - 2 * y + 3 * z + 0.1) - z,
        )
        return torch.stack(values[: self.n_outputs], -1)


def cryodrgn_volume(kind, full, box_size, extent, mask_radius):
    """CryoDRGN's volume of the formula."""
    lattice = CryodrgnLattice(full + 1, extent=extent)
    norm = (MEAN, DEVIATION)
    if kind == "hypervolume":
        formula = Formula(1).eval()

        class Hypervolume:
            training = False

            def __call__(self, points, _):
                return formula(points)[..., 0]

        whole = eval_volume_method(Hypervolume(), lattice, 0, norm, radius=mask_radius).numpy()
        return fourier_crop(whole, box_size)
    if kind == "fourier_slice":
        decoder = FTSliceDecoder(3, full + 1, 1, 2, torch.nn.ReLU)
    else:
        of_kind = FTPositionalDecoder if kind == "fourier_sphere" else PositionalDecoder
        decoder = of_kind(3, full + 1, 1, 2, torch.nn.ReLU, "geom_ft", 2)
        decoder.positional_encoding_geom = lambda points: points
    decoder.decoder = Formula(2 if kind in FOURIER else 1)
    points = lattice.coords if box_size == full else lattice.get_downsample_coords(box_size + 1)
    edge = extent if box_size == full else extent * (box_size / full)
    return decoder.eval().eval_volume(points, box_size + 1, edge, norm).numpy()


def lattice_of(kind, full, box_size, extent=0.5, mask_radius=None, background=MEAN):
    if kind == "fourier_slice":
        background = 0.0
    if kind == "hypervolume" and mask_radius is None:
        mask_radius = full // 2
    return make_lattice(kind, full, box_size, extent, background, mask_radius)


def volume_of(lattice, dtype=torch.float32):
    """The formula's volume, from a lattice."""
    outputs = Formula(lattice.n_outputs)(torch.from_numpy(lattice.coordinates)).to(dtype)
    if lattice.n_outputs == 2:  # real, imaginary -> h(k), h(-k)
        real, imaginary = outputs.unbind(-1)
        outputs = torch.stack((real - imaginary, real + imaginary), -1)
    values = torch.empty((1, lattice.n_slots), dtype=dtype)
    values[0, :-1] = outputs.ravel() * DEVIATION + MEAN
    values[0, -1] = lattice.background
    return volumes_from_values(values, lattice)[0].numpy()


def slots_of(lattice):
    """Slot of h(k) for every k, (d, d, d), the origin in the middle."""
    d, half = lattice.box_size, lattice.box_size // 2
    slots = np.full((d, d, d), -1)
    slots[:, :, : half + 1] = lattice.direct
    reverse = -np.arange(d) % d
    opposite = lattice.mirror[reverse][:, reverse]
    slots[:, :, half + 1 :] = opposite[:, :, 1:half][:, :, ::-1]
    return np.fft.fftshift(slots)


def frequencies_of(full, box_size, extent=0.5):
    """The points (d, d, d, 3), x, y, z, that the central d^3 of a lattice has."""
    axis = np.arange(-box_size // 2, box_size // 2) * 2 * extent / full
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    return np.stack((x, y, z), -1)


# Against cryoDRGN


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS[:3]),
    full=boxes,
    smaller=st.integers(0, 8),
    extent=st.sampled_from([0.5, 0.5, 0.3, 0.11]),
)
def test_any_lattice_is_cryodrgns(kind, full, smaller, extent):
    box_size = full - 2 * smaller
    assume(box_size >= 4)
    wanted = cryodrgn_volume(kind, full, box_size, extent, None)
    found = volume_of(lattice_of(kind, full, box_size, extent))
    assert relative_error(found, wanted) < 2e-6


@settings(max_examples=40, deadline=None)
@given(full=boxes, smaller=st.integers(0, 8), inside=st.integers(0, 6))
def test_any_masked_lattice_is_the_crop_of_cryodrgns(full, smaller, inside):
    box_size, mask_radius = full - 2 * smaller, full // 2 - inside
    assume(box_size >= 4)
    assume(mask_radius >= 1)
    wanted = cryodrgn_volume("hypervolume", full, box_size, 0.5, mask_radius)
    found = volume_of(lattice_of("hypervolume", full, box_size, mask_radius=mask_radius))
    assert relative_error(found, wanted) < 2e-6


@pytest.mark.parametrize("box_size", [32, 40, 44, 48, 52, 56, 64, 80, 96, 128])
def test_masked_points_of_larger_boxes_are_cryodrgns(box_size):
    """Without a volume: which points of each plane its mask keeps."""
    theirs = CryodrgnLattice(box_size + 1)
    for mask_radius in (box_size // 2, box_size // 2 - 1, box_size // 3):
        ours = lattice_of("hypervolume", box_size, box_size, mask_radius=mask_radius)
        kept = slots_of(ours) != ours.n_slots - 1
        normed = 0.5 * 2 * mask_radius / (box_size + 1)
        for plane, dz in enumerate(np.linspace(-0.5, 0.5, box_size + 1, dtype=np.float32)[:-1]):
            radius = int(np.sqrt(max(normed**2 - dz**2, 0.0)) * (box_size + 1))
            wanted = theirs.get_circular_mask(radius).view(box_size + 1, box_size + 1)
            np.testing.assert_array_equal(kept[plane], wanted[:-1, :-1].numpy())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("full", "box_size"), [(16, 16), (16, 10), (10, 2), (18, 18)])
def test_the_transform_is_cryodrgns(kind, dtype, full, box_size):
    """Of random values: several volumes at once, each from its own."""
    lattice = lattice_of(kind, full, box_size)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn((3, lattice.n_slots), generator=generator, dtype=dtype)
    volumes = volumes_from_values(values.clone(), lattice)
    assert volumes.dtype == dtype
    assert volumes.shape == (3, box_size, box_size, box_size)
    for row, volume in zip(values, volumes, strict=True):
        wanted = fft.ihtn_center(row[torch.from_numpy(slots_of(lattice))])
        assert relative_error(volume, wanted) < (1e-6 if dtype == torch.float32 else 1e-14)


# Each point once, in its place


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    full=boxes,
    smaller=st.integers(0, 16),
    extent=st.sampled_from([0.5, 0.3]),
)
def test_every_kept_point_is_covered_once_and_in_its_place(kind, full, smaller, extent):
    box_size = full - 2 * smaller
    assume(box_size >= 2)
    lattice = lattice_of(kind, full, box_size, extent)
    background = lattice.n_slots - 1
    slots = slots_of(lattice)
    assert slots.min() >= 0
    assert slots.max() <= background
    covered = slots[slots != background]
    assert len(np.unique(covered)) == len(covered)
    assert lattice.coordinates.dtype == np.float32
    # the slot's point is the place's own, or its opposite where the slot is a conjugate's
    points = lattice.coordinates[covered // lattice.n_outputs]
    signs = 1 - 2 * (covered % lattice.n_outputs)
    wanted = frequencies_of(full, box_size, extent)[slots != background]
    np.testing.assert_allclose(points * signs[:, None], wanted, atol=1e-6)
    # every point evaluated serves some place
    assert set(np.unique(covered // lattice.n_outputs)) == set(range(lattice.n_points))


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(KINDS), full=boxes, smaller=st.integers(0, 16))
def test_what_is_kept_is_the_inside(kind, full, smaller):
    """Up to points whose distance is the radius itself, where rounding decides."""
    box_size = full - 2 * smaller
    assume(box_size >= 2)
    slots = slots_of(lattice_of(kind, full, box_size))
    background = lattice_of(kind, full, box_size).n_slots - 1
    distance = np.linalg.norm(frequencies_of(full, box_size), axis=-1) * full
    inside, outside = distance < box_size / 2 - 1e-4, distance > box_size / 2 + 1e-4
    if kind == "hartley_cube":
        assert (slots != background).all()
    elif kind == "hypervolume":
        axis = np.hypot(*np.moveaxis(frequencies_of(full, box_size)[..., :2], -1, 0)) == 0
        assert (slots[axis] == background).all()
        assert (slots[distance > full / 2 + 1e-4] == background).all()
        assert (slots[(distance < full / 2 - 2) & ~axis] != background).all()
    else:
        assert (slots[inside] != background).all()
        assert (slots[outside] == background).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("box_size", [32, 48, 64])
def test_how_many_points_are_evaluated(kind, box_size):
    """A Fourier decoder: half a sphere, 2/3 pi r^3, instead of a cube (a quarter of its points)."""
    n_points = lattice_of(kind, box_size, box_size).n_points
    half_sphere = 2 / 3 * np.pi * (box_size / 2) ** 3
    plane = np.pi * (box_size / 2) ** 2
    if kind == "fourier_sphere":
        assert n_points == pytest.approx(half_sphere, rel=0.02)
    elif kind == "fourier_slice":  # the whole plane through the origin
        assert n_points == pytest.approx(half_sphere + plane / 2, rel=0.02)
    elif kind == "hypervolume":
        assert n_points == pytest.approx(2 * half_sphere, rel=0.12)
    else:
        assert n_points == box_size**3


def test_the_plane_through_the_origin_is_halved_where_it_is_exactly_zero():
    points = lattice_of("fourier_sphere", 32, 32).coordinates
    assert (points[:, 2] <= 0).all()
    in_plane = points[points[:, 2] == 0]
    assert len(in_plane) == pytest.approx(np.pi * 16**2 / 2, rel=0.02)
    off = lattice_of("fourier_sphere", 48, 40).coordinates  # its middle is at 2e-17 or so
    near = off[np.abs(off[:, 2]) < 1e-6]
    assert (near[:, 2] != 0).all()
    assert len(near) == pytest.approx(np.pi * 20**2, rel=0.02)


@pytest.mark.parametrize("kind", FOURIER)
def test_a_fourier_decoder_is_evaluated_where_it_was_trained(kind):
    """On kz <= 0: cryoDRGN evaluates the conjugate point of any other."""
    for full, box_size in ((16, 16), (24, 20), (48, 46), (98, 98)):
        assert (lattice_of(kind, full, box_size).coordinates[:, 2] <= 0).all()


# Bad input


@pytest.mark.parametrize("box_size", [0, -2, 1, 7, 18, 33])
def test_boxes_that_a_model_cannot_give_are_refused(box_size):
    with pytest.raises(
        InputError, match=r"is even.*model's is 16\. Choose an even number up to 16"
    ):
        check_box_size(box_size, 16)
    with pytest.raises(InputError):
        lattice_of("fourier_sphere", 16, box_size)


def test_a_mask_is_needed():
    with pytest.raises(InputError, match="output_mask_radius"):
        make_lattice("hypervolume", 16, 16, 0.5, 0.0, None)
