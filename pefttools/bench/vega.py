"""Charts as Vega specifications that a page or a file can draw, all with the same look."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pefttools.bench import labels

if TYPE_CHECKING:
    import altair

Spec = dict[str, Any]

SCORE, AXIS_SCORE, POINTS, RATE = ".4f", ".4~f", "+.2f", ".3~e"
"""Formats (d3's) of scores, of scores on an axis, of differences in points and of learning rates."""
PALETTE = (
    "#1a6fe1", "#fd9320", "#0e861e", "#fc5ff4", "#3ec0c4", "#c33d59", "#10c72e", "#b32dd7", "#a981b6", "#a18a48",
    "#4c7681", "#fd617f", "#609efa", "#e61aa0", "#c8a095", "#25a473", "#8160b5", "#b96dfc", "#e65909", "#c69bf2",
    "#aab44a", "#4498b3", "#88683f", "#805bfe", "#f587c2", "#9c697d", "#ae459a", "#c37b7d", "#48a515", "#d556ce",
    "#f1274e", "#8ea5d1",
)  # fmt: skip
"""Colours that contrast with a white and a dark page, each the farthest from those before it (OKLab, with a share for
deuteranopia)."""
SHAPES = ("circle", "square", "triangle-up", "diamond")
"""They tell methods with similar colours apart."""
INK = {"ink": "#1c1e21", "quiet": "#5f6670", "line": "#d9dde3", "soft": "#eceff3", "paper": "#ffffff"}
"""Signal -> the colour it has in files; the page sets these by its style sheet, so that charts follow dark mode."""
STATE = {"chosen": None, "hovered": None, "shown": None, "intervals": True}
"""Signals that the page sets: the methods to emphasise, those that its filter leaves, whether it shows intervals."""
LABELLED = "points"
"""Name of the layer whose points get labels in a page."""
FONT = "Arimo, Arial, Helvetica, sans-serif"
"""vl_convert contains Arimo, so that files are the same on every machine."""
EMPHASIS = (
    "(!shown || indexof(shown, {0}.method) >= 0) ?"
    " ((hovered || chosen) && (hovered || chosen) !== {0}.method ? 0.25 : 1) : 0.1"
)


@dataclass(frozen=True)
class Look:
    """The marks of methods, the same on all charts of a suite."""

    marks: Mapping[str, Mapping[str, str]]
    """Method -> its `colour` and `shape`."""
    has_legend: bool = False

    @classmethod
    def of(cls, methods: Iterable[str]) -> Look:
        """The look of these methods; names decide and not scores, so that it does not change with the results."""
        names = sorted(set(methods))
        return cls({
            name: {"colour": PALETTE[i % len(PALETTE)], "shape": SHAPES[i % len(SHAPES)]}
            for i, name in enumerate(names)
        })  # fmt: skip

    def chart(self, rows: Sequence[Mapping[str, Any]], **encodings: Any) -> altair.Chart:
        """A chart of rows with a `method` each, in the method's colour."""
        import altair as alt

        colour = alt.Color("method:N", scale=self._scale("colour"), legend=self._legend())
        opacity = alt.value(alt.expr(emphasis()))
        return alt.Chart(alt.Data(values=[*rows])).encode(color=colour, opacity=opacity, **encodings)

    def points(self, base: altair.Chart, name: str | None = None) -> altair.Chart:
        """A layer of points; the method that is chosen has a larger one.

        Args:
            name: must be different for all layers of one figure, because layers of one name would share their axes.
        """
        import altair as alt

        shape = alt.Shape("method:N", scale=self._scale("shape"), legend=self._legend())
        size = alt.expr("chosen === datum.method ? 180 : 75")
        layer = base.mark_point(filled=True, size=size).encode(shape=shape, description="about:N")
        return layer.properties(name=name) if name else layer

    def intervals(self, base: altair.Chart) -> altair.Chart:
        """A layer of lines, where the page does not hide them."""
        import altair as alt

        opacity = alt.value(alt.expr(f"intervals ? 0.8 * ({emphasis()}) : 0"))
        return base.mark_rule(strokeWidth=1.5, aria=False).encode(opacity=opacity)

    def _scale(self, part: str) -> altair.Scale:
        import altair as alt

        return alt.Scale(domain=[*self.marks], range=[mark[part] for mark in self.marks.values()])

    def _legend(self) -> altair.Legend | None:
        import altair as alt

        return alt.Legend(title=None, labelLimit=200, symbolLimit=0) if self.has_legend else None


def placed_labels(rows: Sequence[Mapping[str, Any]]) -> altair.Chart:
    """A layer of labels with their middles at `x` and `y`, in pixels."""
    import altair as alt

    base = alt.Chart(alt.Data(values=[*rows])).mark_text(
        font=FONT, fontSize=labels.FONT_SIZE, color=alt.expr("ink"), aria=False,
        stroke=alt.expr("paper"), strokeWidth=3, strokeJoin="round",
    )  # fmt: skip
    return base.encode(x=alt.value(alt.expr("datum.x")), y=alt.value(alt.expr("datum.y")), text="label:N")


def vertical_axis(title: str, number: str = AXIS_SCORE) -> altair.Axis:
    """A vertical axis with its title above it, where it takes no width from the chart."""
    import altair as alt

    return alt.Axis(format=number, title=title, titleAngle=0, titleAlign="left", titleX=-34, titleY=-10, minExtent=34)


def ticks(width: int | str) -> Any:
    """The number of ticks of a horizontal axis; where the width is the page's, an expression of it."""
    import altair as alt

    return max(2, width // 80) if isinstance(width, int) else alt.expr("max(2, ceil(width / 90))")


def compile_chart(chart: Any) -> Spec:
    """The Vega specification of an altair chart, with the signals that a page sets."""
    import altair
    import vl_convert

    params = [altair.param(name=name, value=value) for name, value in {**INK, **STATE}.items()]
    spec = vl_convert.vegalite_to_vega(chart.add_params(*params).configure(**_config()).to_dict())
    spec["background"] = None  # the page is seen through it; `svg` paints it
    return spec


def compile_for_page(chart: Any) -> Spec:
    """The same with labels beside the points of its layer `LABELLED`, which a browser places."""
    spec = compile_chart(chart)
    if any(mark["name"] == f"{LABELLED}_marks" for mark in spec["marks"]):
        spec["marks"].append(labels.by_vega(f"{LABELLED}_marks", emphasis("datum.datum"), FONT))
    return spec


def svg(spec: Spec) -> str:
    """The chart as an SVG file, on white."""
    import vl_convert

    drawn = vl_convert.vega_to_svg(json.dumps({**spec, "background": INK["paper"]}))
    return drawn.replace("<text ", '<text paint-order="stroke" ')  # the labels' halo lies under their letters


def png(drawn: str) -> bytes:
    """An SVG file as a PNG file."""
    import vl_convert

    return _compressed(vl_convert.svg_to_png(drawn, scale=1.5))


def _compressed(image: bytes) -> bytes:
    """The same PNG file at a fourth of its size; vl_convert compresses for speed."""
    header, end, place, pixels = image[:33], image[-12:], 33, b""  # the signature and IHDR; IEND
    while place < len(image):
        (length,) = struct.unpack_from(">I", image, place)
        if image[place + 4 : place + 8] == b"IDAT":
            pixels += image[place + 8 : place + 8 + length]
        place += 12 + length
    body = b"IDAT" + zlib.compress(zlib.decompress(pixels), 9)
    return header + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + end


def javascript() -> str:
    """Vega as JavaScript without imports; it sets `window.vegaEmbed`. It can stand in a script element."""
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    assert "</script" not in bundle.lower()
    assert "<!--" not in bundle
    return bundle


def emphasis(datum: str = "datum") -> str:
    """The expression of a mark's opacity; marks of methods that are filtered out or not chosen are faint."""
    return EMPHASIS.format(datum)


def _config() -> Spec:
    import altair

    ink, quiet, line = (altair.expr(name) for name in ("ink", "quiet", "line"))
    text = {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "labelFont": FONT, "titleFont": FONT}
    axis = {
        "gridColor": line,
        "domainColor": line,
        "tickColor": line,
        "labelColor": quiet,
        "titleColor": ink,
        "gridOpacity": 0.7,
    }
    return {
        "background": "transparent",
        "font": FONT,
        "axis": {**axis, **text, "labelOverlap": "greedy"},
        "legend": {**text, "labelColor": ink, "titleColor": ink, "symbolOpacity": 1},
        "title": {"color": ink, "font": FONT, "fontSize": 14, "anchor": "start"},
        "view": {"stroke": line},
    }
