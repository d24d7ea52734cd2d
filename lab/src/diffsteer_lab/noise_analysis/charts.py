"""Charts of an analysis, SVG by name."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from diffsteer.metrics.bootstrap import Estimate
from diffsteer.report.plots import Curve, Point, line_chart
from diffsteer_lab.noise_analysis.analysis import Analysis
from diffsteer_lab.noise_analysis.experiments import GUIDED, band_name
from diffsteer_lab.noise_analysis.spectrum import BINS, REACH, TENTHS
from diffsteer_lab.noise_analysis.trajectory import ALL, LAYOUT, TEACHER

Ratios = Mapping[str, Mapping[str, Estimate]]
"""Distances by name and by space."""
RING = "spatial frequency (0: mean, 1: checkerboard)"
LEFT = "distance left to fully refined"
SWEEPS = (
    ("strength: teacher", "How near to the guided image", "distance to guided, unrefined 1", 1.0),
    ("strength: change", "How far it leads", "distance from unrefined, 1 at strength 1", None),
    (ALL, "What is missing of the end", "distance of x0 to its own end", None),
    (LAYOUT, "What is missing of the layout", "the same, lowest tenth", None),
    (TEACHER, "What is missing of guided", "distance of x0 to guided", None),
)
"""Experiment, title, y axis and dashed level of charts against strength or step."""


def charts(analysis: Analysis) -> dict[str, str]:
    """All of them."""
    swept = {}
    for experiment, title, y, level in SWEEPS:
        if ratios := analysis.results.ratios(experiment):
            x = experiment.split(":")[0].replace("trajectory", "step")
            curves = by_space(ratios, {name: float(name) for name in ratios})
            swept[experiment.replace(": ", "-")] = line_chart(title, x, y, curves, level)
    return {**_spectra(analysis), **_bands(analysis), **swept, **_score(analysis)}


def _spectra(analysis: Analysis) -> dict[str, str]:
    spectra = analysis.spectra.values()
    rings = [_middles(each.edges) for each in spectra]
    size = [list(map(_point, x, e.difference())) for x, e in zip(rings, spectra, strict=True)]
    magnitude = [list(map(_point, x, e.magnitude())) for x, e in zip(rings, spectra, strict=True)]
    energy = [list(map(Point, _middles(TENTHS), each.energy())) for each in spectra]
    bins = [(i + 0.5) * REACH / BINS for i in range(BINS)]
    density = [list(map(Point, bins, each.histogram())) for each in spectra]
    return {
        name: line_chart(title, x, y, _curves(analysis.spectra, points))
        for name, title, x, y, points in (
            ("difference", "How much changes", RING, "mean |F(changed - noise)|", size),
            ("magnitude", "How much magnitudes change", RING, "mean change of |F|", magnitude),
            ("histogram", "Changes by element", "|changed - noise|", "density", density),
            ("energy", "Where the energy of the change lies", RING, "share in a tenth", energy),
        )
    }


def _bands(analysis: Analysis) -> dict[str, str]:
    ratios = analysis.results.ratios("bands")
    middles = dict(zip(tenths(), _middles(TENTHS), strict=True))
    parts = by_space(ratios, {name: x for name, x in middles.items() if name in ratios})
    whole = by_space(ratios, {name: float(name.split()[-1]) for name in growing(ratios)})
    return {
        "tenths": line_chart("One tenth is refined", "middle of the tenth", LEFT, parts, 1.0),
        "growing": line_chart("All below a radius is refined", "radius", LEFT, whole, 1.0),
    }


def _score(analysis: Analysis) -> dict[str, str]:
    scores = analysis.results.numbers("strength: score")
    guided = scores.pop(GUIDED, None)
    if not scores:
        return {}
    points = tuple(_point(float(factor), score) for factor, score in scores.items())
    level = None if guided is None else guided.value
    curve = Curve("score", points, 0)
    return {"strength-score": line_chart("Score", "strength", "mean score", [curve], level)}


def spaces_of(ratios: Ratios) -> list[str]:
    """Spaces in which distances are taken."""
    return list(dict.fromkeys(space for each in ratios.values() for space in each))


def legend(names: Iterable[str]) -> list[Curve]:
    """Names in the colours of their curves."""
    return [Curve(name, (), turn) for turn, name in enumerate(names)]


def by_space(ratios: Ratios, places: Mapping[str, float]) -> list[Curve]:
    """A curve for each space, with a point at the place of each name."""
    spaces = spaces_of({name: ratios[name] for name in places})
    points = [
        [_point(x, ratios[n][space]) for n, x in places.items() if space in ratios[n]]
        for space in spaces
    ]
    return _curves(spaces, points)


def tenths() -> list[str]:
    """Names of the tenths."""
    return [band_name(low, high) for low, high in pairwise(TENTHS)]


def growing(names: Iterable[str]) -> list[str]:
    """Names of the bands that begin at 0, the narrowest first."""
    return sorted((n for n in names if n.startswith("0 to")), key=lambda n: float(n.split()[-1]))


def _curves(names: Iterable[str], points: Sequence[Sequence[Point]]) -> list[Curve]:
    both = enumerate(zip(names, points, strict=True))
    return [Curve(name, tuple(each), turn) for turn, (name, each) in both]


def _point(x: float, estimate: Estimate) -> Point:
    return Point(x, estimate.value, None, estimate.interval)


def _middles(edges: Sequence[float]) -> list[float]:
    return [(a + b) / 2 for a, b in pairwise(edges)]
