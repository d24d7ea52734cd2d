"""Quality and cost of a recipe on some seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from diffsteer.core.errors import InputError
from diffsteer.generate.recipe import Recipe
from diffsteer.metrics.best_of_n import Score
from diffsteer.metrics.evaluate import LOGITS, compare, title
from diffsteer.metrics.features import Extractor
from diffsteer.metrics.frechet import frechet
from diffsteer.metrics.image_scores import PREFIX, named, scores_of
from diffsteer.metrics.manifold import Manifold
from diffsteer.metrics.sampled import Sampled, measure_recipe
from diffsteer.metrics.statistics import Statistics
from diffsteer.metrics.value import RISING, MetricValue

DISTANCE = "FD"
METRICS = (DISTANCE, "KID", "CMMD", *Manifold._fields)


def scores_for(metric: str, device: str = "") -> dict[str, Score]:
    """The score that a metric names, by its text; none where it is one of METRICS."""
    if metric in METRICS:
        return {}
    if not set("(:") & set(metric):
        raise InputError(
            f'metric must be one of {", ".join(METRICS)}, or a score such as CLIPScore("WEIGHTS") '
            f"or MODULE:FUNCTION, got {metric!r}"
        )
    return scores_of((metric,), device)


class Quality(NamedTuple):
    """Measured quality and cost.

    Attributes:
        value: Of the metric.
        nfe: Network evaluations of an image, those of a guide included.
    """

    value: float
    nfe: float


@dataclass(frozen=True, eq=False)
class Objective:
    """A metric of `diffsteer evaluate` against a reference, or the mean of a score of images.

    Attributes:
        metric: One of METRICS, or the text of a score.
        reference: Of real images.
        extractor: Of the features, as of the reference.
        work: Folder for what was measured, which later runs find again.
        batch: Images sampled at a time, >= 1.
        device: Where networks run; empty for a GPU if there is one.
        scores: The score, by its text; empty for a metric.
    """

    metric: str
    reference: Statistics
    extractor: Extractor
    work: Path
    batch: int = 8
    device: str = ""
    scores: Mapping[str, Score] = field(default_factory=dict)

    @property
    def names(self) -> Mapping[str, str]:
        """Names of the scores with the digests of their weights."""
        return named(self.scores)

    @property
    def label(self) -> str:
        """Name of what is measured among metrics."""
        if self.metric in (DISTANCE, "KID"):
            return title(self.metric, self.extractor.origin)
        return PREFIX + self.metric if self.scores else self.metric

    def figure(self, figures: Sequence[MetricValue]) -> MetricValue:
        """What is measured, among all metrics of a recipe.

        Raises:
            InputError: the features do not allow it.
        """
        figure = next((each for each in figures if each.name == self.label), None)
        if figure is None:
            raise InputError(
                f"{self.metric} cannot be had of these features and {figures[0].n} images: there "
                f"are {', '.join(each.name for each in figures)}"
            )
        return figure

    @property
    def key(self) -> Mapping[str, Any]:
        """All that decides a value, but recipe and seeds, as JSON holds it."""
        mean = self.reference.gaussian.mean.double()
        return {
            "metric": self.names.get(self.metric, self.metric),
            "features": self.extractor.origin.text,
            "reference": [self.reference.n, float(mean.sum()), float(mean.square().sum())],
        }

    @property
    def rising(self) -> bool:
        """Whether larger values are better."""
        return bool(self.scores) or self.metric in RISING

    def better(self, a: float, b: float) -> bool:
        """Whether a value is better than another."""
        return a > b if self.rising else a < b

    def __call__(self, recipe: Recipe, seeds: Sequence[int]) -> Quality:
        """Measure a recipe; what was measured before is not sampled again."""
        run = self.sampled(recipe, seeds)
        nfe = sum(float(each.mean()) for name, each in run.costs.items() if name != "seconds")
        if self.scores:
            return Quality(run.scores[self.metric].mean().item(), nfe)
        if self.metric == DISTANCE and self.extractor.origin.layer not in LOGITS:
            return Quality(frechet(run.statistics.gaussian, self.reference.gaussian), nfe)
        return Quality(self.figure(compare(run.statistics, self.reference)).value, nfe)

    def sampled(
        self, recipe: Recipe, seeds: Sequence[int], show: Path | None = None, shown: int = 0
    ) -> Sampled:
        """Samples with their features, of all seeds, and images of the first in a folder."""
        keep, batch, device = len(seeds), self.batch, self.device
        return measure_recipe(
            recipe, seeds, self.extractor, self.work, batch, keep, device, show, shown, self.scores
        )
