"""Noise levels and prediction types of a ComfyUI model.

ComfyUI gives samples as x0 + sigma eps (variance exploding) for every model but those of flow
matching. Guidances see them as the network was trained: variance preserving, alpha^2 + sigma^2 = 1.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffsteer import X0, Discrete, Eps, Flow, Level, Prediction, Schedule, V, Velocity

LARGEST = 4518.0
"""Sigma of ComfyUI at zero terminal SNR, where it would be infinite: alpha^2 = 4.9e-8."""


@dataclass(frozen=True)
class Sampling:
    """Noise schedule and prediction type of a model.

    Attributes:
        prediction: What the network predicts.
        schedule: What it was trained on; None where that is unknown.
        preserving: Whether samples of ComfyUI have to be scaled to keep their variance.
        own: `model_sampling` of the model.
    """

    prediction: Prediction
    schedule: Schedule | None
    preserving: bool
    own: Any

    @classmethod
    def of(cls, sampling: Any) -> "Sampling":
        """Read the `model_sampling` of a model."""
        from comfy import model_sampling as kinds

        if isinstance(sampling, kinds.CONST):
            return cls(Velocity(), Flow(), False, sampling)
        if not isinstance(sampling, kinds.EPS) or isinstance(sampling, kinds.EDM):
            return cls(X0(), None, False, sampling)
        table = getattr(sampling, "sigmas", None)
        schedule = None
        if isinstance(table, Tensor) and table.ndim == 1 and len(table) > 1:
            schedule = Discrete((1 + table.double().cpu() ** 2).rsqrt())
        if isinstance(sampling, kinds.V_PREDICTION):
            return cls(V(), schedule, True, sampling)
        prediction = X0() if isinstance(sampling, kinds.X0) else Eps()
        return cls(prediction, schedule, True, sampling)

    def level(self, sigma: float) -> Level:
        """Level of a sigma of ComfyUI; its time is that of the network, of a flow in [0, 1]."""
        value = torch.tensor(sigma, dtype=torch.float64)
        if self.preserving:
            alpha = (1 + value**2).rsqrt()
            time = value if self.schedule is None else self.own.timestep(value.float()[None])[0]
            return Level(time.double().cpu(), alpha, value * alpha)
        if isinstance(self.prediction, Velocity):
            return Level(value, 1 - value, value)
        return Level(value, torch.ones_like(value), value)

    @property
    def terminal(self) -> Level:
        """The noisiest level, as the network was trained: without signal at zero terminal SNR."""
        level = self.level(float(self.own.sigma_max))
        if self.preserving and level.ratio >= LARGEST - 1:
            return Level(level.t, torch.zeros_like(level.t), torch.ones_like(level.t))
        return level

    def sigma(self, level: Level) -> float:
        """Sigma of ComfyUI at a level."""
        return float(level.sigma if isinstance(self.prediction, Velocity) else level.ratio)

    def scaled(self, x: Tensor, level: Level) -> Tensor:
        """Sample of ComfyUI as guidances see it, float32."""
        return x.float() * level.alpha.float() if self.preserving else x.float()

    def unscaled(self, x: Tensor, level: Level) -> Tensor:
        """Sample of a guidance as ComfyUI gives it to its model."""
        return x / level.alpha.float() if self.preserving else x
