"""cryoDRGN itself as the reference: its own loaders, modules, ``eval_volume``."""

from dataclasses import dataclass

import cryodrgn.config
import numpy as np
import torch
from cryodrgn import fft
from cryodrgn.lattice import Lattice
from cryodrgn.models import (
    FTPositionalDecoder,
    FTSliceDecoder,
    HetOnlyVAE,
    ResidLinearMLP,
    load_decoder,
)
from cryodrgn.models_ai import HyperVolume, eval_volume_method

EPOCH = 19


def relative_error(found, wanted):
    """The relative L2 error of an array."""
    wanted = np.asarray(wanted, np.float64)
    return float(np.linalg.norm(np.asarray(found) - wanted) / np.linalg.norm(wanted))


def fourier_crop(volume, box_size):
    """A volume (D, D, D) at a smaller box: the central Hartley coefficients, in float64."""
    coefficients = fft.htn_center(torch.from_numpy(volume).double())
    low = (len(volume) - box_size) // 2
    inner = slice(low, low + box_size)
    return fft.ihtn_center(coefficients[inner, inner, inner]).numpy()


@dataclass
class Reference:
    """A model as cryoDRGN's ``eval_vol`` command loads it.

    ``module`` is the decoder, ``norm`` the data's, ``mask_radius`` abinit's.
    """

    module: torch.nn.Module
    lattice: Lattice
    norm: tuple
    mask_radius: int | None = None

    @classmethod
    def load(cls, workdir, epoch=EPOCH):
        config = cryodrgn.config.load(str(workdir / "config.yaml"))
        weights = str(workdir / f"weights.{epoch}.pkl")
        device = torch.device("cpu")
        if "data_norm_mean" in config:
            checkpoint = torch.load(weights, map_location=device, weights_only=False)
            module = HyperVolume(**checkpoint["hypervolume_params"])
            module.load_state_dict(checkpoint["hypervolume_state_dict"])
            lattice = Lattice(module.D, extent=0.5, device=device)
            norm = (config["data_norm_mean"], config["data_norm_std"])
            return cls(module.eval(), lattice, norm, checkpoint.get("output_mask_radius"))
        if "players" in config["model_args"]:
            vae, lattice = HetOnlyVAE.load(config, weights, device=device)
            module = vae.decoder
        else:
            module, lattice = load_decoder(config, weights, device=device)
        return cls(module.eval(), lattice, tuple(config["dataset_args"]["norm"]))

    @property
    def box_size(self):
        return self.lattice.D - 1

    def volume(self, latent, box_size=None):
        """The volume (d, d, d) that cryoDRGN's own ``eval_volume`` gives.

        Where it has no way there: the crop of the full volume for abinit at a smaller box, the
        module applied point by point for a Hartley decoder without an encoding.
        """
        box_size = box_size or self.box_size
        if isinstance(self.module, HyperVolume):
            full = eval_volume_method(
                self.module,
                self.lattice,
                self.module.z_dim,
                self.norm,
                zval=latent,
                radius=self.mask_radius,
            ).numpy()
            return full if box_size == self.box_size else fourier_crop(full, box_size)
        if isinstance(self.module, ResidLinearMLP):
            return self.volume_by_hand(latent, box_size, torch.float32)
        coordinates, extent = self.points(box_size)
        volume = self.module.eval_volume(coordinates, box_size + 1, extent, self.norm, latent)
        return volume.numpy()

    def points(self, box_size):
        """Points of the x-y plane and the extent, as ``eval_vol --downsample`` makes them."""
        if box_size == self.box_size:
            return self.lattice.coords, self.lattice.extent
        extent = self.lattice.extent * (box_size / (self.lattice.D - 1))
        return self.lattice.get_downsample_coords(box_size + 1), extent

    def volume_by_hand(self, latent, box_size=None, dtype=torch.float64):
        """The same volume in float64: ``eval_volume`` retraced, as its buffers are float32.

        The module's weights are left as they are; a float64 copy of it is evaluated. Slices of a
        Fourier decoder in which kz is 0 are its ``forward``'s: half the points, and conjugates.
        """
        box_size = box_size or self.box_size
        plane, extent = self.points(box_size)
        module = _copy_of(self.module, dtype)
        z = torch.as_tensor(latent, dtype=torch.float32)
        lattice = torch.zeros((box_size + 1,) * 3, dtype=dtype)
        for i, dz in enumerate(np.linspace(-extent, extent, box_size + 1, dtype=np.float32)):
            points = plane + torch.tensor([0, 0, dz])
            keep = torch.ones(len(points), dtype=bool)
            if isinstance(module, FTPositionalDecoder):
                keep = points.pow(2).sum(dim=1) <= extent**2
            inputs = torch.cat((points[keep], z.expand(int(keep.sum()), len(z))), 1).to(dtype)
            with torch.no_grad():
                lattice[i].view(-1)[keep] = _slice_of(module, inputs, float(dz))
        lattice = lattice * self.norm[1] + self.norm[0]
        if isinstance(module, FTSliceDecoder):
            unit = np.linspace(-1, 1, box_size + 1)
            z2, y2, x2 = np.meshgrid(unit**2, unit**2, unit**2, indexing="ij")
            lattice[torch.from_numpy(np.sqrt(z2 + y2 + x2) > 1)] = 0
        return fft.ihtn_center(lattice[:-1, :-1, :-1]).numpy()


def _slice_of(module, inputs, height):
    """Hartley coefficients (n,) of a module at points and latents (n, 3 + zdim)."""
    if isinstance(module, FTPositionalDecoder | FTSliceDecoder):
        if height == 0 and isinstance(module, FTPositionalDecoder):
            half = (len(inputs) + 1) // 2
            real, imaginary = module.decode(inputs[:half]).T
            return torch.cat((real - imaginary, (real + imaginary)[: len(inputs) - half].flip(0)))
        real, imaginary = module.decode(inputs).T
        return real - imaginary
    return module(inputs)[:, 0] if isinstance(module, ResidLinearMLP) else module(inputs).view(-1)


def _copy_of(module, dtype):
    from copy import deepcopy

    return deepcopy(module).to(dtype).eval()
