"""The best of n draws by a score: the plainest baseline of refined noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb

import torch
from torch import Tensor

from diffsteer.core.errors import InputError, brief
from diffsteer.core.fields import is_whole, plain_number, require_texts
from diffsteer.core.noise import checked_seeds
from diffsteer.metrics.scorer import Scorer

Images = Callable[[list[int]], Tensor]
Score = Callable[[Tensor, list[str]], Tensor]
"""From uint8 images `(N, 3, H, W)` and their prompts to a number each, `(N,)`; more is better."""
STRIDE = 2**20
"""Least distance between candidate seeds of a sample; generators see the lower 32 bits alone."""


@dataclass(frozen=True, eq=False)
class BestOf:
    """Images of seeds, each the best of n by a score, at n times the cost.

    Candidate k of seed i is the image of seed i + k `stride`. All differ where seeds are below 2^20
    and n is up to 2000.

    Args:
        images: Makes one image a seed, such as a `Generator`.
        score: What the best has most of.
        n: Candidates, >= 1.
        prompts: The prompt of seed i is prompts[i mod their number].
    """

    images: Images
    score: Score
    n: int
    prompts: Sequence[str]

    def __post_init__(self) -> None:
        if not is_whole(plain_number(self.n)) or self.n < 1 or not self.prompts:
            raise InputError(f"n={self.n} of {len(self.prompts)} prompts: give at least 1 of each")
        require_texts(self.prompts, "prompts")

    @property
    def stride(self) -> int:
        """Between candidate seeds: the first multiple of the number of prompts from STRIDE on.

        So all candidates show the prompt of their sample.
        """
        return -(-STRIDE // len(self.prompts)) * len(self.prompts)

    def chosen(self, seeds: Sequence[int]) -> list[int]:
        """The seeds of the best images."""
        best, _ = self._drawn(seeds)
        return [seed + k * self.stride for seed, k in zip(seeds, best.tolist(), strict=True)]

    def __call__(self, seeds: Sequence[int]) -> Tensor:
        """The best images, uint8 `(N, 3, H, W)`."""
        best, pictures = self._drawn(seeds)
        return pictures[best, torch.arange(len(seeds))]

    def _drawn(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Which candidate is the best of each seed, `(N,)`, and all, `(n, N, 3, H, W)`."""
        seeds = checked_seeds(seeds)
        texts = [self.prompts[seed % len(self.prompts)] for seed in seeds]
        draws = [
            self.images([seed + k * self.stride for seed in seeds]).cpu() for k in range(self.n)
        ]
        scores = [scored(self.score, pictures, texts) for pictures in draws]
        return torch.stack(scores).argmax(dim=0), torch.stack(draws)


def scored(score: Score, pictures: Tensor, texts: list[str]) -> Tensor:
    """Scores of images, `(N,)`, float64 on the CPU.

    Raises:
        InputError: they are not a finite number each, or a function of the user's raised.
    """
    try:
        values = torch.as_tensor(score(pictures, texts)).flatten().double().cpu()
    except Exception as error:  # of a function of the user's
        if isinstance(score, Scorer) or isinstance(error, InputError):
            raise
        frames = extract_tb(error.__traceback__)[1:2]
        name = getattr(score, "__name__", type(score).__name__)
        raise InputError(
            f"the score {name} raised {type(error).__name__}: {' '.join(str(error).split())}"
            + "".join(f" ({Path(at.filename).name}, line {at.lineno})" for at in frames)
        ) from error
    if len(values) != len(texts) or not values.isfinite().all():
        raise InputError(
            f"the score gave {brief(values.tolist())} for {len(texts)} images: it must give one "
            "finite number each"
        )
    return values
