"""The layers behind the first in one precision, and what their operands are kept in."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

COMPUTED_IN = {
    "float64": torch.float64,
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16x3": torch.float16,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Type of the operands of each precision's products."""
SPLIT_BY = 2.0**11
"""What the part that float16 lacks of a value is multiplied by, so that it is as large as the value
and never subnormal where the value is not: float16 keeps 11 bits."""
LARGEST_WEIGHT = 2**14
"""Split weights are scaled to about this: also the smaller parts of all but the smallest of them
are then above float16's least normal number, 2**-14."""


class Layers:
    """Hidden layers behind the first, and the last layer.

    Parameters
    ----------
    weights, biases
        Of the layers behind the first, float64, (out, in) and (out,).
    slope
        Of the activation below zero; 0 for ReLU.
    device, dtype
        As of the field.
    """

    def __init__(
        self,
        weights: list[torch.Tensor],
        biases: list[torch.Tensor],
        slope: float,
        device: str,
        dtype: str,
    ) -> None:
        self.compute = COMPUTED_IN[dtype]
        self.exact = torch.float64 if dtype == "float64" else torch.float32
        self.slope, self.device, self._on_cpu = slope, device, device == "cpu"
        self._kernels = None if dtype == "float64" else kernels_of(device)
        self._width = weights[-1].shape[1]
        self._hidden = [self._held(*pair) for pair in zip(weights[:-1], biases[:-1], strict=True)]
        self.last = weights[-1].contiguous().to(device, self._last_type)
        self.last_bias = biases[-1].to(device, self.exact)

    @property
    def _last_type(self) -> torch.dtype:
        return self.compute

    @property
    def activation_bytes(self) -> int:
        """Bytes that are held for one activation between products."""
        return 2 * self.compute.itemsize

    def _held(self, weight: torch.Tensor, bias: torch.Tensor) -> tuple[Any, ...]:
        """A hidden layer's weight (in, out) and bias on the device, as products take them."""
        weight = weight.T.contiguous().to(self.device, self.compute)
        return weight, bias.to(self.device, self.compute)

    def buffers(self, rows: int) -> list[torch.Tensor]:
        """Memory for the activations of some rows."""
        shape = (rows, self._width)
        return [torch.empty(shape, dtype=self.compute, device=self.device) for _ in range(2)]

    def hidden(
        self, parts: torch.Tensor, codes: torch.Tensor, buffers: list[torch.Tensor]
    ) -> torch.Tensor:
        """Activations (n_codes * n, width) of the last hidden layer, in one of the buffers.

        Parameters
        ----------
        parts : (n, width)
            First-layer parts of points, bias included.
        codes : (n_codes, width)
            First-layer parts of latents.
        buffers
            As :meth:`buffers` makes them, of n_codes * n rows or more.
        """
        n, (here, there) = len(codes) * len(parts), buffers
        if self._kernels:
            self._kernels.activate(parts, codes, here[:n], self.slope)
        else:
            torch.add(parts, codes[:, None], out=here[:n].view(len(codes), *parts.shape))
            self._activate(here[:n])
        for weight, bias in self._hidden:
            self._layer(here[:n], weight, bias, there[:n])
            here, there = there, here
        return here[:n]

    def _layer(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor
    ) -> None:
        if self._on_cpu or self.slope:
            torch.addmm(bias, x, weight, out=out)
            self._activate(out)
        else:  # the product's own epilogue: activations are not read and written once more
            torch._addmm_activation(bias, x, weight, out=out)

    def _activate(self, x: torch.Tensor) -> None:
        if self.slope:
            torch.nn.functional.leaky_relu_(x, self.slope)
        else:
            x.relu_()

    def outputs(self, hidden: torch.Tensor, out: torch.Tensor) -> None:
        """Write the last layer's result into out (n_codes, n, n_outputs), in its precision."""
        if self._kernels:
            self._kernels.outputs(hidden, self.last, self.last_bias, out)
            return
        # few contiguous rows times many columns: several times as fast as any other order
        if self.last.dtype == out.dtype:
            found = self.last @ hidden.T
        elif self._on_cpu:
            found = self.last.to(out.dtype) @ hidden.T.to(out.dtype)
        else:
            found = torch.mm(self.last, hidden.T, out_dtype=out.dtype)
        found += self.last_bias[:, None]
        out.copy_(found.T.view(out.shape))


class SplitLayers(Layers):
    """Layers whose operands are two float16 numbers each, with almost the error of float32.

    A value x is high + low / 2**11 with high = float16(x) and low = float16((x - high) * 2**11). A
    product of two of them is high high' + (high low' + low high') / 2**11; what is left out is
    2**-22 of it. All three are one product of three times as many columns,

        [high, high, low] @ [high'; low' / 2**11; high' / 2**11],

    summed in float32: one launch, one pass over the sums. Without the second copy of high it
    would be two products, and float32 sums (4 bytes) read and written once more instead of a
    copy (2 bytes). Weights are scaled by a power of two, so that dividing leaves them normal.
    """

    @property
    def _last_type(self) -> torch.dtype:
        return self.exact

    @property
    def activation_bytes(self) -> int:
        """Bytes that are held for one activation: three float16 operands, and a float32 sum."""
        return 10

    def _held(self, weight: torch.Tensor, bias: torch.Tensor) -> tuple[Any, ...]:
        largest = max(weight.abs().max().item(), 1e-30)
        scale = LARGEST_WEIGHT / 2.0 ** math.ceil(math.log2(largest))
        scaled = weight.T * scale
        high = scaled.half()
        low = (scaled - high.double()).half()
        held = torch.cat([high, low, high / SPLIT_BY]).contiguous().to(self.device)
        return held, bias[None].to(self.device, self.exact), 1 / scale

    def buffers(self, rows: int) -> list[torch.Tensor]:
        """Memory for the operands and the sums of some rows."""
        operands = torch.empty((rows, 3 * self._width), dtype=torch.float16, device=self.device)
        return [operands, torch.empty((rows, self._width), device=self.device)]

    def hidden(
        self, parts: torch.Tensor, codes: torch.Tensor, buffers: list[torch.Tensor]
    ) -> torch.Tensor:
        """Activations (n_codes * n, width) float32 of the last hidden layer; as of any layers."""
        n, scale = len(codes) * len(parts), 1.0
        operands, sums = (buffer[:n] for buffer in buffers)
        for weight, bias, back in self._hidden:
            self._split(parts, codes, scale, operands)
            if self._on_cpu:
                torch.mm(operands.float(), weight.float(), out=sums)
            else:
                torch.mm(operands, weight, out_dtype=torch.float32, out=sums)
            parts, codes, scale = sums, bias, back
        if self._kernels:
            self._kernels.activate(parts, codes, sums, self.slope, scale)
        else:
            sums.copy_(self._activated(parts, codes, scale))
        return sums

    def _split(
        self, parts: torch.Tensor, codes: torch.Tensor, scale: float, out: torch.Tensor
    ) -> None:
        if self._kernels:
            self._kernels.activate(parts, codes, out, self.slope, scale, SPLIT_BY)
            return
        x = self._activated(parts, codes, scale)
        high = x.half()
        out.copy_(torch.cat([high, high, ((x - high.float()) * SPLIT_BY).half()], 1))

    def _activated(self, parts: torch.Tensor, codes: torch.Tensor, scale: float) -> torch.Tensor:
        x = torch.add(codes[:, None], parts, alpha=scale).view(-1, self._width)
        self._activate(x)
        return x


@functools.cache
def kernels_of(device: str) -> ModuleType | None:
    """The kernels' module, where a device can run them; None where torch alone does the same."""
    if device == "cpu":
        return None
    try:
        from scapedist.model import kernels

        x, out = torch.ones((2, 4), device=device), torch.empty((2, 4), device=device)
        kernels.activate(x, x[:1], out)
    except Exception:  # no Triton, or no compiler for what it launches by
        return None
    return kernels if bool((out == 2).all()) else None


@contextmanager
def matrix_precision(dtype: str) -> Iterator[None]:
    """Context that lets matrix units round operands of tf32, and always add up in float32."""
    units = torch.backends.cuda.matmul
    names = [f"allow_{kind}_reduced_precision_reduction" for kind in ("fp16", "bf16")]
    precision = torch.get_float32_matmul_precision()
    reductions = [getattr(units, name) for name in names]
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    for name in names:
        setattr(units, name, False)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        for name, allowed in zip(names, reductions, strict=True):
            setattr(units, name, allowed)
