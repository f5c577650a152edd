"""Decoding latents to maps on disk, without a run, and embedding latents of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scapedist.files.aside import written_aside
from scapedist.files.latents import read_latents
from scapedist.files.mrc import write_map
from scapedist.landscape.run import Run
from scapedist.model.decoder import check_latents
from scapedist.model.workdir import open_model
from scapedist.settings import check_pixel_size
from scapedist.store import Progress


def decode_to_maps(
    workdir: str | Path,
    epoch: int,
    latents: str | Path,
    output: str | Path,
    box_size: int | None = None,
    pixel_size_angstroms: float | None = None,
    flip: bool = False,
    invert: bool = False,
    dtype: str = "float32",
    progress: Progress | None = None,
) -> list[Path]:
    """Decode latents to ``vol_001.mrc``, ``vol_002.mrc``, ... in a directory.

    Parameters
    ----------
    workdir, epoch
        Work directory and epoch of the training.
    latents
        File of rows of latents: text, ``.npy`` or ``.pkl``.
    output
        Directory of the maps, made where it is missing.
    box_size, dtype
        As for :meth:`scapedist.Model.decode`.
    pixel_size_angstroms
        Pixel size in Å of the model's full box; None for what the CTF file says.
    flip, invert
        Whether to mirror along z; whether to change the sign.

    Returns
    -------
    list of pathlib.Path
        Paths of the maps, in the order of the latents.
    """
    check_pixel_size(pixel_size_angstroms)
    model = open_model(workdir, epoch)
    rows = check_latents(read_latents(Path(latents), model.decoder.zdim), model.decoder.zdim)
    pixel_size = pixel_size_angstroms or model.pixel_size_angstroms
    paths = []
    for number, row in enumerate(rows, 1):
        volume = model.decode(row[None], box_size, dtype)[0]
        volume = volume[::-1] if flip else volume
        scaled = pixel_size and pixel_size * model.box_size / len(volume)
        path = Path(output) / f"vol_{number:03d}.mrc"
        write_map(path, -volume if invert else volume, scaled)
        paths.append(path)
        if progress is not None:
            progress("decoding", number, len(rows))
    return paths


def embed_to_file(run: Run, latents: str | Path, output: str | Path) -> int:
    """Embed latents of a file by a run's reduced map, and write an ``.npz`` of the arrays.

    Parameters
    ----------
    run
        Run with a reduced embedding.
    latents
        File of rows of latents: text, ``.npy`` or ``.pkl``.
    output
        File of the arrays that :meth:`Run.embed_latents` returns, by name.

    Returns
    -------
    int
        Number of latents.
    """
    rows = read_latents(Path(latents), run.store.source["zdim"])
    found = run.embed_latents(rows)
    with written_aside(Path(output)) as partial, partial.open("wb") as stream:
        np.savez(stream, **found)  # type: ignore[arg-type]
    return len(rows)
