"""Triton kernels of what lies beside the matrix products, each in one pass over memory.

Imported only where it is used: on a GPU whose torch comes with Triton. With TRITON_INTERPRET=1 the
same source runs on the CPU. Sums are computed in the type of their operands, float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TILE = 4096
"""Number of elements that a program computes at a time."""
CODES = 4
"""Number of latents that a program adds to the part of a tile that it has read."""
OUTPUT_ROWS = 16
WARPS = 8


@triton.jit
def _activate(  # type: ignore[no-untyped-def]
    parts,
    codes,
    out,
    scale,
    slope,
    n_rows,
    n_codes,
    width,
    split_by,
    SPLIT: tl.constexpr,
    CODES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    number = tl.program_id(0)
    n_across, n_down = tl.cdiv(width, COLUMNS), tl.cdiv(n_rows, ROWS)
    columns = number % n_across * COLUMNS + tl.arange(0, COLUMNS)
    rows = (number // n_across % n_down * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    first = number // (n_across * n_down) * CODES
    across = columns < width
    inside = (rows < n_rows)[:, None] & across[None, :]
    part = tl.load(parts + rows[:, None] * width + columns[None, :], mask=inside, other=0.0)
    for code in range(first, min(first + CODES, n_codes)):
        x = part * scale + tl.load(codes + code * width + columns, mask=across, other=0.0)[None, :]
        x = tl.where(x > 0, x, x * slope)  # NaN stays what it is
        row = code * n_rows + rows
        if SPLIT:
            high = x.to(tl.float16)
            low = ((x - high.to(tl.float32)) * split_by).to(tl.float16)
            place = out + row[:, None] * (3 * width) + columns[None, :]
            tl.store(place, high, mask=inside)
            tl.store(place + width, high, mask=inside)
            tl.store(place + 2 * width, low, mask=inside)
        else:
            place = out + row[:, None] * width + columns[None, :]
            tl.store(place, x.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _outputs(  # type: ignore[no-untyped-def]
    hidden,
    weight,
    bias,
    out,
    n_rows,
    n_points,
    width,
    stride,
    PAIR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < n_rows
    direct = tl.zeros((ROWS,), tl.float32)
    mirror = tl.zeros((ROWS,), tl.float32)
    for start in range(0, width, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        across = columns < width
        both = inside[:, None] & across[None, :]
        x = tl.load(hidden + rows[:, None] * width + columns[None, :], mask=both, other=0.0)
        x = x.to(tl.float32)
        w = tl.load(weight + columns, mask=across, other=0.0).to(tl.float32)
        direct += tl.sum(x * w[None, :], axis=1)
        if PAIR:
            w = tl.load(weight + width + columns, mask=across, other=0.0).to(tl.float32)
            mirror += tl.sum(x * w[None, :], axis=1)
    n_outputs: tl.constexpr = 2 if PAIR else 1
    place = out + rows // n_points * stride + rows % n_points * n_outputs
    tl.store(place, direct + tl.load(bias), mask=inside)
    if PAIR:
        tl.store(place + 1, mirror + tl.load(bias + 1), mask=inside)


def activate(
    parts: torch.Tensor,
    codes: torch.Tensor,
    out: torch.Tensor,
    slope: float = 0.0,
    scale: float = 1.0,
    split_by: float | None = None,
) -> None:
    """Write the leaky ReLU of scale * parts + code, for each code, into out.

    Parameters
    ----------
    parts : (n, width) float32
    codes : (n_codes, width) float32
    out : (n_codes * n, width), or (n_codes * n, 3 * width) float16 where values are split
        Contiguous as all others; may be ``parts`` where there is one code.
    slope
        Slope below zero; 0 for ReLU.
    scale
        What the parts are multiplied by.
    split_by
        Where given, a row of out is high, high, low: the value rounded to float16, and what
        that lacks times this number.
    """
    (n, width), n_codes = parts.shape, len(codes)
    columns = min(triton.next_power_of_2(width), 1024)
    rows = max(1, TILE // columns)
    n_programs = triton.cdiv(width, columns) * triton.cdiv(n, rows) * triton.cdiv(n_codes, CODES)
    with torch.cuda.device_of(out):
        _activate[(n_programs,)](
            parts, codes, out, scale, slope, n, n_codes, width, split_by or 0.0,
            SPLIT=split_by is not None, CODES=CODES, ROWS=rows, COLUMNS=columns, num_warps=WARPS,
        )  # fmt: skip


def outputs(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor
) -> None:
    """Write the last layer's values of hidden activations into out, summed in float32.

    Parameters
    ----------
    hidden : (n_codes * n, width), contiguous
    weight : (n_outputs, width), contiguous, of one or two outputs
    bias : (n_outputs,) float32
    out : (n_codes, n, n_outputs) float32, contiguous but for its first axis
    """
    (n_rows, width), n_outputs = hidden.shape, len(weight)
    columns = min(triton.next_power_of_2(width), 512)
    with torch.cuda.device_of(out):
        _outputs[(triton.cdiv(n_rows, OUTPUT_ROWS),)](
            hidden, weight, bias, out, n_rows, out.shape[1], width, out.stride(0),
            PAIR=n_outputs == 2, ROWS=OUTPUT_ROWS, COLUMNS=columns, num_warps=WARPS,
        )  # fmt: skip
