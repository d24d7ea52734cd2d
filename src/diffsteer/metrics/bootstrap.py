"""Intervals over seeds by resampling the generated images, in weights.

A resample draws as many images as there are, with replacement: image i counts w_i times. The
same weights for two sets of the same seeds pair them, so that what the seeds have in common cancels
in a difference. The reference stays as it is.

A resample repeats images, which moves these figures as fewer images would. So its values tell
the spread, not the place: intervals are shifted to the measured value.

Recall and coverage count a ball once however often an image in it is repeated, so that no weights
give their spread: they are measured anew on disjoint parts.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.fields import is_whole, plain_number
from diffsteer.metrics.frechet import Gaussian
from diffsteer.metrics.manifold import Manifold, balls, manifold
from diffsteer.metrics.moments import F64, pair

SEED = 2020
LEVEL = 0.95
LEAST = 20
"""Fewest resamples of an interval."""
LINEAR_FROM = 512
"""Features of more numbers are resampled to first order: one eigendecomposition, not one each."""
BLOCK = 2**23
"""Numbers in one block of kernel values: 64 MiB in float64."""
PART, REST = 500, 1000
"""Most generated and reference images in a part of which recall and coverage are measured."""
Kernel = Callable[[Tensor, Tensor], Tensor]


class Interval(NamedTuple):
    """Bounds of a figure at this number of images, with 95 % confidence."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g}"


class Estimate(NamedTuple):
    """A value and its interval."""

    value: float
    interval: Interval

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.interval.low:.3g} to {self.interval.high:.3g})"


def require_resamples(resamples: int, none: bool = False) -> None:
    """Check a number of resamples before anything is measured; 0 is one where `none` is true."""
    whole = is_whole(plain_number(resamples))
    if not (whole and resamples >= LEAST) and not (none and whole and resamples == 0):
        also = ", or 0 for no intervals" if none else ""
        raise InputError(f"resamples={resamples}: give >= {LEAST}{also}")


def weights(n: int, resamples: int = 200, seed: int = SEED) -> Tensor:
    """Count of each of n images in each resample, `(resamples, n)`, float32."""
    require_resamples(resamples)
    if n < 2:
        raise InputError(f"{resamples} resamples of {n} images: give >= 2 images")
    rng = np.random.RandomState(seed)
    drawn = np.stack([np.bincount(rng.randint(n, size=n), minlength=n) for _ in range(resamples)])
    return torch.from_numpy(drawn).to(torch.float32)


def interval(value: float, resampled: Tensor) -> Interval:
    """Spread of resampled values about their mean, laid around the measured value, which it holds.

    Few images make resamples so skewed that both quantiles lie on one side of the mean.
    """
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=F64)
    low, high = (resampled.to(F64) - resampled.to(F64).mean()).quantile(ends).tolist()
    return Interval(value + min(low, 0.0), value + max(high, 0.0))


def frechet_resampled(x: Tensor, reference: Gaussian, w: Tensor) -> Tensor:
    """Frechet distance of each resample of features `(N, d)`, `(resamples,)`, float64.

    With the reference's covariance R R^T, all that is needed of a resample is its mean, its trace
    and the covariance of the features times R.
    """
    x = x.to(F64) - reference.mean
    y = x @ reference.root
    if y.shape[1] > LINEAR_FROM and len(x) > 2 * y.shape[1]:
        return _linear(x, y, reference, w.to(F64))
    total = reference.root.square().sum()
    return torch.stack([_one(x, y, row.to(F64)) for row in w]) + total


def _one(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    n = w.sum()
    mean, middle = w @ x / n, w @ y / n
    trace = (w @ (x - mean).square().sum(dim=1)) / (n - 1)
    drawn = w > 0
    root = (y[drawn] - middle) * (w[drawn, None] / (n - 1)).sqrt()
    overlap: Tensor = torch.linalg.eigvalsh(root.mT @ root).clamp_(min=0).sqrt().sum()
    return mean.square().sum() + trace - 2 * overlap


def _linear(x: Tensor, y: Tensor, reference: Gaussian, w: Tensor) -> Tensor:
    """First order of `_one` in the weights about equal ones.

    With G = R^T S R, the sum of the roots of its eigenvalues moves by tr(G^(-1/2) dG) / 2.
    """
    n = len(x)
    mean = x.mean(dim=0)
    about, centred = x - mean, y - y.mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.mT @ centred / (n - 1))
    divisor = values.clamp(min=1e-12 * float(values[-1]) or 1.0).sqrt()  # all 0: one image
    roots = ((centred @ vectors).square() / divisor).sum(dim=1)
    each = 2 * about @ mean + about.square().sum(dim=1) - roots
    value = mean.square().sum() + about.square().sum() / (n - 1) + reference.root.square().sum()
    value -= 2 * values.clamp(min=0).sqrt().sum()
    distance: Tensor = value + (w - 1) @ (each - each.mean()) / n
    return distance


def mmd_resampled(x: Tensor, y: Tensor, kernel: Kernel, w: Tensor) -> Tensor:
    """Squared MMD of each resample of features `(N, d)` to `(M, d)`, `(resamples,)`.

    Pairs of an image with itself are left out, so that no bias comes with repetition. The kernel
    takes blocks `(n, d)` and `(m, d)` to `(n, m)`.
    """
    x, y = (side.to(F64) for side in pair(x, y))
    w = w.to(F64)
    n, m = len(x), len(y)
    own, cross, rest = torch.zeros(len(w), dtype=F64), torch.zeros(n, dtype=F64), 0.0
    size = max(1, BLOCK // max(n, m))
    for start in range(0, n, size):
        at = slice(start, start + size)
        block = kernel(x[at], x)
        block.diagonal(start).zero_()
        own += ((w @ block.mT) * w[:, at]).sum(dim=1)
        cross[at] = kernel(x[at], y).mean(dim=1)
    for start in range(0, m, size):
        block = kernel(y[start : start + size], y)
        rest += float(block.sum() - block.diagonal(start).sum())
    mean: Tensor = 2 * (w @ cross) / n
    return own / (n - 1) ** 2 + rest / (m * (m - 1)) - mean


def score_resampled(logits: Tensor, w: Tensor) -> Tensor:
    """Inception score of each resample in one split, `(resamples,)`."""
    log_p = logits.to(F64).log_softmax(dim=1)
    share = w.to(F64) / w.sum(dim=1, keepdim=True)
    mean = share @ log_p.exp()
    negative_entropy = share @ (log_p.exp() * log_p).sum(dim=1)
    score: Tensor = (negative_entropy - torch.xlogy(mean, mean).sum(dim=1)).exp()
    return score


def manifold_resampled(x: Tensor, y: Tensor, k: int, w: Tensor) -> Manifold[Tensor]:
    """Precision, recall, density and coverage of each resample, `(resamples,)` each.

    Precision and density count w_i times, in balls of all images. Recall and coverage come from
    `_between`, around 0. Arguments as for `manifold`, with 2 k + 2 <= N and M.
    """
    precise = torch.zeros(len(w), dtype=F64)
    dense = precise.clone()
    for at, in_real, _ in balls(x, y, k):
        part = w[:, at].to(F64)
        precise += part @ in_real.any(dim=1).to(F64)
        dense += part @ in_real.sum(dim=1).to(F64)
    recall, coverage = _between(x, y, k, len(w))
    return Manifold(precise / len(x), recall, dense / (k * len(x)), coverage)


def _between(x: Tensor, y: Tensor, k: int, times: int) -> Tensor:
    """Differences of recall and coverage between parts, at the scale of all images, `(2, times)`.

    Each time, two disjoint parts of s generated images meet the same part of the reference, of
    the same share, so that balls hold as many images as they do in all. Where the figure of N
    images has variance V, the difference has 2 V N / s, since halving both sets doubles V. The
    same parts serve all sets of the same sizes, which pairs them.

    Source: of spreads at the scale of smaller parts, Politis & Romano 1994,
        https://doi.org/10.1214/aos/1176325770.
    """
    n, m = len(x), len(y)
    size = max(min(n // 2, PART, REST * n // m), k + 1, -(-(k + 1) * n // m))
    rng = np.random.RandomState(SEED)
    gaps = []
    for _ in range(times):
        order, of_y = (torch.from_numpy(rng.permutation(count)) for count in (n, m))
        real = y[of_y[: m * size // n]]
        one, other = (manifold(x[order[i * size : (i + 1) * size]], real, k) for i in (0, 1))
        gaps.append((one.recall - other.recall, one.coverage - other.coverage))
    return torch.tensor(gaps, dtype=F64).mT.mul((size / (2 * n)) ** 0.5)
