"""Samples of the toy measured against the exact distribution."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffsteer.core.level import CLEAN
from diffsteer.metrics.manifold import manifold
from diffsteer_lab.toy.mixture import F64
from diffsteer_lab.toy.tree import branches, cells, mixture

OUTSIDE = 0.01
"""Share of the truth that counts as outliers."""
LEVEL_FROM = 2**16
"""Exact samples that tell where that share begins."""
DIRECTIONS = 64
"""Of the plane, evenly spaced, along which the sliced distance is taken."""
K = 5
"""Neighbour to which the balls of recall reach."""
BLOCK = 2**24
"""Distances in memory at once: 64 MiB in float32."""


@dataclass(frozen=True)
class Figures:
    """Metrics of a set of samples against the truth.

    Attributes:
        outliers: Percentage where the true density is lower than at 99 % of the truth.
        log_p: Mean logarithm of the true density; of the truth, minus its entropy.
        coarse: Total variation between masses of 8 subtrees and the trunk, in [0, 1].
        branches: Total variation between masses of the 127 branches.
        energy: Energy distance to as many exact samples, without bias; around 0 where equal.
        sliced: Sliced 2-Wasserstein distance to them.
        recall: Share of them inside the set, by balls to the fifth neighbour.
    """

    outliers: float = field(metadata={"head": "outliers %", "digits": 1})
    log_p: float = field(metadata={"head": "mean log p", "digits": 2})
    coarse: float = field(metadata={"head": "coarse TV", "digits": 3})
    branches: float = field(metadata={"head": "branch TV", "digits": 3})
    energy: float = field(metadata={"head": "energy", "digits": 4})
    sliced: float = field(metadata={"head": "sliced W2", "digits": 3})
    recall: float = field(metadata={"head": "recall", "digits": 3})


class Truth:
    """Class A, exactly, and exact samples to compare with.

    Args:
        n: How many.
        seed: Of all that is drawn; two truths of different seeds are independent.
    """

    def __init__(self, n: int, seed: int = 0) -> None:
        grown = branches("A")
        self.exact, self._cells = mixture(grown), cells(grown)
        generator = torch.Generator().manual_seed(seed)
        self.samples = self.exact.draw(n, generator)
        likely = self.exact.log_density(self.exact.draw(LEVEL_FROM, generator).float(), CLEAN)
        self.edge = likely.quantile(OUTSIDE).item()
        """Logarithm of the density at the edge of what is no outlier."""
        angle = torch.arange(DIRECTIONS, dtype=F64) * (torch.pi / DIRECTIONS)
        self._directions = torch.stack([angle.cos(), angle.sin()])
        self._own = _mean_distance(self.samples, self.samples) * n / (n - 1)

    def measure(self, x: Tensor) -> Figures:
        """Compare samples, `(n, 2)`, as many as the exact ones."""
        x = x.to(F64)
        log_p = self.exact.log_density(x, CLEAN)
        mass, true = self.exact.groups(x, CLEAN).mean(0), self.exact.weights.sum(1)
        within = _mean_distance(x, x) * len(x) / (len(x) - 1)
        return Figures(
            outliers=100 * (log_p < self.edge).to(F64).mean().item(),
            log_p=log_p.mean().item(),
            coarse=_variation(self._cells @ mass, self._cells @ true),
            branches=_variation(mass, true),
            energy=2 * _mean_distance(x, self.samples) - within - self._own,
            sliced=self._sliced(x),
            recall=manifold(x, self.samples, K).recall,
        )

    def _sliced(self, x: Tensor) -> float:
        a, b = ((points @ self._directions).sort(dim=0).values for points in (x, self.samples))
        return (a - b).square().mean().sqrt().item()


def _variation(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().sum().item() / 2


def _mean_distance(x: Tensor, y: Tensor) -> float:
    """Mean distance over all pairs; of a point to itself, too."""
    x, y = x.float(), y.float()  # the coordinates are below 10, so that pairs err by 1e-6 at most
    mode = "donot_use_mm_for_euclid_dist"  # which would lose half of the digits of near pairs
    rows, total = max(1, BLOCK // len(y)), 0.0
    for start in range(0, len(x), rows):
        distances = torch.cdist(x[start : start + rows], y, compute_mode=mode)
        total += distances.sum(dtype=F64).item()
    return total / (len(x) * len(y))
