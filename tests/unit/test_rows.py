"""Masked voxels as the analysis reads them: the same however many blocks are kept."""

import numpy as np
import pytest

from scapedist.stages import stored_rows as reading
from scapedist.stages.stored_rows import StoredRows, forget_rows
from scapedist.store import RunStore, write_row

N, P = 12, 20


@pytest.fixture
def store(tmp_path):
    """A run's store with masked volumes, and whole ones that hold the same voxels in the mask."""
    made, rng = RunStore(tmp_path / "run", "w-"), np.random.default_rng(0)
    mask = np.zeros(27, np.float32)
    mask[rng.permutation(27)[:P]] = rng.uniform(0.2, 1, P)
    volumes = rng.normal(size=(N, 3, 3, 3)).astype(np.float32)
    made.write("mask", mask.reshape(3, 3, 3), ("z", "y", "x"))
    masked = volumes.reshape(N, 27)[:, mask > 0]
    whole = ("volumes/0", volumes, ("t", "z", "y", "x"))
    for name, values, dimensions in (whole, ("volumes/masked", masked, ("volume", "voxel"))):
        chunk = (1, *values.shape[1:])
        array = made.create(name, values.shape, "float32", dimensions, chunk)
        for number, row in enumerate(values):
            write_row(array, number, row)
    yield made, masked, mask[mask > 0]
    forget_rows()


def reader(store, name="volumes/masked", members=None, **options):
    members = np.arange(N) if members is None else members
    return StoredRows(store.reader, name, members, **options)


@pytest.mark.parametrize("name", ["volumes/0", "volumes/masked"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_rows_are_the_voxels_in_the_mask(store, name, soft, clip):
    made, wanted, weights = store
    members = np.array([0, 1, 2, 5, 7, 8, 11])
    read = reader(made, name, members, soft_mask=soft, clip_negative=clip)
    wanted = wanted * weights if soft else wanted
    wanted = np.maximum(wanted, 0) if clip else wanted
    for start, stop in ((0, 3), (3, 7), (0, 7)):
        np.testing.assert_array_equal(read(start, stop), wanted[members[start:stop]])


@pytest.mark.parametrize(
    ("kept_bytes", "n_read"),
    [(0, 8), (3 * 4 * P * 3, 6), (4 * P * N, 4)],
    ids=["two blocks", "three", "all"],
)
def test_blocks_are_kept_while_they_fit(store, monkeypatch, kept_bytes, n_read):
    made, wanted, _ = store
    asked = []
    read_rows = reading.read_rows
    monkeypatch.setattr(
        reading, "read_rows", lambda *given: asked.append(given) or read_rows(*given)
    )
    read = reader(made, kept_bytes=kept_bytes)
    assert read.n_voxels == P
    asked.clear()  # the mask
    spans = [(start, start + 3) for start in range(0, N, 3)]
    for left in range(4):
        for right in range(left, 4):
            for span in (spans[left], spans[right]):
                np.testing.assert_array_equal(read(*span), wanted[slice(*span)])
                held = sum(block.nbytes for block in reading._kept(read).blocks.values())
                assert held <= max(kept_bytes, 2 * 3 * P * 4)
    assert len(asked) == n_read
