"""Figures that say what they were measured on.

Every figure carries the number of images on both sides, seeds, extractor, layer, resize and
weights, and an interval where features of all its images are kept to resample.
Where the reference holds features, it also carries a floor: what the metric gives for one real part
against the rest, and for as many generated images in place of that part. Frechet distances and
neighbour shares move with N, so only these two compare like with like.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.metrics.bootstrap import (
    Interval,
    frechet_resampled,
    interval,
    manifold_resampled,
    mmd_resampled,
    score_resampled,
    weights,
)
from diffsteer.metrics.features import UNSTATED, Origin
from diffsteer.metrics.frechet import Gaussian, frechet
from diffsteer.metrics.kernels import (
    CMMD_SCALE,
    CMMD_SIGMA,
    cmmd,
    cubic,
    frechet_infinity,
    gaussian,
    inception_score,
    kid,
    scaled,
    unit,
)
from diffsteer.metrics.manifold import manifold
from diffsteer.metrics.moments import Moments
from diffsteer.metrics.statistics import Statistics
from diffsteer.metrics.value import MetricValue, RealBaseline

FID_WEIGHTS = "6726825d"
"""First digits of the sha256 of the published FID's Inception, as its file name has them."""
NEIGHBOUR = 3
LOGITS = ("logits", "logits_unbiased")
LEAST = 8
"""Fewest features on a side for kernel and neighbour metrics; halves must have as many."""
FEW, SPLIT = 100, 10
"""Images below which a share is rough, and least images of a split of an inception score."""
SHARES = ("precision", "recall", "coverage")


def possible(name: str) -> Interval:
    """Between which numbers a figure lies in any case."""
    if name in SHARES:
        return Interval(0.0, 1.0)
    if name.startswith("IS"):
        return Interval(1.0, math.inf)
    return Interval(-math.inf if name.startswith(("KID", "CMMD")) else 0.0, math.inf)


def compare(
    fake: Statistics,
    reference: Statistics,
    seeds: str = UNSTATED,
    spread: Mapping[str, Tensor] = MappingProxyType({}),
) -> tuple[MetricValue, ...]:
    """All metrics that the statistics allow, each with its floor and its interval.

    Frechet distances always; kernel and neighbour metrics where both sides hold features; an
    inception score alone where the features are class logits.

    Args:
        fake: Of the generated images.
        reference: Of the real ones.
        seeds: Of the generated images, in words.
        spread: Of `resampled`, for the intervals.

    Raises:
        ValueError: the features are of different origin, or the generated set has no n.
    """
    fake.origin.require(reference.origin, "generated pictures", "the reference")
    floors = _floors(fake, reference)
    return tuple(
        replace(
            figure,
            seeds=seeds,
            floor=floors.get(figure.name),
            interval=_within(figure, spread),
        )
        for figure in _figures(fake, reference)
    )


def _within(figure: MetricValue, spread: Mapping[str, Tensor]) -> Interval | None:
    if figure.name not in spread:
        return None
    (low, high), (least, most) = (
        interval(figure.value, spread[figure.name]),
        possible(figure.name),
    )
    return Interval(max(low, least), min(high, most))


def spreads(fake: Statistics, reference: Statistics, resamples: int) -> dict[str, Tensor]:
    """Metrics of resampled images by name, as `compare` takes them.

    Empty for 0 resamples, and where the features of fewer than 2 images are kept.
    """
    n = len(fake.features)
    return resampled(fake, reference, weights(n, resamples)) if resamples and n > 1 else {}


def resampled(fake: Statistics, reference: Statistics, w: Tensor) -> dict[str, Tensor]:
    """Values of each resample by the name of the figure; `w` as of `bootstrap.weights`.

    Left out are figures of more images than features are kept of, and FD-infinity.
    """
    x, y, origin = fake.features, reference.features, fake.origin
    if origin.layer in LOGITS:
        return {title("IS", origin): score_resampled(x, w)}
    found: dict[str, Tensor] = {}
    if fake.n == len(x):
        found[title("FD", origin)] = frechet_resampled(x, reference.gaussian, w)
    if min(len(x), len(y)) < LEAST:
        return found
    if _kernel_fits(y, origin):
        found[title("KID", origin)] = mmd_resampled(*_for_kid(x, y, origin), cubic, w)
    if origin.extractor == "CLIP":

        def kernel(a: Tensor, b: Tensor) -> Tensor:
            return gaussian(a, b, CMMD_SIGMA)

        found["CMMD"] = CMMD_SCALE * mmd_resampled(unit(x), unit(y), kernel, w)
    return found | manifold_resampled(x, y, NEIGHBOUR, w)._asdict()


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
    if len(reference.features) > 0 and not _kernel_fits(reference.features, reference.origin):
        notes.append("KID: all features of the reference are equal, so that they have no scale")
    if len(reference.features) == 0:
        notes.append(
            "real against real: a floor cannot be had from mean and covariance alone, which is all "
            "that the reference holds; measure the data itself with `diffsteer stats`"
        )
    elif min(len(fake.features), len(reference.features) // 2) < LEAST:
        notes.append("real against real: the features that are kept do not make two parts")
    if fake.n != len(fake.features) and fake.origin.layer not in LOGITS:
        notes.append(
            f"interval of the Frechet distance: features of {len(fake.features)} of {fake.n} "
            "pictures are kept; keep all"
        )
    return tuple(notes)


def cautions(fake: Statistics, reference: Statistics) -> tuple[str, ...]:
    """Which figures of `compare` mean little with so few images, and why."""
    n, d = len(fake.features), len(fake.gaussian.mean)
    if fake.origin.layer in LOGITS:
        part = n // _splits(n)
        return (f"IS: {part} images of a split cannot show more than {part} of {d} classes",) * (
            part < d
        )
    notes = []
    if (least := min(x.n or d + 1 for x in (fake, reference))) <= d:
        notes.append(
            f"Frechet distance: {least} images leave a covariance of {d} numbers singular, and the "
            "distance is mostly bias: compare it at equal N alone, with its floor"
        )
    if LEAST <= (least := min(n, len(reference.features))) < FEW:
        notes.append(
            f"precision, recall, density, coverage: shares of {least} images are rough, and an "
            "interval of no width says only that all resamples agree"
        )
    return tuple(notes)


def _floors(fake: Statistics, reference: Statistics) -> dict[str, RealBaseline]:
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
        a.name: RealBaseline(a.value, b.value, size, m - size)
        for a, b in zip(real, generated, strict=True)
    }


def _shuffled(n: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(0).permutation(n))


def _part(whole: Statistics, rows: Tensor) -> Statistics:
    features = whole.features[rows]
    return Statistics(whole.origin, Gaussian.of(Moments.of(features)), len(rows), features)


def _figures(fake: Statistics, reference: Statistics) -> tuple[MetricValue, ...]:
    if fake.origin.layer in LOGITS:
        return _scores(fake)
    return (*_distances(fake, reference), *_overlaps(fake, reference))


def _scores(fake: Statistics) -> tuple[MetricValue, ...]:
    m = len(fake.features)
    splits = _splits(m)
    score = inception_score(fake.features, splits)
    return (
        MetricValue(title("IS", fake.origin), f"{splits} splits", *score, m, None, fake.origin),
    )


def _splits(n: int) -> int:
    """Number of splits of an inception score: 10, as published, or fewer of 10 images each.

    A split of one image scores 1 whatever the image.
    """
    return max(1, min(10, n // SPLIT))


def _distances(fake: Statistics, reference: Statistics) -> tuple[MetricValue, ...]:
    origin, m = fake.origin, len(fake.features)
    if fake.n is None:
        raise InputError("the generated set does not say how many images it has: measure it here")
    value = frechet(fake.gaussian, reference.gaussian)
    plain = MetricValue(title("FD", origin), "", value, None, fake.n, reference.n, origin)
    if m < 4 * fake.features.shape[1]:
        return (plain,)
    limit = frechet_infinity(fake.features, reference.gaussian)
    name = title("FD-infinity", origin)
    detail = "15 sizes" if limit.value >= 0 else "15 sizes; below 0 by the error of the fit"
    return plain, MetricValue(name, detail, *limit, m, reference.n, origin)


def _overlaps(fake: Statistics, reference: Statistics) -> tuple[MetricValue, ...]:
    x, y, origin = fake.features, reference.features, fake.origin
    if min(len(x), len(y)) < LEAST:
        return ()
    figures = [_kid(x, y, origin)] if _kernel_fits(y, origin) else []
    if origin.extractor == "CLIP":
        figures.append(MetricValue("CMMD", "", cmmd(x, y), None, len(x), len(y), origin))
    for name, value in manifold(x, y, NEIGHBOUR)._asdict().items():
        figures.append(MetricValue(name, f"k={NEIGHBOUR}", value, None, len(x), len(y), origin))
    return tuple(figures)


def _kid(x: Tensor, y: Tensor, origin: Origin) -> MetricValue:
    size = min(1000, len(x) // 2, len(y) // 2)
    detail = f"100 subsets of {size}" + ("" if origin.extractor == "Inception" else ", scaled")
    value = kid(*_for_kid(x, y, origin), size=size)
    return MetricValue(title("KID", origin), detail, *value, len(x), len(y), origin)


def _kernel_fits(y: Tensor, origin: Origin) -> bool:
    """Whether reference features have a scale, which all but Inception's, raw ones, need."""
    return origin.extractor == "Inception" or not bool((y == y[:1]).all())


def _for_kid(x: Tensor, y: Tensor, origin: Origin) -> tuple[Tensor, Tensor]:
    """Inception's features raw, as published, and scaled ones of any other network."""
    return (x, y) if origin.extractor == "Inception" else scaled(x, y)
