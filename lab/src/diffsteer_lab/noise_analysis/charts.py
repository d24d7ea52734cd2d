"""Charts of an analysis, SVG by name."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from diffsteer.report.plots import Curve, Point, line_chart
from diffsteer_lab.noise_analysis.analysis import Analysis
from diffsteer_lab.noise_analysis.experiments import GUIDED, named
from diffsteer_lab.noise_analysis.results import Estimate
from diffsteer_lab.noise_analysis.spectrum import BINS, REACH, TENTHS
from diffsteer_lab.noise_analysis.trajectory import ALL, LAYOUT, TEACHER

Ratios = Mapping[str, Mapping[str, Estimate]]
"""Estimate distances, by name and by space."""
RING = "spatial frequency (0: mean, 1: checkerboard)"
LEFT = "distance left to fully refined"
TRAJECTORIES = {
    "trajectory": (ALL, "What is missing of the end", "distance of x0 to its own end"),
    "trajectory-layout": (LAYOUT, "What is missing of the layout", "the same, lowest tenth"),
    "trajectory-teacher": (TEACHER, "What is missing of guided", "distance of x0 to guided"),
}
"""Of what, title and name of the axis, by the name of the chart."""


def charts(found: Analysis) -> dict[str, str]:
    """All of them."""
    return {**_spectra(found), **_bands(found), **_strengths(found), **_trajectory(found)}


def _spectra(found: Analysis) -> dict[str, str]:
    every = found.spectra.values()
    middles = [_middles(each.edges) for each in every]
    size = [list(map(_point, x, e.difference())) for x, e in zip(middles, every, strict=True)]
    magnitude = [list(map(_point, x, e.magnitude())) for x, e in zip(middles, every, strict=True)]
    energy = [list(map(Point, _middles(TENTHS), each.energy())) for each in every]
    bins = [(i + 0.5) * REACH / BINS for i in range(BINS)]
    density = [list(map(Point, bins, each.histogram())) for each in every]
    return {
        name: line_chart(title, x, y, _curves(found.spectra, points))
        for name, title, x, y, points in (
            ("difference", "How much changes", RING, "mean |F(changed - noise)|", size),
            ("magnitude", "How much magnitudes change", RING, "mean change of |F|", magnitude),
            ("histogram", "Changes by element", "|changed - noise|", "density", density),
            ("energy", "Where the energy of the change lies", RING, "share in a tenth", energy),
        )
    }


def _bands(found: Analysis) -> dict[str, str]:
    ratios = found.record.ratios("bands")
    middle = dict(zip(tenths(), _middles(TENTHS), strict=True))
    parts = spaces(ratios, {name: x for name, x in middle.items() if name in ratios})
    whole = spaces(ratios, {name: float(name.split()[-1]) for name in growing(ratios)})
    return {
        "tenths": line_chart("One tenth is refined", "middle of the tenth", LEFT, parts, 1.0),
        "growing": line_chart("All below a radius is refined", "radius", LEFT, whole, 1.0),
    }


def _strengths(found: Analysis) -> dict[str, str]:
    made: dict[str, str] = {}
    for name, title, y, level in (
        ("teacher", "How near to the guided image", "distance to guided, unrefined 1", 1.0),
        ("change", "How far it leads", "distance from unrefined, 1 at strength 1", None),
    ):
        if swept := found.record.ratios(f"strength: {name}"):
            curves = spaces(swept, {factor: float(factor) for factor in swept})
            made[f"strength-{name}"] = line_chart(title, "strength", y, curves, level)
    scores = dict(found.record.numbers("strength: score"))
    guided = scores.pop(GUIDED, None)
    if scores:
        points = tuple(_point(float(factor), score) for factor, score in scores.items())
        level = None if guided is None else guided.value
        curve = Curve("score", points, 0)
        made["strength-score"] = line_chart("Score", "strength", "mean score", [curve], level)
    return made


def _trajectory(found: Analysis) -> dict[str, str]:
    made: dict[str, str] = {}
    for name, (noted, title, y) in TRAJECTORIES.items():
        if left := found.record.ratios(noted):
            made[name] = line_chart(title, "step", y, spaces(left, {n: float(n) for n in left}))
    return made


def spaces(ratios: Ratios, places: Mapping[str, float]) -> list[Curve]:
    """A curve a space, with a point at the place of each name."""
    found = list(dict.fromkeys(space for name in places for space in ratios[name]))
    points = [
        [_point(x, ratios[n][space]) for n, x in places.items() if space in ratios[n]]
        for space in found
    ]
    return _curves(found, points)


def tenths() -> list[str]:
    """Names of the tenths."""
    return [named(low, high) for low, high in pairwise(TENTHS)]


def growing(names: Iterable[str]) -> list[str]:
    """Of bands, those that begin at 0, the narrowest first."""
    return sorted((n for n in names if n.startswith("0 to")), key=lambda n: float(n.split()[-1]))


def _curves(names: Iterable[str], points: Sequence[Sequence[Point]]) -> list[Curve]:
    both = enumerate(zip(names, points, strict=True))
    return [Curve(name, tuple(each), turn) for turn, (name, each) in both]


def _point(x: float, found: Estimate) -> Point:
    return Point(x, found.value, None, found.interval)


def _middles(edges: Sequence[float]) -> list[float]:
    return [(a + b) / 2 for a, b in pairwise(edges)]
