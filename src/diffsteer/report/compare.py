"""Comparison of recipes as one HTML page that loads nothing: tables, curves, images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffsteer.generate.recipe import Recipe
from diffsteer.metrics.bootstrap import Estimate
from diffsteer.metrics.comparison import Compared
from diffsteer.metrics.value import MetricValue
from diffsteer.report.page import render
from diffsteer.report.plots import Curve, Point, line_chart


@dataclass(frozen=True)
class Result:
    """A compared recipe with what the page shows besides its metrics.

    Attributes:
        compared: Its metrics, differences and costs.
        recipe: The recipe.
        curve: Name shared by recipes that differ in a guidance weight alone.
        weight: That weight; None where there is no sweep.
        images: Files by seed.
    """

    compared: Compared
    recipe: Recipe
    curve: str
    weight: float | None
    images: Mapping[int, Path]

    def metric(self, name: str) -> MetricValue:
        """Metric of a name."""
        return next(figure for figure in self.compared.figures if figure.name == name)


def page(
    results: Sequence[Result],
    reference: str,
    notes: Sequence[str],
    cautions: Sequence[str],
    resamples: int,
) -> str:
    """HTML of a comparison.

    Args:
        results: Recipes; the first is what the others are compared with.
        reference: Name of the reference.
        notes: Metrics that were not measured, and why.
        cautions: Metrics that mean little with so few images, and why.
        resamples: Number of resamples of the intervals.
    """
    names = [result.compared.name for result in results]
    groups = _groups(results)
    first = results[0].compared.figures
    swept = _curves({name: group for name, group in groups.items() if len(group) > 1}, groups)
    traded = _curves(groups, groups)
    settings = _settings([result.recipe for result in results])
    shared = {name for name in settings[0] if len({each[name] for each in settings}) == 1}
    return render(
        "compare.html",
        title=" / ".join(names) if len(names) < 5 else f"{len(names)} recipes",
        results=results,
        reference=reference,
        resamples=resamples,
        notes=notes,
        cautions=cautions,
        verdict=verdict,
        costs=list(dict.fromkeys(name for r in results for name in r.compared.costs)),
        swept=swept,
        sweeps=[_sweep(figure, groups, swept) for figure in first] if swept else [],
        traded=traded,
        trade_off=_trade_off(first, groups, traded),
        seeds={seed: results[0].recipe.for_seed(seed).prompt for seed in results[0].images},
        shared={k: v for k, v in settings[0].items() if k in shared and v},
        differing=[name for name in settings[0] if name not in shared],
        recipes=list(zip(results, settings, strict=True)),
    )


def verdict(figure: MetricValue, difference: Estimate | None) -> str:
    """CSS class of a metric by its difference from that of the first recipe; empty: undecided."""
    if difference is None or difference[1].low <= 0 <= difference[1].high:
        return ""
    return "better" if (difference[0] > 0) == figure.higher_is_better else "worse"


def _groups(results: Sequence[Result]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.curve, []).append(result)
    return {name: sorted(group, key=_weight) for name, group in groups.items()}


def _weight(result: Result) -> float:
    return 0.0 if result.weight is None else result.weight


def _curves(
    drawn: Mapping[str, Sequence[Result]], groups: Mapping[str, Sequence[Result]]
) -> list[Curve]:
    """Names and colours of groups, the same in all charts; points come with a chart."""
    return [Curve(name, (), turn) for turn, name in enumerate(groups) if name in drawn]


def _sweep(
    figure: MetricValue, groups: Mapping[str, Sequence[Result]], curves: Sequence[Curve]
) -> str:
    """Chart of a metric against guidance weight."""

    def point(result: Result) -> Point:
        metric = result.metric(figure.name)
        return Point(_weight(result), metric.value, None, metric.interval)

    drawn = [Curve(c.name, tuple(map(point, groups[c.name])), c.turn) for c in curves]
    floor = figure.floor.real if figure.floor and figure.floor.n == figure.n else None
    return line_chart(figure.name, "guidance weight", figure.name, drawn, floor)


def _trade_off(
    figures: Sequence[MetricValue],
    groups: Mapping[str, Sequence[Result]],
    curves: Sequence[Curve],
) -> str:
    """Chart of the first metric against recall; empty without recall."""
    name = figures[0].name

    def point(result: Result) -> Point:
        x, y = result.metric("recall"), result.metric(name)
        label = "" if result.weight is None else f"{result.weight:g}"
        return Point(x.value, y.value, x.interval, y.interval, label)

    if not any(figure.name == "recall" for figure in figures):
        return ""
    drawn = [Curve(c.name, tuple(map(point, groups[c.name])), c.turn) for c in curves]
    return line_chart(f"{name} against recall", "recall", name, drawn)


def _settings(recipes: Sequence[Recipe]) -> list[dict[str, str]]:
    """Texts of the fields and options that any of the recipes says, the same names for all."""
    tables = [recipe.to_dict() for recipe in recipes]
    options = [recipe.options.to_dict() if recipe.options else {} for recipe in recipes]
    fields = dict.fromkeys(name for table in tables for name in table)
    names = dict.fromkeys(name for table in options for name in table)
    return [
        {name: _plain(name, getattr(recipe, name)) for name in fields}
        | {name: str(table.get(name, "")) for name in names}
        for recipe, table in zip(recipes, options, strict=True)
    ]


def _plain(name: str, value: object) -> str:
    """Text of a recipe's field for a cell; prompts, which all recipes share, are counted."""
    if isinstance(value, list | tuple):
        return f"{len(value)} prompts" if value and name == "prompts" else ", ".join(value)
    return str(value) if value not in (0, False) else ""
