"""Training objective: any schedule, any prediction type, any weight."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level, upcast
from diffsteer.core.loss_weight import Uniform, Weight
from diffsteer.core.prediction import Prediction
from diffsteer.core.schedule import Discrete, Schedule


@dataclass(frozen=True, eq=False)
class Objective:
    """Denoising error of a network.

    Args:
        schedule: Noise levels of training.
        prediction: Prediction type.
        weight: Loss weight of each level.
    """

    schedule: Schedule
    prediction: Prediction
    weight: Weight = Uniform()

    def __post_init__(self) -> None:
        last = self.schedule.at(self.schedule.last)
        if (self.prediction.det(last) == 0).any():
            raise InputError(
                f"{self.prediction!r} at zero terminal SNR repeats its input: train v-prediction "
                "there, or leave out zero SNR"
            )

    def losses(
        self, net: Callable[[Tensor, Level], Tensor], x0: Tensor, eps: Tensor, times: Tensor
    ) -> Tensor:
        """Weighted squared error of each sample, `(B,)`, in float32 or wider.

        Args:
            net: From noisy `(B, *D)` and levels `(B,)` to its output.
            x0: Data, `(B, *D)`.
            eps: Unit Gaussian noise.
            times: Of `uniform_times`, `(B,)`, or of another distribution.
        """
        level = self.schedule.at(times.cpu())
        out = upcast(net(level.mix(x0, eps), level))
        error = (out - self.prediction.target(x0, eps, level)).square().flatten(1).mean(1)
        return self.weight.at(level, self.prediction).to(error) * error


def uniform_times(schedule: Schedule, u: Tensor) -> Tensor:
    """Times of training for `u` in [0, 1], `(B,)`: uniform over the trained ones."""
    if isinstance(schedule, Discrete):
        last = schedule.last
        return (u.double() * (last + 1)).floor().clamp(max=last)
    return schedule.share(u)


def low_discrepancy(number: int) -> float:
    """Point in [0, 1[ of image `number`, by steps of the golden ratio.

    Those of consecutive images are spread evenly: less noise than of independent draws.
    """
    return (number + 1) * 0.6180339887498949 % 1.0


def clean(x: Tensor) -> Tensor:
    """Pixels uint8, `(..., 3, H, W)`, as floats in [-1, 1]."""
    return x.to(torch.float32) / 127.5 - 1
