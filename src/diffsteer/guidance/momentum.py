"""Guidance by what was predicted in earlier steps of the same sampling."""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.fields import Finite, Name, NotNegative, Share
from diffsteer.guidance.base import Guidance
from diffsteer.guidance.queries import Branch, GuidanceState, Queries


@dataclass(frozen=True, repr=False)
class Momentum(Guidance):
    """Momentum guidance: away from the mean of earlier predictions, without a further evaluation.

    Scale 0 is off. The first step moves nothing.

    Args:
        scale: x0 gains scale (x0 - m); m becomes (1 - decay) x0 + decay m after each step.
        decay: Share of m that stays.
        on: The branch whose x0 it is.

    The paper takes velocities of flows; x0 is in their place here, for every prediction type.

    Source: Liao et al. 2026, algorithm 1, https://arxiv.org/abs/2602.20360.
    """

    scale: Finite
    decay: Share = 0.5
    on: Name = "cond"

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        if self.scale == 0:
            return torch.zeros_like(at.x)
        (answer,) = yield (Branch(self.on),)
        mean = at.memory.get("mean", answer.x0)
        at.memory["mean"] = torch.lerp(answer.x0, mean, self.decay)
        return self.scale * (answer.x0 - mean)


@dataclass(frozen=True, repr=False)
class SMC(Guidance):
    """Sliding mode control: CFG by an error that is driven to fall as exp(-rate step).

    With e = c - u of the network's outputs and e' that of the step before, as it was corrected,
    s = (e - e') + rate e' and e is corrected to e - gain s / |s|, each number by its own sign.
    Scale 1 is off.

    Args:
        scale: As for CFG.
        gain: K of the paper, 0.2 for flows and 0.01 for networks that predict eps; 0 is CFG.
        rate: lambda of the paper.

    Source: Wang et al. 2026, https://arxiv.org/abs/2603.03281.
    """

    scale: Finite
    gain: NotNegative = 0.2
    rate: Finite = 5.0

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        if self.scale == 1:
            return torch.zeros_like(at.x)
        cond, null = yield Branch(), Branch(cond="null")
        error = cond.out - null.out
        before = at.memory.get("error", error)
        error = error - self.gain * torch.sign(error - before + self.rate * before)
        at.memory["error"] = error
        return at.prediction.x0(at.x, null.out + self.scale * error, at.level) - cond.x0
