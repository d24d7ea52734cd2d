"""Line charts as SVG text, for pages that load nothing."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 430, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 34, 46
COLOURS = ("#0b62a3", "#c4500a", "#2b7d3b", "#8b3fa0", "#9a7400", "#555555", "#b3123f", "#00838a")
"""Of curves in turn; each has a contrast of 4 to 1 or more on white."""


class Point(NamedTuple):
    """A measured point, with intervals where they are known."""

    x: float
    y: float
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    label: str = ""


@dataclass(frozen=True)
class Curve:
    """Points in the order in which a line joins them, in a colour of COLOURS, taken in turn."""

    name: str
    points: tuple[Point, ...]
    turn: int

    @property
    def colour(self) -> str:
        """Of the line, the points and the key."""
        return COLOURS[self.turn % len(COLOURS)]


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` on pixels from `start` to `end`, with a tick at round values."""

    label: str
    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Three to seven round values within."""
        raw = (self.high - self.low) / 5
        unit = 10 ** math.floor(math.log10(raw))
        step = next(k * unit for k in (1, 2, 5, 10) if raw <= k * unit)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def axis(label: str, values: Iterable[float], start: float, end: float) -> Axis:
    """Axis on which all values have a place, with some air at the ends."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    air = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return Axis(label, low - air, high + air, start, end)


def chart(
    title: str, x_label: str, y_label: str, curves: Sequence[Curve], level: float | None = None
) -> str:
    """Draw curves; `level` is a dashed line, such as the floor of a figure."""
    points = [point for curve in curves for point in curve.points]
    levels = [] if level is None else [level]
    x = axis(x_label, _reached(points, "x"), LEFT, WIDTH - RIGHT)
    y = axis(y_label, [*_reached(points, "y"), *levels], HEIGHT - BOTTOM, TOP)
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(title)}" font-family="sans-serif" font-size="11">',
            f'<text x="{LEFT}" y="16" font-size="13" font-weight="bold">{escape(title)}</text>',
            *_frame(x, y),
            *(_line(LEFT, y.at(v), WIDTH - RIGHT, y.at(v), "#777", ' stroke-dasharray="5 4"')
              for v in levels),
            *(_curve(curve, x, y) for curve in curves),
            "</svg>",
        )
    )  # fmt: skip


def legend(curves: Sequence[Curve]) -> str:
    """Names of curves in their colours, as HTML."""
    return " ".join(
        f'<span class="key"><i style="background:{curve.colour}"></i>{escape(curve.name)}</span>'
        for curve in curves
    )


def _reached(points: Iterable[Point], name: str) -> list[float]:
    return [
        value
        for point in points
        for value in (getattr(point, name), *(getattr(point, f"{name}_range") or ()))
    ]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}"{more}/>'


def _frame(x: Axis, y: Axis) -> list[str]:
    parts = []
    for tick in x.ticks:
        at = x.at(tick)
        parts.append(_line(at, TOP, at, HEIGHT - BOTTOM, "#e4e4e4"))
        text = f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{tick:g}</text>'
        parts.append(text)
    for tick in y.ticks:
        at = y.at(tick)
        parts.append(_line(LEFT, at, WIDTH - RIGHT, at, "#e4e4e4"))
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(_line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "#333"))
    parts.append(_line(LEFT, TOP, LEFT, HEIGHT - BOTTOM, "#333"))
    middle, across = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x.label)}</text>'
        f'<text x="14" y="{across}" text-anchor="middle" transform="rotate(-90 14 {across})">'
        f"{escape(y.label)}</text>"
    )
    return parts


def _curve(curve: Curve, x: Axis, y: Axis) -> str:
    colour = curve.colour
    places = " ".join(f"{x.at(p.x):.1f},{y.at(p.y):.1f}" for p in curve.points)
    parts = [f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.8"/>']
    for p in curve.points:
        px, py = x.at(p.x), y.at(p.y)
        if p.y_range:
            parts.append(_line(px, y.at(p.y_range[0]), px, y.at(p.y_range[1]), colour))
        if p.x_range:
            parts.append(_line(x.at(p.x_range[0]), py, x.at(p.x_range[1]), py, colour))
        name = f"<title>{escape(curve.name)} {escape(p.label)}: {p.x:.5g}, {p.y:.5g}</title>"
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.4" fill="{colour}">{name}</circle>')
        if p.label:
            parts.append(
                f'<text x="{px + 6:.1f}" y="{py - 6:.1f}" fill="{colour}">{escape(p.label)}</text>'
            )
    return "".join(parts)
