"""Value of a metric with all that it depends on."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from diffsteer.metrics.bootstrap import Interval
from diffsteer.metrics.features import UNSTATED, Origin
from diffsteer.metrics.manifold import Manifold

RISING = ("score ", "IS", *Manifold._fields)
"""First letters of metrics that are better when they are larger."""


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

    @property
    def label(self) -> str:
        """Name with what else the number depends on."""
        return f"{self.name} ({self.detail})" if self.detail else self.name

    @property
    def higher_is_better(self) -> bool:
        """Whether larger numbers are better; distances want smaller ones."""
        return self.name.startswith(RISING)

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" +- {self.spread:.3g}"
        floor = "real against real: unknown" if self.floor is None else str(self.floor)
        sizes = f"N={self.n}, seeds {self.seeds}, reference N={self._reference}"
        within = "interval unknown" if self.interval is None else f"95 %: {self.interval}"
        return (
            f"{self.label} = {self.value:.5g}{spread}  "
            f"[{within}; {sizes}; {self.origin.text}; {floor}]"
        )

    @property
    def _reference(self) -> str:
        return UNSTATED if self.reference_n is None else str(self.reference_n)

    def json(self) -> dict[str, object]:
        """Everything in plain types."""
        return asdict(self)

    def row(self, width: int) -> str:
        """Line of `table` whose first column has a width."""
        spread = "" if self.spread is None else f"{self.spread:.3g}"
        within = "" if self.interval is None else str(self.interval)
        row = f"{self.label:{width}} {self.value:11.5g} {within:>19} {spread:>9}"
        row += f" {self.n:7} {self._reference:>7}"
        if self.floor is not None:
            row += f" {self.floor.real:10.5g} {self.floor.generated:10.5g} {self.floor.n:7}"
        return row


def table(values: Sequence[MetricValue]) -> str:
    """Lay values of one origin out for a terminal, with all that they depend on.

    The last columns are the floor: the metric of some real images against the rest of them, and of
    as many generated ones in their place.
    """
    width = max(len(value.label) for value in values)
    head = f"{'':{width}} {'value':>11} {'95 %':>19} {'+-':>9} {'N':>7} {'ref. N':>7}"
    head += f" {'real/real':>10} {'gen./real':>10} {'at N':>7}"
    about = f"{values[0].origin.text}, seeds {values[0].seeds}"
    return "\n".join([about, head, *(value.row(width) for value in values)])
