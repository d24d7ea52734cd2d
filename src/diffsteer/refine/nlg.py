"""Noise level guidance: move the noise towards the prompt's prediction, without training."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.fields import Finite, Rule, check_fields, is_whole
from diffsteer.core.level import Level, broadcast_like, upcast
from diffsteer.core.noise import Noise, seeds_of
from diffsteer.guidance.denoiser import Cond
from diffsteer.hf.network import PipelineNetwork

CLIP = 0.5
"""Greatest change of an element in a round, before the scale."""
FRESH = 0.001
"""Variance of the noise that each round adds."""


class TrainingFreeRefiner(ABC):
    """A refiner without training, known by its text, such as "NLG(20)"; see `hook.Refine`."""

    null: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def refuses(self, level: Level) -> str:
        """Reason why it can do nothing where sampling starts at a level; empty where it can."""
        return ""

    def require(self, level: Level) -> None:
        """Check that it can do something where sampling starts at a level."""
        if why := self.refuses(level):
            raise InputError(f"{why}: train a NoiseRefiner")

    @abstractmethod
    def __call__(self, x: Tensor, conds: Mapping[str, Cond], model: PipelineNetwork) -> Tensor:
        """Return better noise, in the shape of `x`."""


def is_training_free(text: str) -> bool:
    """Whether a text is that of a refiner without training, not a folder or hub id."""
    return ("(" in text or text == NLG.__name__) and not Path(text).exists()


@dataclass(frozen=True)
class NLG(TrainingFreeRefiner):
    """Rounds of x - scale clip(eps_cond - eps_null), back to the norm of Gaussian noise.

    Clipped by element, at 0.5; each round adds noise of variance 0.001, drawn by a seed of the
    sample. The paper's own scale is not public: 1 is ours.

    Args:
        rounds: At least 1; two network evaluations each.
        scale: Of a round.

    Source: https://arxiv.org/abs/2509.13936.
    """

    rounds: Annotated[int, Rule("a whole number >= 1", lambda n: is_whole(n) and n >= 1)] = 20
    scale: Finite = 1.0
    null = True

    @override
    def refuses(self, level: Level) -> str:
        if level.alpha != 0:
            return ""
        return (
            "noise level guidance follows the difference of two predictions of noise, which is "
            "nothing at zero terminal SNR, where the noise is known"
        )

    @override
    def __call__(self, x: Tensor, conds: Mapping[str, Cond], model: PipelineNetwork) -> Tensor:
        level = model.terminal
        self.require(level)
        x = upcast(x)
        draw = Noise(seeds_of(x))
        norm = x[0].numel() ** 0.5
        for _ in range(self.rounds):
            cond, null = (
                model.prediction.solve(x, model(x, level, conds[name]), level)[1]
                for name in ("cond", "null")
            )
            x = x - self.scale * (cond - null).clamp(-CLIP, CLIP)
            size = torch.linalg.vector_norm(x.flatten(1), dim=1)
            x = x * broadcast_like(norm / size, x) + FRESH**0.5 * draw(x)
        return x
