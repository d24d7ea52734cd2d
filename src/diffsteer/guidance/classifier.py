"""Guidance by a classifier that was trained on noisy samples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.fields import Finite, Name
from diffsteer.core.level import Level, broadcast_like
from diffsteer.guidance.base import Guidance
from diffsteer.guidance.queries import Branch, GuidanceState, Queries


@dataclass(frozen=True, repr=False)
class Classifier(Guidance):
    """Classifier guidance; scale 0 is off and costs nothing.

    x0 gains scale sigma^2 / alpha times the gradient of log p(y | x), which holds for every
    prediction type. `Ancestral(classifier=scale)` moves the mean of each step instead, as the paper
    does for its sampler.

    Args:
        scale: 1 is the class itself if both networks are exact; more is less diverse.
        net: Name of the classifier among the networks, which returns the gradient; made by
            `class_gradient`.
        on: The condition that holds the classes.

    Source: Dhariwal & Nichol 2021, eq. 14, https://arxiv.org/abs/2105.05233.
    """

    scale: Finite
    net: Name = "classifier"
    on: Name = "cond"

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        if self.scale == 0:
            return torch.zeros_like(at.x)
        if (at.level.alpha == 0).any():
            raise InputError(
                "at alpha=0 (zero terminal SNR) the sample says nothing about its class: "
                "guide below it, Classifier(...).within(0, 1e3)"
            )
        (seen,) = yield (Branch(self.on, net=self.net),)
        return broadcast_like(self.scale * at.level.sigma**2 / at.level.alpha, at.x) * seen.out


Classify = Callable[[Tensor, Level, Mapping[str, Any]], Tensor]
"""From noisy samples `(rows, *D)`, their level and condition to logits `(rows, classes)`."""


def class_gradient(classify: Classify) -> Classify:
    """Make of a classifier what a `Network` calls: the gradient of log p(y | x), `(rows, *D)`.

    Args:
        classify: Returns logits. Each row must depend on its own sample alone.

    Returns:
        A function that reads the classes from the condition's `y`, `(rows,)`. It computes gradients
        under `torch.no_grad()` and `torch.inference_mode()` too.
    """

    def gradient(x: Tensor, level: Level, cond: Mapping[str, Any]) -> Tensor:
        if cond.get("y") is None:
            raise InputError("classifier guidance needs classes: a condition with y, (B,)")
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            y = cond["y"].clone().view(-1, 1)
            chosen = classify(x, level, cond).log_softmax(dim=-1).gather(1, y)
            return torch.autograd.grad(chosen.sum(), x)[0]

    return gradient
