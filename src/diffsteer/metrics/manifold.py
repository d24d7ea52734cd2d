"""Precision, recall, density and coverage from nearest neighbours, in bounded memory.

Distances come in blocks of a matrix product, so that 50,000 images need no 10 GB matrix. Features
are centred first: |x - y|^2 = |x|^2 + |y|^2 - 2 x y loses digits where the mean is large.
"""

from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.metrics.moments import F64, pair

BLOCK = 2**23
"""Distances held at once: 32 MiB in float32, a few times."""

T = TypeVar("T")


class Manifold(NamedTuple, Generic[T]):
    """Overlap of two sets of features: shares in [0, 1], and `density` >= 0.

    Attributes:
        precision: Share of generated images inside the reference.
        recall: Share of reference images inside the generated set.
        density: In how many reference balls a generated image lies, over k; 1 when equal.
        coverage: Share of reference balls that hold a generated image.
    """

    precision: T
    recall: T
    density: T
    coverage: T


def manifold(fake: Tensor, real: Tensor, k: int = 3) -> Manifold[float]:
    """Overlap of two sets, each the union of balls that reach to the k-th nearest neighbour.

    Args:
        fake: Features of generated images, `(N, d)`; float32 is enough.
        real: Features of the reference, `(M, d)`.
        k: Neighbour, itself not counted, 1 <= k < min(N, M); published with 3, and with 5 for
            density and coverage.

    Source: Kynkaanniemi et al. 2019, sec. 2, https://arxiv.org/abs/1904.06991 (precision, recall);
        Naeem et al. 2020, sec. 3, https://arxiv.org/abs/2002.09797 (density, coverage).
    """
    precise = dense = 0
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered = recalled.clone()
    for _, in_real, in_fake in balls(fake, real, k):
        precise += int(in_real.any(dim=1).sum())
        dense += int(in_real.sum())
        covered |= in_real.any(dim=0)
        recalled |= in_fake.any(dim=0)
    recall, coverage = (share.to(F64).mean().item() for share in (recalled, covered))
    return Manifold(precise / len(fake), recall, dense / (k * len(fake)), coverage)


def balls(fake: Tensor, real: Tensor, k: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield, for blocks of generated images, which are in whose balls.

    Yields:
        Their rows, whether each is in the ball of each real one, and whether each real one is in
        theirs, `(rows, M)`.
    """
    fake, real = _centred(fake, real)
    if not 1 <= k < min(len(fake), len(real)):
        raise InputError(
            f"k={k} needs more than {k} images on both sides, and at least k=1: there are "
            f"{len(fake)} generated and {len(real)} of the reference"
        )
    reach_fake, reach_real = _reach(fake, k), _reach(real, k)
    for at, square in _blocks(fake, real):
        yield at, square <= reach_real, square <= reach_fake[at, None]


def _centred(fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    pair(fake, real)
    wide = torch.promote_types(torch.promote_types(fake.dtype, real.dtype), torch.float32)
    mean = real.to(wide).mean(dim=0)
    centred = fake.to(wide) - mean, real.to(wide) - mean
    if not all(_square_norm(x).isfinite().all() for x in centred):
        raise InputError(f"squared distances of the features overflow {wide}: scale them down")
    return centred


def _reach(x: Tensor, k: int) -> Tensor:
    """Squared distance of each row to its k-th neighbour, `(N,)`."""
    reach = x.new_empty(len(x))
    for at, square in _blocks(x, x):
        rows = torch.arange(at.start, at.stop, device=x.device)
        square[rows - at.start, rows] = float("inf")  # itself
        reach[at] = square.topk(k, dim=1, largest=False).values[:, -1]
    return reach


def _blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows of x and their squared distances to all of y, `(rows, M)`; free to overwrite."""
    norm_x, norm_y = _square_norm(x)[:, None], _square_norm(y)
    size = max(1, BLOCK // len(y))
    for start in range(0, len(x), size):
        at = slice(start, min(start + size, len(x)))
        yield at, torch.addmm(norm_y, x[at], y.mT, alpha=-2).add_(norm_x[at]).clamp_(min=0)


def _square_norm(x: Tensor) -> Tensor:
    """Squared length of each row, without a copy of the table."""
    return torch.linalg.vector_norm(x, dim=1).square()  # type: ignore[no-any-return]
