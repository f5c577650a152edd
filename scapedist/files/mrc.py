"""Density maps in MRC2014 files, in and out."""

from __future__ import annotations

import warnings
from pathlib import Path

import mrcfile
import numpy as np
from numpy.typing import NDArray

from scapedist.errors import InputError
from scapedist.files.aside import written_aside


def write_map(path: Path, volume: NDArray[np.floating], pixel_size_angstroms: float | None) -> None:
    """Write one volume as an MRC2014 map (mode 2, space group 1), aside and renamed.

    An unknown pixel size is written as a cell of length 0, which is how MRC2014 says
    "unknown": :func:`read_map` gives None for it, cryoDRGN reads 0, and ChimeraX opens the map
    at 1 Å per voxel. A made-up 1.0 could not be told from a real one.

    Parameters
    ----------
    path
        File to write; one that is there already is replaced.
    volume
        Volume (d, d, d), axes z, y, x; written as float32.
    pixel_size_angstroms
        Edge of a voxel in Å; None where it is unknown.

    Raises
    ------
    ResourceError
        Where the file cannot be written.
    """
    with (
        written_aside(path) as partial,
        mrcfile.new(partial, np.ascontiguousarray(volume, np.float32), overwrite=True) as mrc,
    ):
        mrc.header.ispg = 1
        mrc.voxel_size = pixel_size_angstroms or 0.0
        mrc.header.label[0] = "scapedist"  # mrcfile puts the time here: equal maps, equal bytes


def read_map(path: Path) -> tuple[NDArray[np.float32], float | None]:
    """The volume and pixel size of one cubic map.

    Parameters
    ----------
    path
        An MRC or CCP4 file of any real mode, plain or compressed by gzip or bzip2.

    Returns
    -------
    volume : numpy.ndarray
        Volume (d, d, d) float32, axes z, y, x, whatever the order of the axes in the file.
    pixel_size_angstroms : float or None
        Edge of a voxel in Å; None where the header does not say.

    Raises
    ------
    InputError
        Where the file is missing, no MRC, cut short, not a cube or not finite.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # trailing bytes, odd extended headers
            with mrcfile.open(path) as mrc:
                data = mrc.data
                voxel = np.array([mrc.voxel_size.x, mrc.voxel_size.y, mrc.voxel_size.z], float)
                axes = [int(mrc.header[name]) for name in ("maps", "mapr", "mapc")]
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}. Give the path of an MRC map."
        ) from None
    except (ValueError, EOFError) as error:
        raise InputError(
            f"{path} is not a whole MRC map ({error}). Write it again with the program it is from."
        ) from None
    if data is None or data.ndim != 3 or len(set(data.shape)) != 1 or np.iscomplexobj(data):
        found = "nothing" if data is None else f"{data.dtype} values of shape {data.shape}"
        raise InputError(f"A map is a cube of real values. {path} holds {found}.")
    if sorted(axes) == [1, 2, 3]:  # 1, 2, 3 are x, y, z; a header that says otherwise is no help
        data = np.transpose(data, [axes.index(axis) for axis in (3, 2, 1)])
    volume = np.array(data, np.float32, order="C")
    n_bad = int(volume.size - np.count_nonzero(np.isfinite(volume)))
    if n_bad:
        raise InputError(
            f"A map's values are finite numbers. {path} holds {n_bad} NaN or infinite values of "
            f"{volume.size}. Write it again with the program it is from."
        )
    if not np.allclose(voxel, voxel[0], rtol=1e-3):
        sizes = " x ".join(f"{size:g}" for size in voxel)
        raise InputError(
            f"A map's voxels are cubes. Those of {path} are {sizes} Å. Resample the map."
        )
    return volume, float(voxel[0]) if voxel[0] > 0 else None
