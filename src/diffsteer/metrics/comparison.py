"""Recipes compared on the same seeds: metrics, differences, costs.

All recipes are resampled with the same weights, so that a difference is of the same seeds.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.io.seeds import format_seeds
from diffsteer.metrics.bootstrap import Estimate, interval, weights
from diffsteer.metrics.evaluate import compare, resampled
from diffsteer.metrics.image_scores import means, resampled_means
from diffsteer.metrics.sampled import Sampled
from diffsteer.metrics.statistics import Statistics
from diffsteer.metrics.value import MetricValue


class Quartiles(NamedTuple):
    """Median, and the quarters below and above it."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Compared:
    """One recipe.

    Attributes:
        name: What to call it.
        figures: Its metrics.
        differences: From the first recipe, by the name of the figure; empty for the first.
        costs: Of one image, by name.
    """

    name: str
    figures: tuple[MetricValue, ...]
    differences: dict[str, Estimate]
    costs: dict[str, Quartiles]

    def json(self) -> dict[str, object]:
        """Everything in plain types."""
        return asdict(self)


def compared(
    runs: Mapping[str, Sampled],
    reference: Statistics,
    resamples: int = 200,
    names: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Compared, ...]:
    """Measure recipes against a reference and against the first of them.

    Args:
        runs: Samples of each recipe by its name, of the same seeds, all features kept.
        reference: What they are compared with.
        resamples: Of the intervals, >= 20.
        names: Of the scores with the digests of their weights, as of `image_scores.named`.
    """
    first, *_ = runs
    seeds = runs[first].seeds
    for name, run in runs.items():
        if run.seeds != seeds:
            raise InputError(f"{name} has other seeds than {first}: sample the same")
        if len(run.statistics.features) != len(seeds):
            raise InputError(f"{name} keeps features of a part: pairing needs those of all seeds")
    w = weights(len(seeds), resamples)
    spreads = {
        name: {**resampled(run.statistics, reference, w), **resampled_means(run.scores, w)}
        for name, run in runs.items()
    }
    recipes: list[Compared] = []
    for name, run in runs.items():
        stated = format_seeds(seeds)
        figures = compare(run.statistics, reference, stated, spread=spreads[name])
        figures += means(run.scores, names, stated, spreads[name])
        base = {figure.name: figure.value for figure in recipes[0].figures} if recipes else {}
        differences = {}
        for figure in figures:
            if figure.name in base and figure.name in spreads[name]:
                shift = spreads[name][figure.name] - spreads[first][figure.name]
                value = figure.value - base[figure.name]
                differences[figure.name] = Estimate(value, interval(value, shift))
        costs = {cost: _quartiles(each) for cost, each in run.costs.items()}
        recipes.append(Compared(name, figures, differences, costs))
    return tuple(recipes)


def _quartiles(costs: Tensor) -> Quartiles:
    low, median, high = costs.quantile(costs.new_tensor([0.25, 0.5, 0.75])).tolist()
    return Quartiles(median, low, high)
