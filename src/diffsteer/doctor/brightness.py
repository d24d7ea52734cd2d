"""Brightness of samples in closed form, for images whose brightness is Gaussian.

x0 = b 1 + 0.2 n with b ~ N(0.6, 0.3^2). The mean of D pixels is one Gaussian mode whose noise is
sqrt(D) times smaller, so that its SNR is not low at the last level of common schedules. Sampling
starts there from pure noise all the same, and brightness falls short.

Source of the effect: Lin et al. 2023, https://arxiv.org/abs/2305.08891.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from diffsteer.core.level import Level
from diffsteer.core.oracle import Bright, Gaussian, scaled
from diffsteer.core.sampler.base import first_order
from diffsteer.core.schedule import Schedule

DATA = Bright()


@dataclass(frozen=True)
class Brightness:
    """Mean and standard deviation of the brightness of samples; of the data they are 0.6 and 0.3.

    Attributes:
        mean: Mean.
        std: Standard deviation.
        gain: Change of x0's mean with the mean of the noise at the last level; 0 at zero SNR.
    """

    mean: float
    std: float
    gain: float


def _mode(size: int) -> Gaussian:
    return Gaussian(DATA.mean, (DATA.spread**2 + DATA.std**2 / size) ** 0.5)


def gain(schedule: Schedule, shape: Sequence[int]) -> float:
    """Wiener gain alpha s^2 / (alpha^2 s^2 + sigma^2 / D) of the mean at the last level."""
    size = prod(shape)
    mode, level = _mode(size), scaled(schedule.at(schedule.last), size)
    return float(level.alpha * mode.std**2 / mode.var(level))


def expected(schedule: Schedule, shape: Sequence[int], levels: Sequence[Level] = ()) -> Brightness:
    """Brightness of samples from pure noise with a perfect network.

    Args:
        schedule: That the network was trained on, and its sampler believes in.
        shape: Of a latent, `(C, H, W)`.
        levels: That first-order steps visit, CLEAN at the end; empty for the exact ODE from the
            last level.
    """
    size = prod(shape)
    mode = _mode(size)
    start = levels[0] if levels else schedule.at(schedule.last)
    ends = [start.sigma * z * size**-0.5 for z in (torch.tensor(0.0), torch.tensor(1.0))]
    mean, one = (_sampled(mode, end.double(), start, levels, size) for end in ends)
    return Brightness(mean, one - mean, gain(schedule, shape))


def _sampled(
    mode: Gaussian, x: torch.Tensor, start: Level, levels: Sequence[Level], size: int
) -> float:
    """Final mean of the sample that starts with mean `x`."""
    if not levels:
        level = scaled(start, size)
        return float(mode.mean + mode.std * (x - level.alpha * mode.mean) / mode.var(level).sqrt())
    for now, nxt in zip(levels[:-1], levels[1:], strict=True):
        x = first_order(x, mode(x, scaled(now, size)), now, nxt)
    return float(x)
