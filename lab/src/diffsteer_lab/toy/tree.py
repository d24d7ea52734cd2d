"""The data of the toy: two classes, each a tree of 127 branches of 8 Gaussians, self-similar.

Source: Karras et al. 2024, app. C, https://arxiv.org/abs/2406.02507.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffsteer_lab.toy.mixture import Gaussians

DEPTH = 6
"""Of the twigs; the trunk has 0."""
CELLS = 3
"""Depth of the subtrees that coarse masses are counted in."""
SCALE = np.array([1.3136, 1.3844])
"""What brings the data of both classes to a standard deviation of 0.5."""
ROOT = np.array([0.0030, 0.0325])
SEED = 2
ANGLES = {"A": math.pi / 4, "B": 5 * math.pi / 4}
"""Direction in which the trunk of each class grows."""


class Branch(NamedTuple):
    """Eight Gaussians in a row.

    Attributes:
        path: The class and the turns since the trunk, such as "A+-".
        weight: Of each of its Gaussians, in any unit.
        means: `(8, 2)`.
        cov: `(2, 2)`.
    """

    path: str
    weight: float
    means: np.ndarray
    cov: np.ndarray

    @property
    def depth(self) -> int:
        """Number of forks since the trunk."""
        return len(self.path) - 1

    @property
    def cell(self) -> str:
        """The subtree that it belongs to; empty for what is below them."""
        return self.path[: CELLS + 1] if self.depth >= CELLS else ""


def branches(classes: str = "AB") -> list[Branch]:
    """Branches of some classes.

    Args:
        classes: "A", "B" or "AB". Both grow from one stream of random numbers, A first.
    """
    rng = np.random.RandomState(SEED)
    grown = {name: list(_grow(rng, name, ROOT, angle)) for name, angle in ANGLES.items()}
    return [branch for name in classes for branch in grown[name]]


def mixture(grown: Sequence[Branch]) -> Gaussians:
    """The distribution of branches, a group of Gaussians each."""
    return Gaussians(
        torch.tensor([[b.weight] * len(b.means) for b in grown], dtype=torch.float64),
        torch.from_numpy(np.stack([branch.means for branch in grown])),
        torch.from_numpy(np.stack([branch.cov for branch in grown])),
    )


def cells(grown: Sequence[Branch]) -> Tensor:
    """Which branch is in which subtree, 1 or 0, `(subtrees + 1, branches)`; the trunk's first."""
    names = sorted({branch.cell for branch in grown})
    return torch.tensor([[b.cell == name for b in grown] for name in names], dtype=torch.float64)


def _grow(rng: np.random.RandomState, path: str, at: np.ndarray, angle: float) -> Iterator[Branch]:
    """Yield a branch and all that grow from it, depth first, drawing lengths and turns."""
    depth = len(path) - 1
    along = np.array([math.cos(angle), math.sin(angle)])
    length = 0.292 * 0.8**depth * (1 + 0.2 * rng.randn())
    thin = 0.2 * 0.8**depth / length
    size = SCALE * length * 0.06
    line = np.outer(along, along)
    yield Branch(
        path,
        length * 0.5**depth,
        (at + np.linspace(0.07, 0.93, 8)[:, None] * length * along) * SCALE,
        (line + (np.eye(2) - line) * thin**2) * np.outer(size, size),
    )
    for name, sign in (("+", 1), ("-", -1)):
        turn = sign * 0.7**depth * (1 + 0.2 * rng.randn())  # drawn for twigs, which bear none, too
        if depth < DEPTH:
            yield from _grow(rng, path + name, at + along * length, angle + turn)
