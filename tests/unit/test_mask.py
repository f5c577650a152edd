"""The mask's rule against cryoDRGN's own, and the one way from volumes to masked voxels."""

import numpy as np
import pytest
from cryodrgn.masking import cosine_dilation_mask

from scapedist.analysis.mask import (
    Mask,
    check_user_mask,
    density_percentile,
    mask_from_claims,
    threshold_of,
)
from scapedist.errors import InputError

BOX, N = 24, 6


@pytest.fixture(scope="module")
def volumes():
    """Smooth blobs (6, 24, 24, 24) float32 at a few places, with noise."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(BOX)] * 3, indexing="ij"))
    made = []
    for _ in range(N):
        center = BOX / 2 + rng.uniform(-4, 4, 3)
        width = rng.uniform(1.5, 3)
        blob = np.exp(-np.square(grid - center[:, None, None, None]).sum(0) / (2 * width**2))
        made.append(blob + 0.05 * rng.normal(size=blob.shape))
    return np.array(made, np.float32)


@pytest.fixture(scope="module")
def threshold(volumes):
    return threshold_of(np.array([density_percentile(volume) for volume in volumes]))


def test_threshold(volumes, threshold):
    """analyze_landscape: the mean over volumes of their 99.99th percentile, halved."""
    theirs = np.mean([np.percentile(volume, 99.99) / 2 for volume in volumes])
    assert threshold == pytest.approx(theirs, rel=1e-15)


@pytest.mark.oracle
@pytest.mark.parametrize("pixel_size", [1.0, 1.7, 2.5, 5.0, 7.5])
@pytest.mark.parametrize("dilation", [0, 5, 10])
def test_the_union_is_cryodrgns(volumes, threshold, pixel_size, dilation):
    complement = np.ones((BOX,) * 3)  # as analyze_landscape's make_mask takes the union
    for volume in volumes:
        complement *= 1.0 - cosine_dilation_mask(
            volume, threshold, dilation, edge_dist=0, apix=pixel_size, verbose=False
        )
    claims = (volumes >= threshold).sum(0)
    ours = mask_from_claims(claims, N, pixel_size, dilation)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, 1.0 - complement)
    assert 0 < ours.sum() < BOX**3


@pytest.mark.oracle
@pytest.mark.parametrize("pixel_size", [1.0, 2.5, 3.7])
@pytest.mark.parametrize("dilation", [0, 5])
@pytest.mark.parametrize("edge", [3, 8, 15.5])
def test_a_soft_edge_is_cryodrgns_for_one_volume(volumes, threshold, pixel_size, dilation, edge):
    theirs = cosine_dilation_mask(volumes[0], threshold, dilation, edge, pixel_size, verbose=False)
    claims = (volumes[:1] >= threshold).sum(0)
    ours = mask_from_claims(claims, 1, pixel_size, dilation, edge)
    np.testing.assert_array_equal(ours, theirs.astype(np.float32))
    assert (np.unique(ours).size > 2) == (edge > pixel_size)


def test_a_soft_edge_lies_outside_of_the_union(volumes, threshold):
    claims = (volumes >= threshold).sum(0)
    hard = mask_from_claims(claims, N, 2.5, 5.0)
    soft = mask_from_claims(claims, N, 2.5, 5.0, cosine_edge_angstroms=6.0)
    np.testing.assert_array_equal(soft[hard > 0], 1)
    outside = soft[hard == 0]
    assert outside.min() == 0
    assert 0 < outside.max() < 1


def test_one_junk_volume_does_not_inflate_the_mask(volumes, threshold):
    clean = (volumes >= threshold).sum(0)
    claims = clean + 1  # a seventh volume claims the whole box
    assert mask_from_claims(claims, N + 1, 2.5).all()
    kept = mask_from_claims(claims, N + 1, 2.5, min_fraction=0.2)
    np.testing.assert_array_equal(kept, mask_from_claims(clean, N, 2.5))


@pytest.mark.parametrize("percent", range(1, 101))
def test_a_fraction_is_met_exactly(percent):
    """What 7 of 100 volumes claim is in at 0.07, although 0.07 * 100 is above 7 in float64."""
    claims = np.arange(101).reshape(-1, 1, 1)
    mask = mask_from_claims(claims, 100, 1.0, 0.0, min_fraction=float(f"{percent}e-2"))
    assert np.flatnonzero(mask)[0] == percent


def test_at_no_fraction_one_volume_suffices():
    claims = np.array([0, 1, 2]).reshape(3, 1, 1)
    np.testing.assert_array_equal(mask_from_claims(claims, 9, 1.0, 0.0).ravel(), [0, 1, 1])


@pytest.mark.parametrize("highest", [0, 3])
def test_an_empty_mask_is_refused(highest):
    claims = np.full((4, 4, 4), highest)
    with pytest.raises(InputError, match=rf"0\.5 of 9 volumes \(the most claimed one by {highest}"):
        mask_from_claims(claims, 9, 1.0, min_fraction=0.5)


def test_a_users_mask():
    mask = np.zeros((8, 8, 8))
    mask[2:6, 2:6, 2:6] = 0.25
    mask[4, 4, 4] = 1.0004  # what interpolation leaves
    checked = check_user_mask(mask, 8, "a.mrc")
    assert checked.dtype == np.float32
    assert checked.max() == 1
    assert (checked > 0).sum() == 64


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((6, 6, 6)), r"the box of the volumes, 8\. a\.mrc has the shape \(6, 6, 6\)"),
        (np.ones((8, 8)), r"the box of the volumes, 8"),
        (-np.eye(8)[None].repeat(8, 0), "goes down to -1"),
        (np.zeros((8, 8, 8)), "has none"),
        (np.full((8, 8, 8), 7.5), "goes up to 7.5"),
    ],
)
def test_a_users_mask_that_is_none(mask, message):
    with pytest.raises(InputError, match=message):
        check_user_mask(mask, 8, "a.mrc")


def test_voxels_come_in_z_y_x_order_and_go_back(volumes):
    mask = np.zeros((BOX,) * 3, np.float32)
    mask[3, 4, 5] = mask[3, 4, 6] = mask[3, 5, 0] = mask[7, 0, 0] = 1
    rows = Mask.of(mask).rows_of(volumes)
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    for volume, row in zip(volumes, rows, strict=True):
        order = [volume[3, 4, 5], volume[3, 4, 6], volume[3, 5, 0], volume[7, 0, 0]]
        np.testing.assert_array_equal(row, order)
    back = Mask.of(mask).volumes_of(rows)
    np.testing.assert_array_equal(back, volumes * mask)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_cryodrgns_habits(volumes, clip, soft):
    """analyze_landscape: volumes are multiplied by the mask, then clipped at zero."""
    rng = np.random.default_rng(1)
    mask = np.maximum(rng.uniform(-1, 1, (BOX,) * 3), 0).astype(np.float32)
    rows = Mask.of(mask, clip, soft).rows_of(volumes)
    expected = volumes * mask if soft else volumes
    expected = np.maximum(expected, 0) if clip else expected
    np.testing.assert_array_equal(rows, expected[:, mask > 0])
    assert (rows.min() < 0) != clip


def test_stored_rows_are_weighed_as_volumes_are(volumes):
    """A masked store and a store of volumes give the same rows, whatever is chosen."""
    mask = (np.random.default_rng(2).random((BOX,) * 3) * (volumes[0] > 0.1)).astype(np.float32)
    stored = volumes[:, mask > 0]
    before = stored.copy()
    for clip in (False, True):
        for soft in (False, True):
            taken = Mask.of(mask, clip, soft)
            np.testing.assert_array_equal(taken.weigh(stored), taken.rows_of(volumes))
    np.testing.assert_array_equal(stored, before)


def test_half_precision_rows_become_float32(volumes):
    mask = np.ones((BOX,) * 3, np.float32)
    assert Mask.of(mask).rows_of(volumes.astype(np.float16)).dtype == np.float32
