"""Figures that say what they were measured on.

Every figure carries the number of pictures on both sides, extractor, layer, resize and weights.
Where the reference holds features, it also carries a floor: what the metric gives for one real part
against the rest, and for as many generated pictures in place of that part. Frechet distances and
neighbour shares move with N, so only these two compare like with like.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from diffsteer.eval.features import Origin
from diffsteer.eval.frechet import Gaussian, frechet
from diffsteer.eval.manifold import manifold
from diffsteer.eval.metrics import (
    cmmd,
    frechet_infinity,
    inception_score,
    kid,
    scaled,
)
from diffsteer.eval.moments import Moments
from diffsteer.eval.statistics import Statistics

FID_WEIGHTS = "6726825d"
"""First digits of the sha256 of the published FID's Inception, as its file name has them."""
NEIGHBOUR = 3
LOGITS = ("logits", "logits_unbiased")
LEAST = 8
"""Fewest features on a side for kernel and neighbour metrics; halves must have as many."""


@dataclass(frozen=True)
class Floor:
    """A metric where real pictures, then as many generated ones, meet the rest of the reference.

    Attributes:
        real: Of the real pictures; no generated set can be expected to do better.
        generated: Of the generated ones in their place.
        n: Pictures of each.
        reference_n: Pictures in the rest.
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
class Figure:
    """One measured number with all that it depends on.

    Attributes:
        name: Of the metric, with the extractor in it unless it is the published one.
        detail: What else the number depends on; empty where there is nothing.
        value: The number.
        spread: Standard deviation over subsets or splits; None where the metric has none.
        n: Generated pictures in it.
        reference_n: Reference pictures in it; None where the file does not say or none are used.
        origin: Of the features.
        floor: The same metric, real against real; None where two real parts are not known.
    """

    name: str
    detail: str
    value: float
    spread: float | None
    n: int
    reference_n: int | None
    origin: Origin
    floor: Floor | None = None

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" +- {self.spread:.3g}"
        against = "unstated" if self.reference_n is None else self.reference_n
        floor = "real against real: unknown" if self.floor is None else str(self.floor)
        at = self.origin
        made = f"{at.extractor}, layer {at.layer}, resize {at.resize}, weights {at.weights[:8]}"
        sizes = f"N={self.n}, reference N={against}"
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.name}{detail} = {self.value:.5g}{spread}  [{sizes}; {made}; {floor}]"

    def json(self) -> dict[str, object]:
        """Everything in plain types."""
        return asdict(self)


def table(figures: Sequence[Figure]) -> str:
    """Lay figures of one origin out for a terminal, with all that they depend on.

    The last two columns are the floor: the metric of some real pictures against the rest of them,
    and of as many generated ones in their place.
    """
    at = figures[0].origin
    wide = max(len(_label(figure)) for figure in figures)
    head = f"{'':{wide}} {'value':>11} {'+-':>9} {'N':>7} {'ref. N':>7}"
    lines = [
        f"{at.extractor}, layer {at.layer}, resize {at.resize}, weights {at.weights[:8]}",
        f"{head} {'real/real':>10} {'gen./real':>10} {'at N':>7}",
    ]
    for figure in figures:
        spread = "" if figure.spread is None else f"{figure.spread:.3g}"
        against = "unstated" if figure.reference_n is None else str(figure.reference_n)
        line = f"{_label(figure):{wide}} {figure.value:11.5g} {spread:>9} {figure.n:7} {against:>7}"
        floor = figure.floor
        if floor is not None:
            line += f" {floor.real:10.5g} {floor.generated:10.5g} {floor.n:7}"
        lines.append(line)
    return "\n".join(lines)


def _label(figure: Figure) -> str:
    return f"{figure.name} ({figure.detail})" if figure.detail else figure.name


def compare(fake: Statistics, reference: Statistics) -> tuple[Figure, ...]:
    """All metrics that the statistics allow, each with its floor.

    Frechet distances always; kernel and neighbour metrics where both sides hold features; an
    inception score alone where the features are class logits.

    Raises:
        ValueError: the features are of different origin, or the generated set has no n.
    """
    fake.origin.require(reference.origin, "generated pictures", "the reference")
    floors = _floors(fake, reference)
    return tuple(
        replace(figure, floor=floors.get(figure.name)) for figure in _figures(fake, reference)
    )


def title(metric: str, origin: Origin) -> str:
    """Name of a metric: FID, KID and IS belong to Inception's published layer and weights."""
    official = origin.extractor == "Inception" and origin.weights.startswith(FID_WEIGHTS)
    if official and origin.layer in ("2048", "logits_unbiased"):
        return metric.replace("FD", "FID")
    return f"{metric}-{origin.extractor}"


def omitted(fake: Statistics, reference: Statistics) -> tuple[str, ...]:
    """What `compare` leaves out, and why."""
    sides = {"the generated set": fake, "the reference": reference}
    notes = [
        f"KID, precision, recall, density, coverage: {name} keeps features of {len(s.features)} "
        f"pictures, and {LEAST} are needed"
        for name, s in sides.items()
        if len(s.features) < LEAST and s.origin.layer not in LOGITS
    ]
    if min(len(fake.features), len(reference.features) // 2) < LEAST:
        notes.append("real against real: the features that are kept do not make two parts")
    return tuple(notes)


def _floors(fake: Statistics, reference: Statistics) -> dict[str, Floor]:
    """Part of the reference, half of it or less, against the rest, by the name of the metric."""
    m = len(reference.features)
    size = min(len(fake.features), m // 2)
    if size < LEAST:
        return {}
    order = _shuffled(m)
    rest = _part(reference, order[size:])
    real = _figures(_part(reference, order[:size]), rest)
    generated = _figures(_part(fake, _shuffled(len(fake.features))[:size]), rest)
    return {
        a.name: Floor(a.value, b.value, size, m - size)
        for a, b in zip(real, generated, strict=True)
    }


def _shuffled(n: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(0).permutation(n))


def _part(whole: Statistics, rows: Tensor) -> Statistics:
    features = whole.features[rows]
    return Statistics(whole.origin, Gaussian.of(Moments.of(features)), len(rows), features)


def _figures(fake: Statistics, reference: Statistics) -> tuple[Figure, ...]:
    if fake.origin.layer in LOGITS:
        return _scores(fake)
    return (*_distances(fake, reference), *_overlaps(fake, reference))


def _scores(fake: Statistics) -> tuple[Figure, ...]:
    m = len(fake.features)
    splits = min(10, m)
    score = inception_score(fake.features, splits)
    return (Figure(title("IS", fake.origin), f"{splits} splits", *score, m, None, fake.origin),)


def _distances(fake: Statistics, reference: Statistics) -> tuple[Figure, ...]:
    origin, m = fake.origin, len(fake.features)
    if fake.n is None:
        raise ValueError("the generated set does not say how many pictures it has: measure it here")
    value = frechet(fake.gaussian, reference.gaussian)
    plain = Figure(title("FD", origin), "", value, None, fake.n, reference.n, origin)
    if m < 4 * fake.features.shape[1]:
        return (plain,)
    limit = frechet_infinity(fake.features, reference.gaussian)
    name = title("FD-infinity", origin)
    return plain, Figure(name, "15 sizes", *limit, m, reference.n, origin)


def _overlaps(fake: Statistics, reference: Statistics) -> tuple[Figure, ...]:
    x, y, origin = fake.features, reference.features, fake.origin
    if min(len(x), len(y)) < LEAST:
        return ()
    figures = [_kid(x, y, origin)]
    if origin.extractor == "CLIP":
        figures.append(Figure("CMMD", "", cmmd(x, y), None, len(x), len(y), origin))
    for name, value in manifold(x, y, NEIGHBOUR)._asdict().items():
        figures.append(Figure(name, f"k={NEIGHBOUR}", value, None, len(x), len(y), origin))
    return tuple(figures)


def _kid(x: Tensor, y: Tensor, origin: Origin) -> Figure:
    """KID on Inception's raw features, as published, and on scaled ones of any other network."""
    size = min(1000, len(x) // 2, len(y) // 2)
    detail, pair = f"100 subsets of {size}", (x, y)
    if origin.extractor != "Inception":
        detail, pair = f"{detail}, scaled", scaled(x, y)
    value = kid(*pair, size=size)
    return Figure(title("KID", origin), detail, *value, len(x), len(y), origin)
