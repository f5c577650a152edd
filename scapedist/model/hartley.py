"""Volumes from the values of their Hartley transform."""

from __future__ import annotations

import numpy as np
import torch

from scapedist.model.lattice import Lattice


def volumes_from_values(values: torch.Tensor, lattice: Lattice) -> torch.Tensor:
    """Volumes from the decoder's normalised values.

    Parameters
    ----------
    values : (n, lattice.n_slots) float32 or float64
        h at the evaluation points, and the background in the last slot.
    lattice
        Lattice of the box wanted.

    Returns
    -------
    (n, d, d, d) tensor of the values' dtype, axes z, y, x.
    """
    d = lattice.box_size
    if len(values) == 0:  # some FFT libraries refuse an empty batch
        return values.new_empty((0, d, d, d))
    direct, mirror, sign = _gather(lattice, values.device, values.dtype)
    shape = (len(values), d, d, d // 2 + 1)
    here = values.index_select(1, direct).view(shape)
    there = values.index_select(1, mirror).view(shape)
    # F = (h(k) + h(-k)) / 2 + i (h(-k) - h(k)) / 2; the sign moves the origin to voxel d // 2
    spectrum = torch.complex((here + there).mul_(sign), (there - here).mul_(sign))
    del here, there
    return torch.fft.irfftn(spectrum, s=(d, d, d), dim=(1, 2, 3))


_GATHERS: dict[tuple[int, torch.device, torch.dtype], tuple[Lattice, tuple[torch.Tensor, ...]]] = {}


def _gather(lattice: Lattice, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """A lattice's index maps and halved sign on a device, made once."""
    key = (id(lattice), device, dtype)
    if key not in _GATHERS:
        parity = np.indices((2, 2, 2)).sum(0) % 2
        d = lattice.box_size
        repeats = (d // 2, d // 2, d // 4 + 1)
        sign = np.tile(0.5 - parity, repeats)[:, :, : d // 2 + 1]
        tensors = (
            torch.from_numpy(lattice.direct.ravel()).to(device),
            torch.from_numpy(lattice.mirror.ravel()).to(device),
            torch.from_numpy(sign).to(device, dtype),
        )
        _GATHERS.clear()
        _GATHERS[key] = (lattice, tensors)
    return _GATHERS[key][1]
