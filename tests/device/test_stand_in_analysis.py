"""Every public function of analysis/ on a stand-in for a GPU gives what it gives on the CPU."""

from dataclasses import fields
from pathlib import Path

import cupy_stand_in
import numpy as np
import pytest

import scapedist.analysis
from scapedist import backend
from scapedist.analysis import (
    coordinates,
    eigen,
    gram,
    linkage,
    mask,
    passes,
    placing,
    reduced,
    sketch,
)
from scapedist.analysis.mask import Mask
from scapedist.backend import nearest_by_products, to_host

RNG = np.random.default_rng(0)
POINTS = RNG.standard_normal((150, 6))
SQUARED = np.square(POINTS[:, None] - POINTS[None]).sum(-1)
WIDE = RNG.standard_normal((500, 30)) * np.logspace(0, -2, 30)
ROWS = (RNG.standard_normal((60, 400)) + 30).astype(np.float32)
VOLUMES = RNG.standard_normal((4, 8, 8, 8)).astype(np.float32)
VECTORS = RNG.standard_normal((3, 50)).astype(np.float32)


class Rows:
    """Reads rows on a device, as a worker does."""

    def __init__(self, device):
        self.device = device

    def __call__(self, start, stop):
        return backend.to_device(ROWS[start:stop], self.device)


class PiecesOfRows(Rows):
    """Reads rows that arrive in parts."""

    def pieces(self, start, stop):
        for first in range(start, stop, 4):
            last = min(first + 4, stop)
            yield first, last, self(first, last)


def frame(device, **options):
    inside = np.arange(0, 500, 10)
    factor = np.linspace(0, 1, 50, dtype=np.float32) if options else None
    where = Mask((8, 8, 8), inside, factor, bool(options)).on(device)
    arrays = (backend.to_device(array, device) for array in (np.full(50, 0.1), VECTORS))
    found = coordinates.Frame(*arrays, where)
    volumes = [backend.to_device(volume, device)[::-1] for volume in VOLUMES]
    return found.project(iter(volumes), len(volumes))


def gram_of(device, reader=Rows):
    found = gram.gram_matrix(reader(device), 60, 17)
    return [found.matrix, found.mean, found.squared_distances]


def components(device):
    read = Rows(device)

    def eigenpairs(matrix, n):
        found = eigen.leading_eigenpairs(backend.to_device(matrix, device), n)
        return tuple(map(to_host, found))

    fitted = gram.fit_components(gram.gram_matrix(read, 60, 17), read, 17, 5, eigenpairs=eigenpairs)
    return [np.abs(fitted.vectors), fitted.variance, np.abs(fitted.coordinates)]


def subspace(device):
    read = Rows(device)
    found = passes.principal_subspace(passes.Passes(read, 60, 7), 3, 60)
    where = passes.coordinates_of(read, 60, 7, found.mean, found.vectors[:3])
    return [found.vectors[:3], found.variance[:3], *where]


def isometric(device, matrix):
    def on(array):
        return backend.to_device(array, device)

    held = on(matrix)
    found = to_host(gram.isometric_coordinates(held.__matmul__, len(matrix), on))
    return found @ found.T


def krylov(device):
    matrix = backend.to_device(WIDE @ WIDE.T, device)
    start = backend.to_device(eigen.random_block(len(WIDE), 5), device)
    space = eigen.block_krylov(matrix.__matmul__, start, 5, eigen.columns_for(5))
    found = eigen.settle(space, 5)
    assert found.settled(5)
    return [to_host(found.values[:5]), np.abs(to_host(found.vectors(5)))]


def in_levels(device, method):
    held = backend.to_device(POINTS, device)

    def nearest(centers, _):
        return nearest_by_products(backend.to_device(centers, device), held)

    found = linkage.two_level(POINTS, method, 20, nearest, 0)
    return [found.micro, found.tree, found.cut(4)]


def ridge(device):
    kernel = POINTS @ POINTS.T + 1e-3 * np.eye(len(POINTS))
    arrays = (backend.to_device(a, device) for a in (kernel, POINTS[:, :2]))
    found = reduced.fit_ridge(*arrays)
    left_out = to_host(found.left_out)
    return [to_host(found.predict(backend.to_device(kernel, device))), left_out, found.ridge]


def field_model(device):
    model = reduced.FieldModel.fit(POINTS[:, :2], POINTS)
    parts = (getattr(model, k) for k in ("basis", "mean", "center", "weight"))
    there = reduced.FieldModel(*(backend.to_device(part, device) for part in parts))
    misfit = there.misfit(*(backend.to_device(a, device) for a in (POINTS[:, :2], POINTS)))
    rules = reduced.Calibration(2.0, 1.0, 1.5)
    return [to_host(misfit), to_host(rules.residual(misfit)), to_host(rules.error(misfit))]


def placed(device):
    """Points among volumes of three states and of none."""
    label = np.arange(90) % 4 - 1
    volumes = placing.Volumes.of(POINTS[:90], np.abs(POINTS[:90, 0]), label, device)
    found = volumes.place(POINTS[50:] + 0.1, np.abs(POINTS[50:, 1]))
    to_one = volumes.distances_to(label[:50] + 1, POINTS[:50], np.abs(POINTS[:50, 1]))
    return [getattr(found, field.name) for field in fields(found)] + [to_one]


def a_sketch(device, method):
    nearest = None if device == "cpu" else backend.nearest_by_gpu
    found = sketch.make_sketch(POINTS.astype(np.float32), 20, method, nearest=nearest)
    return [found.particle, found.assignment, found.occupancy]


def on(function, *arrays):
    """A case of a function whose arrays are all on the device."""
    return lambda device: to_host(function(*(backend.to_device(a.copy(), device) for a in arrays)))


CASES = {
    "Frame": frame,
    "Frame, soft and clipped": lambda device: frame(device, soft=True),
    "Mask": lambda device: to_host(
        Mask((8, 8, 8), np.arange(0, 500, 3)).on(device).rows_of(backend.to_device(VOLUMES, device))
    ),
    "density_percentile": lambda device: float(
        mask.density_percentile(backend.to_device(VOLUMES[0], device))
    ),
    "Gram, gram_matrix": gram_of,
    "gram_matrix of parts": lambda device: gram_of(device, PiecesOfRows),
    "mean_of": lambda device: gram.mean_of(Rows(device), (3, 9)),
    "into_squared_distances": on(gram.into_squared_distances, POINTS @ POINTS.T),
    "Components, fit_components": components,
    "Subspace, Passes, principal_subspace, coordinates_of": subspace,
    "isometric_coordinates": lambda device: isometric(device, POINTS[:40] @ POINTS[:40].T),
    "Pairs, block_krylov, settle, columns_for, random_block": krylov,
    "leading_eigenpairs": lambda device: to_host(
        eigen.leading_eigenpairs(backend.to_device(POINTS @ POINTS.T, device), 5)[0]
    ),
    "leading_eigenpairs by Krylov": lambda device: to_host(
        eigen.leading_eigenpairs(backend.to_device(WIDE @ WIDE.T, device), 5)[0]
    ),
    "ward_of_points": lambda device: linkage.ward_of_points(
        backend.to_device(POINTS, device), 2**16
    ),
    "Placed, Volumes": placed,
    "Ridge, fit_ridge": ridge,
    "FieldModel, Calibration": field_model,
    **{
        f"link, nearest_neighbor_chain: {method}": lambda device, method=method: linkage.link(
            backend.to_device(SQUARED.copy(), device), method
        )
        for method in linkage.LINKAGES
    },
    **{
        f"TwoLevel, two_level, lloyd, cut: {method}": lambda device, method=method: in_levels(
            device, method
        )
        for method in linkage.LINKAGES
    },
    **{
        f"Sketch, make_sketch: {method}": lambda device, method=method: a_sketch(device, method)
        for method in sketch.METHODS
    },
}  # fmt: skip

# What the functions of these names take are arrays of the host whatever the device, because they
# work on a few numbers of each volume or particle, or read blocks of coordinates.
OF_THE_HOST = {
    "agreement": {
        "agreement", "total_deviation", "relative_error", "relative_errors", "neighbour_overlap",
        "worst", "by_group",
    },
    "coordinates": {"ReducedMap"},  # on the device in test_stand_in_runs
    "gram": {"in_turn", "in_order", "signs_of", "principal_axes", "nearest_along"},
    "mask": {"threshold_of", "mask_from_claims", "check_user_mask"},
    "population": {"Population", "Groups", "Densities"},
    "reduced": {"draw_candidates", "choose_points", "spread_rows", "calibrate"},
    "sketch": {"draw_spread", "grow_sketch", "nearest_center", "quality_sample"},
    "states": {"number_by_size", "medoids", "weighted_moments"},
    "placing": {"missed_threshold", "farthest_first", "Axes", "axes_from_sums"},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_same_as_on_the_cpu(gpu, name):
    wanted = CASES[name]("cpu")
    with cupy_stand_in.on_device():
        found = CASES[name]("cuda")
    assert type(found) is type(wanted)
    for ours, theirs in zip(
        found if isinstance(found, list) else [found],
        wanted if isinstance(wanted, list) else [wanted],
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)


def test_large_matrices_have_leading_isometric_coordinates(gpu, monkeypatch):
    monkeypatch.setattr(gram, "WHOLE", 10)
    matrix = WIDE @ WIDE.T
    with cupy_stand_in.on_device():
        np.testing.assert_allclose(isometric("cuda", matrix), matrix, atol=1e-5)


def test_every_public_function_has_its_place():
    told = {part for name in CASES for part in name.split(":")[0].replace(" ", "").split(",")}
    for path in Path(scapedist.analysis.__file__).parent.glob("[a-z]*.py"):
        names = cupy_stand_in.public(f"scapedist.analysis.{path.stem}")
        of_the_host = OF_THE_HOST.get(path.stem, set())
        assert of_the_host <= names
        assert names - of_the_host - told == set(), path.stem


def test_nothing_waits_for_the_device_while_volumes_are_projected(gpu):
    with cupy_stand_in.on_device(), cupy_stand_in.waits() as waited:
        frame("cuda")
    assert waited.n == 1  # for the coordinates of all, at the end


def test_the_stand_in_is_as_strict_as_cupy(gpu):
    with cupy_stand_in.on_device():
        held = gpu.asarray(np.arange(6.0))
        for wrong in (
            lambda: held + np.arange(6.0),
            lambda: np.arange(6.0) * held,
            lambda: np.maximum(held, np.zeros(6)),
            lambda: np.asarray(held),
            lambda: held.__setitem__(slice(None), np.zeros(6)),
            lambda: np.bincount(gpu.asarray(np.arange(6)), np.ones(6)),
            lambda: np.add(held, 1, where=held > 2),
            lambda: np.sum(held, where=held > 2),
            lambda: gpu.einsum_path,
            lambda: held.tostring,
            lambda: cupy_stand_in._sent(held),
        ):
            with pytest.raises((TypeError, AttributeError)):
                wrong()
    with pytest.raises(RuntimeError, match="no device"):
        held.sum()
    with pytest.raises(RuntimeError, match="no device"):
        gpu.asarray([1.0])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_volume_that_is_not_finite_has_no_percentile(gpu, device, bad):
    """However few of its densities are not, which a percentile alone would not see."""
    volume = VOLUMES[0].copy()
    volume[3, 4, 5] = bad
    with cupy_stand_in.on_device(), np.errstate(invalid="ignore"):
        assert np.isnan(float(mask.density_percentile(backend.to_device(volume, device))))
