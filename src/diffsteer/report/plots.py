"""Line charts by matplotlib: SVG text for pages that load nothing, and PNG files."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from diffsteer.io.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (4.6, 3.2)
"""Width and height of a chart at scale 1, in inches of 72 points."""
COLOURS = ("#0b62a3", "#c4500a", "#2b7d3b", "#8b3fa0", "#9a7400", "#555555", "#b3123f", "#00838a")
"""Colours of curves in turn; each has a contrast of 4 to 1 or more on white."""
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "diffsteer", "font.size": 9}
METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
"""None for all: no metadata block, and equal charts are equal text."""


class Point(NamedTuple):
    """A measured point, with intervals where they are known."""

    x: float
    y: float
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    label: str = ""


@dataclass(frozen=True)
class Curve:
    """Points in the order in which a line joins them.

    Attributes:
        name: Its name in a legend.
        points: The points.
        turn: Index of its colour in COLOURS, counted around.
        joined: Whether a line joins the points.
        dotted: Whether points are dots.
    """

    name: str
    points: tuple[Point, ...]
    turn: int
    joined: bool = True
    dotted: bool = True

    @property
    def mark(self) -> str:
        """Dots, a line, or both, as matplotlib writes them."""
        return "o" * (self.dotted or not self.joined) + "-" * self.joined

    @property
    def colour(self) -> str:
        """Colour of line, points and legend entry."""
        return COLOURS[self.turn % len(COLOURS)]


@dataclass(frozen=True)
class Chart:
    """Curves with labels.

    Attributes:
        title: Title.
        x_label: Label of the x axis.
        y_label: Label of the y axis.
        curves: Curves.
    """

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]


def write_png(path: Path, charts: Sequence[Chart], title: str) -> None:
    """Draw charts side by side, with a legend each, to a PNG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0] * 1.2 * len(charts), SIZE[1] * 1.2), layout="constrained")
        for axes, chart in zip(
            figure.subplots(1, len(charts), squeeze=False)[0], charts, strict=True
        ):
            _frame(axes, chart.title, chart.x_label, chart.y_label)
            for curve in chart.curves:
                _draw(axes, curve)
                mark = curve.mark
                axes.plot([], [], mark, color=curve.colour, markersize=4, label=curve.name)
            axes.legend(frameon=False)
        figure.suptitle(title)
        with atomic_write(path) as file:
            figure.savefig(file, format="png", dpi=120)


def line_chart(
    title: str, x_label: str, y_label: str, curves: Sequence[Curve], level: float | None = None
) -> Markup:
    """Draw curves with the intervals of their points as an `<svg>` element.

    Args:
        title: Title, also for screen readers.
        x_label: Label of the x axis.
        y_label: Label of the y axis.
        curves: Curves; an empty one takes no space.
        level: Height of a dashed line, such as real against real.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        _frame(axes, title, x_label, y_label)
        if level is not None:
            axes.axhline(level, color="#777777", linestyle="--", linewidth=1, clip_on=False)
        for curve in curves:
            _draw(axes, curve)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=METADATA)
    return _element(file.getvalue(), title)


def _frame(axes: "Axes", title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", clip_on=False)
    axes.set_axisbelow(True)


def _draw(axes: "Axes", curve: Curve) -> None:
    colour, points = curve.colour, curve.points
    # Clipping would refer to a path by url(); nothing lies outside of the axes anyway
    axes.plot(
        [p.x for p in points],
        [p.y for p in points],
        curve.mark,
        color=colour,
        linewidth=1.5,
        markersize=4,
        clip_on=False,
        gid="curve",
    )
    for x, y, x_range, y_range, label in points:
        if x_range:
            axes.plot(x_range, [y, y], color=colour, linewidth=1, clip_on=False, gid="interval")
        if y_range:
            axes.plot([x, x], y_range, color=colour, linewidth=1, clip_on=False, gid="interval")
        if label:
            axes.annotate(
                label, (x, y), (5, 5), textcoords="offset points", color=colour, fontsize=8
            )


def _element(svg: str, title: str) -> Markup:
    """The `<svg>` of a file, without fixed size and with groups by class instead of by id."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element)
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element)
    element = re.sub(r'<g id="([\w.]+?)_?\d*"', r'<g class="\1"', element)
    label = Markup('<svg role="img" aria-label="{}"').format(title)
    return Markup(element.replace("<svg", label, 1))
