"""Making a run in an output directory, or opening the one there if it is of the same model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from scapedist.errors import RunError
from scapedist.files.aside import disk_errors
from scapedist.model.workdir import Model, open_model
from scapedist.settings import BESIDE, STAGES
from scapedist.store import GROUP, RunStore


def prepare_run(
    workdir: str | Path,
    epoch: int,
    output: str | Path,
    overwrite: bool = False,
    check_weights: bool = True,
) -> Model:
    """Open a model, and make its run in an output directory unless it is there.

    Parameters
    ----------
    workdir, epoch
        Work directory and epoch of the cryoDRGN training.
    output
        The run directory.
    overwrite
        Whether to replace a run that is there.
    check_weights
        Whether to read the weights now, or when volumes are decoded.

    Raises
    ------
    InputError
        Where the model cannot be loaded.
    RunError
        Where the directory holds a run of another model, or is a file.
    """
    model = open_model(workdir, epoch, check_weights=check_weights)
    output = Path(output)
    source = {
        "workdir": str(Path(workdir).resolve()),
        "epoch": epoch,
        "n_particles": len(model.latents),
        "zdim": model.latents.shape[1],
        "model_box_size": model.box_size,
        "box_size": model.box_size,
        "pixel_size_angstroms": model.pixel_size_angstroms,
        "architecture": model.architecture,
        "hashes": model.file_hashes(),
        "notes": model.notes,
    }
    if (output / GROUP).exists():
        if overwrite:
            _remove(output)
        else:
            _check_same(RunStore(output), source, output)
    elif output.exists() and not output.is_dir():
        raise RunError(f"An output is a directory. {output} is a file. Choose another --output.")
    store = RunStore(output, "r+" if (output / GROUP).exists() else "w-")
    with store.lock(), disk_errors(output):  # also what was killed meanwhile, or damaged since
        if not _holds(store, "latents", model.latents):
            store.write("latents", model.latents, ("particle", "latent"))
        if not store.has_source:
            store.write_source(source)
    return model


def _check_same(store: RunStore, source: dict[str, Any], output: Path) -> None:
    """Refuse an output that holds a run of another model."""
    if not store.has_source:
        return
    held = store.source
    if held["hashes"] != source["hashes"]:
        raise RunError(
            f"{output} holds another run: epoch {held['epoch']} of {held['workdir']}, or that "
            "model's files changed. Choose another --output, or --overwrite."
        )


def _remove(output: Path) -> None:
    """Remove the files of a run from a directory, and nothing else."""
    RunStore(output)  # an error where it is not a run of ours
    shutil.rmtree(output / GROUP, ignore_errors=True)
    written = [name for stage in (STAGES | BESIDE).values() for name in stage.files]
    for name in {name.split("/")[0] for name in written}:
        for path in output.glob(name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _holds(store: RunStore, name: str, data: np.ndarray) -> bool:
    """Whether a store holds an array, sound and equal to some data."""
    try:
        return bool(np.array_equal(store.read(name), data))
    except RunError:
        return False
