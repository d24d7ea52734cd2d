"""Templates and charts of pages, on values without a model."""

import re
from pathlib import Path

import pytest
from PIL import Image

from diffsteer.report.page import THUMBNAIL, render, thumbnail
from diffsteer.report.plots import COLOURS, Chart, Curve, Point, line_chart, write_png


def chart(**changes: object) -> str:
    points = (Point(0, 1, None, (0.8, 1.3)), Point(1, 0.5, (0.9, 1.2), (0.4, 0.6), "2 < 3"))
    curves = [Curve("first", points, 0), Curve("second", (Point(0, 0.2), Point(1, 0.3)), 9)]
    values = {"title": "A <b>", "x_label": "x & y", "y_label": "y", "curves": curves} | changes
    return line_chart(**values)  # type: ignore[arg-type]


def test_a_chart_has_curves_intervals_and_labels() -> None:
    svg = chart()
    assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>")
    assert svg.count('<g class="curve">') == 2 and svg.count('<g class="interval">') == 3
    for text in ("A &lt;b&gt;</text>", "x &amp; y</text>", "2 &lt; 3</text>"):
        assert text in svg
    assert COLOURS[0] in svg and COLOURS[1] in svg and COLOURS[2] not in svg
    assert "stroke-dasharray" not in svg and "stroke-dasharray" in chart(level=0.7)


def test_every_curve_of_a_png_is_in_its_legend(tmp_path: Path, monkeypatch) -> None:
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    curves = tuple(Curve(name, (Point(0, i), Point(1, i)), i) for i, name in enumerate("abc"))
    write_png(tmp_path / "a.png", [Chart("title", "x", "y", curves)], "all")
    (legend,) = [axes.get_legend() for axes in figures[0].axes]
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]
    colours = [line.get_color() for line in legend.get_lines()]
    assert colours == [curve.colour for curve in curves]


def test_charts_load_nothing_and_equal_ones_are_equal_text() -> None:
    svg = chart()
    assert svg == chart()
    assert "url(" not in svg and "<script" not in svg and "<image" not in svg
    links = re.findall(r'href="([^"]*)"', svg)
    assert links and all(link.startswith("#") for link in links)


def test_images_are_embedded_small(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (600, 300), "red").save(path)
    assert thumbnail(path).startswith("data:image/png;base64,")
    image = Image.open(path)
    assert thumbnail(image) == thumbnail(path) and image.size == (600, 300)
    assert THUMBNAIL < 300


def test_an_unknown_variable_of_a_template_is_an_error() -> None:
    with pytest.raises(Exception, match="undefined"):
        render("compare.html")
