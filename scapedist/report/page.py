"""The pieces of a self-contained HTML page: text, tables, images and interactive plots.

Whatever is not :class:`Html` is escaped. Plots are plain dictionaries in plotly.js's own format,
with arrays as base64; the page carries plotly.js and asks the network for nothing (its content
security policy forbids it).
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def text(value: object) -> Html:
    """Give ``value`` as markup: unchanged where it is markup, else escaped."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts: Iterable[object]) -> Html:
    """Put parts one after the other, each escaped where it is not markup."""
    return Html("".join(text(part) for part in parts))


def tag(name: str, *parts: object, **attributes: object) -> Html:
    """Make an element; an attribute named ``class_`` is ``class``."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
    )
    return Html(f"<{name}{written}>{join(parts)}</{name}>")


def table(headers: Sequence[object], rows: Iterable[Sequence[object]], class_: str = "") -> Html:
    """Make a table that scrolls sideways where it does not fit; without headers it has no head."""
    head = tag("thead", tag("tr", *(tag("th", cell) for cell in headers))) if headers else ""
    body = tag("tbody", *(tag("tr", *(tag("td", cell) for cell in row)) for row in rows))
    return tag("div", tag("table", head, body, class_=class_), class_="scroll")


def image(png: bytes, alt: str, **attributes: object) -> Html:
    """Put a PNG file's bytes into the page."""
    source = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    written = "".join(f' {key}="{html.escape(str(v))}"' for key, v in attributes.items())
    return Html(f'<img alt="{html.escape(alt)}" src="{source}"{written}>')


def details(summary: object, *parts: object) -> Html:
    """Make a part that opens on a click."""
    return tag("details", tag("summary", summary), *parts)


def array(values: NDArray) -> dict[str, str]:
    """Write an array of up to two dimensions as plotly.js reads it: float32 or int32 in base64."""
    kind, dtype = ("f4", "<f4") if values.dtype.kind == "f" else ("i4", "<i4")
    data = np.ascontiguousarray(values, dtype)
    encoded = {"dtype": kind, "bdata": base64.b64encode(data.tobytes()).decode("ascii")}
    if values.ndim == 2:
        encoded["shape"] = f"{values.shape[0]}, {values.shape[1]}"
    return encoded


def plot(name: str, figure: Mapping[str, Any], height: int = 380) -> Html:
    """Make a place for a plotly figure: ``data``, ``layout``, and for a scatter ``axes``.

    With ``axes`` (names) each trace holds ``columns``, one array per axis, and the page offers
    which two to show. With ``maps`` as well (``"i,j"``, i < j, to ``x``, ``y`` and ``grids``, one
    for each of ``layers``) it shows the grid of two axes and a layer as a heat map.
    """
    choose = Html("")
    if "axes" in figure and (len(figure["axes"]) > 2 or "maps" in figure):
        selects = [_select(figure["axes"], at) for at in (0, 1)]
        if "maps" in figure:
            selects.append(_select([layer["name"] for layer in figure["layers"]], 0, "show"))
        choose = tag("div", *selects, class_="choose")
    data = json.dumps(figure, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return tag(
        "div",
        choose,
        tag("div", class_="plot", style=f"height:{height}px"),
        Html(f'<script type="application/json">{data}</script>'),
        class_="interactive",
        id=name,
    )


def _select(names: Sequence[str], chosen: int, label: str | None = None) -> Html:
    options = [
        tag("option", name, value=i, **({"selected": "selected"} if i == chosen else {}))
        for i, name in enumerate(names)
    ]
    words = f"{label} " if label else ("across ", "up ")[chosen]
    return tag("label", words, tag("select", *options))


def section(name: str, title: str, *parts: object) -> Html:
    """Make a section of the page with its heading."""
    return tag("section", tag("h2", title), *parts, id=name)


def page(title: str, header: Html, sections: Mapping[str, Html], plotly_js: str) -> str:
    """Put the page together.

    Parameters
    ----------
    title
        The page's title.
    header
        Markup that comes first.
    sections
        Sections by their titles in the table of contents; a section's id is its title in lower
        case with hyphens.
    plotly_js
        Text of the plotly.js library.
    """
    contents = tag(
        "nav",
        *(tag("a", name, href="#" + name.lower().replace(" ", "-")) for name in sections),
    )
    return "".join(
        [
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(title)}</title><style>{_CSS}</style></head><body>\n",
            tag("header", header),
            contents,
            "<noscript><p>The interactive plots need JavaScript; the folder plots beside this "
            "page has the same ones as images.</p></noscript>\n",
            tag("main", *sections.values()),
            f"\n<script>{plotly_js}</script>\n<script>{_JS}</script></body></html>\n",
        ]
    )


_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)

_CSS = """
:root { --ink: #222; --soft: #666; --line: #ddd; --accent: #2a5d8f; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1290px; padding: 0 24px 48px; color: var(--ink);
  background: #fff; font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 28px 0 4px; font-size: 26px; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 0 0 6px; font-size: 19px; }
h3 { margin: 14px 0 4px; font-size: 15px; }
p { margin: 6px 0 10px; max-width: 78ch; }
header p { color: var(--soft); overflow-wrap: anywhere; }
section { padding: 20px 0 16px; border-top: 1px solid var(--line); }
nav { position: sticky; top: 0; z-index: 5; display: flex; flex-wrap: wrap; gap: 2px 16px;
  padding: 8px 0; background: #fff; border-top: 1px solid var(--line); }
nav + noscript + main > section { scroll-margin-top: 64px; }
nav a { color: var(--accent); text-decoration: none; font-size: 14px; }
nav a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(138px, 1fr)); gap: 10px;
  margin: 14px 0 18px; }
.tiles div { padding: 8px 12px; background: #f4f6f8; border-radius: 6px; }
.tiles b { display: block; font-size: 19px; font-weight: 600; line-height: 1.3; }
.tiles span { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
th { text-align: left; font-weight: 600; color: var(--soft); }
th, td { padding: 3px 18px 3px 0; border-bottom: 1px solid #eee; vertical-align: middle; }
.states td:nth-child(2), .states td:nth-child(3), .states th:nth-child(2), .states th:nth-child(3),
.numbers td:not(:first-child), .numbers th:not(:first-child)
  { text-align: right; font-variant-numeric: tabular-nums; }
.states td, .states th { white-space: nowrap; }
.states img { display: block; width: 60px; height: 60px; }
.record td:first-child { color: var(--soft); white-space: nowrap; }
.record td { vertical-align: top; overflow-wrap: anywhere; }
.swatch { display: inline-block; width: 13px; height: 13px; margin-right: 8px;
  vertical-align: -1px; }
.share { display: inline-block; width: 130px; height: 10px; margin-right: 8px;
  background: #eef0f2; }
.share i { display: block; height: 100%; }
section > img { display: block; max-width: 100%; height: auto; margin: 4px 0 12px; }
.choose { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 6px 0; font-size: 14px; }
select { font: inherit; padding: 2px 4px; max-width: 60vw; }
details { margin: 4px 0; }
summary { cursor: pointer; color: var(--accent); }
details > *:not(summary) { margin-left: 16px; }
.note { color: var(--soft); font-size: 14px; }
"""

_JS = """
"use strict";
const config = {displaylogo: false, responsive: true, plotlyServerURL: "", showLink: false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]};
for (const place of document.querySelectorAll(".interactive")) {
  const figure = JSON.parse(place.querySelector("script").textContent);
  const target = place.querySelector(".plot");
  const layout = {font: {family: "system-ui, sans-serif", size: 13, color: "#333"},
    margin: {l: 64, r: 12, t: 34, b: 48}, hoverlabel: {align: "left"}, ...figure.layout};
  if (!figure.axes) { Plotly.newPlot(target, figure.data, layout, config); continue; }
  const narrow = target.clientWidth < 640;
  layout.legend = narrow ? {orientation: "h", y: -0.18} : {};
  layout.legend.itemsizing = "constant";
  const selects = [...place.querySelectorAll("select")];
  const axis = k => ({title: {text: figure.axes[k]}, zeroline: false, gridcolor: "#eee",
    linecolor: "#999", ticks: "outside", tickcolor: "#999"});
  const scatter = (i, j) => figure.data.map(({columns, ...trace}) =>
    ({type: "scatter", mode: "markers", ...trace, x: columns[i], y: columns[j]}));
  const heatmap = (i, j, k) => {
    const map = figure.maps[`${Math.min(i, j)},${Math.max(i, j)}`];
    const [x, y] = i < j ? [map.x, map.y] : [map.y, map.x];
    return [{type: "heatmap", z: map.grids[k], transpose: i > j, x0: x[0], dx: x[1],
      y0: y[0], dy: y[1], hoverongaps: false, ...figure.layers[k].style}];
  };
  const draw = event => {
    if (figure.maps && selects[0].value === selects[1].value) {  // no map of an axis with itself
      const other = selects[event && event.target === selects[1] ? 0 : 1];
      other.value = (Number(other.value) + 1) % figure.axes.length;
    }
    const [i, j, k] = selects.length ? selects.map(s => Number(s.value)) : [0, 1];
    const data = (figure.maps ? heatmap : scatter)(i, j, k);
    Plotly.react(target, data, {...layout, xaxis: axis(i), yaxis: axis(j)}, config);
  };
  selects.forEach(s => s.addEventListener("change", draw));
  draw();
}
"""
