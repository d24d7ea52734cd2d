"""A figure with all that it depends on, and how it is printed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from diffsteer.metrics.bootstrap import Interval
from diffsteer.metrics.features import UNSTATED, Origin

RISING = ("IS", "precision", "recall", "density", "coverage")
"""Figures that are better when they are larger start with one of these."""


@dataclass(frozen=True)
class RealBaseline:
    """A metric where real images, then as many generated ones, meet the rest of the reference.

    Attributes:
        real: Of the real images; no generated set can be expected to do better.
        generated: Of the generated ones in their place.
        n: Images of each.
        reference_n: Images in the rest.
    """

    real: float
    generated: float
    n: int
    reference_n: int

    def __str__(self) -> str:
        return (
            f"real against real: {self.real:.5g}, generated in their place: {self.generated:.5g}, "
            f"at N={self.n}, reference N={self.reference_n}"
        )


@dataclass(frozen=True)
class MetricValue:
    """One measured number with all that it depends on.

    Attributes:
        name: Of the metric, with the extractor in it unless it is the published one.
        detail: What else the number depends on; empty where there is nothing.
        value: The number.
        spread: Standard deviation over subsets or splits; None where the metric has none.
        n: Generated images in it.
        reference_n: Reference images in it; None where the file does not say or none are used.
        origin: Of the features.
        seeds: Of the generated images, "0-999".
        interval: Where the number would lie with other seeds, at 95 %; None where that is unknown.
        floor: The same metric, real against real; None where two real parts are not known.
    """

    name: str
    detail: str
    value: float
    spread: float | None
    n: int
    reference_n: int | None
    origin: Origin
    seeds: str = UNSTATED
    interval: Interval | None = None
    floor: RealBaseline | None = None

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" +- {self.spread:.3g}"
        against = "unstated" if self.reference_n is None else self.reference_n
        floor = "real against real: unknown" if self.floor is None else str(self.floor)
        at = self.origin
        made = f"{at.extractor}, layer {at.layer}, resize {at.resize}, weights {at.weights[:8]}"
        sizes = f"N={self.n}, seeds {self.seeds}, reference N={against}"
        within = "interval unknown" if self.interval is None else f"95 %: {self.interval}"
        detail = f" ({self.detail})" if self.detail else ""
        return (
            f"{self.name}{detail} = {self.value:.5g}{spread}  [{within}; {sizes}; {made}; {floor}]"
        )

    @property
    def higher_is_better(self) -> bool:
        """Whether larger numbers are better; distances want smaller ones."""
        return self.name.startswith(RISING)

    def json(self) -> dict[str, object]:
        """Everything in plain types."""
        return asdict(self)


def table(figures: Sequence[MetricValue]) -> str:
    """Lay figures of one origin out for a terminal, with all that they depend on.

    The last two columns are the floor: the metric of some real images against the rest of them,
    and of as many generated ones in their place.
    """
    at = figures[0].origin
    wide = max(len(label(figure)) for figure in figures)
    head = f"{'':{wide}} {'value':>11} {'95 %':>19} {'+-':>9} {'N':>7} {'ref. N':>7}"
    lines = [
        f"{at.extractor}, layer {at.layer}, resize {at.resize}, weights {at.weights[:8]}, "
        f"seeds {figures[0].seeds}",
        f"{head} {'real/real':>10} {'gen./real':>10} {'at N':>7}",
    ]
    for figure in figures:
        spread = "" if figure.spread is None else f"{figure.spread:.3g}"
        against = "unstated" if figure.reference_n is None else str(figure.reference_n)
        within = "" if figure.interval is None else str(figure.interval)
        line = f"{label(figure):{wide}} {figure.value:11.5g} {within:>19} {spread:>9}"
        line += f" {figure.n:7} {against:>7}"
        floor = figure.floor
        if floor is not None:
            line += f" {floor.real:10.5g} {floor.generated:10.5g} {floor.n:7}"
        lines.append(line)
    return "\n".join(lines)


def label(figure: MetricValue) -> str:
    """Name with what else the number depends on."""
    return f"{figure.name} ({figure.detail})" if figure.detail else figure.name
