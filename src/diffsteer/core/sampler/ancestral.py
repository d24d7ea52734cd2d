"""Ancestral sampling with a variance that the network learned."""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level, lincomb
from diffsteer.core.noise import Draw
from diffsteer.core.sampler.base import Denoise, Learned, Past, Sampler


@dataclass(frozen=True)
class Ancestral(Sampler):
    """Ancestral sampling with learned variance: that of ADM, IDDPM and DiT.

    The network says for every pixel where, in logarithms, the variance of a step lies between that
    of the posterior, which DDPM takes, and that of the noise which the forward process adds.

    Args:
        classifier: Scale of classifier guidance that moves the mean by variance x gradient; 0 is
            none. The denoiser must have a network "classifier".

    Source: Nichol & Dhariwal 2021, eq. 15, https://arxiv.org/abs/2102.09672; Dhariwal & Nichol
    2021, algorithm 1, https://arxiv.org/abs/2105.05233.
    """

    classifier: float = 0.0

    def __post_init__(self) -> None:
        if not abs(self.classifier) < float("inf"):
            raise InputError(f"classifier={self.classifier} must be a finite number; 0 is none")

    @override
    def step(
        self, x: Tensor, now: Level, nxt: Level, denoise: Denoise, past: Past, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        if not isinstance(denoise, Learned):
            raise InputError(
                "Ancestral needs a network that learned its variance, as a Denoiser: take DDPM, "
                "the ancestral sampler with the variance of the posterior"
            )
        x0, said = denoise.learned(x, now)
        keep = nxt.sigma**2 * now.alpha / (now.sigma**2 * nxt.alpha)
        mean = lincomb(keep, x, nxt.alpha - keep * now.alpha, x0)
        variance = _variance(said, now, nxt, past)
        if self.classifier != 0:
            mean = mean + self.classifier * variance * denoise.gradient(x, now)
        if nxt.sigma == 0:
            return mean, x0
        return mean + variance.sqrt() * noise(x), x0


def _variance(said: Tensor, now: Level, nxt: Level, past: Past) -> Tensor:
    """Variance of a step, `(B, *D)`, from what the network says, -1 to 1."""
    fresh = 1 - (nxt.ratio / now.ratio) ** 2
    low, high = nxt.sigma**2 * fresh, now.sigma**2 * fresh
    if nxt.sigma == 0:  # a logarithm of 0; the published code takes that of the step before
        low = high if not past else now.sigma**2 * (1 - (now.ratio / past[-1][0].ratio) ** 2)
    share = (said + 1) / 2
    return torch.exp(share * high.log().item() + (1 - share) * low.log().item())
