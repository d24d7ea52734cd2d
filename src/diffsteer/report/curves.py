"""Curves of a comparison: figures against guidance weight, distance against recall."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffsteer.metrics.comparison import Compared
from diffsteer.metrics.value import MetricValue
from diffsteer.report.chart import Curve, Point, chart, legend


@dataclass(frozen=True)
class Shown:
    """A compared recipe with what the page needs besides its figures.

    Attributes:
        compared: Figures.
        said: The recipe in plain values.
        curve: What its points are joined with: recipes that differ in a guidance weight alone.
        weight: That weight; None where there is no sweep.
        pictures: Files by seed.
    """

    compared: Compared
    said: Mapping[str, object]
    curve: str
    weight: float | None
    pictures: Mapping[int, Path]


def curves(shown: Sequence[Shown]) -> str:
    """HTML with the curves that the recipes allow; empty where they allow none."""
    groups: dict[str, list[Shown]] = {}
    for one in shown:
        groups.setdefault(one.curve, []).append(one)
    for every in groups.values():
        every.sort(key=_weight)
    return _sweeps(shown[0].compared.figures, groups) + _trade(shown[0].compared.figures, groups)


def _sweeps(figures: Sequence[MetricValue], groups: Mapping[str, list[Shown]]) -> str:
    def lines(name: str) -> list[Curve]:
        return [
            Curve(curve, tuple(_point(one, name) for one in every), turn)
            for turn, (curve, every) in enumerate(groups.items())
            if len(every) > 1
        ]

    if not lines(figures[0].name):
        return ""
    drawn = []
    for figure in figures:
        floor = figure.floor.real if figure.floor and figure.floor.n == figure.n else None
        name = figure.name
        drawn.append(chart(name, "guidance weight", name, lines(name), floor))
    return (
        f"<h2>Against guidance weight</h2><p>{legend(lines(figures[0].name))}</p>"
        "<p>Dashed: real against real, where it has the same N. It is measured against a part of "
        "the reference, so that a distance lies a little higher than against all of it.</p>"
        f'<div class="charts">{"".join(drawn)}</div>'
    )


def _trade(figures: Sequence[MetricValue], groups: Mapping[str, list[Shown]]) -> str:
    first = figures[0].name
    if not any(figure.name == "recall" for figure in figures):
        return ""
    lines = [
        Curve(curve, tuple(_pair(one, first) for one in every), turn)
        for turn, (curve, every) in enumerate(groups.items())
    ]
    drawn = chart(f"{first} against recall", "recall", first, lines)
    return (
        f'<h2>Distance against recall</h2><p>{legend(lines)}</p><div class="charts">{drawn}</div>'
    )


def _weight(one: Shown) -> float:
    return 0.0 if one.weight is None else one.weight


def _figure(one: Shown, name: str) -> MetricValue:
    return next(figure for figure in one.compared.figures if figure.name == name)


def _point(one: Shown, name: str) -> Point:
    figure = _figure(one, name)
    return Point(_weight(one), figure.value, None, figure.interval)


def _pair(one: Shown, name: str) -> Point:
    x, y = _figure(one, "recall"), _figure(one, name)
    text = "" if one.weight is None else f"{one.weight:g}"
    return Point(x.value, y.value, x.interval, y.interval, text)
