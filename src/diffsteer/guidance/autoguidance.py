"""Autoguidance: a network guided by a worse version of itself, trained or made.

By the paper, guides made by dropout or noise help only a network that was degraded so itself.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.fields import Finite, Name, Rule
from diffsteer.core.level import Level, lincomb
from diffsteer.core.noise import Noise
from diffsteer.guidance.adapters import Adapters
from diffsteer.guidance.base import Guidance
from diffsteer.guidance.queries import Branch, GuidanceState, Queries, extrapolate
from diffsteer.guidance.row_dropout import Dropout


@dataclass(frozen=True, repr=False)
class Auto(Guidance):
    """Guidance by a smaller or less trained network under the same prompt; scale 1 is off.

    With `adapter` the guide is the network itself with other adapters (LoRA): those of an earlier
    epoch, "epoch2", the same at a lower scale, "style@0.3", or "none"; one network in memory.

    Args:
        scale: x0 becomes guide + scale (main - guide).
        net: Name of the guide among the networks.
        on: The branch that both networks answer.
        adapter: Adapters that act in the guide, which is the main network unless `net` says
            another: those named and no others, each at its scale, without "@" at the one that it
            has, "lcm, style@0.3".

    Source: Karras et al. 2024, eq. 3, https://arxiv.org/abs/2406.02507; adapters: Kasymov et al.
        2024 (AutoLoRA), https://arxiv.org/abs/2410.03941.
    """

    scale: Finite
    net: Name = "guide"
    on: Name = "cond"
    adapter: Adapters = None

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        own = self.adapter is not None and self.net == "guide"
        guide = Branch(self.on, net="main" if own else self.net, adapter=self.adapter)
        return (yield from extrapolate(at, self.scale - 1, Branch(self.on), guide))


@dataclass(frozen=True, repr=False)
class AutoDropout(Guidance):
    """Guidance by the same network with dropout; scale 1 is off.

    Every dropout layer drops, whatever its own rate. Each sample has masks of its own, fresh at
    every level, from its seed.

    Args:
        scale: x0 becomes dropped + scale (x0 - dropped).
        p: Share that is dropped, in ]0, 1[.
        on: As for Auto.

    Source: Karras et al. 2024, section 4, https://arxiv.org/abs/2406.02507.
    """

    scale: Finite
    p: Annotated[Finite, Rule("a share in ]0, 1[", lambda p: 0 < p < 1)] = 0.1
    on: Name = "cond"

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        dropped = Branch(self.on, dropout=Dropout(self.p, at.seeds_for("dropout")))
        return (yield from extrapolate(at, self.scale - 1, Branch(self.on), dropped))


@dataclass(frozen=True, repr=False)
class AutoNoise(Guidance):
    """Guidance by the same network at more noise; scale 1 is off.

    Noise is added until sigma / alpha has risen by the share `noise`, and the network is told so;
    levels that cannot rise are not guided. Each sample has noise of its own, fresh at every level,
    from its seed.

    Args:
        scale: x0 becomes noisier + scale (x0 - noisier).
        noise: How much sigma / alpha rises, > 0; 0.1 is 10 %.
        on: As for Auto.

    Source: Karras et al. 2024, section 4, https://arxiv.org/abs/2406.02507.
    """

    scale: Finite
    noise: Annotated[Finite, Rule("a share > 0", lambda noise: noise > 0)] = 0.1
    on: Name = "cond"

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        level = None if self.scale == 1 else self._raised(at)
        if level is None:
            return torch.zeros_like(at.x)
        keep = level.alpha / at.level.alpha
        add = (level.sigma**2 - (keep * at.level.sigma) ** 2).clamp(min=0).sqrt()
        x = lincomb(keep, at.x, add, Noise(at.seeds_for("noise"))(at.x))
        noisier = Branch(self.on, x=x, level=level)
        return (yield from extrapolate(at, self.scale - 1, Branch(self.on), noisier))

    def _raised(self, at: GuidanceState) -> Level | None:
        """The level of the noisier input, or None where there is none."""
        if at.schedule is None:
            raise InputError(
                "AutoNoise asks the network at another level: give Denoiser the schedule"
            )
        most = at.schedule.at(at.schedule.last).ratio
        ratio = torch.minimum(at.level.ratio * (1 + self.noise), most)
        if not ratio > at.level.ratio:
            return None
        return at.schedule.at(at.schedule.time(ratio))
