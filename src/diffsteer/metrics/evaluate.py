"""All metrics that two sets of features allow, with what they were measured on.

Every value carries the number of images on both sides, seeds, extractor, layer, resize and
weights, and an interval where features of all its images are kept to resample.
Where the reference holds features, it also carries a floor: the metric of one real part against
the rest, and of as many generated images in place of that part. Frechet distances and neighbour
shares move with N, so only these two compare like with like.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
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


def possible(name: str) -> Interval:
    """Range of a metric."""
    if name in ("precision", "recall", "coverage"):
        return Interval(0.0, 1.0)
    least = {"IS": 1.0, "KID": -math.inf, "CMMD": -math.inf}
    return Interval(least.get(name.split("-")[0], 0.0), math.inf)


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
    """
    fake.origin.require(reference.origin, "generated images", "the reference")
    floors = _floors(fake, reference)
    values = []
    for value in _values(fake, reference):
        within = None
        if value.name in spread:
            low, high = interval(value.value, spread[value.name])
            least, most = possible(value.name)
            within = Interval(max(low, least), min(high, most))
        floor = floors.get(value.name)
        values.append(replace(value, seeds=seeds, floor=floor, interval=within))
    return tuple(values)


def spreads(fake: Statistics, reference: Statistics, resamples: int) -> dict[str, Tensor]:
    """Metrics of resampled images by name, as `compare` takes them.

    Empty for 0 resamples, and where the features of fewer than 2 images are kept.
    """
    n = len(fake.features)
    return resampled(fake, reference, weights(n, resamples)) if resamples and n > 1 else {}


def resampled(fake: Statistics, reference: Statistics, w: Tensor) -> dict[str, Tensor]:
    """Values of each resample by the name of the metric; `w` as of `bootstrap.weights`.

    Left out are metrics of more images than features are kept of, and FD-infinity.
    """
    x, y, origin = fake.features, reference.features, fake.origin
    if origin.layer in LOGITS:
        return {title("IS", origin): score_resampled(x, w)}
    values: dict[str, Tensor] = {}
    if fake.n == len(x):
        values[title("FD", origin)] = frechet_resampled(x, reference.gaussian, w)
    if min(len(x), len(y)) < LEAST:
        return values
    if _kernel_fits(y, origin):
        values[title("KID", origin)] = mmd_resampled(*_for_kid(x, y, origin), cubic, w)
    if origin.extractor == "CLIP":
        kernel = partial(gaussian, sigma=CMMD_SIGMA)
        values["CMMD"] = CMMD_SCALE * mmd_resampled(unit(x), unit(y), kernel, w)
    return values | manifold_resampled(x, y, NEIGHBOUR, w)._asdict()


def title(metric: str, origin: Origin) -> str:
    """Name of a metric: FID, KID and IS belong to Inception's published layer and weights."""
    official = origin.extractor == "Inception" and origin.weights.startswith(FID_WEIGHTS)
    if official and origin.layer in ("2048", "logits_unbiased"):
        return metric.replace("FD", "FID")
    return f"{metric}-{origin.extractor}"


def omitted(fake: Statistics, reference: Statistics) -> tuple[str, ...]:
    """Metrics that `compare` leaves out, and why."""
    logits = fake.origin.layer in LOGITS
    notes = [
        f"KID, precision, recall, density, coverage: {name} keeps features of {len(s.features)} "
        f"images, and {LEAST} are needed"
        for name, s in {"the generated set": fake, "the reference": reference}.items()
        if len(s.features) < LEAST and not logits
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
    if fake.n != len(fake.features) and not logits:
        notes.append(
            f"interval of the Fréchet distance: features of {len(fake.features)} of {fake.n} "
            "images are kept; keep all"
        )
    return tuple(notes)


def cautions(fake: Statistics, reference: Statistics) -> tuple[str, ...]:
    """Which figures of `compare` mean little with so few images, and why."""
    n, d = len(fake.features), len(fake.gaussian.mean)
    if fake.origin.layer in LOGITS:
        part = n // _splits(n)
        note = f"IS: {part} images of a split cannot show more than {part} of {d} classes"
        return (note,) if part < d else ()
    notes = []
    if (least := min(x.n or d + 1 for x in (fake, reference))) <= d:
        notes.append(
            f"Fréchet distance: {least} images leave a covariance of {d} numbers singular, and the "
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
    rest = _part(reference, slice(size, None))
    real, generated = (_values(_part(s, slice(size)), rest) for s in (reference, fake))
    return {
        a.name: RealBaseline(a.value, b.value, size, m - size)
        for a, b in zip(real, generated, strict=True)
    }


def _part(whole: Statistics, rows: slice) -> Statistics:
    """Some rows of the features, in random order."""
    order = np.random.RandomState(0).permutation(len(whole.features))
    x = whole.features[torch.from_numpy(order[rows])]
    return Statistics(whole.origin, Gaussian.of(Moments.of(x)), len(x), x)


def _values(fake: Statistics, reference: Statistics) -> tuple[MetricValue, ...]:
    origin, m = fake.origin, len(fake.features)
    if origin.layer not in LOGITS:
        return (*_distances(fake, reference), *_overlaps(fake, reference))
    if m == 0:
        raise InputError("an inception score is of features that are kept, and 0 are: keep them")
    splits = _splits(m)
    score = inception_score(fake.features, splits)
    return (MetricValue(title("IS", origin), f"{splits} splits", *score, m, None, origin),)


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
    values = [_kid(x, y, origin)] if _kernel_fits(y, origin) else []
    if origin.extractor == "CLIP":
        values.append(MetricValue("CMMD", "", cmmd(x, y), None, len(x), len(y), origin))
    for name, value in manifold(x, y, NEIGHBOUR)._asdict().items():
        values.append(MetricValue(name, f"k={NEIGHBOUR}", value, None, len(x), len(y), origin))
    return tuple(values)


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
