"""What a process holds while particles are embedded, and how large a reduced map may be for it."""

from __future__ import annotations

from math import isqrt

from scapedist.plan import IMPORT_BYTES, MAIN_BYTES, Budget

PARTICLE_BYTES = 70
"""Memory of this process per particle while they are placed."""
VOLUME_BYTES = 5 * 2**10
"""Memory of this process per volume of the sketch, which its analysis leaves."""
MAP_MATRICES = 9
"""Matrices of the size of a reduced map's kernel that are held while it is fitted."""
MAP_BLOCK_BYTES = {"cpu": 64 * 2**20, "cuda": 4 * 2**30}
"""Bytes of all training volumes' features at the points of a block of a reduced map."""


def particle_bytes(n_particles: int, zdim: int, n_volumes: int) -> int:
    """Memory of this process for what it knows of all particles and the sketch's volumes."""
    return n_particles * (8 * (4 * zdim + 4) + PARTICLE_BYTES) + n_volumes * VOLUME_BYTES


def most_training(budget: Budget, n_particles: int, zdim: int, n_volumes: int, alone: bool) -> int:
    """The most volumes that a reduced map can be fitted to within a memory.

    Parameters
    ----------
    budget, n_particles, zdim, n_volumes
        Memory; particles, their latents' dimension, and volumes of the sketch.
    alone
        Whether this process is the only worker, too.
    """
    held = IMPORT_BYTES + 2 * MAP_BLOCK_BYTES["cpu"] if alone else MAIN_BYTES
    room = budget.n_bytes - held - particle_bytes(n_particles, zdim, n_volumes)
    return isqrt(max(room, 0) // (8 * MAP_MATRICES))
