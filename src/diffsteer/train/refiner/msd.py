"""Gradients at the refined noise of what an unguided sampling makes of it.

The loss is the squared distance of the student's result from the teacher's. Multistep score
distillation holds the network's outputs in the student's chain fixed. Every sampler is linear in
x and x0, and x0 = p x + q out with numbers p and q, so that the derivative of the result is then
one number A for every element: the gradient is A times the error, whatever the sampler and the
number of steps. No step needs a graph.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffsteer.core.fields import renamed_fields
from diffsteer.core.level import Level, upcast
from diffsteer.core.noise import Draw
from diffsteer.core.prediction import Prediction
from diffsteer.core.sampler import Sampler, trace

Net = Callable[[Tensor, Level], Tensor]


@renamed_fields(kind="prediction")
@dataclass(frozen=True, eq=False)
class Student:
    """An unguided sampling from unit noise.

    Attributes:
        net: From a sample and a level to the network's output, both `(B, *D)`.
        prediction: What it predicts.
        levels: From the terminal level to CLEAN, as `grid` gives them.
        sampler: How to step.
        noise: Source of fresh noise of ancestral samplers.
    """

    net: Net
    prediction: Prediction
    levels: Sequence[Level]
    sampler: Sampler
    noise: Draw = torch.randn_like

    def __call__(self, x: Tensor) -> Tensor:
        """Sample from unit noise, `(B, *D)`, scaled as pipelines scale it; gradients flow."""
        first = self.levels[0]
        start = float(first.alpha.hypot(first.sigma)) * x
        *_, end = trace(self.sampler, start, self.levels, self.denoised, self.noise)
        return end.x

    def denoised(self, x: Tensor, level: Level) -> Tensor:
        """Return the x0 that the network makes of `x`, `(B, *D)`, at a level."""
        return self.prediction.x0(x, self.net(x, level), level)

    def slope(self) -> float:
        """Derivative A of the result by the noise, with outputs held fixed: a sampling of 1."""
        still = replace(self, net=lambda x, level: torch.zeros_like(x), noise=torch.zeros_like)
        return still(torch.ones(1, dtype=torch.float64)).item()


@dataclass(frozen=True)
class MSD:
    """Multistep score distillation: no graph through the sampling, whatever its length.

    Args:
        slope: In place of the chain's own, `Student.slope`, which changes the scale of the gradient
            alone; 1 keeps it the same for every schedule and prediction type.

    Source: Ahn et al. 2024, eq. 4 and 5, https://arxiv.org/abs/2412.03895; the closed form is ours.
    """

    slope: float = 1.0

    def loss(self, refined: Tensor, target: Tensor, student: Student) -> Tensor:
        """Mean squared distance of the student's result from `target`, `(B, *D)`; 0-dim."""
        with torch.no_grad():
            error = upcast(student(refined.detach())) - target
        lead = (refined * (2 * self.slope / error.numel() * error)).sum()
        return error.square().mean() + lead - lead.detach()


@dataclass(frozen=True)
class Full:
    """Back-propagation through every step, each computed again in the backward pass."""

    def loss(self, refined: Tensor, target: Tensor, student: Student) -> Tensor:
        """Mean squared distance of the student's result from `target`, `(B, *D)`; 0-dim."""
        net = student.net

        def again(x: Tensor, level: Level) -> Tensor:
            out: Tensor = checkpoint(net, x, level, use_reentrant=False)
            return out

        return (replace(student, net=again)(refined) - target).square().mean()


GRADIENTS: dict[str, MSD | Full] = {"msd": MSD(), "full": Full()}
"""By the names that settings use."""
