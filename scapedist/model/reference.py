"""cryoDRGN's own evaluation of a model: slow, and the outside reference for scapedist's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from scapedist.model.checkpoint import load_checkpoint
from scapedist.model.workdir import Model


def reference_decoder(model: Model) -> Callable[[np.ndarray, int], np.ndarray]:
    """Evaluation of a model by cryoDRGN's own ``eval_volume``.

    Returns
    -------
    function of (latent (zdim,), box size) -> (d, d, d) float32
        Volume, axes z, y, x. For abinit models at the full box only, as in cryoDRGN.
    """
    import torch
    from cryodrgn.lattice import Lattice
    from cryodrgn.models import HetOnlyVAE, load_decoder
    from cryodrgn.models_ai import HyperVolume, eval_volume_method

    logging.getLogger("cryodrgn").setLevel(logging.WARNING)
    config = model.config
    checkpoint = load_checkpoint(Path(model.files["weights"]))
    norm = model.decoder.norm
    if model.architecture["command"] == "abinit":
        hypervolume = HyperVolume(**checkpoint["hypervolume_params"])
        hypervolume.load_state_dict(checkpoint["hypervolume_state_dict"])
        hypervolume.eval()
        lattice = Lattice(model.box_size + 1, extent=0.5)

        def evaluate_hypervolume(latent: np.ndarray, box_size: int) -> np.ndarray:
            volume = eval_volume_method(
                hypervolume, lattice, model.decoder.zdim, norm, latent, model.decoder.mask_radius
            )
            return volume.numpy()

        return evaluate_hypervolume
    if model.architecture["command"] == "train_vae":
        network, lattice = HetOnlyVAE.load(config)
        network.load_state_dict(checkpoint["model_state_dict"])
        decoder = network.decoder
    else:
        decoder, lattice = load_decoder(config)
        decoder.load_state_dict(checkpoint["model_state_dict"])
    decoder.eval()

    def evaluate(latent: np.ndarray, box_size: int) -> np.ndarray:
        if box_size == model.box_size:
            points, extent = lattice.coords, lattice.extent
        else:
            points = lattice.get_downsample_coords(box_size + 1)
            extent = lattice.extent * (box_size / model.box_size)
        with torch.inference_mode():
            volume = decoder.eval_volume(points, box_size + 1, extent, norm, latent)
        return volume.numpy()

    return evaluate
