"""The decoder's field: its values at any frequencies for any latents, evaluated fast.

It is fast without approximation: the first layer is linear in frequency and latent, so
its frequency part is computed once per block of points and its latent part once per latent;
the skip connections are folded into the weight matrices; a Fourier decoder's last layer gives
h(k) = a - b and h(-k) = a + b directly; blocks are sized so that activations stay in the cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch

from scapedist.backend import out_of_memory, pool_bytes
from scapedist.errors import ResourceError
from scapedist.model.decoder import (
    CACHE_BYTES,
    Decoder,
    check_dtype,
    check_latents,
    cpu_block_rows,
)
from scapedist.model.hartley import volumes_from_values
from scapedist.model.lattice import Lattice
from scapedist.model.layers import Layers, SplitLayers, matrix_precision

T = TypeVar("T")
GIB = 2**30
BUDGET_FRACTION = 0.5
"""Fraction of a GPU's free memory that a field uses."""
LATENTS_TOGETHER = 4
"""Number of latents whose products a GPU does at once where they are of many points: the
first-layer part of a point is read once for all of them."""
GROUP_LATENTS, SHARING_LATENTS = 8, 64
"""Number of latents that a GPU evaluates before it makes their volumes: where the first layer is
kept, and where it is made anew for each group."""
LEAST_ACTIVATIONS, MOST_ACTIVATIONS = 2**22, 2**26
"""Fewest activations that fill a GPU, and most that are computed at once."""
USUAL_CACHE_BYTES = 40 * 2**20
LEAST_ROWS = 256


@dataclass
class Field:
    """A decoder on a device, in a precision.

    Parameters
    ----------
    decoder
        Decoder to evaluate.
    device
        Name of a torch device.
    dtype
        Precision: ``float32`` (default), ``float64``, or one of the faster ones: ``tf32`` (GPU
        only), ``float16x3`` (GPU only, see :class:`~scapedist.model.layers.SplitLayers`),
        ``bfloat16``, ``float16``. Values and volumes are float32 but for ``float64``; sums of the
        faster ones are float32, and so is the last layer's result.
    memory_bytes
        Memory for activations, values and what is kept between batches; None for half of what
        is free on a GPU, and on the CPU for what is fastest. Where memory does not suffice all
        the same, it is halved and the work is done again.
    """

    decoder: Decoder
    device: str = "cpu"
    dtype: str = "float32"
    memory_bytes: int | None = None
    _lattices: dict[tuple[int, int], Lattice] = field(default_factory=dict, repr=False)
    _cached: tuple[np.ndarray, torch.Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_dtype(self.dtype, self.device)
        self._on_cpu = self.device == "cpu"
        if self.memory_bytes is None and not self._on_cpu:
            self.memory_bytes = int(BUDGET_FRACTION * free_bytes(self.device))
        weights = [torch.from_numpy(weight) for weight in self.decoder.weights]
        biases = [torch.from_numpy(bias) for bias in self.decoder.biases]
        if len(biases[-1]) == 2:  # real, imaginary -> h(k), h(-k)
            pair = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
            weights[-1], biases[-1] = pair @ weights[-1], pair @ biases[-1]
        slope = self.decoder.negative_slope
        kind = SplitLayers if self.dtype == "float16x3" else Layers
        self._layers = kind(weights[1:], biases[1:], slope, self.device, self.dtype)
        self._exact, self._n_outputs = self._layers.exact, len(biases[-1])
        n_position_features = weights[0].shape[1] - self._n_latent_features()
        first = weights[0].to(self.device, self._exact)
        self._position_weight = first[:, :n_position_features].T.contiguous()
        self._latent_weight = first[:, n_position_features:].T.contiguous()
        self._first_bias = biases[0].to(self.device, self._exact)

    def _n_latent_features(self) -> int:
        per_latent = 1
        if self.decoder.latent_frequencies is not None:
            per_latent = 2 * len(self.decoder.latent_frequencies)
        return self.decoder.zdim * per_latent

    def lattice(self, box_size: int | None = None, low_pass: int | None = None) -> Lattice:
        """The decoder's lattice at a box size, or a smaller box's part of it; made once."""
        size = self.decoder.box_size if box_size is None else box_size
        key = (size, low_pass or size)
        if key not in self._lattices:
            lattice = self.decoder.lattice(size)
            self._lattices[key] = lattice.low_pass(low_pass) if low_pass else lattice
        return self._lattices[key]

    def decode(self, latents: np.ndarray, box_size: int | None = None) -> torch.Tensor:
        """Volumes (n, d, d, d), axes z, y, x, of latents (n, zdim), on the field's device.

        Raises
        ------
        InputError
            Where the latents do not have the model's dimension or are not finite.
        ResourceError
            Where the memory does not suffice for one volume.
        """
        lattice = self.lattice(box_size)
        values = self.values(latents, lattice)
        return self.sparing(lambda: volumes_from_values(values, lattice))

    def volumes(
        self, latents: np.ndarray, box_size: int | None = None, low_pass: int | None = None
    ) -> Iterator[torch.Tensor]:
        """Yield volumes (d, d, d) of latents (n, zdim), or those of a smaller box's frequencies."""
        lattice = self.lattice(box_size, low_pass)
        start = 0
        while start < len(latents):

            def some(start: int = start) -> torch.Tensor:
                return self._values(latents[start : start + self._together(lattice)], lattice)

            values = self.sparing(some)
            for row in values:

                def volume(row: torch.Tensor = row) -> torch.Tensor:
                    return volumes_from_values(row[None], lattice)[0]

                yield self.sparing(volume)
            start += len(values)

    def values(self, latents: np.ndarray, lattice: Lattice) -> torch.Tensor:
        """Normalised h (n, lattice.n_slots) at a lattice's points; the background is last."""
        return self.sparing(lambda: self._values(latents, lattice))

    def _values(self, latents: np.ndarray, lattice: Lattice) -> torch.Tensor:
        n_values = lattice.n_slots - 1
        values = torch.empty((len(latents), lattice.n_slots), dtype=self._exact, device=self.device)
        mean, deviation = self.decoder.norm
        with torch.inference_mode():
            self._evaluate(check_latents(latents, self.decoder.zdim), lattice.coordinates, values)
            values[:, :n_values].mul_(deviation).add_(mean)
            values[:, n_values] = lattice.background
        return values.clone() if values.is_inference() else values

    def coefficients(self, latents: np.ndarray, frequencies: np.ndarray) -> torch.Tensor:
        """Values of the raw field at any frequencies.

        Parameters
        ----------
        latents : (n, zdim) float
        frequencies : (m, 3) float
            Frequencies x, y, z in the lattice's unit (0.5 is Nyquist); the decoder is evaluated
            there as it stands, though a Fourier decoder is trained on z <= 0.

        Returns
        -------
        (n, m, n_outputs) tensor, not normalised: h(k), h(-k) of a Fourier decoder, h(k) of a
        Hartley decoder.
        """
        n_outputs = self._n_outputs
        points = np.ascontiguousarray(frequencies, np.float32)
        shape = (len(latents), len(points) * n_outputs)

        def work() -> torch.Tensor:
            values = torch.empty(shape, dtype=self._exact, device=self.device)
            with torch.inference_mode():
                self._evaluate(check_latents(latents, self.decoder.zdim), points, values)
            return values.view(len(latents), len(points), n_outputs)

        return self.sparing(work)

    def _evaluate(self, latents: np.ndarray, points: np.ndarray, out: torch.Tensor) -> None:
        """Write the field at points (m, 3) into out[:, : m * n_outputs]."""
        n_outputs = self._n_outputs
        if not len(latents):
            return
        # one product per latent: its values do not depend on the other latents of its batch
        codes = torch.stack([row @ self._latent_weight for row in self._encode(latents)])
        rows, together = self.block_rows(), 1
        if not self._on_cpu:  # as many latents together as fill it
            together = max(rows // max(len(points), 1), LATENTS_TOGETHER)
            together = min(together, len(latents), rows)
        n_points = max(1, min(rows // together, len(points)))
        buffers = self._buffers(together * n_points)
        for start, block in self._first_layer(points, n_points):
            stop = start + len(block)
            with matrix_precision(self.dtype):
                for first in range(0, len(latents), together):
                    some = codes[first : first + together]
                    hidden = self._layers.hidden(block, some, buffers)
                    target = out[first : first + together, start * n_outputs : stop * n_outputs]
                    self._layers.outputs(hidden, target.view(len(some), len(block), n_outputs))

    def features(self, latents: np.ndarray, points: np.ndarray, n_hidden: int) -> torch.Tensor:
        """Values of the raw field at some points, and of the last hidden layer at the first ones.

        Parameters
        ----------
        latents : (n, zdim) float
        points : (m, 3) float32
            Frequencies as in :meth:`coefficients`; few enough for one block of activations.
        n_hidden
            Number of points, at most m, whose activations are returned.

        Returns
        -------
        (n, m * n_outputs + n_hidden * hidden size) tensor
            As many latents are computed together as a block of activations holds: values are the
            same where latents come in the same groups.
        """
        latents = check_latents(latents, self.decoder.zdim)
        return self.sparing(lambda: self._features(latents, points, n_hidden))

    def _features(self, latents: np.ndarray, points: np.ndarray, n_hidden: int) -> torch.Tensor:
        n_outputs, width, m = self._n_outputs, self.decoder.hidden_size, len(points)
        n_values = m * n_outputs
        shape = (len(latents), n_values + n_hidden * width)
        out = torch.empty(shape, dtype=self._exact, device=self.device)
        together = max(1, self.block_rows() // m)
        with torch.inference_mode():
            codes = self._encode(latents) @ self._latent_weight
            ((_, block),) = self._first_layer(points, m)
            buffers = self._buffers(together * m)
            for start in range(0, len(latents), together):
                code, rows = codes[start : start + together], out[start : start + together]
                with matrix_precision(self.dtype):
                    hidden = self._layers.hidden(block, code, buffers)
                    self._layers.outputs(hidden, rows[:, :n_values].view(len(code), m, n_outputs))
                if n_hidden:
                    activations = hidden.view(len(code), m, width)[:, :n_hidden]
                    rows[:, n_values:] = activations.reshape(len(code), -1)
        return out

    def _encode(self, latents: np.ndarray) -> torch.Tensor:
        return encode_latents(self.decoder, torch.from_numpy(latents).to(self.device, self._exact))

    def _buffers(self, rows: int) -> list[torch.Tensor]:
        return self._layers.buffers(rows)

    def _first_layer(self, points: np.ndarray, rows: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Blocks of the first layer's frequency part, bias included, kept where they are small."""
        width = self.decoder.hidden_size
        if self._cached is not None and self._cached[0] is points:
            for start in range(0, len(points), rows):
                yield start, self._cached[1][start : start + rows]
            return
        keep = self._keeps(len(points))
        blocks = self._first_bias.new_empty((len(points) if keep else 0, width))
        for start in range(0, len(points), rows):
            chunk = torch.from_numpy(points[start : start + rows]).to(self.device, self._exact)
            features = encode_positions(self.decoder, chunk)
            kept = blocks[start : start + rows] if keep else None
            yield start, torch.addmm(self._first_bias, features, self._position_weight, out=kept)
        if keep:
            self._cached = (points, blocks)

    def block_rows(self) -> int:
        """Number of points per block and latent, whose activations about fill a core's own cache.

        Several threads share a product and wait for one another at its end: they get longer blocks.
        On a GPU the activations are those of all latents of a product, and fill its cache.
        """
        width, held = self.decoder.hidden_size, self._layers.activation_bytes
        if self._on_cpu:
            rows = cpu_block_rows(width) * (4 if torch.get_num_threads() > 1 else 1)
        else:
            rows = device_activations(cache_bytes(self.device), held) // width
        if self.memory_bytes is None:
            return rows
        most = self.memory_bytes // 2 // (width * (held + 4))
        return max(LEAST_ROWS, min(rows, most))

    def _together(self, lattice: Lattice) -> int:
        """Number of latents that are evaluated before the first of their volumes is made.

        On a GPU they are few, so that volumes are copied and written while others are evaluated;
        where each group makes the first layer anew there are more to share it.
        """
        if self.memory_bytes is None:
            return np.iinfo(np.int64).max
        most = max(1, self.memory_bytes // 4 // (lattice.n_slots * self._exact.itemsize))
        group = GROUP_LATENTS if self._keeps(lattice.n_points) else SHARING_LATENTS
        return most if self._on_cpu else min(most, group)

    def _keeps(self, n_points: int) -> bool:
        """Whether the first layer's parts of some points are kept between batches."""
        n_bytes = n_points * self.decoder.hidden_size * self._first_bias.element_size()
        return n_bytes <= (CACHE_BYTES if self.memory_bytes is None else self.memory_bytes // 4)

    def sparing(self, work: Callable[[], T]) -> T:
        """Result of some work of this field, done again with less memory where there is not enough.

        Raises
        ------
        ResourceError
            Where not even the least memory that it needs is free.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if self.memory_bytes is None or not out_of_memory(error):
                    raise
                least = LEAST_ROWS * self.decoder.hidden_size * 8
                if self.memory_bytes < 4 * least:
                    box, free = self.decoder.box_size, free_bytes(self.device)
                    raise ResourceError(
                        f"One volume at a time does not fit the memory of {self.device}: "
                        f"{free / GIB:.2f} GiB are free for a model of box {box}. Use a smaller "
                        "--box-size, a GPU with more memory, or CPUs (without --gpus)."
                    ) from None
            self.memory_bytes //= 2
            self._cached = None
            if not self._on_cpu:
                torch.cuda.empty_cache()


def free_bytes(device: str) -> int:
    """Bytes that can still be allocated on a device."""
    if device == "cpu":
        return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    free, _ = torch.cuda.mem_get_info(device)
    if torch.cuda.memory.get_allocator_backend() in ("native", "cudaMallocAsync"):
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return int(free) + pool_bytes()


def cache_bytes(device: str) -> int:
    """Bytes of a GPU's second-level cache; a usual number where torch does not say."""
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "L2_cache_size", USUAL_CACHE_BYTES)) or USUAL_CACHE_BYTES


def device_activations(n_bytes: int, activation_bytes: int) -> int:
    """Number of activations that a GPU computes at once, a power of two.

    What one product writes the next one reads: it is to stay in the cache of that many bytes, both
    buffers of it. A cache that is too small for a block that fills all units is overrun.
    """
    most = 2 ** max(0, (n_bytes // activation_bytes).bit_length() - 1)
    return min(max(most, LEAST_ACTIVATIONS), MOST_ACTIVATIONS)


def encode_positions(decoder: Decoder, points: torch.Tensor) -> torch.Tensor:
    """Positional features (n, n_features) of points (n, 3), in the points' dtype."""
    if decoder.encoding == "none":
        return points
    frequencies = torch.from_numpy(decoder.frequencies).to(points)
    if decoder.encoding == "gaussian":
        phase = (points[:, None, :] * frequencies).sum(-1)
        return torch.cat([torch.sin(phase), torch.cos(phase)], -1)
    phase = points[:, :, None] * frequencies
    return torch.cat([torch.sin(phase), torch.cos(phase)], -1).flatten(1)


def encode_latents(decoder: Decoder, latents: torch.Tensor) -> torch.Tensor:
    """Latent features of latents (n, zdim), in their dtype."""
    if decoder.latent_frequencies is None:
        return latents
    phase = latents[:, :, None] * torch.from_numpy(decoder.latent_frequencies).to(latents)
    return torch.cat([torch.sin(phase), torch.cos(phase)], -1).flatten(1)
