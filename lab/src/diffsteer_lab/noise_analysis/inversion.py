"""Back from data to noise: deterministic sampling, undone step by step.

A first-order step from x at a level to x' at the next is x' = k x + c x0(x), with k = sigma'/sigma
and c = alpha' - k alpha. To undo it, x has to be known where the network is asked, so that x is the
fixed point of a map. Held fixed from one estimate to the next is x0(x) - g x, for some number g:

    x <- (x' + c (g x - x0(x))) / (k + c g).

An error in x is multiplied by c (g - x0'(x)) / (k + c g). For Gaussian data of variance s,
x0' = alpha s / (alpha^2 s + sigma^2) =: J(s). Of n numbers of unit variance no direction varies by
more than n, so that x0' lies between 0 and J(n), and every g from J(n) / 2 on lets all errors
shrink. We take the middle of J(1), exact for numbers that vary independently, and J(n). All of it
is finite at zero terminal SNR, where J is 0, as in the step that ends in data, where k is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level, upcast
from diffsteer.core.sampler import Denoise


@dataclass(frozen=True)
class Inversion:
    """From data to the noise that deterministic first-order sampling makes them of.

    Args:
        iterations: Estimates of each step, >= 1, one evaluation of the network each. The first
            asks the network at the sample of the level before, which is DDIM inversion. More come
            closer to the exact inverse, wherever the steps are short enough.
        averaged: Average of so many of the last estimates, <= iterations, in place of the last:
            they often lie on both sides of what they come close to.

    At zero terminal SNR the noisiest sample holds nothing of the data, but sampling does: the last
    step undone is x = (x' - alpha' x0(x)) / sigma', where x0(x) is what the network makes of pure
    noise. A network that predicts eps does not say that, and cannot be sampled there either.

    Source: Song et al. 2021, sec. 4.3, https://arxiv.org/abs/2010.02502; iterations and averages
        after ReNoise, Garibi et al. 2024, https://arxiv.org/abs/2403.14602, where eps is held,
        g = 1 / alpha, and whose corrections for editing are left out.
    """

    iterations: int = 1
    averaged: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.averaged <= self.iterations:
            raise InputError(
                f"{self.iterations} iterations, {self.averaged} averaged: give at least 1 "
                "iteration, and average 1 to all of them"
            )

    def step(self, x: Tensor, now: Level, nxt: Level, denoise: Denoise) -> Tensor:
        """Return the sample at `now` that a step takes to `x` at `nxt`, `(B, *D)`.

        Raises:
            ValueError: the step leads from pure noise to data, where all is x0 and no x is known.
        """
        keep = float(nxt.sigma / now.sigma)
        fresh = float(nxt.alpha) - keep * float(now.alpha)
        size = now.alpha.hypot(now.sigma)
        gain = (_slope(now, 1) + _slope(now, x[0].numel())) / 2
        slope = keep + fresh * gain
        if slope == 0:
            raise InputError(
                "one step from pure noise to data cannot be undone: take at least 2 steps"
            )
        guess = x * float(size / nxt.alpha.hypot(nxt.sigma))
        last: list[Tensor] = []
        for _ in range(self.iterations):
            guess = (x + fresh * (gain * guess - denoise(guess, now))) / slope
            last = [*last, guess][-self.averaged :]
        return torch.stack(last).mean(dim=0)

    def __call__(self, x0: Tensor, levels: Sequence[Level], denoise: Denoise) -> Tensor:
        """Return the sample at `levels[0]` of which sampling makes `x0`, `(B, *D)`.

        Args:
            x0: Sample at the last of the levels.
            levels: From most noise to least, as `grid` gives them and sampling visits them.
            denoise: The network, without guidance.
        """
        x = upcast(x0)
        for nxt, now in pairwise(reversed(levels)):
            x = self.step(x, now, nxt, denoise)
        return x


def _slope(level: Level, variance: float) -> float:
    """Derivative of x0 by x of Gaussian data: J of the module's text."""
    return float(level.alpha * variance / (level.alpha**2 * variance + level.sigma**2))


INVERSIONS: dict[str, Inversion] = {
    "DDIM inversion": Inversion(),
    "fixed point (ReNoise)": Inversion(iterations=6, averaged=2),
}
"""The two of the analysis, by name; the numbers are our choice."""
