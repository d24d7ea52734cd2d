"""Recipes against one another on the same seeds: figures, differences, costs.

All recipes are resampled with the same weights, so that a difference is of the same seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.io.seeds import format_seeds
from diffsteer.metrics.bootstrap import Estimate, interval, weights
from diffsteer.metrics.evaluate import compare, resampled
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
    runs: Mapping[str, Sampled], reference: Statistics, resamples: int = 200
) -> tuple[Compared, ...]:
    """Measure recipes against a reference and against the first of them.

    Args:
        runs: Samples of each recipe by its name, of the same seeds, all features kept.
        reference: What they are compared with.
        resamples: Of the intervals, >= 20.

    Raises:
        ValueError: seeds differ, features are not kept, or are of another origin.
    """
    names = list(runs)
    seeds = runs[names[0]].seeds
    for name, run in runs.items():
        if run.seeds != seeds:
            raise InputError(f"{name} has other seeds than {names[0]}: sample the same")
        if len(run.statistics.features) != len(seeds):
            raise InputError(f"{name} keeps features of a part: pairing needs those of all seeds")
    w = weights(len(seeds), resamples)
    spreads = {name: resampled(run.statistics, reference, w) for name, run in runs.items()}
    found: list[Compared] = []
    for name, run in runs.items():
        figures = compare(run.statistics, reference, format_seeds(seeds), spread=spreads[name])
        first = found[0].figures if found else ()
        differences = _differences(figures, first, spreads[name], spreads[names[0]])
        costs = {cost: _quartiles(each) for cost, each in run.costs.items()}
        found.append(Compared(name, figures, differences, costs))
    return tuple(found)


def _differences(
    figures: Sequence[MetricValue],
    first: Sequence[MetricValue],
    spread: Mapping[str, Tensor],
    spread_first: Mapping[str, Tensor],
) -> dict[str, Estimate]:
    was = {figure.name: figure.value for figure in first}
    found = {}
    for figure in figures:
        name = figure.name
        if name in was and name in spread:
            value = figure.value - was[name]
            found[name] = Estimate(value, interval(value, spread[name] - spread_first[name]))
    return found


def _quartiles(costs: Tensor) -> Quartiles:
    quarters = torch.tensor([0.25, 0.5, 0.75], dtype=costs.dtype)
    low, median, high = costs.quantile(quarters).tolist()
    return Quartiles(median, low, high)
