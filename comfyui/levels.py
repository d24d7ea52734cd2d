"""Noise levels and prediction types of a ComfyUI model.

ComfyUI gives samples as x0 + sigma eps (variance exploding) for every model but those of flow
matching. Guidances see them as the network was trained: variance preserving, alpha^2 + sigma^2 = 1.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffsteer import X0, Discrete, Eps, Flow, Level, Prediction, Schedule, V, Velocity


@dataclass(frozen=True)
class Sampling:
    """Noise schedule and prediction type of a model.

    Attributes:
        prediction: What the network predicts.
        schedule: What it was trained on; None where that is unknown.
        preserving: Whether samples of ComfyUI have to be scaled to keep their variance.
    """

    prediction: Prediction
    schedule: Schedule | None
    preserving: bool

    @classmethod
    def of(cls, sampling: Any) -> "Sampling":
        """Read the `model_sampling` of a model."""
        from comfy import model_sampling as kinds

        if isinstance(sampling, kinds.CONST):
            return cls(Velocity(), Flow(), preserving=False)
        if not isinstance(sampling, kinds.EPS) or isinstance(sampling, kinds.EDM):
            return cls(X0(), None, preserving=False)
        table = getattr(sampling, "sigmas", None)
        schedule = None
        if isinstance(table, Tensor) and table.ndim == 1 and len(table) > 1:
            schedule = Discrete((1 + table.double().cpu() ** 2).rsqrt())
        if isinstance(sampling, kinds.V_PREDICTION):
            return cls(V(), schedule, preserving=True)
        return cls(X0() if isinstance(sampling, kinds.X0) else Eps(), schedule, preserving=True)

    def level(self, sigma: float) -> Level:
        """Level of a sigma of ComfyUI."""
        value = torch.tensor(sigma, dtype=torch.float64)
        if self.preserving:
            alpha = (1 + value**2).rsqrt()
            return Level(value, alpha, value * alpha)
        if isinstance(self.prediction, Velocity):
            return Level(value, 1 - value, value)
        return Level(value, torch.ones_like(value), value)

    def sigma(self, level: Level) -> float:
        """Sigma of ComfyUI at a level."""
        return float(level.sigma if isinstance(self.prediction, Velocity) else level.ratio)

    def scaled(self, x: Tensor, level: Level) -> Tensor:
        """Sample of ComfyUI as guidances see it, float32."""
        return x.float() * level.alpha.float() if self.preserving else x.float()

    def unscaled(self, x: Tensor, level: Level) -> Tensor:
        """Sample of a guidance as ComfyUI gives it to its model."""
        return x / level.alpha.float() if self.preserving else x
