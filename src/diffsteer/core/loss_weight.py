"""Loss weights by noise level.

A weight is stated once, for the squared error of x0 as a function of the SNR, and converted to the
network's own output: with x given, an error of the output moves x0 by sigma / det times as much.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.fields import PositiveFinite, check_fields
from diffsteer.core.level import Level
from diffsteer.core.prediction import Prediction

FLOOR = 4.035993e-05
"""SNR at which DDPM's linear schedule ends, the least that networks were commonly trained at. Below
it a weight stays as it is there, so that the end of a zero-SNR schedule weighs something."""


class Weight(ABC):
    """How much the squared error at a level counts."""

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def at(self, level: Level, prediction: Prediction) -> Tensor:
        """Weight of the network's mean squared error, of the shape of `level.alpha`."""


@dataclass(frozen=True)
class Uniform(Weight):
    """Every level the same, in the output's own space; lambda_t = 1 of Lin et al. 2023 with V."""

    @override
    def at(self, level: Level, prediction: Prediction) -> Tensor:
        return torch.ones_like(_noisy(level).alpha)


@dataclass(frozen=True)
class MinSNR(Weight):
    """x0 error times min(SNR, gamma): 1 / (SNR + 1) of it for V, 1 / SNR for Eps.

    Args:
        gamma: SNR above which easier levels gain no more weight, > 0.

    Source: Hang et al. 2023, sec. 3.4, https://arxiv.org/abs/2303.09556.
    """

    gamma: PositiveFinite = 5.0

    @override
    def at(self, level: Level, prediction: Prediction) -> Tensor:
        level = _floored(_noisy(level))
        return level.snr.clamp(max=self.gamma) * _gain(level, prediction)


@dataclass(frozen=True)
class SoftMinSNR(Weight):
    """Smooth form of MinSNR: x0 error times gamma SNR / (SNR + gamma).

    Source: Crowson et al. 2024, eq. 4 (there gamma = 4), https://arxiv.org/abs/2401.11605.
    """

    gamma: PositiveFinite = 5.0

    @override
    def at(self, level: Level, prediction: Prediction) -> Tensor:
        level = _floored(_noisy(level))
        return self.gamma / (1 + self.gamma / level.snr) * _gain(level, prediction)


@dataclass(frozen=True)
class Debiased(Weight):
    """x0 error times sqrt(SNR): 1 / sqrt(SNR) for Eps, sqrt(SNR) / (SNR + 1) for V.

    Source: Yu et al. 2023, debiased estimation loss, https://arxiv.org/abs/2310.08442.
    """

    @override
    def at(self, level: Level, prediction: Prediction) -> Tensor:
        level = _floored(_noisy(level))
        return level.snr.sqrt() * _gain(level, prediction)


@dataclass(frozen=True)
class EDMWeight(Weight):
    """x0 error times SNR + 1 / sigma_data^2: 1 for `Preconditioned(sigma_data)` at every level.

    Source: Karras et al. 2022, table 1, https://arxiv.org/abs/2206.00364.
    """

    sigma_data: PositiveFinite = 0.5

    @override
    def at(self, level: Level, prediction: Prediction) -> Tensor:
        level = _floored(_noisy(level))
        return (level.snr + self.sigma_data**-2) * _gain(level, prediction)


def _gain(level: Level, prediction: Prediction) -> Tensor:
    """Squared error of x0 for one of the output."""
    return (level.sigma / prediction.det(level)) ** 2


def _floored(level: Level) -> Level:
    """Replace levels below the SNR floor by the one at it."""
    return level._replace(alpha=torch.maximum(level.alpha, level.sigma * FLOOR**0.5))


def _noisy(level: Level) -> Level:
    if not (level.sigma > 0).all():
        raise InputError("a level with sigma=0 has no loss: draw times with noise")
    return level
