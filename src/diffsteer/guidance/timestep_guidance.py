"""Guidance by the same network that is told another time of the same sample: no prompt is needed.

The difference is that of the network's outputs. Where there is no other time, nothing is guided.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.fields import Finite, Name, PositiveFinite, Rule
from diffsteer.core.noise import Noise, number
from diffsteer.guidance.base import Guidance
from diffsteer.guidance.queries import Branch, GuidanceState, Queries


@dataclass(frozen=True, repr=False)
class SelfGuidance(Guidance):
    """Self-guidance: away from the output for the same sample at a noisier time; scale 0 is off.

    Args:
        scale: The output gains scale (out at t - out at t + `later`).
        later: Share of the times of training, in ]0, 1]; 0.01 is 10 of 1,000 timesteps.
        on: The branch.

    Source: Li et al. 2024, https://arxiv.org/abs/2412.05827.
    """

    scale: Finite
    later: Annotated[Finite, Rule("a share in ]0, 1]", lambda v: 0 < v <= 1)] = 0.01
    on: Name = "cond"

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        return (yield from _against(at, self.scale, self.later, self.on))


@dataclass(frozen=True, repr=False)
class TSG(Guidance):
    """Time-step guidance: away from the output for a disturbed time; scale 1 is off.

    The paper adds noise to the embedding of the time. Here the time itself is disturbed, at every
    level anew and for all samples alike.

    Args:
        scale: The output becomes disturbed + scale (out - disturbed).
        noise: Standard deviation of the disturbance, as a share of the times of training, > 0.
        on: The branch.

    Source: Sadat et al. 2024, https://arxiv.org/abs/2407.02687.
    """

    scale: Finite
    noise: PositiveFinite = 0.05
    on: Name = "cond"

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        seed = number(f"{at.level.t.item()} time".encode())
        drawn = Noise([seed])(torch.zeros(1, 1)).item()
        return (yield from _against(at, self.scale - 1, self.noise * drawn, self.on))


def _against(at: GuidanceState, factor: float, share: float, on: str) -> Queries[Tensor]:
    """Shift of x0 by factor times the output less that for a time a share of all times later."""
    if at.schedule is None:
        raise InputError("another time needs the times of training: give Denoiser the schedule")
    first, last = at.schedule.first, at.schedule.last
    time = min(max(at.level.t.item() + share * (last - first), first), last)
    if factor == 0 or time == at.level.t.item():
        return torch.zeros_like(at.x)
    here, there = yield Branch(on), Branch(on, level=at.schedule.at(time))
    out = here.out + factor * (here.out - there.out)
    return at.prediction.x0(at.x, out, at.level) - here.x0
