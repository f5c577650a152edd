"""The decoder's field: its values at any frequencies for any latents, evaluated fast.

What makes it fast, without approximation: the first layer is linear in frequency and latent, so
its frequency part is computed once for a block of points and its latent part once for a latent;
the skip connections are folded into the weight matrices; a Fourier decoder's last layer gives
h(k) = a - b and h(-k) = a + b directly; blocks are sized so that activations stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from scapedist.model.decoder import CACHE_BYTES, Decoder, check_dtype, check_latents
from scapedist.model.hartley import volumes_from_values
from scapedist.model.lattice import Lattice

_COMPUTE = {
    "float64": torch.float64,
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass
class Field:
    """A decoder on a device, in a precision.

    Parameters
    ----------
    decoder
        What to evaluate.
    device
        A torch device name.
    dtype
        ``float32`` (default), ``float64``, or by name one of the faster ones: ``tf32`` (GPU
        only), ``bfloat16``, ``float16``. Values and volumes are float32 but for ``float64``.
    """

    decoder: Decoder
    device: str = "cpu"
    dtype: str = "float32"
    _lattices: dict[tuple[int, int], Lattice] = field(default_factory=dict, repr=False)
    _cached: tuple[np.ndarray, int, list[torch.Tensor]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_dtype(self.dtype, self.device)
        self._compute = _COMPUTE[self.dtype]
        self._exact = torch.float64 if self.dtype == "float64" else torch.float32
        weights = [torch.from_numpy(weight) for weight in self.decoder.weights]
        biases = [torch.from_numpy(bias) for bias in self.decoder.biases]
        if len(biases[-1]) == 2:  # real, imaginary -> h(k), h(-k)
            pair = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
            weights[-1], biases[-1] = pair @ weights[-1], pair @ biases[-1]
        n_position_features = weights[0].shape[1] - self._n_latent_features()
        first = weights[0].to(self.device, self._exact)
        self._position_weight = first[:, :n_position_features].T.contiguous()
        self._latent_weight = first[:, n_position_features:].T.contiguous()
        self._first_bias = biases[0].to(self.device, self._exact)
        self._layers = [
            (w.T.contiguous().to(self.device, self._compute), b.to(self.device, self._compute))
            for w, b in zip(weights[1:], biases[1:], strict=True)
        ]

    def _n_latent_features(self) -> int:
        per_latent = 1
        if self.decoder.latent_frequencies is not None:
            per_latent = 2 * len(self.decoder.latent_frequencies)
        return self.decoder.zdim * per_latent

    def lattice(self, box_size: int | None = None, low_pass: int | None = None) -> Lattice:
        """The decoder's lattice at a box size, or what a smaller box has of it, made once."""
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
        """
        lattice = self.lattice(box_size)
        values = self.values(latents, lattice)
        return volumes_from_values(values, lattice)

    def values(self, latents: np.ndarray, lattice: Lattice) -> torch.Tensor:
        """Normalised h at a lattice's points, and its background behind: (n, lattice.n_slots)."""
        n_values = lattice.n_slots - 1
        values = torch.empty((len(latents), lattice.n_slots), dtype=self._exact, device=self.device)
        mean, deviation = self.decoder.norm
        with torch.inference_mode():
            self._evaluate(check_latents(latents, self.decoder.zdim), lattice.coordinates, values)
            values[:, :n_values].mul_(deviation).add_(mean)
            values[:, n_values] = lattice.background
        return values.clone() if values.is_inference() else values

    def coefficients(self, latents: np.ndarray, frequencies: np.ndarray) -> torch.Tensor:
        """The raw field at any frequencies.

        Parameters
        ----------
        latents : (n, zdim) float
        frequencies : (m, 3) float
            x, y, z in the lattice's unit (0.5 is Nyquist), where the decoder is evaluated as it
            stands: a Fourier decoder is trained on z <= 0.

        Returns
        -------
        (n, m, n_outputs) tensor, not normalised: h(k), h(-k) of a Fourier decoder, h(k) of a
        Hartley decoder.
        """
        n_outputs = self._layers[-1][0].shape[1]
        points = np.ascontiguousarray(frequencies, np.float32)
        shape = (len(latents), len(points) * n_outputs)
        values = torch.empty(shape, dtype=self._exact, device=self.device)
        with torch.inference_mode():
            self._evaluate(check_latents(latents, self.decoder.zdim), points, values)
        return values.view(len(latents), len(points), n_outputs)

    def _evaluate(self, latents: np.ndarray, points: np.ndarray, out: torch.Tensor) -> None:
        """Write the field at points (m, 3) into out[:, : m * n_outputs]."""
        n_outputs = self._layers[-1][0].shape[1]
        features = self._encode(latents)
        # one product a latent: a latent's values do not depend on the others of its batch
        codes = [row @ self._latent_weight for row in features]
        rows = self.block_rows()
        buffers = self._buffers(rows)
        for start, block in self._first_layer(points, rows):
            stop = start + len(block)
            for code, row in zip(codes, out, strict=True):
                hidden = self._hidden(block, code, buffers)
                self._outputs(hidden, row[start * n_outputs : stop * n_outputs])

    def features(self, latents: np.ndarray, points: np.ndarray, n_hidden: int) -> torch.Tensor:
        """The raw field at some points, and the last hidden layer at the first of them.

        Parameters
        ----------
        latents : (n, zdim) float
        points : (m, 3) float32
            As in :meth:`coefficients`; few enough for one block of activations.
        n_hidden
            Points, at most m, whose activations are returned.

        Returns
        -------
        (n, m * n_outputs + n_hidden * hidden size) tensor
            As many latents are computed together as a block of activations holds: values are the
            same where latents come in the same groups.
        """
        latents = check_latents(latents, self.decoder.zdim)
        n_outputs, width, m = self._layers[-1][0].shape[1], self.decoder.hidden_size, len(points)
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
                hidden = self._hidden(block, code[:, None], buffers)
                values = torch.empty_like(rows[:, :n_values])
                self._outputs(hidden, values.view(-1))
                rows[:, :n_values] = values
                if n_hidden:
                    activations = hidden.view(len(code), m, width)[:, :n_hidden]
                    rows[:, n_values:] = activations.reshape(len(code), -1)
        return out

    def _encode(self, latents: np.ndarray) -> torch.Tensor:
        return encode_latents(self.decoder, torch.from_numpy(latents).to(self.device, self._exact))

    def _buffers(self, rows: int) -> list[torch.Tensor]:
        shape = (rows, self.decoder.hidden_size)
        return [torch.empty(shape, dtype=self._compute, device=self.device) for _ in range(2)]

    def _hidden(
        self, block: torch.Tensor, code: torch.Tensor, buffers: list[torch.Tensor]
    ) -> torch.Tensor:
        """The last hidden layer (rows, hidden size) of first-layer parts that are added up."""
        summed = torch.broadcast_shapes(block.shape, code.shape)
        n, (here, there) = int(np.prod(summed[:-1])), buffers
        if block.dtype == here.dtype:
            torch.add(block, code, out=here[:n].view(summed))
        else:
            here[:n] = (block + code).view(n, -1)
        self._activate(here[:n])
        for weight, bias in self._layers[:-1]:
            torch.addmm(bias, here[:n], weight, out=there[:n])
            self._activate(there[:n])
            here, there = there, here
        return here[:n]

    def _outputs(self, hidden: torch.Tensor, out: torch.Tensor) -> None:
        weight, bias = self._layers[-1]
        # few rows, many columns: several times as fast as many rows of one or two columns
        out.view(len(hidden), -1).copy_(torch.addmm(bias[:, None], weight.T, hidden.T).T)

    def _activate(self, x: torch.Tensor) -> None:
        if self.decoder.negative_slope:
            torch.nn.functional.leaky_relu_(x, self.decoder.negative_slope)
        else:
            x.relu_()

    def _first_layer(self, points: np.ndarray, rows: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Blocks of the first layer's frequency part, bias included, kept where they are small."""
        if self._cached is not None and self._cached[0] is points and self._cached[1] == rows:
            start = 0
            for block in self._cached[2]:
                yield start, block
                start += len(block)
            return
        n_bytes = len(points) * self.decoder.hidden_size * self._first_bias.element_size()
        keep = n_bytes <= CACHE_BYTES
        blocks = []
        for start in range(0, len(points), rows):
            chunk = torch.from_numpy(points[start : start + rows]).to(self.device, self._exact)
            features = encode_positions(self.decoder, chunk)
            block = torch.addmm(self._first_bias, features, self._position_weight)
            if keep:
                blocks.append(block)
            yield start, block
        if keep:
            self._cached = (points, rows, blocks)

    def block_rows(self) -> int:
        """Points in a block: activations of about the size of a core's own cache.

        Several threads share a product, and wait for one another at its end: they get longer ones.
        """
        if self.device != "cpu":
            return 1 << 16
        rows = max(1024, 3 * 2**16 // self.decoder.hidden_size)
        return rows if torch.get_num_threads() == 1 else 4 * rows


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
