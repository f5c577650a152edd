"""Maps: what is written is what cryoDRGN and mrcfile read, and bad files are told apart."""

from pathlib import Path

import mrcfile
import numpy as np
import pytest

from scapedist.errors import InputError, ResourceError
from scapedist.files.mrc import read_map, write_map


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(12, 12, 12)).astype(np.float32)


@pytest.mark.parametrize("pixel_size", [2.5, 1.0, None])
def test_round_trip(tmp_path: Path, volume: np.ndarray, pixel_size: float | None):
    path = tmp_path / "deep" / "map.mrc"
    write_map(path, volume, pixel_size)
    read, read_pixel_size = read_map(path)
    np.testing.assert_array_equal(read, volume)
    assert read_pixel_size == pixel_size
    assert read.dtype == np.float32


@pytest.mark.oracle
def test_cryodrgn_reads_the_same(tmp_path: Path, volume: np.ndarray):
    from cryodrgn.mrcfile import parse_mrc

    write_map(tmp_path / "map.mrc", volume, 1.7)
    array, header = parse_mrc(str(tmp_path / "map.mrc"))
    np.testing.assert_array_equal(array, volume)
    assert header.apix == pytest.approx(1.7, abs=1e-6)
    assert header.fields["ispg"] == 1
    assert header.fields["mode"] == 2
    assert header.fields["amean"] == pytest.approx(volume.mean(), abs=1e-6)


@pytest.mark.oracle
def test_reads_what_cryodrgn_writes(tmp_path: Path, volume: np.ndarray):
    from cryodrgn.mrcfile import write_mrc

    write_mrc(str(tmp_path / "map.mrc"), volume, Apix=3.1)
    read, pixel_size = read_map(tmp_path / "map.mrc")
    np.testing.assert_array_equal(read, volume)
    assert pixel_size == pytest.approx(3.1)


@pytest.mark.parametrize("pixel_size", [2.5, None])
def test_a_valid_mrc2014_file(tmp_path: Path, volume: np.ndarray, pixel_size: float | None):
    write_map(tmp_path / "map.mrc", volume, pixel_size)
    assert mrcfile.validate(tmp_path / "map.mrc")
    assert [path.name for path in tmp_path.iterdir()] == ["map.mrc"]


def test_float64_and_strides_do_not_matter(tmp_path: Path, volume: np.ndarray):
    write_map(tmp_path / "map.mrc", volume.astype(np.float64).transpose(2, 1, 0), 1.0)
    np.testing.assert_array_equal(read_map(tmp_path / "map.mrc")[0], volume.transpose(2, 1, 0))


def test_axes_in_another_order(tmp_path: Path, volume: np.ndarray):
    path = tmp_path / "map.mrc"
    write_map(path, volume, 1.0)
    with mrcfile.open(path, "r+") as mrc:  # sections along x, rows along z, columns along y
        mrc.header.maps, mrc.header.mapr, mrc.header.mapc = 1, 3, 2
    # data[x, z, y] is what is in the file: volume[z, y, x] is what comes back
    np.testing.assert_array_equal(read_map(path)[0], volume.transpose(1, 2, 0))


def test_compressed(tmp_path: Path, volume: np.ndarray):
    with mrcfile.new(tmp_path / "map.mrc.gz", volume, compression="gzip") as mrc:
        mrc.voxel_size = 2.0
    read, pixel_size = read_map(tmp_path / "map.mrc.gz")
    np.testing.assert_array_equal(read, volume)
    assert pixel_size == 2.0


def test_missing(tmp_path: Path):
    with pytest.raises(InputError, match="none.mrc cannot be read: No such file"):
        read_map(tmp_path / "none.mrc")


@pytest.mark.parametrize("content", [b"", b"not a map", b"x" * 5000])
def test_no_mrc(tmp_path: Path, content: bytes):
    (tmp_path / "map.mrc").write_bytes(content)
    with pytest.raises(InputError, match="not a whole MRC map"):
        read_map(tmp_path / "map.mrc")


@pytest.mark.parametrize("n_bytes", [500, 1024, 4000])
def test_cut_short(tmp_path: Path, volume: np.ndarray, n_bytes: int):
    path = tmp_path / "map.mrc"
    write_map(path, volume, 1.0)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(InputError, match="not a whole MRC map"):
        read_map(path)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 5), (2, 4, 4, 4)])
def test_not_a_cube(tmp_path: Path, shape: tuple[int, ...]):
    with mrcfile.new(tmp_path / "map.mrc", np.zeros(shape, np.float32)):
        pass
    with pytest.raises(InputError, match="A map is a cube"):
        read_map(tmp_path / "map.mrc")


def test_not_finite(tmp_path: Path, volume: np.ndarray):
    volume[1, 2, 3] = np.inf
    path = tmp_path / "map.mrc"
    write_map(path, np.zeros_like(volume), 1.0)
    path.write_bytes(path.read_bytes()[:1024] + volume.tobytes())
    with pytest.raises(InputError, match="1 NaN or infinite values of 1728"):
        read_map(path)


def test_voxels_that_are_no_cubes(tmp_path: Path, volume: np.ndarray):
    with mrcfile.new(tmp_path / "map.mrc", volume) as mrc:
        mrc.voxel_size = (1.0, 1.0, 2.0)
    with pytest.raises(InputError, match="1 x 1 x 2 Å"):
        read_map(tmp_path / "map.mrc")


def test_equal_maps_have_equal_bytes(tmp_path: Path, volume: np.ndarray):
    for name in ("a.mrc", "b.mrc"):
        write_map(tmp_path / name, volume, 1.0)
    data = (tmp_path / "a.mrc").read_bytes()
    assert data == (tmp_path / "b.mrc").read_bytes()
    assert b"mrcfile.py" not in data  # its label has the time of day


def test_a_failed_write_leaves_the_old_map(tmp_path: Path, volume: np.ndarray, monkeypatch):
    path = tmp_path / "map.mrc"
    write_map(path, volume, 1.0)
    before = path.read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        (tmp_path / ".map.mrc.partial").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mrcfile, "new", full_disk)
    with pytest.raises(ResourceError, match="No space left on device"):
        write_map(path, volume + 1, 1.0)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["map.mrc"]


def test_a_directory_that_cannot_be(tmp_path: Path, volume: np.ndarray):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="could not be written"):
        write_map(tmp_path / "file" / "map.mrc", volume, 1.0)
