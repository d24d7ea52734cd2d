"""Ancestral sampling with learned variance: x' = mean + sqrt(variance) noise.

mean     = keep x + (alpha' - keep alpha) x0,      keep = sigma'^2 alpha / (sigma^2 alpha')
variance = high^v low^(1 - v),                     v in [0, 1] from the network, by pixel
low, high = (sigma'^2, sigma^2) (1 - r'^2 / r^2),  r = sigma / alpha
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.fields import Finite
from diffsteer.core.level import Level, lincomb
from diffsteer.core.noise import Draw
from diffsteer.core.sampler.base import Denoise, Past, Sampler, denoised, like_sample


@dataclass(frozen=True)
class Ancestral(Sampler):
    """Ancestral sampling with learned variance: that of ADM, IDDPM and DiT.

    `low` is the variance of the posterior, which DDPM takes, and `high` that of the noise which the
    forward process adds. The denoiser returns `Denoised` with a variance.

    Args:
        classifier: Scale of classifier guidance that moves the mean by variance x gradient; 0 is
            none. The denoiser must have a network "classifier".

    Source: Nichol & Dhariwal 2021, eq. 15, https://arxiv.org/abs/2102.09672; Dhariwal & Nichol
    2021, algorithm 1, https://arxiv.org/abs/2105.05233.
    """

    classifier: Finite = 0.0

    @override
    def step(
        self, x: Tensor, now: Level, nxt: Level, denoise: Denoise, past: Past, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        x0, learned, class_gradient = denoised(denoise, x, now)
        if learned is None:
            channels = x.shape[1] if x.ndim > 1 else 1
            raise InputError(
                "Ancestral needs a network that learned its variance: this one returns "
                f"{channels} channels for {channels}, so it learned no variance. Take DDPM, the "
                "ancestral sampler with that of the posterior; on the command line --sampler DDPM"
            )
        keep = nxt.sigma**2 * now.alpha / (now.sigma**2 * nxt.alpha)
        mean = lincomb(keep, x, nxt.alpha - keep * now.alpha, x0)
        variance = _variance(learned, now, nxt, past)
        if self.classifier != 0:
            if class_gradient is None:
                raise InputError(
                    f"classifier={self.classifier} needs the gradient of a classifier: give "
                    'Denoiser a network "classifier"'
                )
            mean = mean + self.classifier * variance * like_sample(class_gradient(), x)
        if nxt.sigma == 0:
            return mean, x0
        return mean + variance.sqrt() * noise(x), x0


def _variance(learned: Tensor, now: Level, nxt: Level, past: Past) -> Tensor:
    """Variance of a step, `(B, *D)`, with v = (learned + 1) / 2."""
    fresh = 1 - (nxt.ratio / now.ratio) ** 2
    low, high = nxt.sigma**2 * fresh, now.sigma**2 * fresh
    if nxt.sigma == 0:  # a logarithm of 0; the published code takes that of the step before
        low = high if not past else now.sigma**2 * (1 - (now.ratio / past[-1][0].ratio) ** 2)
    v = (learned + 1) / 2
    return torch.exp(v * high.log().item() + (1 - v) * low.log().item())
