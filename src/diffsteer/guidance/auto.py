"""Autoguidance: a network guided by a worse version of itself."""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.branch import Asking, Branch, Point
from diffsteer.guidance.base import Guidance, finite


@dataclass(frozen=True, repr=False)
class Auto(Guidance):
    """Guidance by a smaller or less trained network under the same prompt; scale 1 is off.

    Args:
        scale: x0 becomes guide + scale (main - guide).
        net: Name of the guide among the networks.
        on: The branch that both networks answer.

    Source: Karras et al. 2024, eq. 3, https://arxiv.org/abs/2406.02507.
    """

    scale: float
    net: str = "guide"
    on: str = "cond"

    def __post_init__(self) -> None:
        finite(self, "scale")

    @override
    def shift(self, at: Point) -> Asking[Tensor]:
        if self.scale == 1:
            return torch.zeros_like(at.x)
        good, bad = yield Branch(self.on), Branch(self.on, net=self.net)
        return (self.scale - 1) * (good.x0 - bad.x0)
