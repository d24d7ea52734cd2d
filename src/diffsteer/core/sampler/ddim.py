"""First order, deterministic to ancestral."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.fields import Rule, is_number
from diffsteer.core.level import Level, lincomb
from diffsteer.core.noise import Draw
from diffsteer.core.sampler.base import Denoise, Past, Sampler, first_order

FRESH = Rule(
    "in [0, 1] (0 is deterministic, 1 ancestral)", lambda eta: is_number(eta) and 0 <= eta <= 1
)


@dataclass(frozen=True)
class DDIM(Sampler):
    """First order, one evaluation a step, with as much fresh noise as wanted.

    Args:
        eta: Share of fresh noise: 0 is deterministic (Euler in sigma / alpha), 1 is ancestral
            (DDPM; Euler ancestral in sigma / alpha).

    Source: Song et al. 2021, eq. 12 and 16, https://arxiv.org/abs/2010.02502.
    """

    eta: Annotated[float, FRESH] = 0.0

    @override
    def step(
        self, x: Tensor, now: Level, nxt: Level, denoise: Denoise, past: Past, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        x0 = denoise(x, now)
        if self.eta == 0 or nxt.sigma == 0:
            return first_order(x, x0, now, nxt), x0
        # Share of the variance at nxt that is drawn afresh: 1 at zero SNR, never negative.
        fresh = self.eta**2 * (1 - (nxt.ratio / now.ratio) ** 2)
        keep = nxt.sigma / now.sigma * (1 - fresh).sqrt()
        x = lincomb(keep, x, nxt.alpha - keep * now.alpha, x0)
        return torch.add(x, noise(x), alpha=(nxt.sigma * fresh.sqrt()).item()), x0


Euler = DDIM()
"""Deterministic first order in sigma / alpha (Karras et al. 2022), which is DDIM."""

DDPM = DDIM(eta=1.0)
"""Ancestral sampling (Ho et al. 2020) with the posterior variance."""

EulerAncestral = DDPM
"""Ancestral sampling as written in sigma / alpha by k-diffusion: the same steps as DDPM."""
