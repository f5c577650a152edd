"""Rows of labelled pictures as one PNG, drawn by Pillow: axes for each would take seconds."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_LEFT = 148  # pixels for the rows' labels
_GAP = 3
_INK = "#333333"
_OUTLINE = (255, 140, 26)


@dataclasses.dataclass(frozen=True)
class Strip:
    """One row of pictures.

    Attributes
    ----------
    pictures
        (n, s, s, 3) uint8.
    label
        Text at the row's left; lines are parted by newlines.
    notes
        A line or two above each picture, or none.
    colours
        A colour beside each picture's first line, or none.
    """

    pictures: NDArray[np.uint8]
    label: str = ""
    notes: Sequence[str] = ()
    colours: Sequence[str] = ()


def strips(
    rows: Sequence[Strip],
    bar: tuple[float, str],
    bar_colour: str = "white",
    bar_column: int = 0,
    outlines: NDArray | None = None,
    cell: int = 96,
) -> bytes:
    """Draw rows of pictures, with a scale bar in the first one, as a PNG file's bytes.

    Parameters
    ----------
    rows
        The pictures, from top to bottom.
    bar
        The scale bar's length as a fraction of a picture's side, and its words.
    bar_colour, bar_column
        Colour of the scale bar, and the picture of the first row that it is in.
    outlines
        (n, s, s) values whose line at 0.5 is drawn on the n first pictures of every row.
    cell
        Side of a picture in pixels of the image.
    """
    tops, y = [], 0
    for row in rows:
        n_lines = max((note.count("\n") + 1 for note in row.notes), default=0)
        y += _GAP + (16 * n_lines + 8 if n_lines else 0)
        tops.append(y)
        y += cell
    width = _LEFT + max(len(row.pictures) for row in rows) * (cell + _GAP)
    sheet = Image.new("RGB", (width, y + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    edges = [_edge(outline, cell) for outline in outlines] if outlines is not None else []
    for top, row in zip(tops, rows, strict=True):
        for column, picture in enumerate(row.pictures):
            x = _LEFT + column * (cell + _GAP)
            tile = _enlarged(picture, cell)
            if column < len(edges):
                tile.paste(_OUTLINE, mask=edges[column])
            sheet.paste(tile, (x, top))
        for column, note in enumerate(row.notes):
            middle = _LEFT + column * (cell + _GAP) + cell / 2
            _note(draw, note, middle, top - 4, row.colours[column] if row.colours else None)
        _text(draw, (_LEFT - 8, top + cell / 2), row.label, "rm", align="right")
    x, y = _LEFT + bar_column * (cell + _GAP) + 7, tops[0] + cell - 8
    draw.rectangle((x, y, x + bar[0] * cell, y + 2), fill=bar_colour)
    _text(draw, (x, y - 4), bar[1], "ld", fill=bar_colour)
    return png(sheet)


def thumbnail(picture: NDArray[np.uint8], side: int) -> bytes:
    """Encode one (s, s, 3) picture, ``side`` pixels wide, as a PNG file's bytes."""
    return png(_enlarged(picture, side))


def png(sheet: Image.Image) -> bytes:
    """Encode an image as a PNG file's bytes."""
    buffer = io.BytesIO()
    sheet.save(buffer, "png", compress_level=3)
    return buffer.getvalue()


def _enlarged(picture: NDArray[np.uint8], side: int) -> Image.Image:
    return Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)


def _edge(outline: NDArray, cell: int) -> Image.Image:
    """Give the pixels just inside the line at 0.5 of (s, s) values, as a mask two pixels wide."""
    smooth = Image.fromarray(outline.astype(np.float32)).resize(
        (cell, cell), Image.Resampling.BILINEAR
    )
    inside = np.asarray(smooth) > 0.5
    core = inside.copy()
    for axis in (0, 1):
        for step in (-2, -1, 1, 2):
            core &= np.roll(inside, step, axis)
    return Image.fromarray(((inside & ~core) * 255).astype(np.uint8))


def _note(draw: ImageDraw.ImageDraw, note: str, x: float, y: float, colour: str | None) -> None:
    """Write centred lines that end at height y, with a dot of a colour before the first."""
    lines = note.split("\n")
    for up, line in enumerate(reversed(lines)):
        _text(draw, (x, y - 16 * up), line, "md")
    if colour is not None:
        left = x - draw.textlength(lines[0], _font()) / 2 - 12
        middle = y - 16 * (len(lines) - 1) - 6
        draw.ellipse((left - 4, middle - 4, left + 4, middle + 4), fill=colour)


def _text(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    words: str,
    anchor: str,
    fill: str = _INK,
    align: str = "left",
) -> None:
    if "\n" in words:
        draw.multiline_text(at, words, fill, _font(), anchor, align=align, spacing=3)
    else:
        draw.text(at, words, fill, _font(), anchor)


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), 13, layout_engine=ImageFont.Layout.BASIC)
