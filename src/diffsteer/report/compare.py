"""Comparison of recipes as one HTML page that loads nothing: tables, curves, images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffsteer.metrics.comparison import Compared
from diffsteer.metrics.value import MetricValue
from diffsteer.report.page import render
from diffsteer.report.plots import Curve, Point, line_chart


@dataclass(frozen=True)
class Result:
    """A compared recipe with what the page shows besides its metrics.

    Attributes:
        compared: Its metrics, differences and costs.
        recipe: The recipe in plain values.
        curve: Name shared by recipes that differ in a guidance weight alone.
        weight: That weight; None where there is no sweep.
        images: Files by seed.
    """

    compared: Compared
    recipe: Mapping[str, object]
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
    settings = [{name: _plain(value) for name, value in r.recipe.items()} for r in results]
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
        seeds={seed: _prompt(results[0].recipe, seed) for seed in results[0].images},
        shared={k: v for k, v in settings[0].items() if k in shared and v},
        differing=[name for name in settings[0] if name not in shared],
        recipes=list(zip(results, settings, strict=True)),
    )


def verdict(compared: Compared, figure: MetricValue) -> str:
    """CSS class of a metric: better or worse than the first recipe, or undecided."""
    if figure.name not in compared.differences:
        return ""
    value, (low, high) = compared.differences[figure.name]
    if low <= 0 <= high:
        return ""
    return "better" if (value > 0) == figure.higher_is_better else "worse"


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


def _prompt(recipe: Mapping[str, object], seed: int) -> str:
    prompts = recipe["prompts"] or [recipe["prompt"]]
    assert isinstance(prompts, Sequence)
    return str(prompts[seed % len(prompts)])


def _plain(value: object) -> str:
    """Text of a recipe's field for a cell; hashes are cut, lists of prompts are counted."""
    if isinstance(value, list | tuple):
        return f"{len(value)} prompts" if value else ""
    text = str(value) if value not in (0, False) else ""
    return text[:16] if len(text) == 64 and " " not in text else text
