"""Volumes that a trained model decodes from latents, and the plan of decoding them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from scapedist import backend
from scapedist.model.checkpoint import read_decoder
from scapedist.model.decoder import Decoder
from scapedist.model.lattice import check_box_size
from scapedist.plan import Budget, DecodePlan, plan_decode
from scapedist.settings import GenerateSettings
from scapedist.sources.source import Source
from scapedist.workers import Workers
from scapedist.workers.held import Held

if TYPE_CHECKING:  # what sends batches starts without torch
    from scapedist.model.field import Field
    from scapedist.model.workdir import Model

DEFAULT_BOX_SIZE = 128
"""Largest box size that volumes are decoded at unless one is asked for (as cryoDRGN does)."""


@dataclass(frozen=True, kw_only=True)
class Decoded(Source):
    """Volumes that a model decodes.

    Attributes
    ----------
    decoder
        Decoder of the model.
    latents : (n_volumes, zdim) float32
        Latents of the volumes in the list.
    dtype
        Precision of the evaluation.
    architecture
        Architecture of the model, for the record.
    """

    decoder: Decoder
    latents: np.ndarray
    dtype: str
    architecture: dict[str, Any]

    @property
    def n_volumes(self) -> int:
        """Number of latents."""
        return len(self.latents)

    def volumes(self, rows: np.ndarray) -> Iterator[Any]:
        """Yield the volumes (d, d, d) float32 of rows (m,) of the list, on their device."""
        yield from self.decode(self.latents[rows])

    @property
    def record(self) -> dict[str, Any]:
        """Record of where the volumes are from."""
        return super().record | {"architecture": self.architecture}

    def exact(self) -> Decoded:
        """A copy of the source with its volumes evaluated in float32."""
        return replace(self, dtype="float32", token=uuid4().hex)

    def decode(self, latents: np.ndarray, low_pass: int | None = None) -> Iterator[Any]:
        """Yield the volumes (d, d, d) float32 of latents (n, zdim), on their device.

        With ``low_pass`` only the frequencies that a box of that size has are evaluated.
        """
        for volume in field_of(self).volumes(latents, self.box_size, low_pass):
            yield self.oriented(backend.as_array(volume.float()))


def _make_field(source: Decoded) -> Field:
    from scapedist.model.field import Field

    return Field(source.decoder, source.device, source.dtype)


field_of = Held(_make_field)
"""The field of a source in this process, made once."""


def read_weights(model: Model, workers: Workers) -> None:
    """Read a model's decoder in a process that has torch, unless it is read already."""
    if model._decoder is None:
        model.decoder = workers.call(read_decoder, model.config, model.files["weights"])


def volume_box_size(settings: GenerateSettings, model_box_size: int) -> int:
    """The box size that volumes are decoded at."""
    box_size = settings.box_size
    if box_size is None:
        box_size = min(model_box_size, DEFAULT_BOX_SIZE)
    check_box_size(box_size, model_box_size)
    return box_size


def plan_generation(
    decoder: Decoder | None,
    box_size: int,
    settings: GenerateSettings,
    n_volumes: int,
    budget: Budget,
    device: str = "cpu",
) -> DecodePlan:
    """The plan of making volumes, refused where it does not fit the memory of a worker.

    Without a decoder volumes are read, not decoded.
    """
    n_slots, n_weights, cached = 0, 0, 0
    if decoder is not None:
        lattice = decoder.lattice(box_size)
        n_slots = lattice.n_slots
        n_weights = sum(weight.size for weight in decoder.weights)
        on_cpu = device == "cpu"
        cached = decoder.cached_bytes(lattice) + decoder.encoded_bytes if on_cpu else 0
    return plan_decode(
        n_volumes=n_volumes,
        box_size=box_size,
        n_slots=n_slots,
        n_weights=n_weights,
        cached_bytes=cached,
        voxel_bytes=2 if settings.store_dtype == "float16" else 4,
        batch_size=settings.batch_size,
        budget=budget,
        device=device,
    )
