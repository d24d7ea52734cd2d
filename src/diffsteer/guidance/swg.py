"""Guidance by the same network on overlapping crops of the sample."""

from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Annotated

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.fields import Finite, Name, Rule
from diffsteer.guidance.base import Guidance
from diffsteer.guidance.frequency import require_images
from diffsteer.guidance.queries import Branch, GuidanceState, Queries


@dataclass(frozen=True, repr=False)
class SWG(Guidance):
    """Sliding window guidance: away from what four crops, each by itself, make of the sample.

    Only where crops overlap, which are averaged there (masked SWG). Scale 1 is off. The network
    must take samples of other sizes.

    Args:
        scale: Where crops overlap x0 becomes crops + scale (x0 - crops).
        crop: Side of a crop as a share of the sample's, in ]0.5, 1[; 5 / 8 for EDM2.
        on: The branch.

    Source: Adaloglou et al. 2024, https://arxiv.org/abs/2411.10257.
    """

    scale: Finite
    crop: Annotated[Finite, Rule("a share in ]0.5, 1[", lambda crop: 0.5 < crop < 1)] = 0.625
    on: Name = "cond"

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        if self.scale == 1:
            return torch.zeros_like(at.x)
        require_images(at.x, "SWG")
        places = list(product(*(windows(side, self.crop) for side in at.x.shape[-2:])))
        crops = (Branch(self.on, x=at.x[..., rows, columns]) for rows, columns in places)
        answers = yield Branch(self.on), *crops
        total, count = torch.zeros_like(at.x), torch.zeros_like(at.x)
        for (rows, columns), answer in zip(places, answers[1:], strict=True):
            total[..., rows, columns] += answer.x0
            count[..., rows, columns] += 1
        difference = torch.where(count > 1, answers[0].x0 - total / count.clamp(min=1), 0)
        return (self.scale - 1) * difference


def windows(side: int, share: float) -> tuple[slice, slice]:
    """First and last window of a side of the sample, of even length where the side is even."""
    unit = 2 - side % 2
    length = min(ceil(share * side / unit) * unit, side)
    return slice(0, length), slice(side - length, side)
