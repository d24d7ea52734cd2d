"""Kernel distances, inception score, and the Frechet distance without bias of the sample size.

Generated features come first, the reference second. Subsets are drawn as torch-fidelity draws them,
so that the same seed gives the same values there.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.metrics.frechet import Gaussian, frechet
from diffsteer.metrics.moments import F64, Moments, pair, table

SEED = 2020
CMMD_SCALE, CMMD_SIGMA = 1000, 10.0
BLOCK = 2**23
"""Numbers in one block of kernel values or gathered features: 64 MiB in float64."""


class ValueAndSpread(NamedTuple):
    """A value and the standard deviation that its function documents."""

    value: float
    spread: float


def kid(
    fake: Tensor, real: Tensor, subsets: int = 100, size: int = 1000, seed: int = SEED
) -> ValueAndSpread:
    """Kernel distance with the kernel (x y / d + 1)^3, unbiased; may lie below 0 near equality.

    Meaningless on features with large values: see `scaled`. Mean and standard deviation over
    `subsets` of `size` images from both sides, 2 <= size <= min(N, M).

    Source: Binkowski et al. 2018, sec. 4, https://arxiv.org/abs/1801.01401.
    """
    pair(fake, real)
    if subsets < 1 or not 2 <= size <= min(len(fake), len(real)):
        raise InputError(
            f"{subsets} subsets of {size} images cannot be drawn from {len(fake)} generated and "
            f"{len(real)} of the reference: give size a number from 2 to the smaller of them"
        )
    rng = np.random.RandomState(seed)
    picks = [
        [torch.from_numpy(rng.choice(len(x), size, replace=False)) for x in (fake, real)]
        for _ in range(subsets)
    ]
    together = max(1, BLOCK // (size * max(size, fake.shape[1])))
    values = []
    for start in range(0, subsets, together):
        x, y = (torch.stack(side) for side in zip(*picks[start : start + together], strict=True))
        values.append(_cubic_mmd(fake[x], real[y]))
    every = torch.cat(values)
    return ValueAndSpread(every.mean().item(), every.std(correction=0).item())


def _cubic_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased squared MMD of each subset, `(S, n, d)` to `(S,)`, in float64."""
    x, y = x.to(F64), y.to(F64)
    n, d = x.shape[1:]
    own = (cubic(a, a).sum((1, 2)) - ((a.square().sum(2) / d + 1) ** 3).sum(1) for a in (x, y))
    return sum(own) / (n * (n - 1)) - 2 * cubic(x, y).sum((1, 2)) / n**2


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """Kernel of KID, (x y / d + 1)^3: blocks `(..., n, d)` and `(..., m, d)` to `(..., n, m)`."""
    return (x @ y.mT).div_(x.shape[-1]).add_(1) ** 3


def scaled(fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and scale both sets so that the reference has mean 0 and mean variance 1.

    Brings any layer to where a cubic kernel means something. One scale for all numbers, since one
    each would blow up those that hardly vary.
    """
    fake, real = (x.to(F64) for x in pair(fake, real))
    mean, std = real.mean(dim=0), real.var(dim=0).mean().sqrt()
    if not std > 0:
        raise InputError("all reference features are equal: they have no scale; check the images")
    return (fake - mean) / std, (real - mean) / std


def mmd(fake: Tensor, real: Tensor, sigma: float = 10.0) -> float:
    """Squared MMD with the Gaussian kernel exp(-|x - y|^2 / (2 sigma^2)), biased (diagonal kept).

    Source: Gretton et al. 2012, eq. 5, https://jmlr.org/papers/v13/gretton12a.html.
    """
    fake, real = (x.to(F64) for x in pair(fake, real))
    if not 0 < sigma < float("inf"):
        raise InputError(f"sigma={sigma} is no kernel width: give a number > 0; CMMD uses 10")
    pairs = ((fake, fake), (real, real), (fake, real))
    own_fake, own_real, cross = (_gaussian_mean(x, y, sigma) for x, y in pairs)
    return own_fake + own_real - 2 * cross


def _gaussian_mean(x: Tensor, y: Tensor, sigma: float) -> float:
    """Mean of 1 - kernel, negated: near 1 the kernel itself has too few digits to subtract."""
    total, size = 0.0, max(1, BLOCK // len(y))
    for start in range(0, len(x), size):
        total += gaussian(x[start : start + size], y, sigma).sum().item()
    return total / (len(x) * len(y))


def gaussian(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """Gaussian kernel less 1 of blocks `(n, d)` and `(m, d)`, `(n, m)`."""
    square = torch.addmm(y.square().sum(dim=1), x, y.mT, alpha=-2)
    square += x.square().sum(dim=1, keepdim=True)
    return torch.expm1(square.clamp_(min=0) / (-2 * sigma**2))


def cmmd(fake: Tensor, real: Tensor) -> float:
    """CMMD of CLIP embeddings: 1000 times the MMD of unit vectors with sigma 10.

    Source: Jayasumana et al. 2024, https://arxiv.org/abs/2401.09603.
    """
    return CMMD_SCALE * mmd(unit(fake), unit(real), CMMD_SIGMA)


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1, in float64."""
    norm = x.to(F64).norm(dim=1, keepdim=True)
    if not (norm > 0).all():
        raise InputError("an embedding is 0 and has no direction: the extractor is broken")
    direction: Tensor = x / norm
    return direction


def inception_score(logits: Tensor, splits: int = 10, seed: int = SEED) -> ValueAndSpread:
    """Exponential of the mean KL divergence between a picture's classes and those of all.

    Args:
        logits: Class logits, `(N, classes)`; the published score has Inception's 1008.
        splits: Parts of the shuffled images that are scored apart, 1 <= splits <= N; the value, in
            [1, classes], and its spread are mean and standard deviation over them.
        seed: Of the shuffle.

    Source: Salimans et al. 2016, sec. 4, https://arxiv.org/abs/1606.03498.
    """
    n = len(table(logits, "logits"))
    if not 1 <= splits <= n:
        raise InputError(f"{n} images do not make {splits} splits: give 1 to {n}")
    order = torch.from_numpy(np.random.RandomState(seed).permutation(n))
    log_p = logits[order].to(F64).log_softmax(dim=1)
    scores = []
    for i in range(splits):
        part = log_p[i * n // splits : (i + 1) * n // splits]
        log_q = part.logsumexp(dim=0) - np.log(len(part))
        scores.append((part.exp() * (part - log_q)).sum(dim=1).mean().exp())
    every = torch.stack(scores)
    return ValueAndSpread(max(1.0, every.mean().item()), every.std(correction=0).item())


def frechet_infinity(
    fake: Tensor, reference: Gaussian, points: int = 15, seed: int = SEED
) -> ValueAndSpread:
    """Frechet distance extrapolated to infinitely many generated images.

    The bias falls as 1 / N, so a line through the distances of random subsets of growing size
    meets N = infinity at its intercept. Sizes run evenly from N / 10, or from twice the length of
    a feature where that is more (below it the bias is no line), to N. The reference keeps its own
    bias.

    Args:
        fake: Features of generated images, `(N, d)`.
        reference: What they are compared with.
        points: Number of sizes, >= 3.
        seed: Of the subsets.

    Returns:
        The intercept, which may lie below 0 near equality, and its standard error in the fit
        (optimistic: the subsets overlap).

    Source: Chong & Forsyth 2020, https://arxiv.org/abs/1911.07023.
    """
    n, d = table(fake).shape
    if points < 3 or n < 4 * d:
        raise InputError(
            f"{points} points on {n} images of {d} numbers do not fix a line: give at least 3 "
            f"points and {4 * d} images, or take a layer with fewer numbers"
        )
    rng = np.random.RandomState(seed)
    sizes = np.linspace(max(n // 10, 2 * d), n, points).round().astype(int)
    subsets = [fake[torch.from_numpy(rng.choice(n, size, replace=False))] for size in sizes]
    distances = [frechet(Gaussian.of(Moments.of(x)), reference) for x in subsets]
    line, errors = np.polyfit(1 / sizes, distances, 1, cov=True)
    return ValueAndSpread(float(line[1]), float(errors[1, 1] ** 0.5))
